//! `iommu/linux…`: the distribution's kernel as a host whose devices are behind an IOMMU that it does not know.
//!
//! QEMU's software has the IOMMU and no VMX. So the visor is built without it: it starts as always, sets up the
//! IOMMU, and gives the processors to the host, which runs natively.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::iommu::powered_off;
use super::kit::LINUX;
use super::{Rig, Test};
use crate::machine::{self, Image, Loader, Payload};
use crate::paths;

/// Processor time of QEMU for one boot, ten times what the longest takes.
const LIMIT: Duration = Duration::from_secs(300);
/// Bytes of a disk's first half, which has a pattern; `init` writes the complement to the second half.
const HALF: usize = 1 << 20;
/// Bytes of the file that the network serves: what the disks begin with.
const SERVED: usize = 64 << 10;
/// The disks, a file each.
const DISKS: [&str; 3] = ["ahci.img", "nvme.img", "virtio.img"];

/// Disks of three kinds, two of them behind root ports; a network card, too; and two of QEMU's teaching
/// devices, one behind a bridge to conventional PCI.
const DEVICES: &str = "\
    -device pcie-root-port,id=first,chassis=1 -device pcie-root-port,id=second,chassis=2 \
    -device pcie-pci-bridge,id=bridge \
    -drive if=none,id=ahci,format=raw,file=ahci.img -device ide-hd,drive=ahci,bus=ide.0 \
    -drive if=none,id=nvme,format=raw,file=nvme.img -device nvme,drive=nvme,serial=1,bus=first \
    -drive if=none,id=virtio,format=raw,file=virtio.img \
    -device virtio-blk-pci,drive=virtio,disable-legacy=on,iommu_platform=on \
    -netdev user,id=net,tftp=served -device e1000e,netdev=net,romfile=,bus=second \
    -device edu,dma_mask=0xffffffffffffffff \
    -device edu,bus=bridge,addr=3,dma_mask=0xffffffffffffffff";

const OPEN_MACHINE: &str = "-m 1024";
const IOMMU: &str = "-m 1024 -device intel-iommu,intremap=on";
/// A unit that works for no device, as its firmware says.
const BYPASSED: &str =
    "-m 1024 -device intel-iommu,intremap=on -machine default-bus-bypass-iommu=on";
/// With RAM above 4 GiB, where the visor then is, too.
const LARGE: &str = "-m 6144 -device intel-iommu,intremap=on,aw-bits=48,caching-mode=on";
/// For UEFI, whose boot loader wants a screen.
const SCREEN: &str = "-m 1024 -vga std -device intel-iommu,intremap=on";

/// What all devices do if they work.
const WORKS: &[&str] = &[
    "*init: /dev/sda",
    "*init: disk is right",
    "*init: /dev/nvme0n1",
    "*init: disk is right",
    "*init: /dev/vda",
    "*init: disk is right",
    "*init: network is right",
    "*init: done",
];

/// One boot.
#[derive(Clone, Copy)]
struct Case {
    /// The visor's words, unless the host runs on the bare machine.
    visor: Option<&'static str>,
    /// What the machine has beyond the devices.
    machine: &'static str,
    loader: Loader,
    /// Processors. The host uses two; if there is a third, it stays with the visor.
    cpus: u32,
    /// What the host does.
    actions: &'static str,
    /// What is printed: first this, then that.
    lines: [&'static [&'static str]; 2],
    never: &'static [&'static str],
}

impl Case {
    fn test(self, name: &'static str, cost: u32) -> Test {
        Test::new(name, cost, move |rig| self.run(rig).map(drop))
    }

    /// Boots, and checks what the machine prints, which is returned, and what it leaves on its disks.
    fn run(&self, rig: &Rig<'_>) -> Result<String> {
        let dir = rig.dir.join("");
        paths::emptied(&dir)?;
        let disks = disks(&dir)?;
        let machine = format!("-smp {} {} {DEVICES}", self.cpus, self.machine);
        let loading = machine::loading(self.loader, &self.payload(rig)?, &dir)?;
        let expected = (&*self.lines.concat(), self.never);
        let (outcome, found) = powered_off(rig, (&machine, &loading), LIMIT, expected)?;
        if self.actions.contains("disks") {
            written(&dir, &disks)?;
        }
        let bytes = fs::read(&outcome.serial).context("cannot read the serial log")?;
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        Ok(found.iter().fold(text, |text, line| text + "\n" + line))
    }

    /// What is booted.
    fn payload(&self, rig: &Rig<'_>) -> Result<Payload> {
        let words = format!("{LINUX} maxcpus=2 init.do=drivers,{}", self.actions);
        let kernel = Image::new(rig.kit.stock()?, words);
        let initrd = rig.kit.stock_drivers()?;
        let Some(words) = self.visor else {
            return Ok(Payload::Linux { kernel, initrd: Some(initrd) });
        };
        let visor = Image::new(rig.kit.without_vmx()?, words);
        let modules = vec![kernel, Image::new(initrd, "")];
        Ok(Payload::Multiboot { kernel: visor, modules })
    }
}

