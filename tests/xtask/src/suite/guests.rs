//! `nested/…`: the distribution's QEMU and `xl` run Linux guests on the host.
//!
//! Each is there twice: on the bare machine, where it tests itself and the emulator, and on the
//! visor. What the host does is in `image/vmms/`.

use anyhow::{Context, Result, ensure};

use super::protected::with_tickets;
use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::{Bios, End, Machine};

/// What QEMU's guest is put through.
const QEMU: &str = "init.do=modules,login,suspend,leave,slay";

/// A host, and what is seen of its guests.
struct Case {
    host: Host,
    lines: Vec<String>,
    change: fn(&mut Machine),
}

impl Case {
    /// The test on the bare machine, which runs on demand, and the one on the visor.
    fn tests(self, bare: (&'static str, u32), visor: (&'static str, u32)) -> [Test; 2] {
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        let boot = |stack| {
            let boot = Boot::of(stack).on(self.change).expect(&lines);
            boot.never("*guest: FAIL *").never("*init: FAIL *").ends(End::PowerOff)
        };
        [
            boot(Stack::bare(self.host.clone())).test(bare.0, bare.1).on_demand(),
            boot(Stack::on_visor(self.host.clone())).test(visor.0, visor.1),
        ]
    }
}

/// QEMU's guest with `vcpus` processors, with `host` made of the host's command line.
fn qemu(host: fn(String) -> Host, vcpus: u32) -> Case {
    let processors = format!("*guest: {vcpus} processors");
    let lines = [
        "*init: kvm_intel ept=Y vpid=Y unrestricted_guest=Y",
        "*guest login: *",
        &processors,
        "*guest: PASS disk",
        "*guest: PASS files",
        "*guest: PASS address",
        "*guest: PASS pings",
        "*guest: PASS download",
        "*init: PASS login*",
        "*resumed 42",
        "*init: PASS suspend*",
        "*init: PASS leave*",
        "*init: PASS slay*",
        "*init: done",
    ];
    let lines = lines.map(str::to_owned).to_vec();
    Case { host: host(format!("{QEMU} init.vcpus={vcpus}")), lines, change: roomy }
}

/// `xl` in a dom0 that Xen starts by `xen` and that does `actions`.
fn xl(xen: &str, actions: &str) -> Case {
    let actions = format!("daemons,{actions}");
    let mut lines: Vec<String> =
        actions.split(',').map(|action| format!("*init: PASS {action}*")).collect();
    lines.push("*init: done".to_owned());
    let xen = format!("dom0_mem=512M,max:512M {xen}");
    let host = Host::Xl { xen, dom0: format!("init.do={actions}") };
    Case { host, lines, change: roomy }
}

/// Room for an initial RAM file system of 60 MB and for guests.
pub(super) fn roomy(machine: &mut Machine) {
    machine.memory_mib = 1024;
    machine.seconds = 400;
}

/// QEMU runs the VM that `visorctl` has made in a folder, in a host that does `actions`. The VM says `said`,
/// too.
fn made(stack: fn(Host) -> Stack, (vm, said): (&str, &[&str]), actions: &str) -> Boot {
    let mut lines = vec!["*guest: *init: userspace reached*"];
    lines.extend(said);
    lines.extend(["*guest: *init: done", "*init: PASS boot*", "*init: PASS slay*", "*init: done"]);
    Boot::of(stack(Host::Made(format!("init.vm={vm} init.do={actions}"))))
        .on(roomy)
        .expect(&lines)
        .never("*init: FAIL *")
        .ends(End::PowerOff)
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    let (one, two) = (qemu(Host::Qemu, 1), qemu(Host::Qemu, 2));
    tests.extend(one.tests(("nested/bare-qemu", 55), ("nested/qemu", 60)));
    tests.extend(two.tests(("nested/bare-qemu-2-vcpus", 56), ("nested/qemu-2-vcpus", 60)));
    let stock = Case { change: patient, ..qemu(Host::StockQemu, 1) };
    tests.extend(stock.tests(("nested/bare-stock-qemu", 164), ("nested/stock-qemu", 175)));
    tests.extend(made_tests());
    tests.extend(virtio_tests());
    let pvh = xl("", "pvh,destroy");
    tests.extend(pvh.tests(("nested/bare-xl-pvh", 54), ("nested/xl-pvh", 75)));
    let dom0 = Case { change: own_bios, ..xl("dom0=pvh iommu=no dom0-iommu=none", "pvh") };
    tests.extend(dom0.tests(("nested/bare-xl-pvh-dom0", 41), ("nested/xl-pvh-dom0", 50)));
    let hvm = xl("", "hvm");
    tests.extend(hvm.tests(("nested/bare-xl-hvm", 50), ("nested/xl-hvm", 60)));
    tests
}

