//! VMCS12, VMCS02 and the shadow VMCS stay in step, whatever the host and its VM do.

use nested_vmx::check::Context;
use nested_vmx::field::{self as f, Vmcs};
use nested_vmx::vcpu::Vcpu;
use nested_vmx::vmcs12::{Vmcs12, encodings};
use proptest::prelude::*;

use crate::fake::FakeVmcs;
use crate::good;
use crate::model::{ALL, DETAILS, is_plain};
use crate::run::Run;
use crate::step::{Ending, REGIONS, Shadowing, Step, VMXON};

/// Controls that can be switched without making the VMCS invalid.
const SWITCHES: [(u32, &[u32]); 5] = [
    (f::PIN_CONTROLS.encoding(), &[0]),
    (f::PRIMARY_CONTROLS.encoding(), &[2, 3, 7, 12, 21, 22, 24, 25, 28, 30, 31]),
    (f::SECONDARY_CONTROLS.encoding(), &[2, 5, 6, 10, 20, 25]),
    (f::EXIT_CONTROLS.encoding(), &[2, 12, 15, 18, 19, 20, 21, 22]),
    (f::ENTRY_CONTROLS.encoding(), &[2, 9, 13, 14, 15]),
];

fn host() -> Vec<Step> {
    let [first, ..] = REGIONS;
    vec![Step::Vmxon(VMXON), Step::Vmptrld(first), Step::Repair]
}

fn pointer() -> impl Strategy<Value = u64> {
    prop_oneof![
        20 => prop::sample::select(REGIONS.to_vec()),
        1 => prop::sample::select(vec![VMXON, 0x2008, 0x5000, 1 << 39, u64::MAX]),
    ]
}

fn operand() -> impl Strategy<Value = u64> {
    let fields: Vec<u64> = encodings(ALL).map(u64::from).collect();
    prop_oneof![
        20 => prop::sample::select(fields.clone()),
        1 => prop::sample::select(fields).prop_map(|encoding| encoding | 1),
        1 => any::<u64>(),
    ]
}

fn guest_operand() -> impl Strategy<Value = u64> {
    use nested_vmx::vmcs12::Class::{Guest, HotControl, HotGuest};
    let fields = encodings(&[Guest, HotControl, HotGuest]).filter(|e| *e != 0x4002);
    prop::sample::select(fields.map(u64::from).collect::<Vec<_>>())
}

fn switch() -> impl Strategy<Value = Step> {
    (prop::sample::select(SWITCHES.to_vec()), any::<prop::sample::Index>())
        .prop_map(|((field, bits), index)| Step::Flip(field, 1 << bits[index.index(bits.len())]))
}

fn entry() -> impl Strategy<Value = Step> {
    let ending = prop_oneof![
        6 => Just(Ending::Exit),
        2 => Just(Ending::ExitAfterEvents),
        1 => Just(Ending::Refused),
        1 => Just(Ending::Failed),
    ];
    let changes = prop::collection::vec(any::<(u8, u64)>(), 0..12);
    (any::<[u64; 4]>(), changes, ending)
        .prop_map(|(registers, changes, ending)| Step::Enter(registers, changes, ending))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let event = any::<u8>().prop_map(|vector| Step::Write(0x4016, 0x8000_0000 | u64::from(vector)));
    let step = prop_oneof![
        30 => entry(),
        20 => switch(),
        15 => (guest_operand(), any::<u64>()).prop_map(|(field, value)| Step::Write(field, value)),
        10 => event,
        2 => Just(Step::Write(0x0000, 0xffff)),
        4 => (operand(), any::<u64>()).prop_map(|(field, value)| Step::Write(field, value)),
        30 => operand().prop_map(Step::Read),
        15 => Just(Step::Repair),
        10 => pointer().prop_map(Step::Vmptrld),
        3 => pointer().prop_map(Step::Vmclear),
        1 => pointer().prop_map(Step::Vmxon),
        1 => Just(Step::Vmxoff),
        2 => (pointer(), 0..512_usize, any::<u64>()).prop_map(|(r, w, v)| Step::Poke(r, w, v)),
        2 => Just(Step::EnterWrongly),
    ];
    prop::collection::vec(step, 0..60)
}

fn empty() -> Box<Vmcs12> {
    Box::new(Vmcs12::EMPTY)
}

/// VMCS shadowing, and whether the host is in 64-bit mode.
type Processor = (Shadowing, bool);

const PROCESSORS: [Processor; 4] = [
    (Shadowing::Absent, true),
    (Shadowing::Present, true),
    (Shadowing::Absent, false),
    (Shadowing::Present, false),
];

