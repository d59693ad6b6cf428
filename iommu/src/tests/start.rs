//! Units are taken over, from reset and from firmware that has used them.

use std::string::ToString;
use std::vec::Vec;

use ept::addr::{HUGE, PAGE, Span};

use super::world::{DEVICE, PLACE, VISOR, World, frame_table, take};
use crate::fake::{CAP, ECAP, Fake, Flaw, IRE, Mem, PROTECTED, QIE, Ram, SCALABLE, Sight, TE, Try};
use crate::fault::Looks;
use crate::{
    Access, Capabilities, Cause, Destinations, Domain, Error, Fault, Faults, Feature, Format,
    Interrupts, Mode, Policy, Reason, Registers, Snoop, Source, Step, Unit, Window, format,
};

fn start(world: &mut World, mode: Mode) -> Result<(), Error> {
    world.units[0].start(&mut world.mem, &world.domain, None, mode)
}

/// Firmware's own tables, which let devices go anywhere, in use; with its queue, if the unit has been
/// used by it. Its domain number is the visor's.
fn firmware(world: &World, mode: Mode) {
    let mut mem = world.mem.clone();
    let empty = frame_table_without_visor();
    let policy = Policy { frames: &empty, denied: &[] };
    let mut unit = Unit::probe(world.fakes[0].clone(), 0).expect("a unit");
    let format = Format::new(39).and(unit.capabilities());
    let domain = Domain::build(&mut mem, &policy, format).expect("tables");
    unit.start(&mut mem, &domain, None, mode).expect("a start");
    assert_eq!(world.fakes[0].dma(DEVICE, VISOR.start(), Try::Write), Ok(VISOR.start()));
}

fn frame_table_without_visor() -> ept::frames::FrameTable<'static> {
    ept::frames::FrameTable::new(&[], &mut []).expect("a table of no RAM")
}

#[test]
fn from_reset_translation_is_on_with_one_switch_and_protection_off() {
    for (mode, ecap) in [(Mode::Legacy, ECAP), (Mode::Scalable, ECAP | SCALABLE)] {
        let mut world = World::stopped(Sight::Coherent, &[(CAP, ecap)]);
        assert_eq!(world.units[0].guard(VISOR), Ok(Window::Closed));
        assert_eq!(world.fakes[0].dma(DEVICE, VISOR.start(), Try::Read), Err(PROTECTED));
        assert_eq!(world.fakes[0].dma(DEVICE, VISOR.end() - 1, Try::Read), Err(PROTECTED));
        assert!(world.fakes[0].dma(DEVICE, VISOR.start() - 1, Try::Read).is_ok());
        assert!(world.fakes[0].dma(DEVICE, VISOR.end(), Try::Read).is_ok());
        start(&mut world, mode).unwrap();
        let state = world.fakes[0].0.borrow();
        assert_eq!(state.status & (TE | QIE | IRE), TE | QIE);
        assert_eq!((state.protected.0, state.gaps, state.fault_control), (0, 0, 1 << 31));
        drop(state);
        for source in [0, DEVICE, 0x00ff, 0xff80, 0xffff] {
            assert_eq!(world.fakes[0].dma(source, PLACE, Try::Write), Ok(PLACE));
            assert_eq!(world.fakes[0].dma(source, VISOR.start(), Try::Write), Err(5));
        }
        world.hand(PLACE, take(0));
        world.check(PLACE);
    }
}

#[test]
fn a_low_reservation_is_protected_by_the_low_region() {
    let span = Span::sized(0x200_0000, 0x20_0000).unwrap();
    for (cap, window) in [(CAP, Window::Closed), (CAP & !(1 << 6), Window::Closed)] {
        let mut world = World::stopped(Sight::Coherent, &[(cap, ECAP)]);
        assert_eq!(world.units[0].guard(span), Ok(window));
        assert_eq!(world.fakes[0].dma(DEVICE, span.start(), Try::Write), Err(PROTECTED));
        assert_eq!(world.fakes[0].dma(DEVICE, span.end() - 1, Try::Write), Err(PROTECTED));
        assert!(world.fakes[0].dma(DEVICE, span.end(), Try::Write).is_ok());
        assert!(world.fakes[0].dma(DEVICE, 0, Try::Write).is_ok());
        assert!(world.fakes[0].dma(DEVICE, 5 * HUGE, Try::Write).is_ok());
    }
    let mut world = World::stopped(Sight::Coherent, &[(CAP & !(1 << 5), ECAP)]);
    assert_eq!(world.units[0].guard(span), Ok(Window::Closed));
    assert_eq!(world.fakes[0].dma(DEVICE, span.start(), Try::Write), Err(PROTECTED));
}

