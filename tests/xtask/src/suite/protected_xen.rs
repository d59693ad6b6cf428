//! `protected/xen…`: VMs with tickets on Xen, and the same VMs without.

use std::collections::BTreeMap;

use anyhow::Result;

use super::protected::{LINE, Want, judge_attacks, judge_memory, lines, with_tickets};
use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::{End, Machine};

/// What root in dom0 does to a VM, and what must become of it with a ticket.
const ATTACKS: &[(&str, Want)] = &[
    ("xen-map-page", Want::Fails),
    ("xen-map-all-memory", Want::Fails),
    ("xen-saved-general-registers", Want::Fails),
    ("xen-saved-vector-registers", Want::Fails),
    ("xen-processor-context", Want::Fails),
    ("xen-write-page", Want::Fails),
    ("xen-write-code", Want::Fails),
    ("xen-set-registers", Want::Fails),
    ("xen-set-rip", Want::Fails),
    ("xen-set-vector-registers", Want::Fails),
    ("xen-move-page", Want::Stops),
    ("xen-drop-page", Want::Holds),
    ("xen-inject-undefined", Want::Fails),
    ("xen-inject-protection", Want::Fails),
];

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        made(Stack::bare, ("vm", "daemons,made"), &[]).test("protected/xen-linux-control", 60),
        made(with_tickets, ("vm", MADE), &[]).test("protected/xen-linux", 80),
        made(Stack::bare, ("vm-2", "daemons,made"), BOTH)
            .test("protected/xen-linux-2-vcpus-control", 60)
            .on_demand(),
        made(with_tickets, ("vm-2", MADE), BOTH)
            .test("protected/xen-linux-2-vcpus", 80)
            .on_demand(),
        dumped(Stack::bare, "daemons,dumped", "found")
            .test("protected/xen-dump-control", 200)
            .on_demand(),
        dumped(with_tickets, "daemons,submit,dumped,running", "not found")
            .test("protected/xen-dump", 240)
            .on_demand(),
        boot(with_tickets, "xen-first").test("protected/xen-first", 20).on_demand(),
        Test::new("protected/xen-left", 15, |rig| {
            judge_memory(
                &rig.check("", &boot(with_tickets, "xen-left"))?,
                &["unprotected", "protected"],
            )
        }),
        Test::new("protected/xen-control", 30, |rig| {
            judge(rig, (Stack::bare, "xen-control"), &["unprotected"])
        }),
        Test::new("protected/xen-attacks", 50, |rig| {
            judge(rig, (with_tickets, "xen-attacks"), &["unprotected", "protected"])
        }),
    ]
}

/// What dom0 does to have a VM run that `visorctl` has made.
const MADE: &str = "daemons,submit,made,running";
/// What that says if its second processor comes and goes.
const BOTH: &[&str] =
    &["*guest: init: cpu1 offline, online now 0", "*guest: init: cpu1 online, online now 0-1"];

/// A dom0 that does `actions` to the VM in this folder.
fn xl(vm: &str, actions: &str) -> Host {
    let xen = "dom0_mem=384M,max:384M".to_owned();
    Host::XlMade { xen, dom0: format!("init.vm={vm} init.do={actions}") }
}

/// `xl` runs the VM in this folder that `visorctl` has made, in a dom0 that does `actions`. The VM says
/// these lines.
fn made(stack: fn(Host) -> Stack, (vm, actions): (&str, &str), lines: &[&str]) -> Boot {
    let boot =
        Boot::of(stack(xl(vm, actions))).on(fast).expect(&["*guest: *init: userspace reached*"]);
    boot.expect(lines)
        .expect(&["*guest: init: done", "*init: PASS made*", "*init: done"])
        .never("*init: FAIL *")
        .ends(End::PowerOff)
}

/// Likewise; what of the VM's secret `xl dump-core` writes.
fn dumped(stack: fn(Host) -> Stack, actions: &str, secret: &str) -> Boot {
    let boot = Boot::of(stack(xl("vm-heart", actions))).on(fast);
    boot.expect(&[&format!("root: FIND in /run/core, * bytes: {secret}"), "*init: PASS dumped*"])
        .expect(&["*init: done"])
        .never("*harmed*")
        .never("*init: FAIL *")
        .ends(End::PowerOff)
}

/// A dom0 that runs `test` of `vmm`.
fn boot(stack: fn(Host) -> Stack, test: &str) -> Boot {
    let dom0 = format!("init.do=run:/vmm+{test}");
    let boot = Boot::of(stack(Host::XenVms { xen: String::new(), dom0 })).on(roomy);
    let passed = format!("*vmm: PASS {test}");
    boot.expect(&[&passed, "*init: done"]).never("*vmm: FAIL *").ends(End::PowerOff)
}

fn roomy(machine: &mut Machine) {
    machine.memory_mib = 512;
    machine.seconds = 600;
}

/// As [`roomy`], and fast: Xen emulates three accesses to the local APIC at each tick of the VM's timer, for
/// which the usual processor has no time.
fn fast(machine: &mut Machine) {
    roomy(machine);
    machine.mips = 100;
}

fn judge(rig: &Rig<'_>, (stack, test): (fn(Host) -> Stack, &str), subjects: &[&str]) -> Result<()> {
    let log = rig.check("", &boot(stack, test))?;
    let wanted: BTreeMap<String, Want> =
        ATTACKS.iter().map(|(name, want)| ((*name).to_owned(), *want)).collect();
    judge_attacks(&wanted, &lines(&log, LINE)?, subjects)?;
    judge_memory(&log, subjects)
}
