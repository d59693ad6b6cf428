//! `io`: port accesses that exit always, by the bitmaps, or not.

use crate::capability as c;
use crate::field as f;
use crate::guest;
use crate::vm::Step::{All, Do, Off, On, Reg, Set, Show, ShowField};
use crate::vm::{self, IO_A, Reg as R, Step, cases};

/// By the bitmaps, in which nothing is set.
const BITMAPS: Step = All(&[Off(c::IO_EXITING), On(c::IO_BITMAPS)]);

/// Sets the bit of a port; the two bitmaps lie one after the other for this.
fn intercept(port: u64) {
    let bitmap = vm::page(IO_A + usize::from(port >= 0x8000));
    let at = bitmap + (port & 0x7fff) / 64 * 8;
    guest::store(at, guest::load(at) | 1 << (port % 64));
}

cases! {
PORTS:
    "in-8-immediate" [] { "in al, 0x80" }
    "in-16-immediate" [] { "in ax, 0x80" }
    "in-32-immediate" [] { "in eax, 0x80" }
    "out-8-immediate" [] { "out 0x80, al" }
    "out-16-immediate" [] { "out 0x80, ax" }
    "out-32-immediate" [] { "out 0xfe, eax" }
    "in-8" [] { "mov edx, 0x1234", "in al, dx" }
    "in-16" [] { "mov edx, 0xfffe", "in ax, dx" }
    "in-32" [] { "mov edx, 0x11234", "in eax, dx" }
    "out-8" [] { "mov edx, 0x1234", "out dx, al" }
    "out-16" [] { "mov edx, 0x1234", "out dx, ax" }
    "out-32" [] { "mov edx, 0xffff", "out dx, eax" }
    "insb" [Reg(R::Rdi, guest::DATA + 0x10)] { "mov edx, 0x80", "insb" }
    "insw" [Reg(R::Rdi, guest::DATA + 0x10)] { "mov edx, 0x80", "insw" }
    "insd" [Reg(R::Rdi, guest::DATA + 0x10)] { "mov edx, 0x80", "insd" }
    "outsb" [Reg(R::Rsi, guest::DATA + 0x20)] { "mov edx, 0x80", "outsb" }
    "outsw" [Reg(R::Rsi, guest::DATA + 0x20)] { "mov edx, 0x80", "outsw" }
    "outsd" [Reg(R::Rsi, guest::DATA + 0x20)] { "mov edx, 0x80", "outsd" }
    "rep-insb" [Reg(R::Rdi, guest::DATA), Reg(R::Rcx, 3), Show(R::Rcx), Show(R::Rdi)]
        { "mov edx, 0x80", "rep insb" }
    "rep-outsd" [Reg(R::Rsi, guest::DATA), Reg(R::Rcx, 3), Show(R::Rcx), Show(R::Rsi)]
        { "mov edx, 0x80", "rep outsd" }
    "rep-outsb-none" [Reg(R::Rsi, guest::DATA)] { "mov edx, 0x80", "rep outsb", "vmcall" }
    "rep-insw-backwards" [Reg(R::Rdi, guest::DATA + 0x80), Reg(R::Rcx, 3)]
        { "mov edx, 0x80", "std", "rep insw" }
    "outsb-fs" [Reg(R::Rsi, 0x20), Set(f::GUEST_FS_BASE, guest::DATA)]
        { "mov edx, 0x80", ".byte 0x64", "outsb" }
    "outsb-32" [Reg(R::Rsi, 0xffff_ffff_0040_0020)] { "mov edx, 0x80", ".byte 0x67", "outsb" }
    "insb-32" [Reg(R::Rdi, 0xffff_ffff_0040_0020)] { "mov edx, 0x80", ".byte 0x67", "insb" }
    "insb-page-fault" [Reg(R::Rdi, guest::PAGES)] { "mov edx, 0x80", "insb" }
    "insb-not-canonical" [Reg(R::Rdi, 1 << 63)] { "mov edx, 0x80", "insb" }
    "bitmap-clear" [BITMAPS] { "in al, 0x80", "vmcall" }
    "bitmap-set" [BITMAPS, Do(|| intercept(0x80))] { "in al, 0x80" }
    "bitmap-neighbour" [BITMAPS, Do(|| intercept(0x81)), Do(|| intercept(0x7f))]
        { "in al, 0x80", "vmcall" }
    "bitmap-word-second" [BITMAPS, Do(|| intercept(0x81))] { "in ax, 0x80" }
    "bitmap-dword-last" [BITMAPS, Do(|| intercept(0x83))] { "in eax, 0x80" }
    "bitmap-dword-beyond" [BITMAPS, Do(|| intercept(0x84))] { "in eax, 0x80", "vmcall" }
    "bitmap-b" [BITMAPS, Do(|| intercept(0x8900))] { "mov edx, 0x8900", "out dx, al" }
    "bitmap-straddles" [BITMAPS, Do(|| intercept(0x8000))] { "mov edx, 0x7fff", "in ax, dx" }
    "bitmap-last-port" [BITMAPS, Do(|| intercept(0xffff))] { "mov edx, 0xffff", "in al, dx" }
    "bitmap-wraps" [BITMAPS] { "mov edx, 0xffff", "in ax, dx" }
    "bitmap-wraps-dword" [BITMAPS] { "mov edx, 0xfffd", "in eax, dx" }
    "bitmap-string" [BITMAPS, Do(|| intercept(0x80)), Reg(R::Rsi, guest::DATA)]
        { "mov edx, 0x80", "outsb" }
    "bitmap-configuration" [BITMAPS, Show(R::Rax), Show(R::Rbx)]
        {
            "mov edx, 0xcf8", "mov eax, 0x80000000", "out dx, eax", "in eax, dx", "mov ebx, eax",
            "mov edx, 0xcfc", "in eax, dx", "vmcall",
        }
    "bitmap-configuration-16" [BITMAPS, Show(R::Rax)]
        {
            "mov edx, 0xcf8", "mov eax, 0x80000000", "out dx, eax", "mov edx, 0xcfe",
            "mov eax, -1", "in ax, dx", "vmcall",
        }
    "bitmap-over-unconditional" [On(c::IO_EXITING), On(c::IO_BITMAPS)] { "in al, 0x80", "vmcall" }
    "neither" [Off(c::IO_EXITING), Show(R::Rbx)] { "mov ebx, 1", "in al, 0x80", "vmcall" };
RING3:
    "ring3" [super::RING3] { "in al, 0x80" }
    "ring3-iopl" [super::RING3, Set(f::GUEST_RFLAGS, 0x3002)] { "in al, 0x80" }
    "ring3-bitmap-of-task" [super::RING3, super::TASK_MAP] { "in al, 0x80" }
    "ring3-bitmap-of-task-closed" [super::RING3, super::TASK_MAP] { "in al, 0x90" }
    "ring3-string" [super::RING3, super::TASK_MAP, Reg(R::Rsi, guest::DATA)]
        { "mov edx, 0x80", "rep outsb", "vmcall" }
    "ring0-needs-no-map" [Set(f::GUEST_TR_LIMIT, 0x67), ShowField(f::GUEST_TR_LIMIT)]
        { "in al, 0x80" };
}

pub(super) fn run() {
    vm::all("io", PORTS);
    vm::all("io", RING3);
}
