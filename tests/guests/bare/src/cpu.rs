//! Single instructions.
//!
//! They are safe functions although they can wreck the machine: the program owns it alone, keeps
//! nothing that a register could invalidate, and exists to try exactly that. An instruction that
//! may fault is run inside [`crate::fault::catch`].

use core::arch::asm;

/// EAX, EBX, ECX, EDX of CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// Defines wrappers of instructions that take and give 64-bit registers.
macro_rules! register {
    ($($get:ident $set:ident $name:literal;)*) => {$(
        #[inline(always)]
        pub fn $get() -> u64 {
            let value: u64;
            // SAFETY: reads a control register; no memory, no flags.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack, preserves_flags)) };
            value
        }
        #[inline(always)]
        pub fn $set(value: u64) {
            // SAFETY: the caller keeps code, stack and data mapped (module documentation).
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}
register! {
    cr0 set_cr0 "cr0";
    cr2 set_cr2 "cr2";
    cr3 set_cr3 "cr3";
    cr4 set_cr4 "cr4";
    cr8 set_cr8 "cr8";
}

/// Defines wrappers of instructions without operands.
macro_rules! plain {
    ($($name:ident $text:literal;)*) => {$(
        #[inline(always)]
        pub fn $name() {
            // SAFETY: no operands; what it does to the machine is the caller's test.
            unsafe { asm!($text, options(nostack)) };
        }
    )*};
}
plain! {
    cli "cli";
    sti "sti";
    halt "hlt";
    halt_until_interrupt "sti; hlt";
    pause "pause";
    write_back_caches "wbinvd";
    undefined "ud2";
}

/// Defines port accesses.
macro_rules! port {
    ($($read:ident $write:ident $type:ty, $register:tt;)*) => {$(
        #[inline(always)]
        pub fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: port I/O touches no memory of the program.
            unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nostack, preserves_flags)) };
            value
        }
        #[inline(always)]
        pub fn $write(port: u16, value: $type) {
            // SAFETY: as above.
            unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) value, options(nostack, preserves_flags)) };
        }
    )*};
}
port! {
    in8 out8 u8, "al";
    in32 out32 u32, "eax";
}

/// The one 16-bit register in use is written only.
pub fn out16(port: u16, value: u16) {
    // SAFETY: port I/O touches no memory of the program.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) };
}

#[inline(always)]
pub fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: no memory, no flags; may fault, which is the caller's business.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high,
             options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

#[inline(always)]
pub fn wrmsr(msr: u32, value: u64) {
    // SAFETY: as for `rdmsr`; what the register governs is the caller's business.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

#[inline(always)]
pub fn xgetbv(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: no memory, no flags.
    unsafe {
        asm!("xgetbv", in("ecx") register, out("eax") low, out("edx") high,
             options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

#[inline(always)]
pub fn xsetbv(register: u32, value: u64) {
    // SAFETY: programs keep no extended state across this.
    unsafe {
        asm!("xsetbv", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32,
             options(nostack, preserves_flags));
    }
}

/// The time-stamp counter, after all earlier instructions.
#[inline(always)]
pub fn rdtsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: no memory, no flags.
    unsafe {
        asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Forgets the translation of one page.
#[inline(always)]
pub fn invlpg(address: u64) {
    // SAFETY: only drops a cached translation.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// A pseudo-descriptor for LGDT and LIDT.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Pseudo {
    pub limit: u16,
    pub base: u64,
}

pub fn lgdt(table: &Pseudo) {
    // SAFETY: reads ten bytes; the caller supplies a table that holds the segments in use.
    unsafe { asm!("lgdt [{}]", in(reg) table, options(readonly, nostack, preserves_flags)) };
}

pub fn lidt(table: &Pseudo) {
    // SAFETY: reads ten bytes; the caller supplies a table with usable gates.
    unsafe { asm!("lidt [{}]", in(reg) table, options(readonly, nostack, preserves_flags)) };
}

#[inline(always)]
pub fn lldt(selector: u16) {
    // SAFETY: programs have no segment from a local table in use.
    unsafe { asm!("lldt {0:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

#[inline(always)]
pub fn ltr(selector: u16) {
    // SAFETY: the caller supplies the selector of an available task state of its processor.
    unsafe { asm!("ltr {0:x}", in(reg) selector, options(nostack, preserves_flags)) };
}

/// The task register.
#[inline(always)]
pub fn str() -> u16 {
    let selector: u16;
    // SAFETY: no memory, no flags.
    unsafe { asm!("str {0:x}", out(reg) selector, options(nostack, preserves_flags)) };
    selector
}

/// Width of a physical address (CPUID 0x8000_0008).
pub fn physical_bits() -> u32 {
    if cpuid(0x8000_0000, 0)[0] < 0x8000_0008 {
        return 36;
    }
    cpuid(0x8000_0008, 0)[0] & 0xff
}
