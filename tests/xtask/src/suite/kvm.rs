//! `nested/…`: KVM on the host, driven by `vmm` on its raw interface.
//!
//! Most are there twice: on the bare machine, where they test themselves and the emulator, and on the
//! visor.

use anyhow::{Result, bail, ensure};

use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::{Cpu, End, Machine, TripleFault};

/// A group of actions, what must be seen of it, and on which machine.
struct Case {
    host: Host,
    lines: &'static [&'static str],
    change: fn(&mut Machine),
}

impl Case {
    /// `host` with `vmm` and all that is seen of it.
    const fn new(host: Host, lines: &'static [&'static str]) -> Self {
        Self { host, lines, change: |machine| machine.seconds = 200 }
    }

    /// On a machine that `change` makes of the default one.
    const fn on(mut self, change: fn(&mut Machine)) -> Self {
        self.change = change;
        self
    }

    /// Its boot on what `stack` makes of its host.
    fn boot(&self, stack: fn(Host) -> Stack) -> Boot {
        let boot = Boot::of(stack(self.host.clone())).on(self.change).expect(self.lines);
        boot.never("*vmm: FAIL *").ends(End::PowerOff)
    }

    /// The test on the bare machine and the one on the visor, with their costs.
    fn tests(&self, bare: (&'static str, u32), visor: (&'static str, u32)) -> [Test; 2] {
        let on_bare = self.boot(Stack::bare).test(bare.0, bare.1);
        [on_bare, self.boot(Stack::on_visor).test(visor.0, visor.1)]
    }
}

fn small(words: &str) -> Host {
    Host::Kvm(format!("init.do={words}"))
}

/// What `kvm_intel` must find: nothing less than the bare machine has.
const LOADED: &str = "*init: kvm_intel ept=Y vpid=Y unrestricted_guest=Y eptad=Y vnmi=Y *";

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    tests.extend(one_processor().tests(("nested/bare-kvm", 11), ("nested/kvm", 18)));
    let plain = one_processor().boot(Stack::without_shadowing);
    tests.push(plain.test("nested/kvm-without-shadowing", 25));
    let two = two_processors();
    tests.extend(two.tests(("nested/bare-kvm-2-cpus", 12), ("nested/kvm-2-cpus", 20)));
    let reboot = reboot();
    tests.extend(reboot.tests(("nested/bare-kvm-reboot", 8), ("nested/kvm-reboot", 10)));
    tests.extend(linux().tests(("nested/bare-kvm-linux", 10), ("nested/kvm-linux", 16)));
    tests.push(visor_memory().boot(Stack::on_visor).test("nested/kvm-visor-memory", 8));
    tests.push(kvm_on_kvm().boot(Stack::bare).test("nested/bare-kvm-on-kvm", 33));
    tests.extend(stock().tests(("nested/bare-stock-kvm", 94), ("nested/stock-kvm", 100)));
    tests.push(Test::new("nested/kvm-leaves-nothing", 12, leaves_nothing));
    tests.extend(page_log().tests(("nested/bare-kvm-pml", 26), ("nested/kvm-pml", 30)));
    tests
}

/// Everything, and the modules once more.
fn one_processor() -> Case {
    let again = "kvm-unload,kvm-load,run:/vmm+long-mode+ept-storm,kvm-unload";
    Case::new(
        small(&format!("kvm-load,run:/vmm+all,{again}")),
        &[
            LOADED,
            "*vmm: PASS real-mode",
            "*vmm: PASS protected-mode",
            "*vmm: PASS long-mode",
            "*vmm: PASS mode-switches",
            "*vmm: PASS triple-fault",
            "*vmm: PASS single-step",
            "*vmm: PASS ept-storm",
            "*vmm: PASS large-pages",
            "*vmm: PASS host-unmaps",
            "*vmm: PASS copy-on-write",
            "*vmm: PASS memslots",
            "*vmm: PASS read-only",
            "*vmm: PASS dirty-log",
            "*vmm: PASS interrupt-windows",
            "*vmm: PASS interrupt-lines",
            "*vmm: PASS timer",
            "*vmm: PASS ipis",
            "*vmm: PASS signals",
            "*vmm: PASS registers",
            "*vmm: PASS suspend-resume",
            "*vmm: PASS interleaved",
            "*vmm: PASS two-vcpus",
            "*vmm: PASS racing",
            "*vmm: PASS killed",
            "*vmm: PASS many",
            "*init: kvm unloaded",
            LOADED,
            "*vmm: PASS long-mode",
            "*vmm: PASS ept-storm",
            "*init: kvm unloaded",
            "*init: done",
        ],
    )
}

