//! Laws of the processors of a VM: what a host can do with what the VM has sent.

use ept::addr::PAGE;
use ept::shadow::Access;
use membrane::processors::Processors;
use membrane::vm::{Cause, Fault, Filled};
use proptest::prelude::*;

use crate::world::{EPTP, World, frame, tables};

const ASSERT: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const OTHERS: u64 = 3 << 18;

fn init(id: u64) -> u64 {
    id << 32 | ASSERT | 5 << 8
}

fn start_up(id: u64, vector: u8) -> u64 {
    id << 32 | 6 << 8 | u64::from(vector)
}

/// What Linux sends for one processor.
fn start(processors: &mut Processors, id: u64, vector: u8) {
    for command in
        [init(id) | LEVEL, (init(id) | LEVEL) & !ASSERT, start_up(id, vector), start_up(id, vector)]
    {
        processors.signal(command);
    }
}

#[test]
fn a_processor_begins_once_for_each_init_with_its_vector_and_has_its_id() {
    let mut all = Processors::new(64);
    start(&mut all, 1, 0x98);
    assert!(!all.begin(0x99));
    assert!(all.begin(0x98));
    assert!(!all.begin(0x98), "two start-up IPIs are for one processor");
    assert_eq!(all.name(0x98, 0), Some(1), "the first processor has this id");
    assert_eq!(all.name(0x98, 1), None);
    start(&mut all, 1, 0x98);
    assert!(!all.begin(0x98), "it runs already");
    assert!(!all.restart(1, 0x97) && !all.restart(0, 0x98));
    assert!(all.restart(1, 0x98));
    assert!(!all.restart(1, 0x98));
}

#[test]
fn nothing_begins_without_init_and_the_first_start_up_ipi_counts() {
    let mut all = Processors::new(64);
    all.signal(start_up(1, 7));
    assert!(!all.begin(7));
    all.signal((init(1) | LEVEL) & !ASSERT);
    all.signal(start_up(1, 7));
    assert!(!all.begin(7), "an INIT that is taken back is none");
    all.signal(init(1));
    assert!(!all.begin(0));
    all.signal(start_up(1, 7));
    all.signal(start_up(1, 8));
    assert!(!all.begin(8));
    all.signal(init(1));
    assert!(!all.begin(7), "it waits for another start-up IPI");
    all.signal(start_up(1, 8));
    assert!(all.begin(8));
}

#[test]
fn other_destinations_and_interrupts_start_nothing() {
    const LOGICAL: u64 = 1 << 11;
    for to_self_or_all in [1 << 18, 2 << 18] {
        let mut all = Processors::new(64);
        all.signal(init(1) | to_self_or_all);
        all.signal(start_up(1, 7) | to_self_or_all);
        assert!(!all.begin(7));
    }
    for (id, flags) in [(1, LOGICAL), (64, 0), (0xff, 0), (0xffff_ffff, 0)] {
        let mut all = Processors::new(64);
        all.signal(init(id) | flags);
        all.signal(start_up(id, 7) | flags);
        assert!(!all.begin(7), "{id:#x}");
    }
    for mode in [0, 1, 2, 3, 4, 7] {
        let mut all = Processors::new(64);
        all.signal(1 << 32 | ASSERT | mode << 8);
        all.signal(start_up(1, 7));
        assert!(!all.begin(7));
        all.signal(init(1));
        all.signal(1 << 32 | mode << 8 | 7);
        assert!(!all.begin(7));
    }
}

#[test]
fn all_others_at_once_are_told_apart_by_what_the_host_says_first() {
    let mut all = Processors::new(4);
    all.signal(init(0) | OTHERS);
    all.signal(start_up(0, 7) | OTHERS);
    assert_eq!([(); 4].map(|()| all.begin(7)), [true, true, true, false], "the ticket permits 4");
    assert_eq!(all.name(7, 3), Some(3));
    assert_eq!(all.name(7, 3), Some(1), "nobody has what another has");
    assert_eq!(all.name(7, 2), Some(2));
    assert_eq!(all.name(7, 4), None);
    // One that runs is meant only by its own id.
    all.signal(init(0) | OTHERS);
    all.signal(start_up(0, 7) | OTHERS);
    (0..4).for_each(|id| all.signal(start_up(id, 7)));
    assert!((0..4).all(|id| !all.restart(id, 7)));
}

