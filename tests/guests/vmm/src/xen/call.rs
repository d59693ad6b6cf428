//! Hypercalls by the kernel's privcmd device, as Xen 4.17 takes them (xen/include/public).

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::memory::PAGE;

const MEMORY: u64 = 12;
const SYSCTL: u64 = 35;
const DOMCTL: u64 = 36;
const DM: u64 = 41;
/// Of domctl.h and sysctl.h.
const VERSION: u32 = 0x15;
const READ_CONSOLE: u32 = 1;

/// include/uapi/xen/privcmd.h.
const HYPERCALL: libc::Ioctl = 48 << 16 | 0x50 << 8;
const MAP_BATCH: libc::Ioctl = 32 << 16 | 0x50 << 8 | 4;

/// The body of a domctl: words at offsets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body(pub(super) [u32; 32]);

impl Body {
    pub(super) fn of(words: &[(usize, u32)]) -> Self {
        let mut body = [0; 32];
        for (offset, word) in words {
            body[offset / 4] = *word;
        }
        Self(body)
    }

    /// Sets 8 bytes.
    pub(super) fn long(mut self, offset: usize, value: u64) -> Self {
        self.0[offset / 4] = value as u32;
        self.0[offset / 4 + 1] = (value >> 32) as u32;
        self
    }
}

/// The operation of a domctl or sysctl, in front of its body.
#[repr(C, align(8))]
struct Control {
    head: [u32; 4],
    body: Body,
}

/// Pages of a domain's, mapped here.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut u8,
    length: usize,
}

impl Mapping {
    pub(super) fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length];
        // SAFETY: the mapping is that long, and bytes of any value are sound. Its owner may write meanwhile,
        // so the bytes are only looked at.
        unsafe { ptr::copy_nonoverlapping(self.base, bytes.as_mut_ptr(), self.length) };
        bytes
    }

    pub(super) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length, "a store beyond the mapping");
        // SAFETY: it was just checked that the bytes fit.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at), bytes.len()) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `Xen::map` has made the mapping, and nothing else refers to it.
        let _ = unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

/// Xen, as root in dom0 has it.
#[derive(Debug)]
pub(super) struct Xen {
    device: File,
    /// How far the console was read.
    position: u32,
    /// What the domains have said.
    said: String,
    /// Domains made so far.
    pub(super) count: u32,
}

impl Xen {
    pub(super) fn open() -> Result<Self, String> {
        let device = File::options().read(true).write(true).open("/dev/xen/privcmd");
        let device = device.map_err(|why| format!("/dev/xen/privcmd: {why}"))?;
        Ok(Self { device, position: 0, said: String::new(), count: 0 })
    }

    fn call(&self, number: u64, arguments: [u64; 5]) -> Result<u64, io::Error> {
        let [a, b, c, d, e] = arguments;
        let words = [number, a, b, c, d, e];
        // SAFETY: the structure is as the device takes it; what its arguments point to is given by callers
        // in this file.
        let result = unsafe { libc::ioctl(self.device.as_raw_fd(), HYPERCALL, words.as_ptr()) };
        u64::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// A domctl; what the body is afterwards.
    pub(super) fn domctl(&self, command: u32, domain: u32, body: Body) -> Result<Answer, String> {
        let mut control = Control { head: [command, VERSION, domain, 0], body };
        let at = (&raw mut control) as u64;
        match self.call(DOMCTL, [at, 0, 0, 0, 0]) {
            Ok(_) => Ok(Answer { domain: control.head[2] & 0xffff, body: control.body }),
            Err(why) => Err(format!("domctl {command}: {why}")),
        }
    }

    /// A memory operation on `words`.
    pub(super) fn memory(&self, operation: u64, words: &mut [u64]) -> Result<u64, String> {
        self.call(MEMORY, [operation, words.as_mut_ptr() as u64, 0, 0, 0])
            .map_err(|why| format!("memory_op {operation}: {why}"))
    }

    /// A device model's operation.
    pub(super) fn device_model(&self, domain: u32, operation: &[u32]) -> Result<(), String> {
        let buffer = [operation.as_ptr() as u64, operation.len() as u64 * 4];
        self.call(DM, [domain.into(), 1, buffer.as_ptr() as u64, 0, 0])
            .map(drop)
            .map_err(|why| format!("dm_op {:?}: {why}", operation.first()))
    }

    /// Maps pages of `domain`.
    pub(super) fn map(&self, domain: u32, frames: &[u64]) -> Result<Mapping, String> {
        let length = frames.len() * PAGE;
        let (protection, device) = (libc::PROT_READ | libc::PROT_WRITE, self.device.as_raw_fd());
        // SAFETY: a new mapping where the kernel likes.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, device, 0) };
        if base == libc::MAP_FAILED {
            return Err(format!("mmap of privcmd: {}", io::Error::last_os_error()));
        }
        let mapping = Mapping { base: base.cast(), length };
        let mut errors = vec![0_i32; frames.len()];
        let words = [
            frames.len() as u64 | u64::from(domain) << 32,
            base as u64,
            frames.as_ptr() as u64,
            errors.as_mut_ptr() as u64,
        ];
        let words: *const c_void = words.as_ptr().cast();
        // SAFETY: addresses and lengths are those of `mapping`, `frames` and `errors`.
        let result = unsafe { libc::ioctl(device, MAP_BATCH, words) };
        if result != 0 {
            return Err(format!("map of domain {domain}: {}", io::Error::last_os_error()));
        }
        Ok(mapping)
    }

    /// Everything that Xen has printed since the last call of [`Xen::forget`].
    pub(super) fn console(&mut self) -> Result<&str, String> {
        let mut text = vec![0_u8; 16384];
        let body = Body::of(&[(0, 1 << 8), (4, self.position), (16, 16384)]);
        let body = body.long(8, text.as_mut_ptr() as u64);
        let mut words = vec![READ_CONSOLE, VERSION];
        words.extend(body.0);
        let at = words.as_mut_ptr() as u64;
        let _ = self.call(SYSCTL, [at, 0, 0, 0, 0]).map_err(|why| format!("console: {why}"))?;
        self.position = words[3];
        text.truncate(words[6] as usize);
        self.said.push_str(&String::from_utf8_lossy(&text));
        Ok(&self.said)
    }

    pub(super) fn forget(&mut self) -> Result<(), String> {
        let _ = self.console()?;
        self.said.clear();
        Ok(())
    }
}

/// What a domctl has answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) domain: u32,
    pub(super) body: Body,
}