/// VMs that `visorctl` has made, without their tickets and with.
fn made_tests() -> Vec<Test> {
    let one: (&str, &[&str]) = ("vm", &[]);
    let two: (&str, &[&str]) = (
        "vm-2",
        &["*guest: init: cpu1 offline, online now 0", "*guest: init: cpu1 online, online now 0-1"],
    );
    // Without the visor the VM has what the host has.
    let unread: &[&str] = &["*guest: init: disk: wrong bytes*"];
    let changed: &[&str] = &["*guest: init: disk: /dev/vda: *(os error 5)*"];
    let pc: (&str, &[&str]) = ("vm-q35", &[]);
    let plain = |vm| made(Stack::bare, vm, "modules,boot,slay");
    let protected = |vm| made(with_tickets, vm, "modules,submit,boot,running,slay");
    vec![
        plain(one).test("protected/qemu-control", 14),
        protected(one).test("protected/qemu", 25),
        plain(two).test("protected/qemu-2-vcpus-control", 20),
        protected(two).test("protected/qemu-2-vcpus", 40),
        plain(pc).test("protected/q35-control", 14),
        protected(pc).test("protected/q35", 25),
        made(Stack::bare, ("vm-sealed", unread), "modules,disk_sealed,boot,slay")
            .test("protected/qemu-sealed-control", 30),
        sealed().test("protected/qemu-sealed", 90),
        made(
            with_tickets,
            ("vm-q35-sealed", &DATA),
            "modules,submit,disk_sealed_on_pci,boot,running,hidden,slay",
        )
        .test("protected/q35-sealed", 60),
        made(
            with_tickets,
            ("vm-sealed", changed),
            "modules,submit,disk_sealed,tampered,boot,running,refused,slay",
        )
        .test("protected/qemu-sealed-changed", 60),
        lies("vm-lies", "networks").test("protected/qemu-virtio-lies", 60),
        lies("vm-q35-lies", "networks_on_pci").test("protected/q35-virtio-lies", 60).on_demand(),
        Test::new("protected/qemu-reset-control", 40, |rig| bare_resets(rig, "vm-reset")),
        Test::new("protected/qemu-reset", 60, |rig| protected_resets(rig, "vm-reset")),
        Test::new("protected/q35-reset-control", 40, |rig| bare_resets(rig, "vm-q35-reset"))
            .on_demand(),
        Test::new("protected/q35-reset", 60, |rig| protected_resets(rig, "vm-q35-reset"))
            .on_demand(),
    ]
}

/// What a VM says that has a disk, a network and a source of random numbers.
const DATA: [&str; 3] = [
    "*guest: init: disk is right",
    "*guest: init: network is right",
    "*guest: init: random numbers are there",
];

/// VMs with devices in clear.
fn virtio_tests() -> Vec<Test> {
    let exchanged = ["*guest: init: console: 64 lines", "*guest: init: files are right"];
    let exchanged = [&DATA[..], &exchanged].concat();
    let (virtio, pc_virtio) = (("vm-virtio", exchanged.as_slice()), ("vm-q35-virtio", &DATA[..]));
    vec![
        made(Stack::bare, virtio, "modules,devices,exchanges,boot,written,exchanged,slay")
            .test("protected/qemu-virtio-control", 30),
        made(
            with_tickets,
            virtio,
            "modules,submit,devices,exchanges,boot,running,written,exchanged,slay",
        )
        .test("protected/qemu-virtio", 60),
        made(Stack::bare, pc_virtio, "modules,devices_on_pci,boot,written,slay")
            .test("protected/q35-virtio-control", 30),
        made(with_tickets, pc_virtio, "modules,submit,devices_on_pci,boot,running,written,slay")
            .test("protected/q35-virtio", 60),
    ]
}

