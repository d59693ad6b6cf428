//! An attack by root's own device: QEMU's teaching device (`docs/specs/edu`) has a DMA engine, which is told
//! here to read and write the visor's memory.

use crate::system::{physical, text};
use crate::{devmem, secret, unit};
use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
/// What a transfer moves; the device's own memory has two of it.
const BYTES: usize = 2048;

/// Registers, by words of 8 bytes.
const SOURCE: usize = 0x80 / 8;
const TARGET: usize = 0x88 / 8;
const COUNT: usize = 0x90 / 8;
const COMMAND: usize = 0x98 / 8;
const RUN: u64 = 1;
const TO_MEMORY: u64 = 1 << 1;
/// Where its own memory is.
const OWN: u64 = 0x4_0000;

#[repr(C, align(4096))]
struct Buffer([u8; PAGE]);

/// A page of this program's that stays where it is in the machine's memory.
pub(crate) struct Page {
    buffer: Box<Buffer>,
    pub(crate) physical: u64,
}

impl Page {
    pub(crate) fn new() -> Result<Self, String> {
        let buffer = Box::new(Buffer([1; PAGE]));
        let at = &raw const *buffer;
        // SAFETY: the page is this program's.
        let _ = unsafe { libc::mlock(at.cast(), PAGE) };
        Ok(Self { buffer, physical: physical(at as u64)? })
    }

    pub(crate) fn fill(&mut self, value: impl Fn(usize) -> u64) {
        for (index, word) in self.buffer.0.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&value(index).to_le_bytes());
        }
        // The compiler must not know better than memory what is there.
        let _ = std::hint::black_box(&mut self.buffer);
    }

    /// What a transfer moves.
    pub(crate) fn bytes(&self) -> &[u8] {
        &std::hint::black_box(&self.buffer).0[..BYTES]
    }

    pub(crate) fn holds(&self, value: impl Fn(usize) -> u64) -> bool {
        let words = self.bytes().chunks_exact(8);
        words.enumerate().all(|(index, word)| word == value(index).to_le_bytes())
    }
}

/// Attacks three of the visor's pages that hold something, the first and the last among them, by every such
/// device.
pub(crate) fn attack() -> Result<(), String> {
    secret::make()?;
    let (start, end) = reservation().ok_or("no reservation in /proc/iomem")?;
    println!("init: the visor's memory: {start:#x}-{end:#x}");
    let tell_fault = if unit::tell()? { unit::fault } else { || Ok(()) };
    let used: Vec<u64> = (start..end).step_by(PAGE).filter(|page| is_used(*page)).collect();
    let place = |index: usize| used.get(index).copied().ok_or("the visor's memory is empty");
    let last = used.len().saturating_sub(1);
    let places = [place(0)?, place(last / 2)?, place(last)?];
    for device in devices() {
        let mut edu = Edu::open(&device)?;
        edu.check()?;
        for at in places {
            edu.read(at)?;
            tell_fault()?;
            edu.write(at)?;
            tell_fault()?;
        }
        edu.check()?;
    }
    secret::look();
    Ok(())
}

/// The visor's memory: what begins at a multiple of 2 MiB where RAM ends, and is reserved.
pub(crate) fn reservation() -> Option<(u64, u64)> {
    let map = text("/proc/iomem");
    let parse = |line: &str| -> Option<(u64, u64, bool)> {
        let (range, name) = line.split_once(" : ")?;
        let (start, last) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(last)? + 1, name == "Reserved"))
    };
    let lines = map.lines().filter(|line| !line.starts_with(' '));
    let ranges: Vec<_> = lines.filter_map(parse).collect();
    let pairs = ranges.windows(2);
    let mut found = pairs.filter(|pair| {
        let ((_, end, before), (start, _, is_reserved)) = (pair[0], pair[1]);
        !before && end == start && is_reserved && start % (2 << 20) == 0
    });
    found.next().map(|pair| (pair[1].0, pair[1].1))
}

/// Whether the page at `at` begins with more than zeros, which a read that fails may give, too.
fn is_used(at: u64) -> bool {
    devmem::read_bytes(at, BYTES).is_ok_and(|bytes| bytes.iter().any(|byte| *byte != 0))
}

/// Folders of the devices, in the order of their addresses.
pub(crate) fn devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<String> = entries
        .map(|entry| entry.path().display().to_string())
        .filter(|path| text(&format!("{path}/vendor")).trim() == "0x1234")
        .filter(|path| text(&format!("{path}/device")).trim() == "0x11e8")
        .collect();
    found.sort_unstable();
    found
}

