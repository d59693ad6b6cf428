//! The log: one line for each case, and which cases run.

use bare::console;
use bare::fault::Local;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};

static CASES: AtomicU32 = AtomicU32::new(0);
static ONLY: Local<&str> = Local::new("");

/// Runs only cases whose names begin so.
pub(crate) fn only(prefix: &'static str) {
    // SAFETY: the boot processor alone, before any case.
    unsafe { *ONLY.get() = prefix };
}

/// How many cases there were.
pub(crate) fn count() -> u32 {
    CASES.load(Ordering::Relaxed)
}

/// The line of a case; printed when it is dropped.
pub(crate) struct Line {
    text: [u8; 480],
    length: usize,
}

/// Begins the line of the case with this name, unless it is not to run.
pub(crate) fn begin(name: fmt::Arguments) -> Option<Line> {
    let mut line = Line { text: [0; 480], length: 0 };
    line.add(name);
    // SAFETY: written before any case only.
    let only = unsafe { *ONLY.get() };
    if !line.text().starts_with(only) {
        line.length = 0;
        return None;
    }
    let _ = CASES.fetch_add(1, Ordering::Relaxed);
    line.add(format_args!(": "));
    Some(line)
}

/// A case that is done when it has a result.
pub(crate) fn result(name: fmt::Arguments, result: impl FnOnce(&mut Line)) {
    if let Some(mut line) = begin(name) {
        result(&mut line);
    }
}

impl Line {
    pub(crate) fn add(&mut self, text: fmt::Arguments) {
        // A line that is too long is cut.
        let _ = self.write_fmt(text);
    }

    fn text(&self) -> &str {
        core::str::from_utf8(&self.text[..self.length]).unwrap_or("?")
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (place, byte) in self.text[self.length..].iter_mut().zip(text.bytes()) {
            *place = byte;
            self.length += 1;
        }
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.length != 0 {
            console::line(format_args!("{}", self.text()));
        }
    }
}