/// Nothing may be left of earlier lives of a VM with a ticket, and it has as many as that says.
fn protected_resets(rig: &Rig<'_>, vm: &str) -> Result<()> {
    let boot = resets(with_tickets, vm, "modules,submit,resets,exhausted,slay");
    let boot = boot.expect(&["*init: PASS exhausted*", "*init: PASS slay*", "*init: done"]);
    let left = lives_left(&rig.check("", &boot)?)?;
    ensure!(left == 0, "{left} secrets of earlier lives are left");
    Ok(())
}

/// Without a ticket something is left: or the search would prove nothing.
fn bare_resets(rig: &Rig<'_>, vm: &str) -> Result<()> {
    let boot = resets(Stack::bare, vm, "modules,resets,slay");
    let left = lives_left(&rig.check("", &boot)?)?;
    ensure!(left > 0, "nothing is left of a VM without a ticket");
    Ok(())
}

/// QEMU's memory is changed so that its virtio devices, which it has by the step `devices`, lie to a VM with a
/// ticket: those are not served any more, and the VM goes on.
fn lies(vm: &str, devices: &str) -> Boot {
    let lines = [
        "*guest: init: disk is right",
        "*virtio: the host's used index * is too far",
        "*virtio: the host returned chain 4294967295, which it has not",
        "*virtio: the host claims 4294967295 bytes, above the buffer",
        "*guest: init: disk is right",
        "*guest: init: done",
        "*init: PASS lies*",
        "*init: PASS running*",
        "*init: PASS written*",
        "*init: done",
    ];
    let actions = format!("modules,submit,{devices},lies,running,written,slay");
    Boot::of(with_tickets(Host::Made(format!("init.vm={vm} init.do={actions}"))))
        .on(roomy)
        .expect(&lines)
        .never("*init: FAIL *")
        .ends(End::PowerOff)
}

/// QEMU runs a VM with a sealed disk, and after it another with the same disk. The host finds nothing of what is on
/// it.
fn sealed() -> Boot {
    let lines = [
        "*guest: init: disk is right",
        "*guest: init: network is right",
        "*init: PASS boot*",
        "*init: PASS hidden*",
        "*guest: init: disk is as it was left",
        "*init: PASS kept*",
        "*init: PASS slay*",
        "*init: done",
    ];
    let actions = "modules,submit,disk_sealed,boot,running,hidden,kept,slay";
    Boot::of(with_tickets(Host::Made(format!("init.vm=vm-sealed init.do={actions}"))))
        .on(roomy)
        .expect(&lines)
        .never("*init: FAIL *")
        .ends(End::PowerOff)
}

/// QEMU runs a VM that resets itself, and is reset, in a host that does `actions`.
fn resets(stack: fn(Host) -> Stack, vm: &str, actions: &str) -> Boot {
    Boot::of(stack(Host::Made(format!("init.vm={vm} init.do={actions}"))))
        .on(roomy)
        .expect(&["*guest: init: rebooting", "*init: PASS resets*"])
        .never("*init: FAIL *")
        .ends(End::PowerOff)
}

/// In how many places secrets of a VM's earlier lives, two at least, were found in the machine's memory.
fn lives_left(log: &str) -> Result<usize> {
    let lines = log.lines().filter(|line| line.starts_with("harness: "));
    let counts: Vec<Option<usize>> = lines
        .map(|line| line.strip_prefix("harness: found ")?.split(' ').next()?.parse().ok())
        .collect();
    ensure!(counts.len() >= 2, "nobody looked for two lives");
    let sum = counts.into_iter().sum::<Option<usize>>();
    sum.context("the machine's memory cannot be searched")
}

/// As [`roomy`], with firmware whose ACPI tables a PVH dom0 finds.
fn own_bios(machine: &mut Machine) {
    roomy(machine);
    machine.bios = Bios::Own;
}

/// As [`roomy`], and patient with a kernel that unpacks itself for 235 s.
fn patient(machine: &mut Machine) {
    roomy(machine);
    machine.seconds = 900;
}
