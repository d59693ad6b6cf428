//! `protected/qemu-attacks`: root's attacks on a Linux VM of the distribution's QEMU, done by `intruder`.

use std::collections::BTreeMap;

use anyhow::Result;

use super::protected::{self, Want, with_tickets};
use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::{End, Machine};

/// How the line of an attack begins.
pub(crate) const LINE: &str = "root: ATTACK ";

/// How the line begins that tells what became of an attack on one kind of VM, at once.
pub(crate) const STEP: &str = "root: attack ";

/// Attacks by name, with what must become of them.
const ATTACKS: [(&str, Want); 33] = [
    ("read-process-memory", Want::Fails),
    ("dump-by-monitor", Want::Fails),
    ("dump-with-registers", Want::Fails),
    ("read-by-address", Want::Fails),
    ("read-frame", Want::Fails),
    ("search-all-memory", Want::Fails),
    ("registers-by-monitor", Want::Fails),
    ("registers-by-debugger", Want::Fails),
    ("registers-by-kvm", Want::Fails),
    ("vectors-by-kvm", Want::Fails),
    ("tables-by-kvm", Want::Fails),
    ("msrs-by-kvm", Want::Fails),
    ("translate-by-kvm", Want::Fails),
    ("step-by-debugger", Want::Fails),
    ("breakpoint-by-debugger", Want::Fails),
    ("registers-set-by-debugger", Want::Fails),
    ("instruction-set-by-debugger", Want::Fails),
    ("registers-set-by-kvm", Want::Fails),
    ("inject-undefined", Want::Fails),
    ("inject-protection", Want::Fails),
    ("inject-divide-error", Want::Fails),
    ("interrupt-by-vector-3", Want::Fails),
    ("interrupt-by-vector-4", Want::Fails),
    ("write-data", Want::Fails),
    ("write-secret", Want::Fails),
    ("inject-code-in-program", Want::Fails),
    ("inject-code-in-kernel", Want::Fails),
    ("swap-contents", Want::Fails),
    ("replay-page", Want::Fails),
    ("swap-pages", Want::Stops),
    ("drop-page", Want::Stops),
    ("replay-dropped-page", Want::Stops),
    ("exchange-with-other-vm", Want::Stops),
];

/// Every attack with what must become of it.
pub(crate) fn attacks() -> BTreeMap<String, Want> {
    ATTACKS.iter().map(|(name, want)| ((*name).to_owned(), *want)).collect()
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("protected/qemu-attacks-control", 40, control),
        Test::new("protected/qemu-attacks", 120, on_both),
        Test::new("protected/stock-qemu-attacks", 300, on_stock).on_demand(),
    ]
}

/// The words of a host on which these kinds of VMs are attacked.
pub(crate) fn words(kinds: &str) -> String {
    format!("init.do=modules,attacks init.kinds={kinds}")
}

/// Room for an initial RAM file system of 60 MB, a VM, and a dump of its memory; patience with a kernel
/// that unpacks itself for 235 s.
pub(crate) fn roomy(machine: &mut Machine) {
    machine.memory_mib = 512;
    machine.seconds = 1800;
}

/// What must be seen of a host whose root attacks.
pub(crate) const SEEN: [&str; 3] = ["root: done", "*init: PASS attacks*", "*init: done"];

fn boot(stack: Stack) -> Boot {
    let boot = Boot::of(stack).on(roomy).expect(&SEEN);
    boot.never("*root: FAIL *").never("*init: FAIL *").ends(End::PowerOff)
}

/// Without tickets every attack succeeds: else it would prove nothing.
fn control(rig: &Rig<'_>) -> Result<()> {
    judge(rig, Stack::bare(Host::Attacked(words("unprotected"))), &["unprotected"])
}

fn on_both(rig: &Rig<'_>) -> Result<()> {
    let host = Host::Attacked(words("unprotected,protected"));
    judge(rig, with_tickets(host), &["unprotected", "protected"])
}

/// The same on the distribution's kernel.
fn on_stock(rig: &Rig<'_>) -> Result<()> {
    let host = Host::StockAttacked(words("unprotected,protected"));
    judge(rig, with_tickets(host), &["unprotected", "protected"])
}

fn judge(rig: &Rig<'_>, stack: Stack, subjects: &[&str]) -> Result<()> {
    let log = rig.check("", &boot(stack))?;
    protected::judge_attacks(&attacks(), &protected::lines(&log, LINE)?, subjects)?;
    protected::judge_memory(&log, subjects)
}