#[test]
fn a_unit_without_regions_says_that_there_is_a_window() {
    let mut world = World::stopped(Sight::Coherent, &[(CAP & !(0b11 << 5), ECAP)]);
    assert_eq!(world.units[0].guard(VISOR), Ok(Window::Open));
    let mut world = World::stopped(Sight::Coherent, &[(CAP & !(1 << 6), ECAP)]);
    assert_eq!(world.units[0].guard(VISOR), Ok(Window::Open));
    start(&mut world, Mode::Legacy).unwrap();
}

#[test]
fn regions_that_firmware_left_on_count_if_they_cover_the_visor() {
    let low = Span::sized(0x200_0000, 0x20_0000).unwrap();
    let word = |value: u64| u32::try_from(value).unwrap();
    let window = |span: Span, cap, status, from: u64, last: u64| {
        let mut world = World::stopped(Sight::Coherent, &[(cap, ECAP)]);
        let mut state = world.fakes[0].0.borrow_mut();
        state.status |= status;
        state.protected.0 = 1 << 31 | 1;
        if span == low {
            state.protected.1 = [word(from), word(last)];
        } else {
            state.protected.2 = [from, last];
        }
        drop(state);
        world.units[0].guard(span).unwrap()
    };
    for span in [low, VISOR] {
        let (start, last) = (span.start(), span.end() - 1);
        assert_eq!(window(span, CAP, 0, start, last), Window::Closed);
        assert_eq!(window(span, CAP, 0, start + PAGE, last), Window::Firmware);
        assert_eq!(window(span, CAP, 0, start, last - 1), Window::Firmware);
        assert_eq!(window(span, CAP & !(0b11 << 5), 0, start, last), Window::Firmware);
        // What is translated is not sure to be stopped by regions.
        assert_eq!(window(span, CAP, TE, start, last), Window::Firmware);
    }
}

#[test]
fn regions_that_firmware_left_on_stay_as_they_are_until_translation_is_on() {
    let mut world = World::stopped(Sight::Coherent, &[(CAP, ECAP)]);
    let regions = (1 << 31 | 1, [0, 0xfff0_0000], [0; 2]);
    world.fakes[0].0.borrow_mut().protected = regions;
    assert_eq!(world.units[0].guard(VISOR), Ok(Window::Firmware));
    assert_eq!(world.fakes[0].0.borrow().protected, regions);
    start(&mut world, Mode::Legacy).unwrap();
    assert_eq!(world.fakes[0].0.borrow().protected.0, 0);
}

#[test]
fn tables_are_out_of_the_write_buffer_before_a_unit_has_them() {
    let mut world = World::stopped(Sight::Buffered, &[(CAP | 1 << 4, ECAP)]);
    world.fakes[0].0.borrow_mut().caches.checks_root = true;
    start(&mut world, Mode::Legacy).unwrap();
    world.check(PLACE);
}

#[test]
fn translation_that_firmware_left_on_stays_on() {
    for (mode, ecap) in [(Mode::Legacy, ECAP), (Mode::Scalable, ECAP | SCALABLE)] {
        let mut world = World::stopped(Sight::Coherent, &[(CAP, ecap)]);
        firmware(&world, mode);
        assert_eq!(world.units[0].guard(VISOR), Ok(Window::Firmware));
        start(&mut world, mode).unwrap();
        assert_eq!(world.fakes[0].0.borrow().gaps, 0);
        world.check(PLACE);
        assert_eq!(world.fakes[0].dma(DEVICE, VISOR.start(), Try::Write), Err(5));
    }
}

#[test]
fn only_a_change_of_mode_switches_translation_off() {
    let mut world = World::stopped(Sight::Coherent, &[(CAP, ECAP | SCALABLE)]);
    firmware(&world, Mode::Legacy);
    start(&mut world, Mode::Scalable).unwrap();
    assert_eq!(world.fakes[0].0.borrow().gaps, 1);
    assert_eq!(world.fakes[0].dma(DEVICE, VISOR.start(), Try::Write), Err(5));
}

#[test]
fn nothing_of_firmwares_is_remembered() {
    for (flaw, mode) in [
        (Flaw::Contexts, Mode::Legacy),
        (Flaw::Translations, Mode::Legacy),
        (Flaw::Structures, Mode::Legacy),
        (Flaw::Contexts, Mode::Scalable),
    ] {
        let mut world = World::stopped(Sight::Coherent, &[(CAP, ECAP | SCALABLE)]);
        firmware(&world, mode);
        world.fakes[0].0.borrow_mut().caches.flaw = Some(flaw);
        start(&mut world, mode).unwrap();
        let reached = world.fakes[0].dma(DEVICE, VISOR.start(), Try::Write);
        assert!(reached.is_ok(), "without {flaw:?} forgotten, {mode:?}");
    }
}

