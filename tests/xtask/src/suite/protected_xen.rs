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
        made(Stack::bare, "daemons,made").test("protected/xen-linux-control", 60),
        made(with_tickets, "daemons,submit,made,running").test("protected/xen-linux", 80),
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

/// `xl` runs the VM that `visorctl` has made, in a dom0 that does `actions`.
fn made(stack: fn(Host) -> Stack, actions: &str) -> Boot {
    let xen = "dom0_mem=384M,max:384M".to_owned();
    let host = Host::XlMade { xen, dom0: format!("init.do={actions}") };
    let lines = ["*guest: *init: userspace reached*", "*guest: *init: done", "*init: PASS made*"];
    let boot = Boot::of(stack(host)).on(fast).expect(&lines);
    boot.expect(&["*init: done"]).never("*init: FAIL *").ends(End::PowerOff)
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
