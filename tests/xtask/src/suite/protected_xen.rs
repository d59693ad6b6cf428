//! `protected/xen…`: VMs with tickets on Xen, and the same VMs without.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::protected::{LINE, Want, judge_attacks, judge_memory, lines, with_tickets};
use super::{Boot, Host, Rig, Stack, Test};
use crate::image::vmms::XenVm;
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

/// The distribution's Xen has no interface for `gdbsx`: what `vmm` tells of it then.
const NO_DEBUGGER: &str =
    "vmm: XEN gdbsx: Err(\"domctl 1000: Function not implemented (os error 38)\")";

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        made(Stack::bare, XenVm::Plain, "daemons,made").test("protected/xen-linux-control", 60),
        made(with_tickets, XenVm::Plain, "daemons,submit,made,running")
            .test("protected/xen-linux", 80),
        virtio(Stack::bare, "daemons,devices,made,written")
            .test("protected/xen-virtio-control", 50),
        virtio(with_tickets, "daemons,submit,devices,made,written,running")
            .test("protected/xen-virtio", 75),
        sealed(Stack::bare, "daemons,disk_sealed,made", UNREAD)
            .test("protected/xen-sealed-control", 50)
            .on_demand(),
        sealed(with_tickets, "daemons,submit,disk_sealed,made,running,hidden", READ)
            .test("protected/xen-sealed", 75),
        two(Stack::bare, "daemons,pinned,made")
            .test("protected/xen-2-vcpus-control", 90)
            .on_demand(),
        two(with_tickets, "daemons,submit,pinned,made,running")
            .test("protected/xen-2-vcpus", 120)
            .on_demand(),
        dumped(Stack::bare, "daemons,dumped,shrunk,unharmed", "found")
            .test("protected/xen-dump-control", 80)
            .on_demand(),
        dumped(with_tickets, "daemons,submit,dumped,shrunk,unharmed,running", "not found")
            .test("protected/xen-dump", 95)
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

/// `xl` runs the VM that `visorctl` has made, in a dom0 that does `actions`.
fn xl(stack: fn(Host) -> Stack, vm: XenVm, actions: &str) -> Boot {
    // Bochs and Xen's x2APIC differ on two processors.
    let more = if vm == XenVm::Two { "dom0_max_vcpus=1 dom0_vcpus_pin x2apic=off" } else { "" };
    let xen = format!("dom0_mem=384M,max:384M {more}");
    let boot = Boot::of(stack(Host::XlMade { vm, xen, dom0: format!("init.do={actions}") }));
    boot.on(fast).never("*init: FAIL *").ends(End::PowerOff)
}

/// It gets to its last line.
fn made(stack: fn(Host) -> Stack, vm: XenVm, actions: &str) -> Boot {
    ended(xl(stack, vm, actions).expect(&["*guest: *init: userspace reached*"]))
}

fn ended(boot: Boot) -> Boot {
    boot.expect(&["*guest: *init: done", "*init: PASS made*", "*init: done"])
}

/// Likewise, with devices.
fn virtio(stack: fn(Host) -> Stack, actions: &str) -> Boot {
    let boot = xl(stack, XenVm::Virtio, actions).expect(&[
        "*guest: *init: userspace reached*",
        "*guest: init: disk is right",
        "*guest: init: network is right",
        "*guest: init: random numbers are there",
    ]);
    ended(boot).never("*guest: init: FAIL *")
}

/// What it says of a disk that it can read, and of one that it cannot, as nobody unseals it.
const READ: &str = "*guest: init: disk is right";
const UNREAD: &str = "*guest: init: disk: wrong bytes*";

/// Likewise, with a sealed disk.
fn sealed(stack: fn(Host) -> Stack, actions: &str, said: &str) -> Boot {
    let lines = ["*guest: *init: userspace reached*", said];
    ended(xl(stack, XenVm::Sealed, actions).expect(&lines))
}

/// Likewise, with two processors, on two. Bochs does not exit for the host's interrupts while those of a VM are
/// off, as those of a processor are that begins: each has one of the machine's.
fn two(stack: fn(Host) -> Stack, actions: &str) -> Boot {
    let boot = xl(stack, XenVm::Two, actions).on(|machine| machine.cpus = 2).expect(&[
        "*guest: *init: userspace reached*",
        "*guest: init: cpu1 offline, online now 0",
        "*guest: init: cpu1 online, online now 0-1",
    ]);
    ended(boot)
}

/// What of the VM's secret `xl dump-core` writes.
fn dumped(stack: fn(Host) -> Stack, actions: &str, secret: &str) -> Boot {
    let found = format!("root: FIND in /run/core, * bytes: {secret}");
    xl(stack, XenVm::Heart, actions)
        .expect(&[&found, "*init: PASS unharmed*", "*init: done"])
        .never("*harmed: *")
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
    ensure!(log.contains(NO_DEBUGGER), "no line says what Xen answers to gdbsx");
    let wanted: BTreeMap<String, Want> =
        ATTACKS.iter().map(|(name, want)| ((*name).to_owned(), *want)).collect();
    judge_attacks(&wanted, &lines(&log, LINE)?, subjects)?;
    judge_memory(&log, subjects)
}