/// One of the devices, with a page to move things through.
pub(crate) struct Edu {
    registers: *mut u64,
    pub(crate) name: String,
    page: Page,
}

impl Edu {
    pub(crate) fn open(path: &str) -> Result<Self, String> {
        let fail = |why: std::io::Error| format!("{path}: {why}");
        fs::write(format!("{path}/enable"), "1").map_err(fail)?;
        let both = |name: &str| {
            OpenOptions::new().read(true).write(true).open(format!("{path}/{name}")).map_err(fail)
        };
        // Command register: memory space, and to be a master of the bus.
        both("config")?.write_all_at(&[6, 0], 4).map_err(fail)?;
        let resource = both("resource0")?;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let (none, shared) = (std::ptr::null_mut(), libc::MAP_SHARED);
        // SAFETY: a new mapping, which stays.
        let registers = unsafe { libc::mmap(none, PAGE, rights, shared, resource.as_raw_fd(), 0) };
        if registers == libc::MAP_FAILED {
            return Err(fail(std::io::Error::last_os_error()));
        }
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Self { registers: registers.cast(), name, page: Page::new()? })
    }

    /// Moves [`BYTES`].
    fn transfer(&mut self, [from, to, command]: [u64; 3]) -> Result<(), String> {
        let bytes = BYTES as u64;
        let set = [(SOURCE, from), (TARGET, to), (COUNT, bytes), (COMMAND, RUN | command)];
        for (register, value) in set {
            // SAFETY: registers of the mapped page. What the device then writes is the experiment.
            unsafe { self.registers.add(register).write_volatile(value) };
        }
        let start = Instant::now();
        // SAFETY: as above.
        while unsafe { self.registers.add(COMMAND).read_volatile() } & RUN != 0 {
            if start.elapsed() > Duration::from_secs(20) {
                return Err(format!("edu {} does not end", self.name));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub(crate) fn take(&mut self, from: u64) -> Result<(), String> {
        self.transfer([from, OWN, 0])
    }

    pub(crate) fn store(&mut self, to: u64) -> Result<(), String> {
        self.transfer([OWN, to, TO_MEMORY])
    }

    /// Fills the device's own memory.
    pub(crate) fn fill(&mut self, value: impl Fn(usize) -> u64) -> Result<(), String> {
        self.page.fill(value);
        self.take(self.page.physical)
    }

    /// What the device's own memory holds.
    pub(crate) fn content(&mut self) -> Result<&Page, String> {
        self.store(self.page.physical)?;
        Ok(&self.page)
    }

    /// It must work where nobody has anything against it: in this program's own page.
    pub(crate) fn check(&mut self) -> Result<(), String> {
        let pattern = |index: usize| 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(index as u64 + 1);
        self.fill(pattern)?;
        self.page.fill(|_| 0);
        if !self.content()?.holds(pattern) {
            return Err(format!("edu {} does not move memory", self.name));
        }
        println!("init: edu {} moves memory", self.name);
        Ok(())
    }

    /// Has it read the visor's page at `at`, and compares with what the processor finds there.
    fn read(&mut self, at: u64) -> Result<(), String> {
        self.fill(|index| 0x5555_0000 + index as u64)?;
        self.take(at)?;
        let is_read = self.content()?.bytes() == devmem::read_bytes(at, BYTES)?;
        let outcome = if is_read { "succeeds" } else { "fails" };
        println!("init: edu {} reads the visor's {at:#x}: {outcome}", self.name);
        Ok(())
    }

    /// Has it write a secret to the visor's page at `at`, and looks there with the processor. Nothing
    /// else has the secret then, but for the one place where it is kept.
    fn write(&mut self, at: u64) -> Result<(), String> {
        let before = devmem::read_bytes(at, BYTES)?;
        self.fill(|index| secret::words().get(index).copied().unwrap_or(0))?;
        self.store(at)?;
        let wanted = self.page.bytes().to_vec();
        self.fill(|_| 0)?;
        let after = devmem::read_bytes(at, BYTES)?;
        let outcome = match (after == wanted, after == before) {
            (true, _) => "succeeds",
            (false, true) => "fails",
            (false, false) => "does something else",
        };
        println!("init: edu {} writes the visor's {at:#x}: {outcome}", self.name);
        Ok(())
    }
}