/// Makes the disks in `dir`, and what its network serves; what is on each disk.
fn disks(dir: &Path) -> Result<Vec<u8>> {
    let words = (0..).take(HALF / 8).map(machine::outside::disguised);
    let mut disk: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    fs::create_dir(dir.join("served")).context("cannot make a folder")?;
    let served = disk.get(..SERVED).unwrap_or_default();
    fs::write(dir.join("served/part"), served).context("cannot make a file")?;
    disk.resize(2 * HALF, 0);
    for name in DISKS {
        fs::write(dir.join(name), &disk).context("cannot make a disk")?;
    }
    Ok(disk)
}

/// Whether the host has written to each disk in `dir` what it should, and nothing else.
fn written(dir: &Path, disk: &[u8]) -> Result<()> {
    let (first, _) = disk.split_at(HALF);
    let expected: Vec<u8> = first.iter().copied().chain(first.iter().map(|byte| !byte)).collect();
    for name in DISKS {
        let found = fs::read(dir.join(name)).context("cannot read a disk")?;
        ensure!(found == expected, "{name} is not what the host should have made of it");
    }
    Ok(())
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    let bare = Case {
        visor: None,
        machine: IOMMU,
        loader: Loader::Direct,
        cpus: 2,
        actions: "no-iommu,disks,card",
        lines: [&["*init: * modules loaded"], WORKS],
        never: &[HIDDEN],
    };
    let alone = Case {
        visor: Some(""),
        actions: "no-iommu,online,disks,card",
        lines: [CLOSED, WORKS],
        never: &["*init: no-iommu: *"],
        ..bare
    };
    let attack =
        Case { actions: "dma", lines: [BLOCKED, &[]], never: &["*init: edu *: succeeds"], ..alone };
    let open = Case {
        visor: Some("insecure-no-iommu"),
        machine: OPEN_MACHINE,
        lines: [NO_VMX, OPEN],
        never: &[],
        ..attack
    };
    let owners = Case {
        cpus: 3,
        actions: "owners,disks",
        lines: [OWNERS, &[]],
        never: &["*init: no fault", "*init: owners: *"],
        ..alone
    };
    let open_owners =
        Case { lines: [OPEN_OWNERS, &[]], never: &["*init: owners: *"], cpus: 3, ..open };
    let open_owners = Case { actions: owners.actions, ..open_owners };
    vec![
        owners.test("iommu/linux-owners", 15),
        switched_off(owners).test("iommu/linux-switched-off", 10),
        open_owners.test("iommu/linux-open-owners", 15),
        bare.test("iommu/linux-bare", 10),
        alone.test("iommu/linux", 10),
        Case { machine: LARGE, ..alone }.test("iommu/linux-large", 12),
        Case { machine: SCREEN, loader: Loader::GrubEfi, ..alone }.test("iommu/linux-uefi", 20),
        bypassed(open).test("iommu/linux-bypassed", 10),
        Test::new("iommu/linux-attacks", 10, move |rig| {
            let secrets = attacked(&attack, rig)?;
            ensure!(secrets == 0, "the secret is in {secrets} pages of the visor's");
            Ok(())
        }),
        Test::new("iommu/linux-open", 10, move |rig| {
            let secrets = attacked(&open, rig)?;
            ensure!(secrets == 3, "the secret is in {secrets} pages of the visor's, not in 3");
            Ok(())
        }),
    ]
}

/// As `open`, where there is a unit, but none for any device. The visor leaves that to the host, which here does
/// not want it, so that `init` can look.
fn bypassed(open: Case) -> Case {
    let actions = "dma intel_iommu=off intremap=off";
    Case { visor: Some(""), machine: BYPASSED, actions, lines: [UNCOVERED, OPEN], ..open }
}

/// As `owners`, but that the host gets at the unit: then no page becomes a VM's any more, and the visor stops.
fn switched_off(owners: Case) -> Case {
    const TAKEN: &[&str] = &["*init: a page is taken and given back"];
    const STOPPED: &[&str] = &[
        "visor: [panic] VT-d unit 0xfed90000: its registers have changed at *",
        "visor: halted",
        "*init: a unit translates: false",
        "*init: switch-off: the visor does not answer",
    ];
    let never = &["*init: a page is taken from devices *"];
    // Without VMX the visor cannot stop the host's processors: their kernel would tell of its NMIs in between.
    Case { actions: "switch-off loglevel=0", lines: [TAKEN, STOPPED], never, ..owners }
}

/// What `init` says if Linux knows of no IOMMU.
const HIDDEN: &str = "*init: Linux knows of no IOMMU";

/// Linux does not know of the unit; then all devices work through it.
const CLOSED: &[&str] = &[
    "visor: [warn] TEST BUILD WITHOUT VMX: *",
    "visor: [info] VT-d unit 0xfed90000: devices reach only what the host reaches",
    HIDDEN,
    "*init: processors 0-1",
];