#[test]
fn a_pasid_entry_of_firmwares_is_not_remembered() {
    // The visor's tables lie where firmware's were: memory that firmware has given up.
    let mut world = World::stopped(Sight::Coherent, &[(CAP, ECAP | SCALABLE)]);
    firmware(&world, Mode::Scalable);
    start(&mut world, Mode::Scalable).unwrap();
    let heard = world.fakes[0].0.borrow().heard.clone();
    let kinds: Vec<_> = heard.iter().rev().take(4).map(|words| words[0] & 0xf).collect();
    assert_eq!(kinds, [5, 2, 7, 1]);
}

#[test]
fn a_unit_that_cannot_is_named_with_what_it_lacks() {
    let ram = Ram::new(VISOR.start(), Sight::Coherent);
    let probe = |cap, ecap| Unit::probe(Fake::new(&ram, cap, ecap), 0xfed9_0000).map(|_| ());
    let lacks = |feature| Err(Error { unit: 0xfed9_0000, cause: Cause::Lacks(feature) });
    assert_eq!(probe(CAP, ECAP), Ok(()));
    assert_eq!(probe(u64::MAX, u64::MAX), lacks(Feature::Registers));
    assert_eq!(probe(0, 0), lacks(Feature::Registers));
    assert_eq!(probe(CAP & !(0b110 << 8), ECAP), lacks(Feature::SecondStage));
    assert_eq!(probe(CAP, ECAP & !2), lacks(Feature::Queue));
    let line = lacks(Feature::Queue).unwrap_err().to_string();
    assert_eq!(line, "VT-d unit 0xfed90000: lacks queued invalidation");

    let mut world = World::stopped(Sight::Coherent, &[(CAP, ECAP & !0b1_1000)]);
    let cause = |error: Result<(), Error>| error.unwrap_err().cause;
    assert_eq!(cause(start(&mut world, Mode::Scalable)), Cause::Lacks(Feature::Scalable));
    for (ecap, wide, feature) in [
        (ECAP & !0b1_1000, Destinations::Xapic, Feature::Interrupts),
        (ECAP & !0b1_0000, Destinations::X2apic, Feature::WideDestinations),
    ] {
        let mut world = World::stopped(Sight::Coherent, &[(CAP, ecap)]);
        let interrupts = Interrupts::new(&mut world.mem, &world.units[0], wide);
        let unit = &mut world.units[0];
        let started = unit.start(&mut world.mem, &world.domain, interrupts.as_ref(), Mode::Legacy);
        assert_eq!(cause(started), Cause::Lacks(feature));
        assert_eq!(world.fakes[0].0.borrow().status & IRE, 0);
    }
}

#[test]
fn ram_beyond_what_a_unit_translates_is_an_error() {
    let ram = Ram::new(VISOR.start(), Sight::Coherent);
    let unit = |cap| Unit::probe(Fake::new(&ram, cap, ECAP), 0).unwrap();
    let narrow = CAP & !(0x3f << 16) | 35 << 16;
    let ask = |cap, end| format(&[unit(CAP), unit(cap)], 46, end).map(|format| format.end());
    let beyond = Err(Error { unit: 0, cause: Cause::Lacks(Feature::Width) });
    assert_eq!(ask(CAP, 1 << 46), Ok(1 << 46));
    assert_eq!(ask(narrow, 1 << 36), Ok(1 << 36));
    assert_eq!(ask(narrow, (1 << 36) + 1), beyond);
    assert_eq!(ask(CAP & !(1 << 10), 1 << 39), Ok(1 << 39));
    assert_eq!(ask(CAP & !(1 << 10), (1 << 39) + 1), beyond);
}

