//! `boot/…`: the visor boots unmodified hosts, or says in one line why it does not.
//!
//! A test is a [`Boot`] with expectations, under a name and with its cost in processor seconds.

use std::fs;

use anyhow::Context;

use super::{Boot, Host, Rig, Stack, Test};
use crate::image::cpio;
use crate::machine::{Cpu, End, Image, Loader, Machine, Runner, TripleFault};

/// A Linux host that does `actions` and switches the machine off.
fn small(actions: &str) -> Host {
    Host::Small(format!("init.do={actions}"))
}

/// Xen and a small dom0 that does `actions` and switches the machine off.
fn xen(actions: &str) -> Host {
    Host::Xen { xen: String::new(), dom0: format!("init.do={actions}") }
}

/// Until the distribution's kernel has unpacked itself, 235 s pass.
fn patient(machine: &mut Machine) {
    machine.seconds = 450;
}

/// A machine without VMX, started by `loader`.
fn qemu(loader: Loader) -> impl FnOnce(&mut Machine) {
    move |machine| {
        machine.runner = Runner::QemuTcg;
        machine.loader = loader;
    }
}

/// `stack`, a Linux with [`small`] or stock kernel, gets to userspace and switches off.
fn reaches_userspace(stack: Stack) -> Boot {
    Boot::of(stack)
        .expect(&["*init: userspace reached*", "*init: done"])
        .never("visor: [warn] refused*")
        .ends(End::PowerOff)
}

/// The tests of this group.
pub(crate) fn tests() -> Vec<Test> {
    let mut tests = bare();
    tests.extend(hosts());
    tests.extend(on_hardware());
    tests.extend(endings());
    tests.extend(refusals());
    tests.extend(loaders());
    tests
}

/// The test bed by itself: what fails here fails without the visor.
fn bare() -> Vec<Test> {
    vec![
        reaches_userspace(Stack::bare(small(""))).test("boot/bare-linux", 4),
        reaches_userspace(Stack::bare(small("")))
            .on(|machine| machine.cpus = 2)
            .test("boot/bare-linux-2-cpus", 8),
        reaches_userspace(Stack::bare(small("")))
            .on(qemu(Loader::GrubEfi))
            .test("boot/bare-linux-uefi", 6),
        reaches_userspace(Stack::bare(xen(""))).test("boot/bare-xen", 9),
    ]
}

/// Unmodified hosts on the visor.
fn hosts() -> Vec<Test> {
    vec![
        reaches_userspace(Stack::on_visor(small(""))).test("boot/linux", 5),
        reaches_userspace(Stack::on_visor(small("")))
            .on(|machine| machine.cpus = 2)
            .test("boot/linux-2-cpus", 10),
        reaches_userspace(Stack::on_visor(Host::Stock(String::new())))
            .on(patient)
            .test("boot/stock-linux", 85),
        reaches_userspace(Stack::on_visor(xen(""))).test("boot/xen", 12),
        reaches_userspace(Stack::on_visor(small("")))
            .on(|machine| machine.loader = Loader::Grub2)
            .test("boot/linux-by-multiboot2", 8),
    ]
}

/// The whole way by UEFI and by tboot, which takes VMX in QEMU: skipped where KVM does not nest it.
fn on_hardware() -> Vec<Test> {
    let by = |loader| {
        reaches_userspace(Stack::on_visor(small(""))).on(move |machine| {
            machine.runner = Runner::QemuKvm;
            machine.loader = loader;
        })
    };
    vec![
        by(Loader::Grub2).test("boot/hardware-linux", 1),
        by(Loader::Grub2).on(|machine| machine.cpus = 2).test("boot/hardware-linux-2-cpus", 1),
        by(Loader::GrubEfi).test("boot/hardware-linux-uefi", 1),
        by(Loader::Tboot).test("boot/hardware-linux-by-tboot", 1),
    ]
}

