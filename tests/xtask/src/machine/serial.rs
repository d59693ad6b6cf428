//! Following a serial line while it grows in a file.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The verdict is still open.
    Continue,
    /// The verdict is known: end the run.
    Stop,
}

/// Someone who follows the serial line of a machine.
pub(crate) trait Watch {
    /// The emulator has started, as process `pid`.
    fn started(&mut self, _pid: u32) {}

    /// Takes what arrived since the last call, in whatever pieces it came.
    fn bytes(&mut self, bytes: &[u8]) -> Step;
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// The lines that `bytes` complete, without their line ends and control characters.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte == b'\n' {
                lines.push(self.take());
            } else {
                self.partial.push(byte);
            }
        }
        lines
    }

    /// What came after the last line end.
    pub(crate) fn take(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.partial).replace(|c: char| c.is_control(), "");
        self.partial.clear();
        line
    }
}

/// A reader at the growing end of a file that may not exist yet.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    /// A tail of `path` from its start.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), file: None }
    }

    /// Everything that was added since the last call.
    pub(crate) fn read(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(bytes),
                Err(error) => return Err(error).context("cannot read the serial log"),
            }
        }
        if let Some(file) = &mut self.file {
            let _ = file.read_to_end(&mut bytes).context("cannot read the serial log")?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_given_only_when_it_is_complete() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"visor: [in"), Vec::<String>::new());
        assert_eq!(lines.push(b"fo] up\r\nnext"), ["visor: [info] up"]);
        assert_eq!(lines.take(), "next");
        assert_eq!(lines.take(), "");
    }

    #[test]
    fn bytes_that_are_not_text_do_not_end_the_stream() {
        assert_eq!(Lines::default().push(b"a\xff\x1b[0mb\n"), ["a\u{fffd}[0mb"]);
    }

    #[test]
    fn a_tail_gives_each_byte_once_and_waits_for_its_file() {
        let path = std::env::temp_dir().join(format!("xtask-tail-{}", std::process::id()));
        let mut tail = Tail::new(&path);
        assert_eq!(tail.read().unwrap(), b"");
        std::fs::write(&path, b"one").unwrap();
        assert_eq!(tail.read().unwrap(), b"one");
        assert_eq!(tail.read().unwrap(), b"");
        std::fs::remove_file(&path).unwrap();
    }
}
