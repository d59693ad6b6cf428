//! Threads that run the processors of one VM besides the first, and how they are made to stop.

use crate::kvm::checked;

/// SIGUSR1 only ends system calls from now on.
pub(crate) fn catch_kicks() -> Result<(), String> {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the handler touches nothing.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut())
    };
    checked(result).map(drop)
}

/// A thread that runs a processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runner(libc::pthread_t);

impl Runner {
    /// The calling thread.
    pub(crate) fn this() -> Self {
        // SAFETY: no argument; always succeeds.
        Self(unsafe { libc::pthread_self() })
    }

    /// Ends the system call of the thread, if it does one just now. It has not been joined.
    pub(crate) fn kick(self) {
        // SAFETY: the thread exists until it is joined.
        let _ = unsafe { libc::pthread_kill(self.0, libc::SIGUSR1) };
    }
}

/// Leaves SIGALRM to other threads.
pub(crate) fn leave_alarms() -> Result<(), String> {
    // SAFETY: a set of signals of this thread's own.
    let result = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let _ = libc::sigemptyset(&raw mut set);
        let _ = libc::sigaddset(&raw mut set, libc::SIGALRM);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(format!("pthread_sigmask: {result}")) }
}