fn run((shadowing, long_mode): Processor, steps: &[Step]) -> usize {
    let advertised = good::advertised();
    let (mut first, mut second) = (empty(), empty());
    let context = Context { long_mode, ..good::context(&advertised) };
    let mut run = Run::new((context, shadowing), &mut first, &mut second);
    let reads = encodings(ALL).map(|encoding| Step::Read(encoding.into()));
    for step in host().iter().chain(steps).chain(&reads.collect::<Vec<_>>()) {
        run.step(step);
        if matches!(step, Step::Vmxoff) {
            host().iter().for_each(|step| run.step(step));
        }
    }
    run.exits
}

/// The same with and without VMCS shadowing.
fn both(steps: &[Step], exits: usize) {
    for processor in PROCESSORS.into_iter().filter(|(_, long_mode)| *long_mode) {
        assert_eq!(run(processor, steps), exits, "{processor:?}");
    }
}

fn enter(changes: &[(u8, u64)]) -> Step {
    Step::Enter([0; 4], changes.to_vec(), Ending::Exit)
}

/// The VM changes every field that it can.
fn busy() -> Step {
    enter(&(0..=255).map(|number| (number, u64::from(number) << 2)).collect::<Vec<_>>())
}

#[test]
fn a_vm_is_entered_again_and_again() {
    both(&[busy(), busy(), enter(&[]), busy()], 4);
}

#[test]
fn primary_controls_are_checked_and_merged_however_they_are_written() {
    let primary = f::PRIMARY_CONTROLS.encoding();
    // TSC offsetting has a field of its own.
    both(&[busy(), Step::Flip(primary, 1 << 3), busy(), Step::Flip(primary, 1 << 3), busy()], 3);
    // Tertiary controls are not advertised. The VM stays in its mode, which is checked as well.
    let same_mode = enter(&[(0, 2)]);
    both(&[same_mode.clone(), Step::Flip(primary, 1 << 17), same_mode], 1);
    both(&[busy(), Step::Flip(primary, 1 << 2), busy(), Step::Flip(primary, 1 << 2), busy()], 3);
}

#[test]
fn details_of_an_exit_are_told_unless_its_reason_leaves_them_undefined() {
    for (reason, qualification) in (0..70).flat_map(|reason| [(reason, 1), (reason, 1 << 4)]) {
        let mut v02 = FakeVmcs::default();
        encodings(ALL).for_each(|encoding| v02.write_raw(encoding, 5));
        v02.write(f::EXIT_REASON, reason);
        v02.write(f::EXIT_QUALIFICATION, qualification);
        let mut page = empty();
        let mut vcpu = Vcpu::new(&mut page);
        vcpu.capture(&v02);
        for encoding in DETAILS {
            let told = vcpu.fields().read_raw(encoding) == 5;
            assert_eq!(told, !is_plain(reason, qualification), "{encoding:#x} of {reason}");
        }
    }
}

#[test]
fn a_window_that_may_not_be_open_is_refused_at_a_later_entry() {
    let (pin, primary) = (f::PIN_CONTROLS.encoding(), f::PRIMARY_CONTROLS.encoding());
    let same_mode = enter(&[(0, 2)]);
    // An NMI window needs virtual NMIs.
    let virtual_nmis = Step::Flip(pin, 1 << 5);
    let window = Step::Flip(primary, 1 << 22);
    both(&[virtual_nmis, same_mode.clone(), window.clone(), same_mode.clone()], 1);
    both(&[same_mode.clone(), window, same_mode], 2);
}

#[test]
fn what_an_exit_saves_is_decided_by_the_controls_that_it_was_made_with() {
    for bit in [2, 18, 20] {
        let flip = Step::Flip(f::EXIT_CONTROLS.encoding(), 1 << bit);
        let reads = [0x681a, 0x2802, 0x2804, 0x2806].map(Step::Read);
        let mut steps = vec![busy(), flip.clone()];
        steps.extend(reads.clone());
        steps.extend([busy(), flip]);
        steps.extend(reads);
        both(&steps, 2);
    }
}

#[test]
fn controls_that_are_written_after_the_vms_state_was_read_are_followed() {
    for (field, bits) in [(f::EXIT_CONTROLS, [2, 18, 20]), (f::ENTRY_CONTROLS, [2, 14, 15])] {
        for bit in bits {
            let flip = Step::Flip(field.encoding(), 1 << bit);
            let read = Step::Read(0x4826);
            let steps = [flip.clone(), busy(), read.clone(), flip.clone(), busy(), read, flip];
            both(&[&steps[..], &[busy()]].concat(), 3);
        }
    }
}

#[test]
fn what_the_last_exit_has_saved_outlives_an_entry_that_fails() {
    for (field, bit) in [(0x681a, 2), (0x2802, 2), (0x2804, 14), (0x2806, 15)] {
        let no_load = Step::Flip(f::ENTRY_CONTROLS.encoding(), 1 << bit);
        for ending in [Ending::Failed, Ending::Refused] {
            let fails = Step::Enter([0x5555_5555; 4], Vec::new(), ending);
            both(&[no_load.clone(), busy(), enter(&[]), fails, Step::Read(field)], 2);
        }
    }
}

