//! Initial RAM file systems in the "newc" format (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`).

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive under construction.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds an empty folder.
    pub(crate) fn directory(&mut self, name: &str) -> Result<&mut Self> {
        self.entry(name, DIRECTORY, (0, 0), &[])
    }

    /// Adds a file that everyone may read and run.
    pub(crate) fn program(&mut self, name: &str, data: &[u8]) -> Result<&mut Self> {
        self.entry(name, PROGRAM, (0, 0), data)
    }

    /// Adds the character device `number` = (major, minor).
    pub(crate) fn device(&mut self, name: &str, number: (u32, u32)) -> Result<&mut Self> {
        self.entry(name, CHARACTER_DEVICE, number, &[])
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        let _ = self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        number: (u32, u32),
        data: &[u8],
    ) -> Result<&mut Self> {
        self.entries += 1;
        let size = u32::try_from(data.len()).context("a file of an initramfs is above 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1).context("a name is above 4 GiB")?;
        let (major, minor) = number;
        let links = 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        // namesize, check: eight hexadecimal digits each.
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
        Ok(self)
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_reads_back_what_was_written() {
        let mut archive = Archive::default();
        let _ = archive.directory("dev").unwrap();
        let _ = archive.device("dev/console", (5, 1)).unwrap();
        let _ = archive.program("init", b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        let mut cpio = Command::new("cpio")
            .args(["-itvn", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listing = cpio.wait_with_output().unwrap();
        assert!(listing.status.success());
        let text = String::from_utf8(listing.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!((lines[0][0], lines[0][8]), ("drwxr-xr-x", "dev"));
        assert_eq!((lines[1][4], lines[1][5]), ("5,", "1"));
        assert_eq!((lines[2][0], lines[2][4]), ("-rwxr-xr-x", "5"));
    }
}
