//! QEMU's monitor for humans, at a socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Long enough for a dump of all memory, in the emulated clock.
const PATIENCE: Duration = Duration::from_secs(120);
const PROMPT: &str = "(qemu) ";

/// A socket that QEMU makes when it starts.
pub(crate) fn connected(path: &str) -> Result<UnixStream, String> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => {
                let patient = socket.set_read_timeout(Some(PATIENCE));
                return patient.map(|()| socket).map_err(|why| why.to_string());
            }
            Err(why) if start.elapsed() > PATIENCE => return Err(format!("{path}: {why}")),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A conversation.
pub(crate) struct Monitor(UnixStream);

impl Monitor {
    /// At the socket `path`.
    pub(crate) fn open(path: &str) -> Result<Self, String> {
        let mut monitor = Self(connected(path)?);
        monitor.answer().map(|_| monitor)
    }

    /// What QEMU answers to `command`.
    pub(crate) fn ask(&mut self, command: &str) -> Result<String, String> {
        let sent = self.0.write_all(format!("{command}\n").as_bytes());
        sent.map_err(|why| format!("monitor: {why}"))?;
        self.answer()
    }

    /// To the next prompt.
    fn answer(&mut self) -> Result<String, String> {
        let (mut text, mut bytes) = (String::new(), [0; 4096]);
        while !text.ends_with(PROMPT) {
            match self.0.read(&mut bytes) {
                Ok(0) => return Err("the monitor is gone".to_owned()),
                Ok(count) => text += &String::from_utf8_lossy(&bytes[..count]),
                Err(why) => return Err(format!("monitor: {why}")),
            }
        }
        Ok(text.replace('\r', ""))
    }
}