#[test]
fn a_vm_with_the_hosts_tag_or_without_secondary_controls_runs_untagged() {
    let no_secondary = Step::Flip(f::PRIMARY_CONTROLS.encoding(), 1 << 31);
    both(&[Step::Write(0x0000, 0xffff), busy(), Step::Write(0x0000, 3), busy()], 2);
    both(&[busy(), no_secondary.clone(), busy(), no_secondary, busy()], 3);
}

#[test]
fn a_vm_reads_hidden_bits_of_cr4_as_its_host_wants_or_as_0() {
    let show = [(f::CR4_MASK, 1 << 14 | 1 << 13), (f::CR4_SHADOW, 1 << 14 | 1 << 19 | 1 << 23)];
    let show = show.map(|(field, value)| Step::Write(field.encoding().into(), value));
    both(&[&show[..], &[busy()]].concat(), 1);
}

#[test]
fn efer_follows_the_vms_mode_where_the_entry_does_not_load_it() {
    let controls = [1 << 15, 1 << 9].map(|bit| Step::Flip(f::ENTRY_CONTROLS.encoding(), bit));
    let [not_loaded, narrow] = controls;
    let paging = Step::Flip(f::GUEST_CR0.encoding(), 1 << 31);
    both(&[not_loaded, enter(&[(0, 2)]), narrow, enter(&[]), paging, enter(&[])], 3);
}

#[test]
fn the_hosts_performance_counters_go_on_as_it_says_last() {
    both(&[busy(), Step::Write(0x2c04, 3), busy(), Step::Write(0x2c05, 1), busy()], 3);
}

#[test]
fn an_event_has_its_own_error_code_after_events_of_the_visor() {
    let inject = [(0x4018, 5), (0x401a, 2), (0x4016, 0x8000_0b0e)];
    let inject = inject.map(|(field, value)| Step::Write(field, value));
    let own = Step::Enter([0; 4], Vec::new(), Ending::ExitAfterEvents);
    both(&[&inject[..], &[own], &inject, &[enter(&[])]].concat(), 2);
}

#[test]
fn a_place_that_another_vmcs_had_shows_nothing_of_it() {
    let [first, second, third] = REGIONS;
    let load = |region| [Step::Vmptrld(region), Step::Repair, busy()];
    let rip = [Step::Write(0x681e, 0x1000), busy()];
    let back = [Step::Vmptrld(first), enter(&[]), Step::Vmptrld(second), enter(&[])];
    both(&[&load(first)[..], &rip, &load(second), &load(third), &back].concat(), 6);
}

#[test]
fn after_vmxoff_a_vmcs_is_what_its_region_holds() {
    let [first, second, _] = REGIONS;
    let steps = [busy(), Step::Vmclear(first), Step::Vmptrld(first), busy(), Step::Vmxoff];
    let again = [Step::Vmptrld(second), Step::Read(0x4826), Step::Repair, busy()];
    both(&[&steps[..], &again].concat(), 3);
}

#[test]
fn a_vmcs_that_the_processor_has_refused_is_tried_again() {
    let refused = Step::Enter([0; 4], Vec::new(), Ending::Refused);
    let failed = Step::Enter([0; 4], Vec::new(), Ending::Failed);
    both(&[refused.clone(), failed.clone(), busy(), refused, failed, busy()], 2);
}

#[test]
fn a_vm_that_has_gone_to_64_bits_is_none_that_a_32_bit_host_may_enter() {
    // Bit 1 of the last change is the VM's mode.
    let (narrow, wide) = (enter(&[(0, 0)]), enter(&[(0, 2)]));
    for processor in PROCESSORS {
        let (_, is_long_mode) = processor;
        let exits = if is_long_mode { 4 } else { 2 };
        let steps = [narrow.clone(), wide.clone(), narrow.clone(), wide.clone()];
        assert_eq!(run(processor, &steps), exits, "{processor:?}");
    }
}

#[test]
fn a_launch_state_decides_which_instruction_enters() {
    let [first, ..] = REGIONS;
    let clear = [Step::Vmclear(first), Step::Vmptrld(first)];
    let both_states = [Step::EnterWrongly, busy(), Step::EnterWrongly];
    both(&[&both_states[..], &clear, &both_states].concat(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn all_are_as_the_manual_says(steps in steps(), processor in 0..PROCESSORS.len()) {
        let _ = run(PROCESSORS[processor], &steps);
    }
}

#[test]
fn the_random_runs_do_enter_vms() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let exits: usize = (0..50)
        .map(|_| run(PROCESSORS[1], &steps().new_tree(&mut runner).unwrap().current()))
        .sum();
    assert!(exits > 100, "{exits}");
}