#[test]
fn a_unit_that_ignores_a_command_is_named_with_it() {
    for (deaf, firmware_on, step) in [
        (TE, false, Step::Translation),
        (QIE, false, Step::Queue),
        (1 << 30, false, Step::Root),
        (1 << 27, false, Step::Writes),
        (QIE, true, Step::Queue),
    ] {
        let mut world = World::stopped(Sight::Coherent, &[(CAP | 1 << 4, ECAP)]);
        if firmware_on {
            firmware(&world, Mode::Legacy);
        }
        let mut state = world.fakes[0].0.borrow_mut();
        state.deaf = deaf;
        if step == Step::Writes {
            state.status |= deaf;
        }
        drop(state);
        let error = start(&mut world, Mode::Legacy).unwrap_err();
        assert_eq!(error.cause, Cause::Timeout(step));
    }
    let mut world = World::stopped(Sight::Coherent, &[(CAP, ECAP)]);
    world.fakes[0].0.borrow_mut().stuck = true;
    assert_eq!(world.units[0].guard(VISOR).unwrap_err().cause, Cause::Timeout(Step::Protection));
    let error = Error { unit: 1, cause: Cause::Timeout(Step::Root) };
    assert_eq!(
        error.to_string(),
        "VT-d unit 0x1: did not finish taking its root table within a second"
    );
}

#[test]
fn without_memory_for_its_tables_a_unit_is_not_started() {
    for left in 0..4 {
        let mut world = World::stopped(Sight::Coherent, &[(CAP, ECAP)]);
        world.ram.borrow_mut().left = left;
        assert_eq!(start(&mut world, Mode::Legacy).unwrap_err().cause, Cause::Exhausted);
        assert_eq!(world.fakes[0].0.borrow().status & TE, 0);
    }
    let frames = frame_table();
    let policy = Policy { frames: &frames, denied: &[] };
    let ram = Ram::new(VISOR.start(), Sight::Coherent);
    ram.borrow_mut().left = 2;
    assert!(Domain::build(&mut Mem(ram), &policy, Format::new(39)).is_err());
}

#[test]
fn faults_are_reported_with_device_address_and_reason() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    let fake = world.fakes[0].clone();
    let _ = fake.dma(Source::new(3, 2, 1).0, VISOR.start() + 5, Try::Read);
    let _ = fake.dma(DEVICE, VISOR.start() + PAGE, Try::Write);
    let _ = fake.dma(DEVICE, 1 << 50, Try::Write);
    let mut seen = Vec::new();
    let faults = world.units[0].poll(|fault| seen.push(fault));
    assert_eq!(faults, Faults { records: 3, lost: false });
    let address = VISOR.start();
    assert_eq!(
        seen[0],
        Fault { source: Source(0x0311), access: Access::Read(address), reason: Reason::Read }
    );
    assert_eq!((seen[1].access, seen[1].reason), (Access::Write(address + PAGE), Reason::Write));
    assert_eq!(seen[2].reason, Reason::Beyond);
    assert_eq!(seen[0].words(), [0x4_0311, address]);
    let line = seen[0].to_string();
    assert_eq!(line, "device 03:02.1: read of 0x13fe00000 refused: not its memory");
    assert_eq!(world.units[0].poll(|_| panic!("read twice")), Faults::default());
}

#[test]
fn a_storm_of_faults_is_read_in_pieces_and_what_is_lost_is_said() {
    for records in [1, 4] {
        let cap = CAP & !(0xff << 40) | (records - 1) << 40;
        let mut world = World::started(Sight::Coherent, &[(cap, ECAP)]);
        for round in 0..5 {
            for number in 0..10 {
                let _ = world.fakes[0].dma(DEVICE, VISOR.start() + number * PAGE, Try::Read);
            }
            let mut seen = Vec::new();
            let faults = world.units[0].poll(|fault| seen.push(fault.access));
            assert_eq!((u64::from(faults.records), faults.lost), (records, true), "{round}");
            assert_eq!(seen[0], Access::Read(VISOR.start()));
        }
        let _ = world.fakes[0].dma(DEVICE, VISOR.start(), Try::Read);
        let faults = world.units[0].poll(|_| ());
        assert_eq!(faults, Faults { records: 1, lost: false });
    }
}

#[test]
fn a_device_that_faults_while_records_are_read_does_not_hold_the_visor() {
    let mut world = World::started(Sight::Coherent, &[(CAP, ECAP)]);
    let fake = world.fakes[0].clone();
    let _ = fake.dma(DEVICE, VISOR.start(), Try::Read);
    let faults = world.units[0].poll(|_| {
        let _ = fake.dma(DEVICE, VISOR.start(), Try::Read);
    });
    assert_eq!(faults.records, 4);
    assert_eq!(world.units[0].registers().read32(0x34) & 2, 2);
}

