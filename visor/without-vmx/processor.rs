//! How a processor comes to run the host on machines without VMX: natively. For tests only.
//!
//! In the place of `src/processor.rs`. The visor does all of its start-up, then gives the processors away. So
//! nothing keeps the host from the visor's memory any more; what devices may reach is as the visor set it up.
//! On three or more processors one stays, and has frames change their owner when the host asks for it.
#![expect(unsafe_code, reason = "leaving long mode")]

use core::arch::{asm, global_asm};

use ept::addr::{Frame, GuestFrame, PAGE, Span};
use ept::frames::Vm;
use nested_vmx::capability::RawCapabilities;

use crate::apic::{self, Delivery, Destination};
use crate::cpu;
use crate::machine::Machine;
use crate::memory;
use crate::percpu::PerCpu;
use crate::tables::Trees;
use crate::vmcs::NoVmx;
use crate::{shootdown, smp, tpm};

global_asm!(include_str!("leave.s"));

unsafe extern "C" {
    static leave: u8;
    static leave_end: u8;
}

/// Where the way out lies in the first of the low pages, behind the way in.
const OFFSET: u64 = 0x800;

/// Says loudly, and once, what this build is.
#[expect(clippy::unnecessary_wraps, reason = "as the real one")]
pub(crate) fn enable() -> Result<(), NoVmx> {
    if Machine::get().is_none() {
        log::warn!(
            "TEST BUILD WITHOUT VMX: the host runs natively, and NOTHING IS PROTECTED from it"
        );
    }
    Ok(())
}

/// What no processor has: everything.
pub(crate) const fn capabilities() -> RawCapabilities {
    const WRITE_BACK: u64 = 6 << 50;
    const ALL: u64 = !0 << 32;
    RawCapabilities {
        basic: WRITE_BACK,
        pin: ALL,
        primary: ALL,
        secondary: ALL,
        exit: ALL,
        entry: ALL,
        misc: u64::MAX,
        ept_vpid: u64::MAX,
        cr0_fixed: (0, u64::MAX),
        cr4_fixed: (0, u64::MAX),
    }
}

/// Nothing: there is no mode to enter.
#[expect(clippy::unnecessary_wraps, reason = "as the real one")]
pub(crate) const fn join(_: &PerCpu, _: &Machine) -> Result<Option<()>, NoVmx> {
    Ok(Some(()))
}

/// Nothing: no processor remembers any EPT.
pub(crate) const fn forget() {}

/// Sends the other processors back to where they wait for a start-up IPI, but for one that [`serves`], and goes
/// to `entry` in 32-bit flat protected mode.
pub(crate) fn start_host(entry: u32, area: u64, handoff: u64) -> ! {
    let (machine, own) = (Machine::running(), PerCpu::current());
    shootdown::fall_asleep(own);
    for cpu in machine.each().filter(|cpu| cpu.index.get() != own.index.get()) {
        if !serves(machine, cpu) {
            apic::send(Delivery::Init, Destination::One(cpu.apic_id.get()));
        }
    }
    apic::wait(10_000);
    show_log(machine);
    let low = u64::from(smp::start_page()) * PAGE;
    let place = Span::sized(low + OFFSET, PAGE - OFFSET).unwrap_or_default();
    // SAFETY: the low pages are the visor's, and no other processor runs.
    let place = unsafe { memory::bytes_mut(place) };
    let (start, end) = (&raw const leave, &raw const leave_end);
    let len = end.addr() - start.addr();
    // SAFETY: the two symbols enclose the way out, which is read-only data of the image.
    let code = unsafe { core::slice::from_raw_parts(start, len) };
    place.iter_mut().zip(code).for_each(|(to, from)| *to = *from);
    // SAFETY: the tables in the second low page map this image as before, and the first GiB, where the way out
    // now is, in its place. Nothing of the visor's runs after it.
    unsafe {
        asm!(
            "mov cr3, {tables}",
            "mov rbx, {handoff}",
            "jmp rdi",
            tables = in(reg) low + PAGE,
            handoff = in(reg) handoff,
            in("rdi") low + OFFSET,
            in("rsi") area,
            in("r8") u64::from(entry),
            options(noreturn)
        );
    }
}

/// Puts the log of measurements into the last page but one of the visor's memory, which nobody else uses: there is no
/// port to read it by. A name, its length, then its bytes.
fn show_log(machine: &Machine) {
    let page = machine.reservation.end() - 2 * PAGE;
    tpm::with_log(|log| {
        memory::write_bytes(page, b"VISRTLOG");
        memory::write(page + 8, u64::try_from(log.len()).unwrap_or(0));
        memory::write_bytes(page + 16, log);
    });
}

/// Waits for the INIT that gives this processor back; or serves.
pub(crate) fn wait_for_host(cpu: &PerCpu) -> ! {
    let machine = Machine::running();
    if serves(machine, cpu) {
        smp::ready();
        serve(machine)
    }
    shootdown::fall_asleep(cpu);
    smp::ready();
    cpu::stop()
}

/// Whether `cpu` stays with the visor: of three or more the one that QEMU numbers highest. The host must be told
/// to use one less.
fn serves(machine: &Machine, cpu: &PerCpu) -> bool {
    machine.processors > 2 && cpu.apic_id.get() == machine.processors - 1
}

/// Has frames change their owner, as the host asks by words in the last page of the visor's memory, which nobody
/// else uses: a number that is new with each request, what is asked for (1: a VM takes the frame, 0: it gives
/// it back), the address of the frame; then the answer, 1 if it was done, and the number again.
fn serve(machine: &Machine) -> ! {
    let page = memory::linear(machine.reservation.end() - PAGE);
    let word = |index| memory::read_word(page, index);
    let mut last = 0;
    loop {
        let number = word(0);
        if number == last {
            core::hint::spin_loop();
            continue;
        }
        last = number;
        let (is_take, frame) = (word(1) == 1, Frame::containing(word(2)));
        let change = |trees: &mut Trees<'_, '_>| match (is_take, Vm::new(1)) {
            (true, Some(vm)) => trees.take(frame, vm, GuestFrame::containing(0)).is_ok(),
            (true, None) => false,
            (false, _) => trees.release(&[frame]).is_ok(),
        };
        let is_done = machine.tables.with_protected(|_, trees| change(trees));
        memory::write_word(page, 3, is_done.into());
        memory::write_word(page, 4, number);
    }
}
