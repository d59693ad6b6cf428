//! A machine that works, holds a secret, and says at each beat whether anybody has changed it.
//!
//! It gives away where everything is, as one who attacks it might know its programs; not the secret.

use crate::secret;
use crate::system::{physical, text};
use std::arch::asm;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
/// Rounds of a beat's work, of two instructions each.
const ROUNDS: u64 = 2_000_000;
/// `mov eax, 42; ret`
const PROGRAM: [u8; 6] = [0xb8, 42, 0, 0, 0, 0xc3];

type Page = [AtomicU64; WORDS];

/// What lies in pages of its own. A beat looks at all of it.
#[repr(C, align(4096))]
struct Pages {
    /// The secret, again and again.
    secret: Page,
    /// Two kinds of data, which stay as they are.
    data: [Page; 2],
    /// The number of the beat, which never goes back.
    count: Page,
}

static PAGES: Pages = Pages {
    secret: [const { AtomicU64::new(0) }; WORDS],
    data: [const { [const { AtomicU64::new(0) }; WORDS] }; 2],
    count: [const { AtomicU64::new(0) }; WORDS],
};

/// Exceptions that this program never causes.
static EXCEPTIONS: AtomicUsize = AtomicUsize::new(0);

/// What a round of work has left.
struct Worked {
    is_secret_kept: bool,
    /// How often the processor was where nothing leads.
    taken: u64,
    /// Addresses of the loop, and of where nothing leads.
    places: [u64; 2],
}

/// Beats for ever.
pub(crate) fn beat() -> Result<(), String> {
    secret::make()?;
    let program = program()?;
    for signal in [libc::SIGILL, libc::SIGSEGV, libc::SIGTRAP, libc::SIGBUS, libc::SIGFPE] {
        // SAFETY: the handler only counts.
        let _ = unsafe { libc::signal(signal, counted as *const () as libc::sighandler_t) };
    }
    refill();
    // Pages that nobody has used yet are nowhere.
    fill(&PAGES.count, |_| 0);
    tell_places(program)?;
    for beat in 1.. {
        fill(&PAGES.count, |_| beat);
        let worked = work();
        let harm = harm(program, beat, &worked);
        println!("init: beat {beat} {}", if harm.is_empty() { "ok".to_owned() } else { harm });
        refill();
    }
    Ok(())
}

extern "C" fn counted(_: libc::c_int) {
    let _ = EXCEPTIONS.fetch_add(1, Ordering::Relaxed);
}

fn fill(page: &Page, value: impl Fn(u64) -> u64) {
    for (word, index) in page.iter().zip(0..) {
        word.store(value(index), Ordering::Relaxed);
    }
}

fn holds(page: &Page, value: impl Fn(u64) -> u64) -> bool {
    page.iter().zip(0..).all(|(word, index)| word.load(Ordering::Relaxed) == value(index))
}

/// What the words of the pages are.
fn secret(index: u64) -> u64 {
    secret::words()[usize::from(!index.is_multiple_of(2))]
}

const fn data(page: u64, index: u64) -> u64 {
    (page << 32 | index).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn refill() {
    fill(&PAGES.secret, secret);
    for (page, number) in PAGES.data.iter().zip(1..) {
        fill(page, |index| data(number, index));
    }
}

/// What is not as it must be, for the line of the beat; nothing if all is.
fn harm(program: *const u8, beat: u64, worked: &Worked) -> String {
    // SAFETY: the page holds a function that takes nothing and returns a number, unless someone has
    // changed it, which is the experiment.
    let answer = unsafe { std::mem::transmute::<*const u8, extern "C" fn() -> u64>(program)() };
    // SAFETY: it has no arguments and no effect. The first process has no parent.
    let parent = unsafe { libc::getppid() };
    let is_data = PAGES.data.iter().zip(1..).all(|(page, n)| holds(page, |index| data(n, index)));
    let wrong = [
        ("registers", !worked.is_secret_kept),
        ("instruction", worked.taken != 0),
        ("exception", EXCEPTIONS.swap(0, Ordering::Relaxed) != 0),
        ("program", answer != 42),
        ("kernel", parent != 0),
        ("secret", !holds(&PAGES.secret, secret)),
        ("data", !is_data),
        ("count", !holds(&PAGES.count, |_| beat)),
    ];
    let names: Vec<&str> =
        wrong.iter().filter(|(_, is_wrong)| *is_wrong).map(|(name, _)| *name).collect();
    if names.is_empty() { String::new() } else { format!("harmed: {}", names.join(" ")) }
}

/// Some time with the secret in registers. It is there once, for its places to be known.
#[inline(never)]
fn work() -> Worked {
    let [first, second] = secret::words();
    let (mut a, mut b, mut c, mut d) = (first, second, first, second);
    let (mut x, mut y) = (first, second);
    let (loop_at, gadget_at): (u64, u64);
    let mut taken = 0_u64;
    // SAFETY: registers only. Nothing jumps to the label 3.
    unsafe {
        asm!(
            "movq xmm8, {x}", "movq xmm9, {y}", "punpcklqdq xmm8, xmm9",
            "lea {x}, [rip + 2f]", "lea {y}, [rip + 3f]",
            "jmp 2f",
            "3: add rdx, 1",
            "2: dec rcx", "jnz 2b",
            "mov rsi, {x}", "mov rdi, {y}",
            "movq {x}, xmm8", "psrldq xmm8, 8", "movq {y}, xmm8",
            x = inout(reg) x, y = inout(reg) y,
            inout("rcx") ROUNDS => _, inout("rdx") taken,
            out("rsi") loop_at, out("rdi") gadget_at,
            inout("r12") a, inout("r13") b, inout("r14") c, inout("r15") d,
            out("xmm8") _, out("xmm9") _,
            options(nostack, nomem),
        );
    }
    let is_secret_kept = [a, c, x] == [first; 3] && [b, d, y] == [second; 3];
    Worked { is_secret_kept, taken, places: [loop_at, gadget_at] }
}

/// A page with [`PROGRAM`].
fn program() -> Result<*const u8, String> {
    let rights = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, which stays; the program fits.
    unsafe {
        let page = libc::mmap(std::ptr::null_mut(), PAGE, rights, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().to_string());
        }
        std::ptr::copy_nonoverlapping(PROGRAM.as_ptr(), page.cast(), PROGRAM.len());
        Ok(page.cast())
    }
}

/// `init: place NAME VIRTUAL PHYSICAL`, in hexadecimal.
fn tell_places(program: *const u8) -> Result<(), String> {
    let [loop_at, gadget_at] = work().places;
    let address = |page: &Page| (&raw const *page) as u64;
    for (name, at) in [
        ("secret", address(&PAGES.secret)),
        ("data", address(&PAGES.data[0])),
        ("more-data", address(&PAGES.data[1])),
        ("count", address(&PAGES.count)),
        ("program", program as u64),
        ("loop", loop_at),
        ("gadget", gadget_at),
    ] {
        println!("init: place {name} {at:x} {:x}", physical(at)?);
    }
    let symbols = text("/proc/kallsyms");
    let line = symbols.lines().find(|line| line.ends_with(" __x64_sys_getppid"));
    let at = line.and_then(|line| u64::from_str_radix(line.split(' ').next()?, 16).ok());
    let at = at.ok_or("the kernel hides its functions")?;
    // Where the kernel's text is mapped (Linux, x86_64/mm.rst).
    println!("init: place kernel {at:x} {:x}", at.wrapping_sub(0xffff_ffff_8000_0000));
    Ok(())
}
