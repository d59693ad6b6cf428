//! The processor's privileged instructions: the one place that speaks to the hardware directly.
//!
//! What is here has no state of its own. Everything that could be wrong about a value is decided
//! by the callers, in code that is tested without hardware.
#![expect(
    unsafe_code,
    reason = "privileged instructions have no safe equivalent; each is wrapped once, here"
)]

pub(crate) mod register;
pub(crate) mod vmx;

use core::arch::asm;

use nested_vmx::cpuid::Answer;
use nested_vmx::cr::CR0_CACHE;
pub(crate) use x86_64::instructions::port::Port;

/// `value` as a size of this 64-bit machine.
#[expect(clippy::as_conversions, reason = "the visor only runs where usize has 64 bits")]
pub(crate) const fn size(value: u64) -> usize {
    value as usize
}

/// The low half.
pub(crate) const fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The high half.
pub(crate) const fn high(value: u64) -> u32 {
    low(value >> 32)
}

/// Executes CPUID.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Answer {
    let raw = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    Answer { eax: raw.eax, ebx: raw.ebx, ecx: raw.ecx, edx: raw.edx }
}

/// The APIC id in which IPIs name this processor: 32 bits where leaf 0xB exists, else 8.
pub(crate) fn apic_id() -> u32 {
    if cpuid(0, 0).eax >= 0xb && cpuid(0xb, 0).ebx != 0 {
        cpuid(0xb, 0).edx
    } else {
        cpuid(1, 0).ebx >> 24
    }
}

/// Reads an MSR that exists: one that CPUID or a capability MSR promises, or that an intercepted
/// RDMSR of the host named and a rule of `nested_vmx::msr` lets through.
pub(crate) fn read_msr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDMSR changes no memory; on a register that does not exist it faults, and the
    // visor's #GP handler stops the machine.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
/// The register exists, the value is valid for it, and the visor's own execution does not depend
/// on what it was.
pub(crate) unsafe fn write_msr(index: u32, value: u64) {
    // SAFETY: the caller vouches for register and value.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") low(value), in("edx") high(value),
             options(nostack, preserves_flags));
    }
}

/// Writes an MSR on the host's behalf; `false` if the processor refuses the value.
///
/// # Safety
/// The visor's own execution does not depend on the register.
pub(crate) unsafe fn try_write_msr(index: u32, value: u64) -> bool {
    unsafe extern "C" {
        fn guarded_wrmsr(index: u32, value: u64) -> u32;
    }
    // SAFETY: the caller vouches for the register; the #GP handler knows this one instruction and
    // turns its fault into 0.
    (unsafe { guarded_wrmsr(index, value) }) != 0
}

/// Reads an MSR on the host's behalf; `None` if the processor has none of this index.
pub(crate) fn try_read_msr(index: u32) -> Option<u64> {
    unsafe extern "C" {
        fn guarded_rdmsr(index: u32, value: *mut u64) -> u32;
    }
    let mut value = 0;
    // SAFETY: the place is a local; the #GP handler knows this one instruction and turns its fault
    // into 0.
    let read = unsafe { guarded_rdmsr(index, &raw mut value) };
    (read != 0).then_some(value)
}

/// Sets CR2, where a guest that is to get a page fault looks for the address.
pub(crate) fn set_page_fault_address(linear: u64) {
    // SAFETY: the visor itself never looks at CR2 but to report a bug.
    unsafe { asm!("mov cr2, {}", in(reg) linear, options(nostack, preserves_flags)) }
}

/// Ends the blocking of NMIs that an NMI or SIPI exit leaves behind.
pub(crate) fn unblock_nmis() {
    unsafe extern "C" {
        fn unblock_nmis();
    }
    // SAFETY: an IRET to the next instruction; an NMI that was held back is taken at once, by the
    // handler that only sets a flag.
    unsafe { unblock_nmis() }
}

/// Reads the time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: RDTSC only writes EDX:EAX; CR4.TSD is clear and the visor is in ring 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Writes XCR0 for the host.
///
/// # Safety
/// `value` passed `nested_vmx::cr::xsetbv_is_valid` for this processor, and CR4.OSXSAVE is set.
pub(crate) unsafe fn write_xcr0(value: u64) {
    // SAFETY: the caller vouches for the value. The visor itself only uses SSE, by instructions
    // that XCR0 does not govern.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") low(value), in("edx") high(value),
             options(nostack, preserves_flags));
    }
}

