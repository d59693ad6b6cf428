//! The visor's own command line: words separated by spaces, parsed strictly.

use core::fmt;

/// What the visor logs: messages of this level and of the levels before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What makes the visor stop.
    Error,
    /// What an operator should look at.
    Warn,
    /// One line per step of the boot.
    Info,
    /// Everything.
    Debug,
}

/// Where messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    /// Nowhere.
    Off,
    /// A 16550 UART.
    Port {
        /// First of its eight I/O ports.
        port: u16,
        /// Bits per second; divides 115,200.
        baud: u32,
    },
}

/// What the visor does when it cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// Stops every processor.
    Halt,
    /// Resets the machine.
    Reset,
}

/// What the command line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What is logged.
    pub log: LogLevel,
    /// Where it is logged.
    pub serial: Serial,
    /// Most processors to start; `None` for all.
    pub cpus: Option<u32>,
    /// What happens when the visor cannot go on.
    pub panic: OnPanic,
}

impl Default for Options {
    fn default() -> Self {
        let serial = Serial::Port {
            port: 0x3f8,
            baud: FASTEST,
        };
        Self {
            log: LogLevel::Info,
            serial,
            cpus: None,
            panic: OnPanic::Halt,
        }
    }
}

/// Bits per second of a 16550 UART whose divisor is one.
const FASTEST: u32 = 115_200;

/// A word of the command line: `name=value`.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// What precedes the `=`.
    pub name: &'static str,
    /// What may follow it.
    pub values: &'static str,
    /// What it does, in one sentence.
    pub meaning: &'static str,
    apply: fn(&mut Options, &str) -> Option<()>,
}

/// Every word there is.
pub const WORDS: &[Word] = &[
    Word {
        name: "log",
        values: "off|error|warn|info|debug",
        meaning: "Logs messages of this level and of the levels before it (default: info).",
        apply: |options, value| {
            options.log = match value {
                "off" => LogLevel::Off,
                "error" => LogLevel::Error,
                "warn" => LogLevel::Warn,
                "info" => LogLevel::Info,
                "debug" => LogLevel::Debug,
                _ => return None,
            };
            Some(())
        },
    },
    Word {
        name: "serial",
        values: "com1|com2|com3|com4|0xPORT[,BAUD]|off",
        meaning: "Logs to this serial port (default: com1,115200).",
        apply: |options, value| {
            options.serial = serial(value)?;
            Some(())
        },
    },
    Word {
        name: "cpus",
        values: "N",
        meaning: "Uses at most N processors, at least one (default: all).",
        apply: |options, value| {
            options.cpus = Some(decimal(value).filter(|&n| n > 0)?);
            Some(())
        },
    },
    Word {
        name: "panic",
        values: "halt|reset",
        meaning: "Stops or resets the machine when the visor cannot go on (default: halt).",
        apply: |options, value| {
            options.panic = match value {
                "halt" => OnPanic::Halt,
                "reset" => OnPanic::Reset,
                _ => return None,
            };
            Some(())
        },
    },
];

fn serial(value: &str) -> Option<Serial> {
    if value == "off" {
        return Some(Serial::Off);
    }
    let (name, baud) = match value.split_once(',') {
        Some((name, baud)) => (name, decimal(baud)?),
        None => (value, FASTEST),
    };
    let port = match name {
        "com1" => 0x3f8,
        "com2" => 0x2f8,
        "com3" => 0x3e8,
        "com4" => 0x2e8,
        _ => hexadecimal(name.strip_prefix("0x")?)?,
    };
    // A 16550 has eight ports; its divisor is a whole number.
    let fits = port <= 0xfff8 && FASTEST.checked_rem(baud) == Some(0);
    fits.then_some(Serial::Port { port, baud })
}

/// A decimal number without the sign that `parse` lets pass.
fn decimal(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

fn hexadecimal(text: &str) -> Option<u16> {
    u16::from_str_radix(text, 16)
        .ok()
        .filter(|_| !text.starts_with('+'))
}

/// Reads a command line from which the image's name was dropped (see [`cook`]).
///
/// # Errors
/// The first thing that is wrong with it: nothing in it is ignored.
pub fn parse(text: &[u8]) -> Result<Options, CmdlineError> {
    if let Some(&byte) = text.iter().find(|byte| !matches!(byte, b' '..=b'~')) {
        return Err(CmdlineError::NotText(byte));
    }
    let text = core::str::from_utf8(text).unwrap_or_default();
    let mut options = Options::default();
    let mut seen = [false; WORDS.len()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let mut rules = WORDS.iter().zip(&mut seen);
        let Some((rule, seen)) = rules.find(|(rule, _)| rule.name == name) else {
            return Err(CmdlineError::UnknownWord(Excerpt::of(word)));
        };
        if core::mem::replace(seen, true) {
            return Err(CmdlineError::Repeated(Excerpt::of(word)));
        }
        (rule.apply)(&mut options, value)
            .ok_or_else(|| CmdlineError::BadValue(Excerpt::of(word)))?;
    }
    Ok(options)
}

/// A command line as the loader `loader_name` handed it over, without the image's name.
///
/// GRUB 2 leaves the name out; every other loader puts it first. The rule is Xen's
/// (`xen/arch/x86/setup.c`, `loader_is_grub2` and `cmdline_cook`), so that one configuration
/// serves both.
#[must_use]
pub fn cook<'a>(raw: &'a [u8], loader_name: &[u8]) -> &'a [u8] {
    let line = raw.trim_ascii_start();
    let version = loader_name
        .windows(5)
        .position(|name| name == b"GRUB ")
        .map(|at| at + 5);
    let grub2 = version.is_some_and(|at| loader_name.get(at) != Some(&b'0'));
    let name = line
        .iter()
        .position(|&byte| byte == b' ')
        .unwrap_or(line.len());
    if grub2 {
        line
    } else {
        line.get(name..).unwrap_or_default().trim_ascii_start()
    }
}

/// The beginning of an offending word: enough to recognize it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Excerpt {
    text: [u8; Self::MOST],
    len: usize,
}

impl Excerpt {
    /// Most bytes that are kept.
    const MOST: usize = 32;

    fn of(word: &str) -> Self {
        let mut text = [0; Self::MOST];
        for (to, from) in text.iter_mut().zip(word.bytes()) {
            *to = from;
        }
        Self {
            text,
            len: word.len(),
        }
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.text.get(..self.len).unwrap_or(&self.text);
        let rest = if self.len > Self::MOST { "..." } else { "" };
        write!(
            f,
            "\"{}{rest}\"",
            core::str::from_utf8(kept).unwrap_or_default()
        )
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wrong with the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmdlineError {
    /// A word that is not in [`WORDS`].
    UnknownWord(Excerpt),
    /// A word given a second time.
    Repeated(Excerpt),
    /// A word with a value it does not take.
    BadValue(Excerpt),
    /// A byte that is not printable ASCII.
    NotText(u8),
}

impl fmt::Display for CmdlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("command line: ")?;
        match self {
            Self::UnknownWord(word) => write!(f, "unknown word {word}"),
            Self::Repeated(word) => write!(f, "{word} repeats an earlier word"),
            Self::BadValue(word) => write!(f, "bad value in {word}"),
            Self::NotText(byte) => write!(f, "byte {byte:#04x} is not printable ASCII"),
        }
    }
}
