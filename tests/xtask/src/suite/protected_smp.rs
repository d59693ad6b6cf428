//! `protected/smp…`: VMs with several processors on KVM, with tickets and without.

use anyhow::{Result, bail, ensure};

use super::protected::{host, lines, memory, outcome, with_tickets};
use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::End;

/// Steps of a life, and with how many processors.
const STEPS: [&str; 8] = [
    "starts",
    "pings",
    "storms",
    "racing-slots",
    "racing-reads",
    "migrations",
    "off-and-on",
    "wakes",
];
const COUNTS: [u32; 2] = [2, 4];

/// Attacks, all of which fail with a ticket.
const ATTACKS: [&str; 7] = [
    "start-without-init",
    "start-without-start-up",
    "start-at-other-vector",
    "two-on-one-start",
    "second-in-reset-state",
    "more-than-permitted",
    "same-id-twice",
];

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("protected/smp-control", 20, |rig| {
            judge(rig, (Stack::bare, "protected-smp-control", 2), &["unprotected"])
        }),
        Test::new("protected/smp", 30, |rig| on_both(rig, 1)),
        Test::new("protected/smp-2-cpus", 30, |rig| on_both(rig, 2)),
        linux(Stack::bare, "smp").test("protected/linux-smp-control", 15),
        linux(with_tickets, "smp-protected").test("protected/linux-smp", 40),
    ]
}

/// A Linux VM with two processors, of which it takes one out of service and back.
fn linux(stack: fn(Host) -> Stack, kind: &str) -> Boot {
    let words = format!("init.do=kvm-load,guest-{kind} init.next=cpu-hotplug");
    let boot = Boot::of(stack(Host::KvmLinux(words)));
    let passed = format!("*vmm: PASS linux-{kind}");
    let lines = [
        "*guest: init: userspace reached*",
        "*guest: init: cpu1 offline, online now 0",
        "*guest: init: cpu1 online, online now 0-1",
        "*guest: init: done",
        &passed,
        "*init: done",
    ];
    let boot = boot.on(|machine| (machine.seconds, machine.cpus) = (400, 2));
    boot.expect(&lines).never("*vmm: FAIL *").ends(End::PowerOff)
}

fn on_both(rig: &Rig<'_>, cpus: u32) -> Result<()> {
    judge(rig, (with_tickets, "protected-smp", cpus), &["unprotected", "protected"])
}

/// Boots what `stack` makes of a host with so many processors that does `test` of `vmm`.
fn judge(
    rig: &Rig<'_>,
    (stack, test, cpus): (fn(Host) -> Stack, &str, u32),
    subjects: &[&str],
) -> Result<()> {
    let boot = Boot::of(stack(host(test))).on(memory).on(move |machine| machine.cpus = cpus);
    let passed = format!("*vmm: PASS {test}");
    let boot = boot.expect(&[&passed, "*init: done"]).never("*vmm: FAIL *").ends(End::PowerOff);
    judge_log(&rig.check("", &boot)?, subjects)
}

fn judge_log(log: &str, subjects: &[&str]) -> Result<()> {
    let steps = COUNTS.iter().flat_map(|count| STEPS.map(|step| format!("{step}-{count}")));
    let wanted = |_: &str| "ok";
    each(log, "vmm: SMP ", (steps, subjects), wanted)?;
    let attacks = ATTACKS.iter().map(|name| (*name).to_owned());
    let wanted = |subject: &str| if subject == "unprotected" { "succeeded" } else { "failed" };
    each(log, "vmm: SMP-ATTACK ", (attacks, subjects), wanted)
}

/// Each of `names`, and no other, must have a line of this kind with what is wanted for each subject.
fn each(
    log: &str,
    kind: &str,
    (names, subjects): (impl Iterator<Item = String>, &[&str]),
    wanted: fn(&str) -> &str,
) -> Result<()> {
    let mut found = lines(log, kind)?;
    for name in names {
        let Some(line) = found.remove(name.as_str()) else { bail!("no line of {name}") };
        for subject in subjects {
            let how = outcome(line, subject).unwrap_or("nothing");
            let good = wanted(subject);
            ensure!(how == good, "{name}: {subject}={how}, expected {good}: {line}");
        }
    }
    ensure!(found.is_empty(), "nobody knows: {found:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECTS: &[&str] = &["unprotected", "protected"];

    fn log() -> String {
        let steps = COUNTS.iter().flat_map(|count| {
            STEPS.map(|step| format!("vmm: SMP {step}-{count} unprotected=ok protected=ok\n"))
        });
        let attacks = ATTACKS.iter().map(|name| {
            format!("vmm: SMP-ATTACK {name} unprotected=succeeded (x) protected=failed (y)\n")
        });
        steps.chain(attacks).collect()
    }

    #[test]
    fn every_step_goes_well_and_every_attack_succeeds_only_without_a_ticket() {
        judge_log(&log(), SUBJECTS).unwrap();
        let wrong = |from: &str, to: &str| {
            let changed = log().replacen(from, to, 1);
            assert_ne!(changed, log());
            judge_log(&changed, SUBJECTS).unwrap_err().to_string()
        };
        assert!(wrong("pings-4 ", "pongs-4 ").contains("no line of pings-4"));
        assert!(wrong("protected=ok", "protected=Hung").contains("expected ok"));
        assert!(wrong("=failed", "=succeeded").contains("expected failed"));
        assert!(wrong("=succeeded", "=failed").contains("expected succeeded"));
        assert!(
            wrong("vmm: SMP starts-2", "vmm: SMP new-2 ok\nvmm: SMP starts-2").contains("new-2")
        );
    }
}
