//! A few processors against each other, in every interleaving that a bounded number of preemptions
//! leads to, with all that loom's memory model lets one of them see late. `world` has the machine.

use std::vec::Vec;

use loom::model::Builder;
use loom::thread;

use super::world::atomic::Ordering;
use super::world::{ALIVE, Board, Cpu, Flaw, World};
use super::{Processor, fall_asleep};

/// What a processor does, or, told the first processor, a device beside them.
type Life = fn(&World, &Cpu);

/// Lets `lives` run against each other, the first of them on the processors of `board`.
fn check<const N: usize>(board: Board, flaw: Flaw, lives: [Life; N]) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(if board == Board::Two { 3 } else { 2 });
    builder.check(move || {
        let world = World::new(board, flaw);
        ALIVE.set(N + usize::from(board == Board::Slow));
        let run = |index: usize| {
            let world = world.clone();
            move || {
                lives[index](&world, world.cpus.get(index).unwrap_or(&world.cpus[0]));
                ALIVE.set(ALIVE.get() - 1);
            }
        };
        let threads: Vec<_> = (1..N).map(|index| thread::spawn(run(index))).collect();
        let wire = (board == Board::Slow).then(|| {
            let world = world.clone();
            thread::spawn(move || {
                world.deliver(u32::try_from(N - 1).unwrap());
                ALIVE.set(ALIVE.get() - 1);
            })
        });
        run(0)();
        for thread in threads.into_iter().chain(wire) {
            thread.join().unwrap();
        }
        for cpu in &world.cpus {
            let _ = world.look(cpu);
            let [owed, sent] =
                [&cpu.owed, &cpu.sent_by_host].map(|count| count.load(Ordering::Relaxed));
            assert_eq!(owed, sent, "NMIs of the host's");
        }
    });
}

fn calls(world: &World, cpu: &Cpu) {
    world.reuse(cpu);
    world.finish(cpu);
}

fn calls_twice(world: &World, cpu: &Cpu) {
    world.reuse(cpu);
    world.reuse(cpu);
    world.finish(cpu);
}

fn calls_and_is_called(world: &World, cpu: &Cpu) {
    calls(world, cpu);
    world.halt(cpu, 1);
}

fn calls_and_sleeps(world: &World, cpu: &Cpu) {
    world.reuse(cpu);
    world.init(cpu);
}

fn runs_on_entry(world: &World, cpu: &Cpu) {
    world.run_on_entry(cpu);
    world.run_on_entry(cpu);
    world.halt(cpu, 1);
}

fn runs_on_root(world: &World, cpu: &Cpu) {
    world.run_on_root(cpu);
    world.run_on_root(cpu);
    world.halt(cpu, 1);
}

fn runs_on_shadow(world: &World, cpu: &Cpu) {
    world.run_on_shadow(cpu);
    world.run_on_shadow(cpu);
    world.halt(cpu, 1);
}

fn uses_what_it_knows(world: &World, cpu: &Cpu) {
    let mut known = None;
    world.use_known(cpu, &mut known);
    world.use_known(cpu, &mut known);
    world.halt(cpu, 1);
}

fn locks_and_runs(world: &World, cpu: &Cpu) {
    let _ = world.ask(cpu);
    world.run_on_entry(cpu);
    world.halt(cpu, 1);
}

fn locks_and_is_interrupted(world: &World, cpu: &Cpu) {
    let _ = world.ask(cpu);
    world.halt(cpu, 2);
}

fn runs_and_sleeps(world: &World, cpu: &Cpu) {
    world.run_on_entry(cpu);
    world.init(cpu);
}

fn sleeps_and_runs(world: &World, cpu: &Cpu) {
    world.run_on_entry(cpu);
    world.init(cpu);
    world.start_up(cpu);
    world.run_on_entry(cpu);
    world.halt(cpu, 1);
}

/// Has taken an INIT, and looks for NMIs before it enters the host, to wait for SIPI there.
fn sleeps_and_is_interrupted(world: &World, cpu: &Cpu) {
    fall_asleep(cpu);
    world.halt(cpu, 2);
}

/// A device of the host's, which sends an NMI to processor 1.
fn interrupts(world: &World, cpu: &Cpu) {
    let _ = world.cpus[1].sent_by_host.fetch_add(1, Ordering::Relaxed);
    world.cpus[1].send_nmi();
    world.finish(cpu);
}

#[test]
fn no_processor_uses_an_entry_after_the_call() {
    check(Board::Two, Flaw::None, [calls, runs_on_entry]);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_call_without_invept_leaves_a_translation() {
    check(Board::Two, Flaw::Invept, [calls, runs_on_entry]);
}

#[test]
fn no_processor_enters_by_a_root_after_the_call() {
    check(Board::Two, Flaw::None, [calls, runs_on_root]);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn an_entry_without_a_look_at_the_generation_uses_a_root_that_is_gone() {
    check(Board::Two, Flaw::Look, [calls, runs_on_root]);
}

#[test]
fn no_processor_enters_by_a_shadow_after_the_call() {
    check(Board::Slow, Flaw::None, [calls, runs_on_shadow]);
}

#[test]
#[should_panic(expected = "used after")]
fn an_entry_without_a_second_look_at_the_shadow_uses_what_was_in_it() {
    check(Board::Slow, Flaw::Stale, [calls, runs_on_shadow]);
}

#[test]
fn what_is_known_of_a_frame_ends_with_the_call() {
    check(Board::Two, Flaw::None, [calls, uses_what_it_knows]);
}

#[test]
fn two_processors_may_call_each_other() {
    check(Board::Two, Flaw::None, [calls_and_is_called, calls_and_is_called]);
}

#[test]
#[should_panic(expected = "everybody waits")]
fn a_processor_that_waits_for_the_lock_without_answering_hangs() {
    check(Board::Two, Flaw::Answer, [calls_and_is_called, calls_and_is_called]);
}

#[test]
fn a_call_right_after_another_is_answered_as_well() {
    check(Board::Slow, Flaw::None, [calls_twice, locks_and_runs]);
}

#[test]
fn an_nmi_of_the_hosts_that_arrives_beside_a_call_is_not_lost() {
    check(Board::Two, Flaw::None, [calls, locks_and_is_interrupted, interrupts]);
}

#[test]
fn a_call_to_a_sleeper_is_not_mistaken_for_an_nmi_of_the_hosts() {
    check(Board::Two, Flaw::None, [calls, sleeps_and_is_interrupted, interrupts]);
}

#[test]
fn a_processor_that_falls_asleep_holds_up_nobody() {
    check(Board::Two, Flaw::None, [calls, runs_and_sleeps]);
}

#[test]
fn a_processor_that_wakes_up_remembers_nothing() {
    check(Board::Two, Flaw::None, [calls_twice, sleeps_and_runs]);
}

#[test]
fn three_processors_forget() {
    check(Board::Three, Flaw::None, [calls, runs_on_entry, runs_on_root]);
}

#[test]
fn two_of_three_processors_may_call() {
    check(Board::Three, Flaw::None, [calls_and_sleeps, calls_and_sleeps, runs_and_sleeps]);
}