/// XCR0, where there is XSAVE.
pub(crate) fn xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: XGETBV changes nothing; CR4.OSXSAVE is set wherever there is XSAVE.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high,
             options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// A random number, if the processor has one ready.
pub(crate) fn random() -> Option<u64> {
    let (value, carry): (u64, u8);
    // SAFETY: RDRAND changes no memory; the processor has it, which was checked at boot.
    unsafe {
        asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) carry, options(nomem, nostack));
    }
    (carry != 0).then_some(value)
}

/// Sets CR0.CD and CR0.NW, which the host shares with the visor, as in `bits`.
pub(crate) fn set_cache_control(bits: u64) {
    use x86_64::registers::control::Cr0;
    let value = Cr0::read_raw() & !CR0_CACHE | bits & CR0_CACHE;
    // SAFETY: the two bits only change how caches are used; the host may not set NW without CD.
    unsafe { Cr0::write_raw(value) };
}

/// Writes all modified cache lines back to memory and empties the caches.
pub(crate) fn write_back_caches() {
    // SAFETY: WBINVD changes no memory contents.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) }
}

/// Has the processor forget where indirect branches led (IBPB). It has the command.
pub(crate) fn forget_branches() {
    const IA32_PRED_CMD: u32 = 0x49;
    // SAFETY: changes no state but predictions.
    unsafe { write_msr(IA32_PRED_CMD, 1) }
}

/// Has the processor overwrite what its buffers hold, if it is one that does so (MD_CLEAR).
pub(crate) fn clear_buffers() {
    // By a selector in memory: VERW of a register overwrites nothing (SDM vol. 2, VERW).
    let selector = crate::segments::DATA.0;
    // SAFETY: only reads the selector, and changes flags.
    unsafe { asm!("verw word ptr [{}]", in(reg) &raw const selector, options(nostack, readonly)) }
}

/// Writes the cache line with word `index` of the page that appears at `linear` back to memory, before
/// whatever follows.
pub(crate) fn write_back_line(linear: u64, index: usize) {
    flush_line(linear, index);
    fence();
}

/// Writes the page that appears at `linear` back to memory, and has the caches forget it, before whatever
/// follows.
pub(crate) fn write_back_page(linear: u64) {
    const WORDS_OF_LINE: usize = 8;
    for line in (0..512).step_by(WORDS_OF_LINE) {
        flush_line(linear, line);
    }
    fence();
}

/// Begins to write the cache line with word `index` of the page that appears at `linear` back to memory.
fn flush_line(linear: u64, index: usize) {
    let word = core::ptr::without_provenance::<u8>(size(linear) + index * 8);
    // SAFETY: changes no memory contents; callers pass pages that are mapped.
    unsafe {
        asm!("clflush [{}]", in(reg) word, options(nostack, preserves_flags));
    }
}

/// Waits until what was begun to be written back is, before whatever follows.
fn fence() {
    // SAFETY: only orders what comes before and after.
    unsafe {
        asm!("mfence", options(nostack, preserves_flags));
    }
}

/// Stops this processor for good: only reset ends it.
pub(crate) fn stop() -> ! {
    x86_64::instructions::interrupts::disable();
    loop {
        x86_64::instructions::hlt();
    }
}

/// Reads one, two or four bytes from a port.
pub(crate) fn port_in(port: u16, size: nested_vmx::io::Size) -> u32 {
    use nested_vmx::io::Size;
    match size {
        // SAFETY: reading a port changes no memory of the visor's.
        Size::Byte => u32::from(unsafe { Port::<u8>::new(port).read() }),
        // SAFETY: as above.
        Size::Word => u32::from(unsafe { Port::<u16>::new(port).read() }),
        // SAFETY: as above.
        Size::Dword => unsafe { Port::<u32>::new(port).read() },
    }
}

/// Writes one, two or four bytes to a port.
///
/// # Safety
/// What the device behind the port does with the value does not touch the visor's memory.
pub(crate) unsafe fn port_out(port: u16, size: nested_vmx::io::Size, value: u32) {
    use nested_vmx::io::Size;
    let [a, b, ..] = value.to_le_bytes();
    match size {
        // SAFETY: the caller vouches for the device.
        Size::Byte => unsafe { Port::<u8>::new(port).write(a) },
        // SAFETY: as above.
        Size::Word => unsafe { Port::<u16>::new(port).write(u16::from_le_bytes([a, b])) },
        // SAFETY: as above.
        Size::Dword => unsafe { Port::<u32>::new(port).write(value) },
    }
}
