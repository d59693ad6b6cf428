//! Tickets, and the VMs that they become.

use ept::frames;
use membrane::Progress;
use membrane::vm::{Cause, Life};
use ticket::audit::Kind;
use ticket::error::Error;
use ticket::parse::Sink;
use ticket::{Disk, Header, Origin, Secret, State};

use crate::refusals::{events, page};
use crate::world::{PRIVATE, World};

#[test]
fn a_ticket_that_finds_no_memory_leaves_nothing_behind() {
    for left in 0..6 {
        let mut world = World::new();
        world.starve(left);
        let used = world.board.used();
        assert_eq!(world.submit(0), Err(Error::Memory));
        world.vms.refused(&mut world.board, Error::Memory, 0);
        assert_eq!(world.board.used(), used);
        assert_eq!(events(&world), [(Kind::Refused.number(), 66, 0)]);
    }
    let mut world = World::new();
    world.starve(6);
    assert!(world.submit(0).is_ok());
}

#[test]
fn the_oldest_ticket_gets_the_next_vm() {
    let mut world = World::new();
    let number = |number| frames::Vm::new(number).unwrap();
    assert_eq!(world.vms.launch(0), None);
    assert_eq!([world.submit(0), world.submit(1)], [Ok(number(0)), Ok(number(1))]);
    assert_eq!(world.submit(1), Err(Error::Duplicate));
    assert_eq!(world.vms.waiting(), 2);
    assert_eq!(world.vms.vm(number(0)).unwrap().life(), Life::Waiting);
    // The first slot is free again, and its next ticket is younger.
    let (mut machine, vms) = world.parts();
    assert_eq!(vms.destroy(&mut machine, number(0)), Progress::Done);
    assert_eq!(world.submit(0), Ok(number(0)));
    assert_eq!(world.vms.launch(0), Some(number(1)));
    assert_eq!(world.vms.launch(0), Some(number(0)));
    assert_eq!(world.vms.launch(0), None);
    let launches = [0, 1].map(|n| world.vms.vm(number(n)).unwrap().launch());
    assert_eq!(launches, [3, 2]);
    world.vms.vcpu_added(number(1), 0);
    assert_eq!(world.vms.vm(number(1)).unwrap().vcpus(), 1);
    assert_eq!(world.vms.vm(number(1)).unwrap().id(), &[1; 16]);
}

#[test]
fn there_are_64_vms_and_a_stopped_one_does_not_keep_its_name() {
    let mut world = World::new();
    for vm in 0..64 {
        let number = u8::try_from(vm).unwrap();
        assert_eq!(world.submit(vm), Ok(frames::Vm::new(number).unwrap()));
    }
    assert_eq!(world.submit(64), Err(Error::Slots));
    let used = world.board.used();
    world.vms.stop(frames::Vm::new(9).unwrap(), Cause::Memory, 0);
    assert_eq!(world.submit(9), Err(Error::Slots), "not a duplicate");
    assert_eq!(world.board.used(), used);
    let (mut machine, vms) = world.parts();
    while vms.destroy(&mut machine, frames::Vm::new(9).unwrap()) == Progress::Again {}
    assert!(world.submit(9).is_ok());
}

#[test]
fn a_ticket_comes_in_order() {
    use ticket::parse::Sink;
    let mut world = World::new();
    let mut sink = world.vms.sink(&mut world.board);
    assert_eq!(sink.page(0, &[1; 32]), Err(Error::NotBegun));
    assert_eq!(
        world.vms.accept(&mut world.board, 0, &ticket::Origin::default()),
        Err(Error::NotBegun)
    );
}

#[test]
fn every_cause_has_a_number_and_a_line_of_its_own() {
    let at = page(PRIVATE[0]);
    let causes = [
        Cause::Forged(at),
        Cause::Manifest(at),
        Cause::Frame(at),
        Cause::Elsewhere(at),
        Cause::Record(at),
        Cause::Memory,
        Cause::Versions,
        Cause::Device(5),
        Cause::Destroyed,
        Cause::Restarted,
        Cause::Processor(0),
        Cause::Processor(7),
    ];
    let numbers: Vec<u32> = causes.iter().map(|cause| cause.number()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0x100, 0x107]);
    let mut lines: Vec<String> = causes.iter().map(ToString::to_string).collect();
    assert!(lines.iter().all(|line| !line.contains('\n')));
    lines.sort();
    lines.dedup();
    assert_eq!(lines.len(), causes.len());
}

#[test]
fn a_vm_has_the_disks_of_its_ticket() {
    let disk = |transport, of| Disk {
        transport,
        blocks: 7,
        total: 90,
        id: std::array::from_fn(|at| of + u8::try_from(at).unwrap()),
        key: Secret::new(std::array::from_fn(|at| of ^ u8::try_from(at).unwrap())),
        moment: 5,
    };
    let mut world = World::new();
    world.vms.begin(&mut world.board, [9; 32]);
    let header = Header {
        vm: [3; 16],
        secret: Secret::new([4; 32]),
        state: State::Reset,
        ranges: 1,
        disks: 2,
        pages: 0,
        processors: 1,
        restarts: 0,
    };
    let mut sink = world.vms.sink(&mut world.board);
    sink.header(&header).unwrap();
    for (transport, of) in [(0, 0x10), (7, 0x80)] {
        sink.disk(disk(transport, of)).unwrap();
    }
    let number = world.vms.accept(&mut world.board, 0, &Origin::default()).unwrap();
    let vm = world.vms.vm(number).unwrap();
    assert_eq!(vm.disk(&world.board, 0), Some(disk(0, 0x10)));
    assert_eq!(vm.disk(&world.board, 7), Some(disk(7, 0x80)));
    for none in [1, 6, 8, u32::MAX] {
        assert_eq!(vm.disk(&world.board, none), None);
    }
}