/// Of VMs that are gone nothing is left, in the frame table and in the visor's memory; of one that runs
/// there is.
fn leaves_nothing(rig: &Rig<'_>) -> Result<()> {
    let words = "kvm-load,stats,run:/vmm+ept-storm+large-pages+memslots+racing+killed+many,stats,\
                 run:/vmm+leave-running,stats";
    let boot = Boot::of(Stack::on_visor(small(words))).on(|machine| machine.seconds = 200);
    let boot = boot.expect(&["*vmm: PASS many", "*init: done"]).never("*vmm: FAIL *");
    let log = rig.check("", &boot.ends(End::PowerOff))?;
    let values = |name: &str| -> Vec<u64> {
        let lines = log.lines().filter_map(|line| line.strip_prefix(name));
        lines.filter_map(|value| value.trim().parse().ok()).collect()
    };
    let (tables, free) = (values("stats: tables "), values("stats: free "));
    let ([0, 0, in_use], [before, after, _]) = (&tables[..], &free[..]) else {
        bail!("tables in use, at each look: {tables:?}; free frames: {free:?}");
    };
    ensure!(*in_use > 3, "a VM runs on {in_use} tables");
    ensure!(before == after, "of {before} free frames {after} are left");
    Ok(())
}

/// Processors that a VM has two of, and that the host takes away from a VM.
fn two_processors() -> Case {
    let lines = &[
        LOADED,
        "*vmm: PASS two-vcpus",
        "*vmm: PASS racing",
        "*vmm: PASS cpu-hotplug",
        "*vmm: PASS many",
        "*init: done",
    ];
    Case::new(small("kvm-load,run:/vmm+two-vcpus+racing+cpu-hotplug+many,kvm-unload"), lines).on(
        |machine| {
            machine.cpus = 2;
            machine.seconds = 200;
        },
    )
}

/// The host restarts while a VM runs, and can run VMs again.
fn reboot() -> Case {
    let lines = &[
        LOADED,
        "*vmm: PASS leave-running",
        "*init: rebooting",
        LOADED,
        "*vmm: PASS leave-running",
        "*init: second boot",
        "*init: done",
    ];
    Case::new(small("kvm-load,run:/vmm+leave-running,reboot"), lines).on(|machine| {
        machine.triple_fault = TripleFault::Resets;
        machine.seconds = 200;
    })
}

/// The host gives a VM the visor's memory.
fn visor_memory() -> Case {
    let lines = &[
        LOADED,
        "*vmm: PASS visor-memory",
        "*vmm: PASS many",
        "*init: kvm unloaded",
        "*init: done",
    ];
    Case::new(small("kvm-load,run:/vmm+visor-memory+many,kvm-unload"), lines)
}

/// A Linux guest of `vmm` gets to userspace.
fn linux() -> Case {
    let lines = &[
        LOADED,
        "*guest: init: userspace reached*",
        "*guest: init: done",
        "*vmm: PASS linux",
        "*init: kvm unloaded",
        "*init: done",
    ];
    let host = Host::KvmLinux("init.do=kvm-load,guest,kvm-unload".to_owned());
    Case::new(host, lines)
}

/// The Linux guest is a host itself: the peer that the visor's costs are compared with.
fn kvm_on_kvm() -> Case {
    let lines = &[
        LOADED,
        "*guest: init: userspace reached*",
        "*guest: init: kvm_intel ept=Y vpid=Y unrestricted_guest=Y *",
        "*guest: vmm: PASS real-mode",
        "*guest: vmm: PASS ept-storm",
        "*guest: vmm: PASS many",
        "*guest: vmm: cost cpuid *",
        "*guest: vmm: cost ept_2m *",
        "*guest: vmm: PASS cost",
        "*vmm: PASS linux",
        "*init: done",
    ];
    let words = "kvm-load,run:/vmm+real-mode+ept-storm+many+cost";
    let host = Host::KvmLinux(format!("init.do=kvm-load,guest init.next={words}"));
    Case::new(host, lines)
}

/// The distribution's kernel as the host.
fn stock() -> Case {
    let words = "kvm-load,run:/vmm+real-mode+long-mode+ept-storm+dirty-log+memslots,kvm-unload";
    let lines = &[
        LOADED,
        "*vmm: PASS real-mode",
        "*vmm: PASS long-mode",
        "*vmm: PASS ept-storm",
        "*vmm: PASS dirty-log",
        "*vmm: PASS memslots",
        "*init: kvm unloaded",
        "*init: done",
    ];
    Case::new(Host::StockKvm(format!("init.do={words}")), lines).on(|machine| machine.seconds = 600)
}

/// A processor that logs written pages itself.
fn page_log() -> Case {
    let lines = &[LOADED, "*vmm: PASS dirty-log", "*init: done"];
    // Without it, Bochs' model does not wake for timers.
    let host = Host::Kvm("idle=poll init.do=kvm-load,run:/vmm+dirty-log,kvm-unload".to_owned());
    Case::new(host, lines).on(|machine| {
        machine.cpu = Cpu::SkylakeX;
        machine.seconds = 200;
    })
}
