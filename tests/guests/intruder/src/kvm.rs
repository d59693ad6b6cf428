//! KVM's requests, made by QEMU's own thread on behalf of someone else: KVM obeys only the process that has made
//! the VM, and root can have that do anything (`ptrace(2)`).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr;

/// Requests (Linux 6.1, `Documentation/virt/kvm/api.rst`) and the bytes of what they exchange.
pub(crate) type Request<const N: usize> = (u64, [u8; N]);
pub(crate) const GET_REGS: Request<144> = (0x8090_ae81, [0; 144]);
pub(crate) const SET_REGS: u64 = 0x4090_ae82;
pub(crate) const GET_SREGS: Request<312> = (0x8138_ae83, [0; 312]);
pub(crate) const GET_FPU: Request<416> = (0x81a0_ae8c, [0; 416]);
pub(crate) const GET_XSAVE: Request<4096> = (0x9000_aea4, [0; 4096]);
pub(crate) const GET_EVENTS: Request<64> = (0x8040_ae9f, [0; 64]);
pub(crate) const SET_EVENTS: u64 = 0x4040_aea0;
pub(crate) const TRANSLATE: u64 = 0xc018_ae85;
pub(crate) const GET_MSRS: u64 = 0xc008_ae88;

/// The instruction SYSCALL.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Where the thread's stack is not in use: below the 128 bytes that programs use beyond it.
const BELOW_STACK: u64 = 0x4000;

/// A thread of QEMU's that stands still in a system call.
pub(crate) struct Thread {
    number: i32,
    memory: File,
    registers: libc::user_regs_struct,
    /// The virtual processor, as a descriptor of QEMU's.
    vcpu: u64,
}

impl Thread {
    /// Stops the thread `number` of process `process`.
    pub(crate) fn stop(process: u32, number: i32) -> Result<Self, String> {
        let vcpu = descriptor(process, "anon_inode:kvm-vcpu:0")?;
        let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{process}/mem"));
        let memory = memory.map_err(|why| format!("QEMU's memory: {why}"))?;
        for _ in 0..100 {
            trace(libc::PTRACE_SEIZE, number, ptr::null_mut())?;
            trace(libc::PTRACE_INTERRUPT, number, ptr::null_mut())?;
            let _ = stopped(number)?;
            let registers = registers(number)?;
            let mut code = [0; 2];
            let _ = memory.read_exact_at(&mut code, registers.rip.wrapping_sub(2));
            if code == SYSCALL {
                return Ok(Self { number, memory, registers, vcpu });
            }
            trace(libc::PTRACE_DETACH, number, ptr::null_mut())?;
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
        Err("QEMU's thread is never in a system call".to_owned())
    }

    /// Has the thread do a system call; its result.
    pub(crate) fn call(&self, number: i64, arguments: [u64; 6]) -> Result<i64, String> {
        let mut changed = self.registers;
        changed.rip -= 2;
        changed.rax = number.cast_unsigned();
        changed.orig_rax = u64::MAX;
        let [a, b, c, d, e, f] = arguments;
        (changed.rdi, changed.rsi, changed.rdx, changed.r10, changed.r8, changed.r9) =
            (a, b, c, d, e, f);
        set_registers(self.number, &changed)?;
        loop {
            trace(libc::PTRACE_SINGLESTEP, self.number, ptr::null_mut())?;
            let _ = stopped(self.number)?;
            let now = registers(self.number)?;
            if now.rip == self.registers.rip {
                return Ok(now.rax.cast_signed());
            }
        }
    }

    /// A request about the virtual processor with what it exchanges.
    pub(crate) fn ask(&self, request: u64, exchanged: &mut [u8]) -> Result<(), String> {
        let at = (self.registers.rsp - BELOW_STACK) & !0xfff;
        let failed = |why: io::Error| format!("QEMU's stack: {why}");
        self.memory.write_all_at(exchanged, at).map_err(failed)?;
        let result = self.call(libc::SYS_ioctl, [self.vcpu, request, at, 0, 0, 0])?;
        if result < 0 {
            let why = i32::try_from(-result).map(io::Error::from_raw_os_error);
            return Err(format!(
                "{request:#x}: {}",
                why.map_or_else(|_| String::new(), |e| e.to_string())
            ));
        }
        self.memory.read_exact_at(exchanged, at).map_err(failed)
    }

    /// What a request gets.
    pub(crate) fn get<const N: usize>(
        &self,
        (number, mut room): Request<N>,
    ) -> Result<[u8; N], String> {
        self.ask(number, &mut room).map(|()| room)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let _ = set_registers(self.number, &self.registers);
        let _ = trace(libc::PTRACE_DETACH, self.number, ptr::null_mut());
    }
}

/// The descriptor of `process` that is called `name`.
fn descriptor(process: u32, name: &str) -> Result<u64, String> {
    let folder = fs::read_dir(format!("/proc/{process}/fd")).map_err(|why| why.to_string())?;
    for entry in folder.map_while(Result::ok) {
        if fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == name) {
            let number = entry.file_name().to_string_lossy().parse();
            return number.map_err(|_| "a descriptor without a number".to_owned());
        }
    }
    Err(format!("QEMU has no {name}"))
}

fn trace(request: libc::c_uint, thread: i32, data: *mut libc::c_void) -> Result<(), String> {
    // SAFETY: `data` is null, or room for what the request gives or gets.
    let result = unsafe { libc::ptrace(request, thread, ptr::null_mut::<libc::c_void>(), data) };
    if result == -1 {
        return Err(format!("ptrace {request:#x}: {}", io::Error::last_os_error()));
    }
    Ok(())
}

fn registers(thread: i32) -> Result<libc::user_regs_struct, String> {
    // SAFETY: a structure of numbers, for which 0 will do.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    trace(libc::PTRACE_GETREGS, thread, (&raw mut registers).cast())?;
    Ok(registers)
}

fn set_registers(thread: i32, registers: &libc::user_regs_struct) -> Result<(), String> {
    trace(libc::PTRACE_SETREGS, thread, (&raw const *registers).cast_mut().cast())
}

/// Waits until the thread stands still.
fn stopped(thread: i32) -> Result<i32, String> {
    let mut status = 0;
    // SAFETY: room for a status.
    let result = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
    if result != thread || !libc::WIFSTOPPED(status) {
        return Err(format!("QEMU's thread is gone: {status:#x}"));
    }
    Ok(status)
}