#[test]
fn a_unit_that_leaves_reads_or_writes_under_way_is_refused() {
    let ram = Ram::new(VISOR.start(), Sight::Coherent);
    for draining in [1 << 54, 1 << 55] {
        let probed = Unit::probe(Fake::new(&ram, CAP & !draining, ECAP), 1);
        let error = probed.map(drop).unwrap_err();
        assert_eq!(error.cause, Cause::Lacks(Feature::Drain));
        assert_eq!(
            error.to_string(),
            "VT-d unit 0x1: lacks draining of reads and writes under way"
        );
    }
}

#[test]
fn units_are_asked_again_whatever_becomes_of_the_clock() {
    const PERIOD: u64 = 1 << 21;
    let due = |last, now| {
        let mut looks = Looks::default();
        let _ = looks.are_due(last | PERIOD);
        looks.are_due(now)
    };
    let last = PERIOD + 5;
    assert!(!due(last, last) && !due(last, last + PERIOD - 1) && due(last, last + PERIOD));
    // Set to its end, and from there back.
    assert!(due(last, u64::MAX) && due(u64::MAX, PERIOD) && due(u64::MAX - 1, PERIOD - 2));
    assert!(!due(u64::MAX, 98), "it went round");
    // Set back by a little, and by much.
    assert!(due(last, last - 1) && due(last, 0) && due(u64::MAX / 2, 7));
}

#[test]
fn a_clock_that_is_always_set_back_a_little_puts_off_only_so_many_looks() {
    let mut looks = Looks::default();
    assert!(looks.are_due(1 << 40));
    for _ in 0..3 {
        let looked = (1..=Looks::MOST).map(|_| looks.are_due((1 << 40) + 1));
        let looked: Vec<_> = looked.collect();
        assert!(looked[..63].iter().all(|looked| !looked) && looked[63]);
    }
}

#[test]
fn every_reason_has_a_name() {
    let record = |code: u64| Fault::decode(7 << 48, 1 << 63 | code << 32).unwrap();
    let named = [
        (0x1, Reason::NoDomain),
        (0x2, Reason::NoDomain),
        (0x3, Reason::Table(3)),
        (0xd, Reason::Ats),
        (0x21, Reason::NoInterrupt),
        (0x25, Reason::Compatibility),
        (0x26, Reason::Forged),
        (0xa0, Reason::Unknown(0xa0)),
    ];
    for (code, reason) in named {
        assert_eq!(record(code).reason, reason);
    }
    for code in 0..=255 {
        assert!(record(code).to_string().len() < 100);
    }
    assert_eq!(Fault::decode(0, !(1 << 63)), None);
    let translated = Fault::decode(PAGE, 1 << 63 | 1 << 28 | 0xd << 32).unwrap();
    assert_eq!(translated.access, Access::Other(PAGE));
    assert_eq!(record(0x27).words(), [9 << 16 | 0x27 << 32, 7]);
}

#[test]
fn capabilities_are_read_where_the_specification_has_them() {
    let unit = Capabilities::new(CAP, ECAP);
    assert_eq!((unit.levels(), unit.width(), unit.largest_block()), (Some(4), 48, Some(18)));
    assert_eq!(unit.fault_records(), (0x220, 4));
    // What QEMU's has: caching mode, one record, no coherent walks.
    let qemu = Capabilities::new(0x00d2_008c_2226_0606 | 1 << 7, 0xf0_0f5a);
    assert_eq!((qemu.levels(), qemu.width()), (Some(4), 39));
    assert!(qemu.large() && qemu.huge() && qemu.remembers_absence() && qemu.queue());
    assert_eq!(qemu.walks(), crate::Walks::Incoherent);
    assert_eq!((qemu.fault_records(), qemu.largest_block()), ((0x220, 1), Some(18)));
    assert!(qemu.interrupts() && qemu.wide_destinations() && !qemu.scalable());
    assert_eq!((qemu.snoop(), Capabilities::new(0, 0x80).snoop()), (Snoop::AsAsked, Snoop::Always));
    assert!(!qemu.protects_low() && !qemu.protects_high() && !qemu.buffers_writes());
}

#[test]
fn memory_that_firmware_has_devices_use_must_not_be_anothers() {
    let mut world = World::stopped(Sight::Coherent, &[(CAP, ECAP)]);
    let reserved = Span::new(PLACE + 8, PLACE + 2 * PAGE).unwrap();
    assert_eq!(world.policy().conflict(reserved), None);
    world.change(PLACE + PAGE, take(0));
    assert_eq!(world.policy().conflict(reserved), ept::addr::Frame::at(PLACE + PAGE));
    let partly = Span::new(VISOR.end() - 1, VISOR.end() + PAGE).unwrap();
    assert!(world.policy().conflict(partly).is_some());
}
