//! KVM's interface as the kernel documents it (Linux 6.1, `Documentation/virt/kvm/api.rst`): requests
//! by number, and the structures that are looked into. The rest travels as [`Blob`]s.

use std::ffi::c_ulong;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// State that is only carried from one VM to another.
pub(crate) type Blob<const N: usize> = [u8; N];

const KVM_TYPE: c_ulong = 0xae;

/// A request without an argument structure (`_IO`).
pub(crate) const fn plain(number: u8) -> c_ulong {
    KVM_TYPE << 8 | number as c_ulong
}

/// A request that hands a `T` to the kernel (`_IOW`).
pub(crate) const fn gives<T>(number: u8) -> c_ulong {
    1 << 30 | (size_of::<T>() as c_ulong) << 16 | plain(number)
}

/// A request that gets a `T` from the kernel (`_IOR`).
pub(crate) const fn gets<T>(number: u8) -> c_ulong {
    2 << 30 | (size_of::<T>() as c_ulong) << 16 | plain(number)
}

/// A request that exchanges a `T` (`_IOWR`).
pub(crate) const fn trades<T>(number: u8) -> c_ulong {
    gives::<T>(number) | gets::<T>(number)
}

/// `struct kvm_regs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Regs {
    pub(crate) rax: u64,
    pub(crate) rbx: u64,
    pub(crate) rcx: u64,
    pub(crate) rdx: u64,
    pub(crate) rsi: u64,
    pub(crate) rdi: u64,
    pub(crate) rsp: u64,
    pub(crate) rbp: u64,
    pub(crate) r8_to_r15: [u64; 8],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
}

/// `struct kvm_segment`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Segment {
    pub(crate) base: u64,
    pub(crate) limit: u32,
    pub(crate) selector: u16,
    pub(crate) kind: u8,
    pub(crate) present: u8,
    pub(crate) dpl: u8,
    pub(crate) db: u8,
    pub(crate) s: u8,
    pub(crate) l: u8,
    pub(crate) g: u8,
    pub(crate) avl: u8,
    pub(crate) unusable: u8,
    pub(crate) padding: u8,
}

/// `struct kvm_dtable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Table {
    pub(crate) base: u64,
    pub(crate) limit: u16,
    pub(crate) padding: [u16; 3],
}

/// `struct kvm_sregs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Sregs {
    pub(crate) cs: Segment,
    pub(crate) ds: Segment,
    pub(crate) es: Segment,
    pub(crate) fs: Segment,
    pub(crate) gs: Segment,
    pub(crate) ss: Segment,
    pub(crate) tr: Segment,
    pub(crate) ldt: Segment,
    pub(crate) gdt: Table,
    pub(crate) idt: Table,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) efer: u64,
    pub(crate) apic_base: u64,
    pub(crate) interrupts: [u64; 4],
}

/// `struct kvm_userspace_memory_region`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Region {
    pub(crate) slot: u32,
    pub(crate) flags: u32,
    pub(crate) guest: u64,
    pub(crate) size: u64,
    pub(crate) host: u64,
}

/// `struct kvm_msrs` with room for one.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct OneMsr {
    pub(crate) count: u32,
    pub(crate) pad: u32,
    pub(crate) index: u32,
    pub(crate) reserved: u32,
    pub(crate) value: u64,
}

/// The fixed part of `struct kvm_msrs`, `kvm_cpuid2` and `kvm_msr_list`, by which requests are numbered.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Counted {
    pub(crate) count: u32,
    pub(crate) pad: u32,
}

/// `struct kvm_cpuid2` with its entries.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Cpuid {
    pub(crate) head: Counted,
    pub(crate) entries: [CpuidEntry; 128],
}

/// `struct kvm_cpuid_entry2`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct CpuidEntry {
    pub(crate) function: u32,
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
    pub(crate) padding: [u32; 3],
}

