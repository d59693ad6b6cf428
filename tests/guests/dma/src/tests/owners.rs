//! A page that changes hands: devices reach it while it is the host's, and at no other time.

use super::{ARENA, Machine, carry};
use crate::devices::{Device, Ended};
use crate::guard::{Guard, Owner, Stopped};
use crate::memory::{self, PAGE};
use crate::visor;
use bare::report::{Checks, Outcome};

/// The page that changes hands, and one that stays the host's.
const PAGES: [u64; 2] = [ARENA + 0x10_0000, ARENA + 0x20_0000];

/// Each device before, while and after the page is a VM's.
pub(super) fn run(machine: &mut Machine) -> Outcome {
    let mut checks = Checks::new();
    let (guard, devices) = machine.parts();
    for (seed, device) in (1..).zip(devices) {
        guard.forget();
        reaches(device, seed, "before", &mut checks);
        let [page, _] = PAGES;
        guard.give(page, page + PAGE, Owner::Vm);
        is_kept_from_reading(guard, device, seed << 8, &mut checks);
        is_kept_from_writing(guard, device, seed << 16, &mut checks);
        guard.give(page, page + PAGE, Owner::Host);
        reaches(device, seed << 24, "afterwards", &mut checks);
        let rest = guard.stopped();
        checks.that(rest.is_none(), format_args!("{}: {rest:x?} at the end", device.name()));
    }
    checks.finish()
}

/// Pages of the visor's are no device's: tables, what says whose they are, and the unit's registers.
pub(super) fn visor(machine: &mut Machine) -> Outcome {
    let mut checks = Checks::new();
    let (guard, devices) = machine.parts();
    for device in devices {
        for page in [visor::START, visor::START + PAGE, visor::WORDS, visor::END - PAGE] {
            let (name, before) = (device.name(), memory::sum(page));
            guard.forget();
            let _ = device.take(page);
            is_told(guard, device, (page, false), &mut checks);
            memory::fill(ARENA, PAGE, page | u64::from(device.source()));
            let _ = device.take(ARENA);
            guard.forget();
            let _ = device.store(page);
            is_told(guard, device, (page, true), &mut checks);
            let same = memory::sum(page) == before;
            checks.that(same, format_args!("{name} wrote the visor's page {page:#x}"));
        }
        if let Some(registers) = guard.registers() {
            guard.forget();
            let _ = device.store(registers);
            is_told(guard, device, (registers, true), &mut checks);
        }
    }
    guard.forget();
    checks.finish()
}

/// Devices may read a table for VMs; of a VM's page that the host sees something else in the place of, they
/// reach that.
pub(super) fn roles(machine: &mut Machine) -> Outcome {
    let mut checks = Checks::new();
    let [page, other] = PAGES;
    let (guard, devices) = machine.parts();
    for device in devices {
        let (name, bytes) = (device.name(), device.bytes());
        guard.give(page, page + PAGE, Owner::HostAsTable);
        // QEMU's unit tells of a write only as long as it does not know that reading is permitted.
        is_kept_from_writing(guard, device, 2, &mut checks);
        let (ended, words) = carry(device, [page, other], 1);
        let holds = ended == [Ended::Done; 2] && words == bytes / 8;
        checks.that(holds, format_args!("{name} reads a table: {ended:?}, {words} words"));
        guard.give(page, page + PAGE, Owner::Host);
        guard.give(page, page + PAGE, Owner::VmWithView);
        memory::fill(page, PAGE, 3);
        memory::fill(visor::VIEWS, PAGE, 4);
        let ended = [device.take(page), device.store(other)];
        let holds = ended == [Ended::Done; 2] && memory::holds(other, bytes, 4);
        checks.that(holds, format_args!("{name} reads a view: {ended:?}"));
        memory::fill(visor::VIEWS, PAGE, 5);
        let ended = device.store(page);
        let holds = ended == Ended::Done && memory::holds(visor::VIEWS, bytes, 4);
        checks.that(holds, format_args!("{name} writes a view: {ended:?}"));
        let same = memory::holds(page, PAGE, 3);
        checks.that(same, format_args!("{name} wrote a VM's page behind a view"));
        guard.give(page, page + PAGE, Owner::Host);
        reaches(device, 6, "afterwards", &mut checks);
        let rest = guard.stopped();
        checks.that(rest.is_none(), format_args!("{name}: {rest:x?} at the end"));
    }
    checks.finish()
}

/// A unit that is on with other tables is taken over, and knows whose pages are from then on.
pub(super) fn take_over(machine: &mut Machine) -> Outcome {
    let mut checks = Checks::new();
    let (page, other) = (PAGES[0], PAGES[1]);
    let (guard, devices) = machine.parts();
    for device in devices {
        reaches(device, 1, "before", &mut checks);
    }
    guard.take_over(page, page + PAGE);
    let (guard, devices) = machine.parts();
    for device in devices {
        is_kept_from_reading(guard, device, 2, &mut checks);
        is_kept_from_writing(guard, device, 3, &mut checks);
        let (ended, words) = carry(device, [other, other + PAGE], 4);
        let holds = ended == [Ended::Done; 2] && words == device.bytes() / 8;
        checks.that(holds, format_args!("{}: {ended:?}, {words} words", device.name()));
    }
    guard.give(page, page + PAGE, Owner::Host);
    checks.finish()
}

/// The device moves the page's content elsewhere, and other content into it.
fn reaches(device: &mut dyn Device, seed: u64, when: &str, checks: &mut Checks) {
    let [page, other] = PAGES;
    for pages in [[page, other], [other, page]] {
        let (ended, words) = carry(device, pages, seed);
        let holds = ended == [Ended::Done; 2] && words == device.bytes() / 8;
        let name = device.name();
        checks.that(holds, format_args!("{name} {when}: {ended:?}, {words} words"));
    }
}

/// The device gets nothing of the page.
fn is_kept_from_reading(
    guard: &mut Guard,
    device: &mut dyn Device,
    seed: u64,
    checks: &mut Checks,
) {
    let [page, other] = PAGES;
    let (bytes, name) = (device.bytes(), device.name());
    memory::fill(page, bytes, seed);
    let _ = device.take(page);
    is_told(guard, device, (page, false), checks);
    let _ = device.store(other);
    let words = memory::matching(other, bytes, seed);
    checks.that(words == 0, format_args!("{name} read {words} words of a VM's page"));
    guard.forget();
}

/// The device changes nothing in the page.
fn is_kept_from_writing(
    guard: &mut Guard,
    device: &mut dyn Device,
    seed: u64,
    checks: &mut Checks,
) {
    let [page, other] = PAGES;
    let (bytes, name) = (device.bytes(), device.name());
    memory::fill(other, bytes, seed);
    let taken = device.take(other);
    checks.that(taken == Ended::Done, format_args!("{name} meanwhile, from the host: {taken:?}"));
    memory::fill(page, PAGE, !seed);
    let _ = device.store(page);
    is_told(guard, device, (page, true), checks);
    let words = PAGE / 8 - memory::matching(page, PAGE, !seed);
    checks.that(words == 0, format_args!("{name} wrote {words} words of a VM's page"));
    guard.forget();
}

/// What the device just tried was told of as what it was.
fn is_told(guard: &mut Guard, device: &dyn Device, what: (u64, bool), checks: &mut Checks) {
    let expected = Stopped { source: device.source(), page: what.0, is_write: what.1 };
    let told = guard.stopped();
    let name = device.name();
    checks.that(told == Some(expected), format_args!("{name}: {told:x?}, not {expected:x?}"));
}
