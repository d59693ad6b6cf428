//! Executes single instructions of the test's choice on the processor that runs the test: what it
//! does is right by definition.
//!
//! Empty where that is not an x86-64 processor under Linux.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::arch::global_asm;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The linear address of the 8 bytes of memory that an instruction may access. It fits into the 32
/// bits of a displacement.
pub const CELL: u64 = 0x2000_0800;

const PAGES: usize = 0x2000_0000;
const CODE: usize = PAGES + 0x1000;
/// RFLAGS bits that an instruction may be started with: the status flags and bit 1.
const FLAGS: u64 = 0x8d7;

/// Registers and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub general: [u64; 16],
    /// The status flags, and bit 1.
    pub rflags: u64,
    /// The 8 bytes at [`CELL`].
    pub memory: u64,
}

global_asm!(
    ".pushsection .bss",
    ".balign 8",
    "processor_stack: .skip 8",
    "processor_state: .skip 8",
    "processor_code: .skip 8",
    "processor_rax: .skip 8",
    ".popsection",
    // processor_execute(state: rdi, code: rsi)
    "processor_execute:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + processor_stack], rsp",
    "mov [rip + processor_state], rdi",
    "mov [rip + processor_code], rsi",
    "push qword ptr [rdi + 128]",
    "popfq",
    "mov rax, [rdi]",
    "mov rcx, [rdi + 8]",
    "mov rdx, [rdi + 16]",
    "mov rbx, [rdi + 24]",
    "mov rsp, [rdi + 32]",
    "mov rbp, [rdi + 40]",
    "mov rsi, [rdi + 48]",
    "mov r8, [rdi + 64]",
    "mov r9, [rdi + 72]",
    "mov r10, [rdi + 80]",
    "mov r11, [rdi + 88]",
    "mov r12, [rdi + 96]",
    "mov r13, [rdi + 104]",
    "mov r14, [rdi + 112]",
    "mov r15, [rdi + 120]",
    "mov rdi, [rdi + 56]",
    "jmp [rip + processor_code]",
    // The code ends with a jump to here.
    "processor_return:",
    "mov [rip + processor_rax], rax",
    "mov rax, [rip + processor_state]",
    "mov [rax + 8], rcx",
    "mov [rax + 16], rdx",
    "mov [rax + 24], rbx",
    "mov [rax + 32], rsp",
    "mov [rax + 40], rbp",
    "mov [rax + 48], rsi",
    "mov [rax + 56], rdi",
    "mov [rax + 64], r8",
    "mov [rax + 72], r9",
    "mov [rax + 80], r10",
    "mov [rax + 88], r11",
    "mov [rax + 96], r12",
    "mov [rax + 104], r13",
    "mov [rax + 112], r14",
    "mov [rax + 120], r15",
    "mov rcx, [rip + processor_rax]",
    "mov [rax], rcx",
    "mov rsp, [rip + processor_stack]",
    "pushfq",
    "pop qword ptr [rax + 128]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "sysv64" {
    fn processor_execute(state: *mut State, code: usize);
    fn processor_return();
}

/// Executes `instruction` with the registers and the memory of `state`: what they are then.
///
/// The instruction must access no other memory than [`CELL`] and must not jump, or else the test
/// dies or worse.
///
/// # Panics
/// If there is no memory at the fixed address, or the instruction is longer than 15 bytes.
#[must_use]
pub fn execute(instruction: &[u8], state: &State) -> State {
    static PAGE: OnceLock<()> = OnceLock::new();
    static BUSY: Mutex<()> = Mutex::new(());
    assert!(instruction.len() <= 15);
    let _busy = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
    PAGE.get_or_init(map);
    let mut code = instruction.to_vec();
    // jmp [rip], with the address behind it
    code.extend([0xff, 0x25, 0, 0, 0, 0]);
    code.extend((processor_return as *const () as usize).to_le_bytes());
    let mut after = State { rflags: state.rflags & FLAGS | 2, ..*state };
    let cell = CELL as *mut u64;
    // SAFETY: `map` has made the two pages at `PAGES` readable, writable and executable, nothing
    // else uses them, and the lock is held. The code fits into the second.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), CODE as *mut u8, code.len()) };
    // SAFETY: as above; `CELL` lies in the first page and is aligned.
    unsafe { cell.write_volatile(state.memory) };
    // SAFETY: the caller promises what the instruction does. All registers that must be preserved
    // are, by `processor_execute`.
    unsafe { processor_execute(&raw mut after, CODE) };
    // SAFETY: as for the write.
    after.memory = unsafe { cell.read_volatile() };
    after.rflags &= FLAGS;
    after
}

/// Puts two pages at `PAGES`.
fn map() {
    let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let wanted = PAGES as *mut libc::c_void;
    // SAFETY: MAP_FIXED_NOREPLACE maps nothing where something is already.
    let found = unsafe { libc::mmap(wanted, 0x2000, rights, flags, -1, 0) };
    assert_eq!(found, wanted, "no memory for the instruction");
}