#[test]
fn a_processor_joins_the_vm_that_used_its_root_last_while_that_runs() {
    let mut world = World::running();
    let numbers = [0, 1].map(|vm| world.guests[vm].as_ref().unwrap().number);
    let roots = tables(0).roots;
    let touch = |world: &mut World, root: u64| {
        let (mut machine, vms) = world.parts();
        let fault = Fault { at: 0x10 * PAGE, access: Access::READ, word: 1 };
        assert!(!matches!(
            vms.fill(&mut machine, numbers[0], root | EPTP, fault),
            Filled::Stopped(_)
        ));
    };
    let begin = |world: &mut World, root: u64| world.vms.begin_processor(frame(root), 7);
    let send = |world: &mut World| {
        for number in numbers {
            let launch = world.vms.vm(number).unwrap().launch();
            start(world.vms.processors(number, launch).unwrap(), 1, 7);
        }
    };
    send(&mut world);
    assert_eq!(begin(&mut world, roots[0]), None, "it has not used any");
    touch(&mut world, roots[0]);
    touch(&mut world, roots[1]);
    assert_eq!(begin(&mut world, roots[0]), None);
    let launch = world.vms.vm(numbers[0]).unwrap().launch();
    assert_eq!(begin(&mut world, roots[1]), Some((numbers[0], launch)));
    assert_eq!(begin(&mut world, roots[1]), None, "its ticket permits two");
    assert!(world.vms.processors(numbers[0], launch + 1).is_none());
    // One that was stopped has no processors any more.
    let mut world = World::running();
    touch(&mut world, roots[0]);
    send(&mut world);
    world.vms.stop(numbers[0], Cause::Memory, 0);
    assert_eq!(begin(&mut world, roots[0]), None);
    assert!(world.vms.processors(numbers[0], launch).is_none());
}

#[test]
fn a_host_may_begin_any_of_those_that_have_the_same_vector() {
    let mut all = Processors::new(64);
    for id in 1..4 {
        start(&mut all, id, 7);
    }
    start(&mut all, 4, 8);
    assert!(all.begin(7) && all.begin(7));
    assert_eq!(all.name(7, 4), Some(1), "4 has another vector");
    assert_eq!(all.name(7, 3), Some(3));
    assert_eq!(all.name(7, 2), None, "it has not begun");
    assert!(all.begin(7) && !all.begin(7));
    assert_eq!(all.name(7, 2), Some(2));
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// The VM sends.
    Send(u64),
    /// The host has a processor begin, and perhaps again, and says an id.
    Begin(u8),
    Name(u8, u32),
    Restart(u8, u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let vector = 6_u8..9;
    let to = prop_oneof![4 => 0..6_u64, 1 => Just(31), 1 => Just(64)];
    let others = prop_oneof![5 => Just(0), 1 => Just(OTHERS)];
    let act = prop_oneof![
        (to.clone(), others.clone()).prop_map(|(to, others)| Act::Send(init(to) | others)),
        (to, vector.clone(), others)
            .prop_map(|(to, vector, others)| Act::Send(start_up(to, vector) | others)),
        vector.clone().prop_map(Act::Begin),
        (vector.clone(), 0..7_u32).prop_map(|(vector, told)| Act::Name(vector, told)),
        (0..7_u8, vector).prop_map(|(id, vector)| Act::Restart(id, vector)),
    ];
    prop::collection::vec(act, 0..60)
}

/// What the VM has sent to each id: how many INITs, and whether one since that processor began.
#[derive(Default)]
struct Sent {
    inits: [u32; 32],
    fresh: [bool; 32],
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_a_host_does_no_more_begin_than_inits_were_sent_and_no_two_are_the_same(
        acts in acts(), most in 1_u32..7,
    ) {
        let mut all = Processors::new(most);
        let mut sent = Sent::default();
        let (mut begun, mut unnamed) = (1, [0; 256]);
        let mut named = vec![0_u8];
        let mut restarts = 0;
        for act in acts {
            match act {
                Act::Send(command) => {
                    all.signal(command);
                    if command >> 8 & 7 == 5 {
                        let to = usize::try_from(command >> 32).unwrap();
                        let everyone = command & OTHERS != 0;
                        for id in (0..32).filter(|id| everyone || *id == to) {
                            sent.inits[id] += 1;
                            sent.fresh[id] = true;
                        }
                    }
                }
                Act::Begin(vector) => {
                    if all.begin(vector) {
                        begun += 1;
                        unnamed[usize::from(vector)] += 1;
                    }
                }
                Act::Name(vector, told) => {
                    let waits = &mut unnamed[usize::from(vector)];
                    let id = all.name(vector, told);
                    prop_assert_eq!(id.is_some(), *waits > 0, "each that has begun gets an id");
                    if let Some(id) = id {
                        *waits -= 1;
                        prop_assert!(!named.contains(&id), "{} is there twice", id);
                        let fresh = &mut sent.fresh[usize::from(id)];
                        prop_assert!(core::mem::replace(fresh, false));
                        named.push(id);
                    }
                }
                Act::Restart(id, vector) => {
                    if all.restart(id, vector) {
                        prop_assert!(named.contains(&id));
                        let fresh = &mut sent.fresh[usize::from(id)];
                        prop_assert!(core::mem::replace(fresh, false));
                        restarts += 1;
                    }
                }
            }
            prop_assert!(begun <= most);
            let inits: u32 = sent.inits.iter().sum();
            prop_assert!(begun - 1 + restarts <= inits);
        }
    }
}
