//! Devices raise interrupts, their own and others'.

use super::world::{DEVICE, World};
use crate::fake::{CAP, CFI, ECAP, Flaw, IRE, Sight};
use crate::{
    Access, Addressing, Delivery, Destinations, Interrupt, Interrupts, Message, Mode, Reason,
    Source, Trigger,
};

const INTERRUPT: Interrupt = Interrupt {
    source: Source(DEVICE),
    vector: 0x41,
    destination: 3,
    addressing: Addressing::Physical,
    delivery: Delivery::Fixed,
    trigger: Trigger::Edge,
};

fn started(sight: Sight, ecap: u64, destinations: Destinations) -> (World, Interrupts) {
    let mut world = World::stopped(sight, &[(CAP, ecap)]);
    let interrupts = Interrupts::new(&mut world.mem, &world.units[0], destinations).unwrap();
    let unit = &mut world.units[0];
    unit.start(&mut world.mem, &world.domain, Some(&interrupts), Mode::Legacy).unwrap();
    assert_eq!(world.fakes[0].0.borrow().status & (IRE | CFI), IRE);
    (world, interrupts)
}

/// What `source` gets for the message of `index`.
fn raise(world: &World, source: u16, index: u8) -> Result<[u64; 2], u8> {
    let message = Message::remappable(index);
    world.fakes[0].interrupt(source, message.address, message.data)
}

#[test]
fn a_device_raises_its_own_interrupts_and_nobody_elses() {
    for (sight, ecap) in [(Sight::Coherent, ECAP), (Sight::WrittenBack, ECAP & !1)] {
        let (mut world, interrupts) = started(sight, ecap, Destinations::X2apic);
        assert_eq!(raise(&world, DEVICE, 7), Err(0x22));
        let unit = &mut world.units[0];
        interrupts.set(&mut world.mem, unit, 7, Some(INTERRUPT)).unwrap();
        assert_eq!(raise(&world, DEVICE, 7).unwrap()[0], 1 | 0x41 << 16 | 3 << 32);
        assert_eq!(raise(&world, DEVICE + 1, 7), Err(0x26));
        assert_eq!(raise(&world, DEVICE, 8), Err(0x22));
    }
}

#[test]
fn an_interrupt_outside_the_table_is_refused() {
    let (world, _) = started(Sight::Coherent, ECAP, Destinations::Xapic);
    // Index 256, with the handle's sixth bit and more.
    let beyond = Message::remappable(0).address | 256 << 5;
    assert_eq!(world.fakes[0].interrupt(DEVICE, beyond, 0), Err(0x21));
    assert_eq!(raise(&world, DEVICE, 255), Err(0x22));
}

#[test]
fn compatibility_format_is_refused_and_reported() {
    let (mut world, _) = started(Sight::Coherent, ECAP, Destinations::Xapic);
    assert_eq!(world.fakes[0].interrupt(DEVICE, 0xfee0_0000, 0x41), Err(0x25));
    let mut seen = None;
    let _ = world.units[0].poll(|fault| seen = Some(fault));
    assert_eq!(seen.unwrap().reason, Reason::Compatibility);
    assert_eq!(raise(&world, DEVICE, 9), Err(0x22));
    let _ = world.units[0].poll(|fault| seen = Some(fault));
    assert_eq!(seen.unwrap().access, Access::Interrupt(9));
}

#[test]
fn an_interrupt_that_was_taken_back_is_remembered_by_nobody() {
    for flaw in [None, Some(Flaw::Interrupts)] {
        let (mut world, interrupts) = started(Sight::Coherent, ECAP, Destinations::Xapic);
        let unit = &mut world.units[0];
        interrupts.set(&mut world.mem, unit, 7, Some(INTERRUPT)).unwrap();
        assert!(raise(&world, DEVICE, 7).is_ok());
        world.fakes[0].0.borrow_mut().caches.flaw = flaw;
        interrupts.set(&mut world.mem, &mut world.units[0], 7, None).unwrap();
        assert_eq!(raise(&world, DEVICE, 7).is_ok(), flaw.is_some(), "{flaw:?}");
    }
}

#[test]
fn a_changed_interrupt_is_never_seen_half_changed() {
    let (mut world, interrupts) = started(Sight::Coherent, ECAP, Destinations::Xapic);
    let unit = &mut world.units[0];
    interrupts.set(&mut world.mem, unit, 7, Some(INTERRUPT)).unwrap();
    assert!(raise(&world, DEVICE, 7).is_ok());
    world.ram.borrow_mut().history.clear();
    let other = Interrupt { source: Source(0x99), vector: 0x55, ..INTERRUPT };
    interrupts.set(&mut world.mem, &mut world.units[0], 7, Some(other)).unwrap();
    let ram = world.ram.borrow();
    let words = ram.history.iter().filter(|(_, index, _)| [14, 15].contains(index));
    let of_table = words.filter(|(table, ..)| *table == interrupts.register() & !0xfff);
    let (mut low, mut high) = (INTERRUPT.vector, DEVICE);
    let [vector, mut source] = [u64::from(low), u64::from(high)];
    let mut present = Some((vector, source));
    for (_, index, raw) in of_table {
        if *index == 15 {
            source = raw & 0xffff;
            assert_eq!(present, None, "the source changes while the entry is present");
        } else {
            present = (raw & 1 != 0).then_some((raw >> 16 & 0xff, source));
        }
        assert!([None, Some((vector, u64::from(high))), Some((0x55, 0x99))].contains(&present));
    }
    (low, high) = (0x55, 0x99);
    assert_eq!(present, Some((u64::from(low), u64::from(high))));
    drop(ram);
    assert_eq!(raise(&world, DEVICE, 7), Err(0x26));
    assert!(raise(&world, 0x99, 7).is_ok());
}

#[test]
fn every_field_of_an_interrupt_is_where_the_specification_has_it() {
    let (mut world, interrupts) = started(Sight::Coherent, ECAP, Destinations::Xapic);
    let all = Interrupt {
        addressing: Addressing::Logical,
        delivery: Delivery::Lowest,
        trigger: Trigger::Level,
        ..INTERRUPT
    };
    interrupts.set(&mut world.mem, &mut world.units[0], 0, Some(all)).unwrap();
    let [low, high] = raise(&world, DEVICE, 0).unwrap();
    assert_eq!(low, 0b11_1101 | 0x41 << 16 | 3 << 40);
    assert_eq!(high, u64::from(DEVICE) | 1 << 18);
}
