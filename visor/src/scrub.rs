//! Before the machine is reset or put to sleep: memory survives that and the visor does not, so nothing of a
//! protected VM's is left there in clear, and no key. There is no way back from here.
//!
//! Whatever the visor has is overwritten, but for its code and page tables and what a processor needs to be stopped:
//! so nothing has to be known of where secrets have been, stacks included.
#![expect(unsafe_code, reason = "overwrites what references name that nobody looks at any more")]

use core::arch::asm;

use ept::addr::{PAGE, Span};
use nested_vmx::io::Access;
use spin::Once;

use crate::machine::Machine;
use crate::percpu::{self, PerCpu};
use crate::serial::print_regardless;
use crate::{apic, cpu, memory, paging, reset, segments, stop};

/// Zeroes `bytes` from a linear address on.
///
/// # Safety
/// They are mapped, and whoever refers to them does not look any more.
unsafe fn zero(start: u64, bytes: u64) {
    // SAFETY: the caller vouches for the bytes; the direction flag is clear in all code of the visor's.
    unsafe {
        asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") start => _, in("al") 0_u8,
             options(nostack, preserves_flags));
    }
}

/// What is done in the end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Last {
    /// This access of the host's, with this value; then a reset, should the machine still be there.
    Write(Access, u32),
    /// A reset.
    Reset,
    /// Nothing.
    Halt,
}

/// Where the visor's own secrets may be. All that is left to know once they are gone.
#[derive(Clone, Copy)]
struct Plan {
    /// Variables of the image, on both sides of the table of interrupts: linear addresses.
    variables: [(u64, u64); 2],
    /// The reservation behind image and page tables.
    rest: Span,
    /// The processors' blocks in it.
    blocks: Span,
    last: Last,
}

/// What is left to do, once the other processors have stopped.
static PLAN: Once<Plan> = Once::new();

/// Scrubs memory for the host's reset or sleep by `last`.
pub(crate) fn for_host(machine: &Machine, last: Last) -> ! {
    stop::others(Some(machine));
    before(machine, last)
}

/// Scrubs memory, then does `last`. All other processors were told to stop.
pub(crate) fn before(machine: &Machine, last: Last) -> ! {
    stop::wait_for_others(machine);
    let (began, mut pages) = (cpu::tsc(), 0_u64);
    // SAFETY: this is the only processor that runs, and it changes no table any more.
    for frame in unsafe { machine.tables.private() } {
        // SAFETY: nobody runs whose memory it is.
        unsafe { zero(memory::linear(frame.base()), PAGE) };
        pages += 1;
    }
    let ticks = cpu::tsc().wrapping_sub(began);
    if log::log_enabled!(log::Level::Info) {
        print_regardless(format_args!(
            "visor: [info] scrubbed {pages} pages of VMs, {ticks} ticks\n"
        ));
    }
    let (start, end) = paging::Image::this().variables();
    let table = segments::interrupts_base();
    let plan = Plan {
        variables: [(start, table), (table + segments::TABLE_BYTES, end)],
        rest: machine.rest,
        blocks: machine.all_blocks(),
        last,
    };
    // Not on a stack: a machine check comes here on the very one that goes on.
    let plan: &Plan = PLAN.call_once(|| plan);
    // SAFETY: this stack is left for another one, or for the top of the same; its bytes are nobody's.
    unsafe {
        asm!(
            "rep stosb",
            "mov rsp, rdi",
            "mov rdi, rdx",
            "call {finish}",
            finish = sym finish,
            in("al") 0_u8,
            in("rcx") percpu::SECRETS - percpu::LAST_STACK,
            in("rdi") PerCpu::current().base() + percpu::LAST_STACK,
            in("rdx") &raw const *plan,
            options(noreturn)
        )
    }
}

/// Overwrites the visor's own secrets, and does what is to be done.
///
/// # Safety
/// `plan` is true, and the stack is below [`percpu::SECRETS`] of this processor's block.
unsafe extern "C" fn finish(plan: *const Plan) -> ! {
    // SAFETY: a variable that is not overwritten yet.
    let Plan { variables, rest, blocks, last } = unsafe { plan.read_volatile() };
    let each = (0..blocks.len() / percpu::SIZE).map(|index| blocks.start() + index * percpu::SIZE);
    let own = PerCpu::current().base();
    let tails = each.filter_map(|block| {
        let is_own = memory::linear(block) == own;
        let first = if is_own { percpu::SECRETS } else { percpu::LAST_STACK };
        Span::new(block + first, block + percpu::SIZE)
    });
    let around = [Span::new(rest.start(), blocks.start()), Span::new(blocks.end(), rest.end())];
    for span in around.into_iter().flatten().chain(tails) {
        // SAFETY: tables, stacks and records that nobody uses any more: this function and what it calls
        // have no others than this stack.
        unsafe { zero(memory::linear(span.start()), span.len()) };
    }
    for (start, end) in variables {
        // SAFETY: variables of the visor's, none of which is read from here on.
        unsafe { zero(start, end - start) };
    }
    // What is still in the caches only, sleep and some resets lose: and then the memory behind shows.
    cpu::write_back_caches();
    match last {
        Last::Write(access, value) => {
            // SAFETY: there is nothing left that could be harmed.
            unsafe { cpu::port_out(access.port, access.size, value) };
            // A second: chipsets take their time.
            apic::wait(1_000_000);
            reset::machine()
        }
        Last::Reset => reset::machine(),
        Last::Halt => cpu::stop(),
    }
}
