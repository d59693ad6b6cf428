//! `apic-base [base=ADDRESS]`: the local APIC cannot be moved, least of all over the reservation;
//! it works on, and switches to x2APIC mode where the processor has it (for good: run this last).

use super::stats::Direct;
use super::{Arguments, Machine};
use crate::apic::{self, APIC_BASE, X2APIC};
use crate::fault::{Fault, GP, NMI, arrived, catch};
use crate::report::{Checks, Outcome};
use crate::{console, cpu, time};
use control::Status;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const SELF: u8 = 0x42;
const X2_SELF_IPI: u32 = 0x83f;

pub(super) fn run(_: &Machine, arguments: &Arguments) -> Outcome {
    let mut checks = Checks::new();
    let reservation = match Status::find(Direct) {
        Ok(mut visor) => Some(visor.reservation().0),
        Err(_) => arguments.value("base"),
    };
    let elsewhere = [0xfee0_1000, 0xfec0_0000, 0xd000_0000, 0x9000, 0];
    for address in reservation.into_iter().chain(elsewhere) {
        stays(&mut checks, address);
    }
    same_value(&mut checks);
    works(&mut checks, "xAPIC");
    if apic::has_x2() {
        x2(&mut checks);
    } else {
        console::line(format_args!("no x2APIC: not tried"));
    }
    checks.finish()
}

fn write(value: u64) -> Result<(), Fault> {
    catch(|| cpu::wrmsr(APIC_BASE, value))
}

fn stays(checks: &mut Checks, address: u64) {
    let before = cpu::rdmsr(APIC_BASE);
    let result = write(before & !ADDRESS | address);
    let after = cpu::rdmsr(APIC_BASE);
    if after != before {
        cpu::wrmsr(APIC_BASE, before);
    }
    let refused = matches!(result, Err(Fault { vector: GP, error: 0, .. }));
    checks.that(
        refused && after == before,
        format_args!("moving the APIC to {address:#x} raises #GP, {result:?}, base {after:#x}"),
    );
}

fn same_value(checks: &mut Checks) {
    let before = cpu::rdmsr(APIC_BASE);
    let result = write(before);
    checks.that(
        result.is_ok() && cpu::rdmsr(APIC_BASE) == before,
        format_args!("IA32_APIC_BASE takes the value it has, {result:?}"),
    );
}

/// An interrupt and an NMI to this processor arrive.
fn works(checks: &mut Checks, mode: &str) {
    let before = (arrived(SELF), arrived(NMI));
    cpu::sti();
    apic::send(apic::id(), apic::FIXED | u32::from(SELF));
    apic::send(apic::id(), apic::NMI);
    let both =
        time::wait_us(100_000, || (arrived(SELF), arrived(NMI)) == (before.0 + 1, before.1 + 1));
    cpu::cli();
    checks.that(
        both && apic::id() == 0,
        format_args!("the APIC works in {mode} mode, id {}", apic::id()),
    );
}

fn x2(checks: &mut Checks) {
    let base = cpu::rdmsr(APIC_BASE);
    let result = write(base | X2APIC);
    let entered = result.is_ok() && cpu::rdmsr(APIC_BASE) == base | X2APIC;
    checks.that(entered, format_args!("x2APIC mode can be entered, {result:?}"));
    if !entered {
        return;
    }
    apic::enable_x2();
    works(checks, "x2APIC");
    let before = arrived(SELF);
    cpu::sti();
    cpu::wrmsr(X2_SELF_IPI, u64::from(SELF));
    let came = time::wait_us(100_000, || arrived(SELF) == before + 1);
    cpu::cli();
    checks.that(came, format_args!("a self IPI arrives"));
    // SDM vol. 3, 11.12.5: only through the disabled state.
    let back = write(base);
    checks.that(
        matches!(back, Err(Fault { vector: GP, .. })),
        format_args!("x2APIC to xAPIC raises #GP, {back:?}"),
    );
    stays(checks, 0xfee0_1000);
}