impl Cpuid {
    /// Has a processor show this id of its local APIC.
    pub(crate) fn name(&mut self, id: u32) {
        for entry in &mut self.entries {
            match entry.function {
                1 => entry.ebx = entry.ebx & 0xff_ffff | id << 24,
                0xb | 0x1f => entry.edx = id,
                _ => {}
            }
        }
    }
}

/// `struct kvm_irq_level`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct IrqLevel {
    pub(crate) irq: u32,
    pub(crate) level: u32,
}

/// `struct kvm_dirty_log`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct DirtyLog {
    pub(crate) slot: u32,
    pub(crate) padding: u32,
    pub(crate) bitmap: u64,
}

/// `struct kvm_enable_cap`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct EnableCap {
    pub(crate) cap: u32,
    pub(crate) flags: u32,
    pub(crate) args: [u64; 4],
    pub(crate) pad: [u8; 64],
}

/// `struct kvm_guest_debug`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct GuestDebug {
    pub(crate) control: u32,
    pub(crate) pad: u32,
    pub(crate) registers: [u64; 8],
}

const _: () = assert!(size_of::<Regs>() == 144);
const _: () = assert!(size_of::<Sregs>() == 312);
const _: () = assert!(size_of::<OneMsr>() == 24);
const _: () = assert!(size_of::<CpuidEntry>() == 40);
const _: () = assert!(size_of::<EnableCap>() == 104);
const _: () = assert!(size_of::<GuestDebug>() == 72);

/// One of KVM's descriptors: of the system, of a VM, or of a virtual processor.
#[derive(Debug)]
pub(crate) struct Handle(File);

impl Handle {
    /// `/dev/kvm`.
    pub(crate) fn system() -> Result<Self, String> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        file.map(Self).map_err(|why| format!("/dev/kvm: {why}"))
    }

    /// The descriptor that `request` makes.
    pub(crate) fn make(&self, request: c_ulong, value: u64) -> Result<Self, String> {
        let descriptor = self.number(request, value)?;
        // SAFETY: the kernel has just made it for this caller.
        Ok(Self(unsafe { File::from_raw_fd(descriptor) }))
    }

    /// A request with a number, or none, as its argument; its result.
    pub(crate) fn number(&self, request: c_ulong, value: u64) -> Result<i32, String> {
        // SAFETY: the kernel reads and writes no memory by such an argument.
        let result = unsafe { libc::ioctl(self.descriptor(), request, value) };
        checked(result).map_err(|why| format!("{request:#x}: {why}"))
    }

    /// A request that hands `argument` to the kernel.
    pub(crate) fn give<T>(&self, request: c_ulong, argument: &T) -> Result<(), String> {
        // SAFETY: the request's number was made from the size of what it points to, which the kernel
        // only reads.
        let result = unsafe { libc::ioctl(self.descriptor(), request, &raw const *argument) };
        checked(result).map(drop).map_err(|why| format!("{request:#x}: {why}"))
    }

    /// A request that fills `argument`, or part of it, in.
    pub(crate) fn fill<T>(&self, request: c_ulong, argument: &mut T) -> Result<i32, String> {
        // SAFETY: the request's number was made from the size of what it points to.
        let result = unsafe { libc::ioctl(self.descriptor(), request, &raw mut *argument) };
        checked(result).map_err(|why| format!("{request:#x}: {why}"))
    }

    /// What a request gets, a structure of `N` bytes that nobody looks into.
    pub(crate) fn blob<const N: usize>(&self, number: u8) -> Result<Blob<N>, String> {
        let mut blob = [0; N];
        let _ = self.fill(gets::<Blob<N>>(number), &mut blob)?;
        Ok(blob)
    }

    /// The descriptor's number.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The descriptor as a file, for those that can be read.
    pub(crate) const fn file(&self) -> &File {
        &self.0
    }
}

/// Turns a system call's result into its error's text.
pub(crate) fn checked(result: i32) -> Result<i32, String> {
    match result {
        -1 => Err(io::Error::last_os_error().to_string()),
        value => Ok(value),
    }
}