/// Hosts that stop, start again, or start something else.
fn endings() -> Vec<Test> {
    let resets = |machine: &mut Machine| machine.triple_fault = TripleFault::Resets;
    let twice = [
        "visor: [info] version *",
        "*init: rebooting*",
        "visor: [info] version *",
        "*init: second boot*",
        "*init: done",
    ];
    let again = |words: &str| {
        let boot = Boot::of(Stack::on_visor(small(words))).expect(&twice);
        boot.on(resets).ends(End::PowerOff)
    };
    vec![
        reaches_userspace(Stack::on_visor(Host::StockXen {
            xen: String::new(),
            dom0: String::new(),
        }))
        .on(|machine| machine.seconds = 900)
        .test("boot/stock-xen", 110),
        again("reboot").test("boot/linux-reboot", 10),
        // What the firmware of Bochs makes of a reset of two processors is another matter.
        Boot::of(Stack::on_visor(small("reboot")))
            .on(|machine| machine.cpus = 2)
            .expect(&["*init: rebooting*", "visor: [info] scrubbed * pages of VMs, * ticks"])
            .test("boot/linux-reset-2-cpus", 10),
        again("triple-fault reboot=t").test("boot/linux-triple-fault", 10),
        Boot::of(Stack::on_visor(small("cpu-hotplug")))
            .on(|machine| machine.cpus = 2)
            .expect(&[
                "*init: userspace reached*",
                "*init: cpu1 offline, online now 0",
                "*init: cpu1 online, online now 0-1",
                "*init: done",
            ])
            .ends(End::PowerOff)
            .test("boot/linux-cpu-hotplug", 10),
        Boot::of(Stack::on_visor(small("devmem")))
            .expect(&["*init: userspace reached*", "*init: done"])
            .never("*devmem: *: succeeded*")
            .ends(End::PowerOff)
            .test("boot/linux-devmem", 6),
        Test::new("boot/linux-kexec", 12, |rig| {
            let host = Host::Files(kexec_files(rig)?);
            let boot = Boot::of(Stack::on_visor(host)).expect(&[
                "*init: userspace reached*",
                "*init: kexec*",
                "*init: userspace reached*",
                "*init: done",
            ]);
            let boot = boot.on(|machine| machine.seconds = 300);
            rig.check("run", &boot.ends(End::PowerOff)).map(drop)
        }),
    ]
}

/// The small kernel, which finds itself in its initramfs to start by kexec.
fn kexec_files(rig: &Rig<'_>) -> anyhow::Result<Vec<Image>> {
    let mut files = rig.kit.images(&small("kexec init.next="))?;
    let mut archive = cpio::Archive::default();
    let kernel = fs::read(rig.kit.small()?).context("cannot read the small kernel")?;
    let _ = archive.program("kernel", &kernel)?;
    let initrd = files.get_mut(1).context("there is no initramfs")?;
    let mut both = fs::read(&initrd.file).context("cannot read the initramfs")?;
    both.extend(archive.finish()?);
    initrd.file = rig.dir.join("initramfs");
    fs::write(&initrd.file, both).context("cannot write an initramfs")?;
    Ok(files)
}

/// Machines and input that the visor cannot work with.
fn refusals() -> Vec<Test> {
    let on = |cpu| Boot::of(Stack::on_visor(small(""))).on(move |machine| machine.cpu = cpu);
    vec![
        on(Cpu::NoVmx).refuses("the processor has no VMX").test("boot/refuses-no-vmx", 1),
        on(Cpu::NoEpt).refuses("*EPT*").test("boot/refuses-no-ept", 1),
        on(Cpu::NoUnrestricted)
            .refuses("*unrestricted guest*")
            .test("boot/refuses-no-unrestricted-guest", 1),
        Boot::of(Stack::on_visor(small("")))
            .visor_words("colour=red")
            .refuses("*unknown word \"colour=red\"*")
            .test("boot/refuses-unknown-word", 1),
        Boot::of(Stack::on_visor(Host::Files(Vec::new())))
            .refuses("*no host kernel: give it as the first module*")
            .test("boot/refuses-no-host", 1),
        Boot::of(Stack::on_visor(Host::Probe("stats".to_owned())))
            .on(|machine| machine.memory_mib = 6)
            .refuses("too little memory: no * MiB of RAM in one piece")
            .test("boot/refuses-too-little-memory", 1),
        Test::new("boot/refuses-huge-initramfs", 4, |rig| {
            let mut files = rig.kit.images(&small(""))?;
            let initrd = files.get_mut(1).context("there is no initramfs")?;
            initrd.file = rig.dir.join("initramfs");
            let file = fs::File::create(&initrd.file).context("cannot write an initramfs")?;
            file.set_len(40 << 20).context("cannot extend the initramfs")?;
            let boot = Boot::attack(Stack::on_visor(Host::Files(files)))
                .on(|machine| machine.memory_mib = 64)
                .expect(&["loader: [error] *"]);
            rig.check("run", &boot).map(drop)
        }),
        Test::new("boot/refuses-corrupt-host", 1, |rig| {
            let file = rig.dir.join("host");
            fs::write(&file, "no kernel\n".repeat(1_000)).context("cannot write a corrupt host")?;
            let host = Host::Files(vec![Image::new(file, "")]);
            let boot = Boot::of(Stack::on_visor(host)).expect(&["loader: [error] host kernel: *"]);
            rig.check("run", &boot).map(drop)
        }),
    ]
}

/// Boot loaders, up to the refusal that a machine without VMX ends in.
fn loaders() -> Vec<Test> {
    let by = |loader| {
        Boot::of(Stack::on_visor(small(""))).on(qemu(loader)).refuses("the processor has no VMX")
    };
    vec![
        by(Loader::Direct).test("boot/by-qemu", 1),
        by(Loader::Grub1).test("boot/by-grub-multiboot1", 2),
        by(Loader::Grub2).test("boot/by-grub-multiboot2", 2),
        by(Loader::GrubEfi).test("boot/by-grub-uefi", 6),
        by(Loader::Tboot).test("boot/by-tboot", 2),
    ]
}
