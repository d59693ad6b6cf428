//! What holds whatever happens between an honest driver and an honest device.

use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::{collection::vec, sample::select};
use virtio::layout::Layout;

use crate::hostile::{Trick, lying_host, wild_guest};
use crate::run::{BALLOON, LONGEST, Run, Step};

fn lengths() -> impl Strategy<Value = Vec<u32>> {
    vec(prop_oneof![1..LONGEST, 1_u32..32, select(vec![1, 512, LONGEST])], 0..5)
}

fn step() -> impl Strategy<Value = Step> {
    let queue = 0..2_usize;
    prop_oneof![
        4 => (queue.clone(), lengths(), lengths()).prop_map(|(at, said, room)| Step::Offer(at, said, room)),
        2 => queue.clone().prop_map(Step::Notify),
        4 => (queue, any::<usize>(), 0..256_u64).prop_map(|(at, pick, share)| Step::Answer(at, pick, share)),
        2 => proptest::strategy::Just(Step::Enter),
        1 => (0..100_u32).prop_map(Step::Miss),
    ]
}

/// Interesting as a length, an index, or half an address.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), 0..80_u32, select(vec![0x4000, 0x10_0000, u32::MAX])]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 1..40),
        vec(0..8_u8, 1..40),
        word().prop_map(|word| word.to_le_bytes().to_vec()),
    ]
}

/// What a hostile host does.
fn lie() -> impl Strategy<Value = Trick> {
    prop_oneof![
        6 => step().prop_map(Trick::Step),
        3 => (0..2_usize, 0..4_u16, 0..64_u32, 0..3000_u32)
            .prop_map(|(at, ahead, id, length)| Trick::Forge(at, ahead, id, length)),
        1 => (0..2_usize, any::<u16>(), word(), word())
            .prop_map(|(at, ahead, id, length)| Trick::Forge(at, ahead, id, length)),
        1 => (0..0x1000_u64, bytes()).prop_map(|(at, bytes)| Trick::Scribble(at, bytes)),
    ]
}

fn layout() -> impl Strategy<Value = Layout> {
    select(vec![Layout::Mmio, Layout::Pci])
}

/// What a hostile VM does.
fn wild() -> impl Strategy<Value = Trick> {
    let register = prop_oneof![
        select(vec![0x30, 0x38, 0x44, 0x50, 0x50, 0x50, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4]),
        0..0x200_u64,
    ];
    // On PCI; virtio-mmio has nothing there.
    let pci = select(vec![
        (0x16_u64, 2_u8),
        (0x18, 2),
        (0x1c, 2),
        (0x20, 4),
        (0x28, 4),
        (0x30, 4),
        (0x3000, 2),
    ]);
    let value = prop_oneof![0..5_u64, any::<u64>(), select(vec![0x10_0000, 0x10_0f90, 64, 15])];
    let ring = select(vec![0xf90_u64, 0x1ffe, 0x2ffc, 0x5_0f90, 0x5_1ffe]);
    prop_oneof![
        4 => step().prop_map(Trick::Step),
        6 => (ring, 0..64_u64, bytes()).prop_map(|(at, offset, bytes)| Trick::Poke(at + offset, bytes)),
        2 => (register.clone(), value.clone()).prop_map(|(at, value)| Trick::Store(at, 4, value)),
        2 => (pci, value.clone()).prop_map(|((at, bytes), value)| Trick::Store(at, bytes, value)),
        1 => (register, 0..9_u8, value).prop_map(|(at, bytes, value)| Trick::Load(at, bytes, value)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::default())]
    #[test]
    fn every_request_is_seen_once_and_gets_its_own_answer(
        layout in layout(), sizes in vec(select(vec![1_u16, 2, 4, 8, 64]), 2),
        steps in vec(step(), 1..120),
    ) {
        let mut run = Run::on(layout, &sizes);
        for step in &steps {
            run.step(step);
        }
        run.finish();
        run.check();
    }

    #[test]
    fn a_lying_host_gets_and_changes_nothing_but_what_it_was_asked(
        layout in layout(), sizes in vec(select(vec![1_u16, 4, 64]), 2),
        tricks in vec(lie(), 1..120),
    ) {
        lying_host(Run::on(layout, &sizes), &sizes, &tricks);
    }

    #[test]
    fn of_a_balloon_a_lying_host_has_only_that_given_up_which_the_vm_has(
        sizes in vec(select(vec![1_u16, 4, 64]), 2), tricks in vec(lie(), 1..120),
    ) {
        let mut run = Run::bare(Layout::Mmio);
        run.kind = BALLOON;
        run.set_up(&sizes);
        lying_host(run, &sizes, &tricks);
    }

    #[test]
    fn a_vm_that_keeps_to_no_rule_harms_only_itself(
        layout in layout(), sizes in vec(select(vec![1_u16, 4, 64]), 2),
        tricks in vec(wild(), 1..120),
    ) {
        wild_guest(Run::on(layout, &sizes), &sizes, &tricks);
    }
}
