//! Work with vector registers, which are whoever's the visor has interrupted.
//!
//! Sealing and hashing need all sixteen XMM registers, and the exit handler saves four. So they run
//! inside [`with`], and nowhere else: `cargo xtask build` follows the calls in the image.
#![expect(unsafe_code, reason = "calls through assembly")]

use core::arch::global_asm;
use core::ffi::c_void;
use core::fmt;

use crate::cpu::cpuid;

global_asm!(include_str!("vectors.s"));

const _: () = assert!(seal::HARDWARE_AES, "see visor/.cargo/config.toml");

/// An instruction set of every processor that has unrestricted guests and RDRAND, unless firmware
/// or another hypervisor hides it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Missing {
    /// AES-NI, by which pages are sealed.
    Aes,
    /// XSAVE, by which a VM's vector registers are hidden.
    Xsave,
    /// RDRAND, from which keys come.
    Rdrand,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes => "the processor has no AES instructions",
            Self::Xsave => "the processor has no XSAVE",
            Self::Rdrand => "the processor has no RDRAND",
        })
    }
}

/// Checks that this processor can do what protected VMs need.
pub(crate) fn check() -> Result<(), Missing> {
    let features = cpuid(1, 0).ecx;
    for (bit, missing) in [(25, Missing::Aes), (26, Missing::Xsave), (30, Missing::Rdrand)] {
        if features & 1 << bit == 0 {
            return Err(missing);
        }
    }
    Ok(())
}

/// Lets `work` use XMM0 to XMM15, in legacy encoding and without arithmetic that MXCSR governs.
///
/// Once for much work is cheaper than often. Inside of itself it does no harm.
pub(crate) fn with<T>(work: impl FnOnce() -> T) -> T {
    unsafe extern "C" {
        fn with_vectors(run: unsafe extern "C" fn(*mut c_void), job: *mut c_void);
    }
    let mut job = Job { work: Some(work), result: None };
    let run = run_of(&job);
    // SAFETY: `run` is the function for a job of this type, which is this frame's until it returns.
    unsafe { with_vectors(run, (&raw mut job).cast()) }
    job.result.unwrap_or_else(|| panic!("work with vector registers did not run"))
}

struct Job<F, T> {
    work: Option<F>,
    result: Option<T>,
}

fn run_of<F: FnOnce() -> T, T>(_: &Job<F, T>) -> unsafe extern "C" fn(*mut c_void) {
    run::<F, T>
}

/// Does `job`. The image's check knows this function by its name.
///
/// # Safety
/// `job` points to a [`Job`] of these types that nobody else uses.
#[inline(never)]
unsafe extern "C" fn run<F: FnOnce() -> T, T>(job: *mut c_void) {
    // SAFETY: the caller vouches for the pointer.
    let job = unsafe { &mut *job.cast::<Job<F, T>>() };
    job.result = job.work.take().map(|work| work());
}