/// What root's devices do to the visor behind the unit: they still work, but there. The one behind a bridge to
/// conventional PCI speaks as the bridge's bus.
const BLOCKED: &[&str] = &[
    "visor: [warn] TEST BUILD WITHOUT VMX: *",
    "*init: the visor's memory: *",
    "*init: a unit translates: true",
    "*init: edu 0000:00:05.0 moves memory",
    "*init: edu 0000:00:05.0 reads the visor's *: fails",
    "*init: fault: device 0x0028 at *, reason 6",
    "*init: edu 0000:00:05.0 writes the visor's *: fails",
    "*init: fault: device 0x0028 at *, reason 5",
    "*init: edu 0000:00:05.0 reads the visor's *: fails",
    "*init: fault: device 0x0028 at *, reason 6",
    "*init: edu 0000:00:05.0 writes the visor's *: fails",
    "*init: fault: device 0x0028 at *, reason 5",
    "*init: edu 0000:00:05.0 reads the visor's *: fails",
    "*init: fault: device 0x0028 at *, reason 6",
    "*init: edu 0000:00:05.0 writes the visor's *: fails",
    "*init: fault: device 0x0028 at *, reason 5",
    "*init: edu 0000:00:05.0 moves memory",
    "*init: edu 0000:03:03.0 moves memory",
    "*init: edu 0000:03:03.0 reads the visor's *: fails",
    "*init: fault: device 0x0300 at *, reason 6",
    "*init: edu 0000:03:03.0 writes the visor's *: fails",
    "*init: fault: device 0x0300 at *, reason 5",
    "*init: edu 0000:03:03.0 moves memory",
    "*init: done",
];

/// What root's devices do to the visor where nothing stops them.
const OPEN: &[&str] = &[
    "*init: the visor's memory: *",
    "*init: a unit translates: false",
    "*init: edu 0000:00:05.0 moves memory",
    "*init: edu * reads the visor's *: succeeds",
    "*init: edu * writes the visor's *: succeeds",
    "*init: edu * reads the visor's *: succeeds",
    "*init: edu * writes the visor's *: succeeds",
    "*init: edu * reads the visor's *: succeeds",
    "*init: edu * writes the visor's *: succeeds",
    "*init: edu 0000:03:03.0 moves memory",
    "*init: edu * reads the visor's *: succeeds",
    "*init: edu * writes the visor's *: succeeds",
    "*init: done",
];

/// A unit that does not work for a device is no IOMMU.
const UNCOVERED: &[&str] = &[
    "visor: [warn] TEST BUILD WITHOUT VMX: *",
    "visor: [warn] no IOMMU keeps devices from memory: DMAR: no unit for the device *",
];
/// There is nothing that the visor could use.
const NO_VMX: &[&str] = &["visor: [warn] TEST BUILD WITHOUT VMX: *"];

/// Pages that are a VM's for a while are out of every device's reach so long, and what tries is told of.
const OWNERS: &[&str] = &[
    "*init: a unit translates: true",
    "*init: fault: device 0x0028 at *, reason 6",
    "*init: fault: device 0x0028 at *, reason 5",
    "*init: edu 0000:00:05.0 read 0 and wrote 0 of 5 pages of a VM's",
    "*init: fault: device 0x0300 at *, reason 6",
    "*init: fault: device 0x0300 at *, reason 5",
    "*init: edu 0000:03:03.0 read 0 and wrote 0 of 5 pages of a VM's",
    "*init: * rounds of load meanwhile",
    "*init: done",
];
const OPEN_OWNERS: &[&str] = &[
    "*init: a unit translates: false",
    "*init: edu 0000:00:05.0 read 5 and wrote 5 of 5 pages of a VM's",
    "*init: edu 0000:03:03.0 read 5 and wrote 5 of 5 pages of a VM's",
    "*init: * rounds of load meanwhile",
    "*init: done",
];

/// Does `case`, an attack; in how many places of the visor's memory there is the secret that devices should
/// write there, as seen from outside.
fn attacked(case: &Case, rig: &Rig<'_>) -> Result<usize> {
    let log = case.run(rig)?;
    let said = |start: &str| {
        let line = log.lines().find_map(|line| Some(line.split_once(start)?.1));
        line.with_context(|| format!("no line {start}"))
    };
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    let reserved = said(" MiB reserved at ")?;
    let range = said("init: the visor's memory: ")?;
    let (start, end) = range.split_once('-').context("no range")?;
    ensure!(start == reserved, "the host takes {range} for the visor's, which is at {reserved}");
    let (start, end) = (number(start)?, number(end)?);
    let places = said("harness: found ")?.split_once('[').context("nobody looked")?.1;
    let places = places.split_once(']').context("nobody looked")?.0;
    let mut inside = 0;
    for place in places.split_whitespace() {
        inside += usize::from((start..end).contains(&number(place)?));
    }
    Ok(inside)
}
