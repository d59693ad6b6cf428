//! `boot/…` tests in which the host is the probe: ring-0 code that checks the machine it finds.

use super::{Boot, Host, Stack, Test};
use crate::machine::{End, Machine, TripleFault};

/// The probe does `words` on the visor; each of the tests named in them passes.
fn probe(words: &str) -> Boot {
    passes(Stack::on_visor(Host::Probe(words.to_owned())), words)
}

fn passes(stack: Stack, words: &str) -> Boot {
    // A number, a word with `=` and `x2apic` belong to the test before them.
    let is_test = |word: &&str| {
        !word.contains('=') && !word.starts_with(|c: char| c.is_numeric()) && *word != "x2apic"
    };
    let lines: Vec<String> =
        words.split(' ').filter(is_test).map(|name| format!("probe: PASS {name}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    Boot::of(stack).expect(&lines).ends(End::PowerOff)
}

fn two_cpus(machine: &mut Machine) {
    machine.cpus = 2;
}

fn resets(machine: &mut Machine) {
    machine.triple_fault = TripleFault::Resets;
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    let mut tests = bare();
    tests.extend(on_visor());
    tests
}

/// What the probe finds on a bare machine: the neutral tests pass, and the attack on memory
/// succeeds, as it must where nothing stops it.
fn bare() -> Vec<Test> {
    let neutral = "nmi 1000 interrupts 1000 xsetbv registers vmx-instructions mtrr";
    let bare = |words: &str| Stack::bare(Host::Probe(words.to_owned()));
    let attack = bare("memory base=0x1fa00000 end=0x1fa10000 device-memory");
    vec![
        passes(bare(neutral), neutral).test("boot/bare-probes", 2),
        Boot::attack(attack)
            .expect(&["probe: FAIL memory: *", "probe: FAIL device-memory: *"])
            .ends(End::PowerOff)
            .test("boot/bare-memory-is-open", 2),
    ]
}

fn on_visor() -> Vec<Test> {
    let mut tests = vec![
        probe("memory device-memory").test("boot/memory-is-closed", 2),
        probe("cpuid cr xsetbv registers vmx-instructions msr mtrr").test("boot/processor", 2),
        probe("apic-base").test("boot/apic-stays", 2),
        probe("nmi 1000").test("boot/nmis", 3),
        probe("interrupts 1000").test("boot/interrupts", 3),
        probe("smp nmi 300 cpus=2").on(two_cpus).test("boot/smp", 8),
        probe("smp x2apic").on(two_cpus).test("boot/smp-x2apic", 8),
        probe("stats exits").test("boot/status", 2),
    ];
    let stops = Boot::attack(Stack::on_visor(Host::Probe("task-switch".to_owned())));
    tests.push(
        stops
            .expect(&[
                "visor: [panic] no rule for exits of basic reason 9 at src/host.rs:*",
                "visor: [panic] apic 0 cr0 * cr2 * cr3 * cr4 *",
                "visor: [panic] last exit: reason 0x9 qualification * rip *",
                "visor: [panic] * cpu 0 HostStarted",
                "visor: halted",
            ])
            .never("probe: FAIL *")
            .test("boot/panic", 2),
    );
    for (name, words) in [
        ("boot/triple-fault-resets", "triple-fault"),
        ("boot/keyboard-resets", "reset-kbd"),
        ("boot/reset-control-resets", "reset-cf9"),
        ("boot/fast-reset-resets", "reset-92"),
    ] {
        tests.push(probe(words).on(resets).test(name, 3));
    }
    tests
}
