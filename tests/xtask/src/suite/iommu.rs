//! `iommu/…`: devices do DMA through QEMU's IOMMU, which the image `dma` programs with the visor's code.
//!
//! QEMU's software has the IOMMU and no VMX, so nothing else of the visor runs here.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{FORBIDDEN, Rig, Script, Test, Then};
use crate::machine::{self, End, Outcome};
use crate::paths;

/// Processor time of QEMU for one boot, ten times what the longest takes.
const LIMIT: Duration = Duration::from_secs(100);
/// The disks, a file each.
const DISKS: [&str; 3] = ["ahci", "nvme", "virtio"];
/// The devices: three disks, a network card behind a root port, and QEMU's teaching device by itself and
/// behind a bridge to conventional PCI.
const DEVICES: &str = "\
    -drive if=none,id=ahci,format=raw,file=ahci.img -device ide-hd,drive=ahci,bus=ide.0 \
    -drive if=none,id=nvme,format=raw,file=nvme.img -device nvme,drive=nvme,serial=1 \
    -drive if=none,id=virtio,format=raw,file=virtio.img \
    -device virtio-blk-pci,drive=virtio,disable-legacy=on,iommu_platform=on \
    -device pcie-root-port,id=above -device e1000e,bus=above,romfile= -device edu,dma_mask=0xffffffffffffffff \
    -device pcie-pci-bridge,id=bridge \
    -device edu,bus=bridge,addr=3,dma_mask=0xffffffffffffffff";

/// What each of the IOMMUs is given beyond what a test is about.
const REMAPS: &str = "-device intel-iommu,intremap=on";

/// One boot: what the machine has beyond the usual, an IOMMU first, what the image does, and what it prints.
struct Case {
    machine: String,
    words: &'static str,
    lines: &'static [&'static str],
    /// Whether something is expected to fail.
    fails: Fails,
}

/// Whether a test of the image's may fail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fails {
    Never,
    AsExpected,
}

impl Case {
    /// All pass on a machine with `machine`.
    fn passes(machine: &str, words: &'static str, lines: &'static [&'static str]) -> Self {
        Self { machine: machine.to_owned(), words, lines, fails: Fails::Never }
    }

    /// As [`Case::passes`], but as far as `lines` say.
    fn fails(machine: &str, words: &'static str, lines: &'static [&'static str]) -> Self {
        Self { fails: Fails::AsExpected, ..Self::passes(machine, words, lines) }
    }

    fn test(self, name: &'static str, cost: u32) -> Test {
        Test::new(name, cost, move |rig| self.run(rig))
    }

    fn run(&self, rig: &Rig<'_>) -> Result<()> {
        boot(rig, self).map(drop)
    }
}

/// What the image prints on a machine with an IOMMU, 2 GiB, and a clock that counts instructions.
pub(crate) fn counted(rig: &Rig<'_>, words: &'static str) -> Result<String> {
    boot(rig, &Case::passes(&format!("{REMAPS} -m 2048 -icount shift=0"), words, &[]))
}

/// Boots a q35 with `machine` and `loading` in the test's folder, and checks that it prints `lines` and none of
/// `never`, and then goes off. What came of that, and what was found for each of the lines.
pub(super) fn powered_off(
    rig: &Rig<'_>,
    described: (&str, &[String]),
    limit: Duration,
    lines: (&[&str], &[&str]),
) -> Result<(Outcome, Vec<String>)> {
    let (outcome, found) = printed(rig, described, limit, (lines, Then::GoOn))?;
    ensure!(outcome.end == End::PowerOff, "the run ended: {}", outcome.end);
    Ok((outcome, found))
}

/// As [`powered_off`], however the run ends: it is stopped when it has printed the last line, if `then` says so.
pub(super) fn printed(
    rig: &Rig<'_>,
    (machine, loading): (&str, &[String]),
    limit: Duration,
    ((lines, never), then): ((&[&str], &[&str]), Then),
) -> Result<(Outcome, Vec<String>)> {
    // Interrupts are remapped only where QEMU has all interrupt controllers itself.
    let machine = format!(
        "-machine q35,kernel-irqchip=off -accel tcg -cpu max -nodefaults -display none \
         -serial file:serial.log -no-reboot -qmp stdio \
         -device isa-debug-exit,iobase=0xf4,iosize=4 {machine}"
    );
    let loading = loading.iter().map(String::as_str);
    let arguments: Vec<&str> = machine.split_whitespace().chain(loading).collect();
    let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let (expected, mut forbidden) = (owned(lines), owned(never));
    let unwanted = FORBIDDEN.iter().filter(|line| !lines.contains(line));
    forbidden.extend(unwanted.map(|line| (*line).to_owned()));
    let mut script = Script::new(&expected, &forbidden, then);
    let outcome = machine::described(&arguments, &rig.dir.join(""), limit, &mut script)?;
    rig.count(&outcome);
    if let Err(wrong) = script.verdict() {
        bail!("{wrong} (the run ended: {})", outcome.end);
    }
    let found = script.found().to_vec();
    Ok((outcome, found))
}

/// Boots the image as `case` says, and checks what it prints.
fn boot(rig: &Rig<'_>, case: &Case) -> Result<String> {
    let dir = rig.dir.join("");
    paths::emptied(&dir)?;
    for disk in DISKS {
        let file = File::create(dir.join(disk).with_extension("img"));
        file.and_then(|file| file.set_len(1 << 20)).context("cannot make a disk")?;
    }
    let image = rig.kit.guests()?.dma;
    let image = image.to_str().context("the image has no plain path")?;
    let loading = ["-kernel", image, "-append", case.words].map(str::to_owned);
    let fails: &[&str] = if case.fails == Fails::Never { &["dma: FAIL *"] } else { &[] };
    let machine = format!("-smp 2 {} {DEVICES}", case.machine);
    let (outcome, _) = powered_off(rig, (&machine, &loading), LIMIT, (case.lines, fails))?;
    let text = fs::read_to_string(&outcome.serial).context("cannot read the serial log")?;
    Ok(text.replace('\r', ""))
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    let works = &[
        "dma: ahci at 0x00fa moves 4096 bytes",
        "dma: nvme at * moves 4096 bytes",
        "dma: e1000e at 0x0100 moves 1024 bytes",
        "dma: virtio at * moves 4096 bytes",
        "dma: edu at 0x00* moves 2048 bytes",
        "dma: edu at 0x0200 moves 2048 bytes",
        "dma: PASS works",
    ];
    vec![
        Case::passes("", "open works", works).test("iommu/bare-devices", 2),
        Case::fails("", "open owners visor roles load storm interrupts", OPEN)
            .test("iommu/bare-attacks", 10),
        Case::passes(REMAPS, "works owners visor roles", CLOSED).test("iommu/owners", 5),
        Case::passes(REMAPS, "load storm interrupts", LOADED).test("iommu/load", 8),
        Case::passes(REMAPS, "take-over", TAKEN).test("iommu/take-over", 5),
        Case::passes(&format!("{REMAPS} -m 2048"), "sizes", &["dma: PASS sizes"])
            .test("iommu/sizes", 2),
        Case::passes(&format!("{REMAPS},aw-bits=48 -m 2048"), "works owners sizes", WIDE)
            .test("iommu/48-bits", 3),
        Case::passes(&format!("{REMAPS},snoop-control=on"), "works owners roles", SNOOPING)
            .test("iommu/snoop-control", 4),
        Case::passes(&format!("{REMAPS},caching-mode=on"), "works owners load", CACHING)
            .test("iommu/caching-mode", 8),
        Case::passes(
            &format!("{REMAPS},x-scalable-mode=on"),
            "scalable works owners load",
            SCALABLE,
        )
        .test("iommu/scalable", 8),
        Case::fails(REMAPS, "leave=translations owners load", STALE).test("iommu/stale", 8),
    ]
}

/// Where nothing stops them, devices do what the tests call attacks, and nothing tells of it.
const OPEN: &[&str] = &[
    "dma: bad: ahci read 512 words of a VM's page",
    "dma: bad: ahci wrote 512 words of a VM's page",
    "dma: bad: nvme read 512 words of a VM's page",
    "dma: bad: nvme wrote 512 words of a VM's page",
    "dma: bad: e1000e read 128 words of a VM's page",
    "dma: bad: e1000e wrote 128 words of a VM's page",
    "dma: bad: virtio read 512 words of a VM's page",
    "dma: bad: virtio wrote 512 words of a VM's page",
    "dma: bad: edu read 256 words of a VM's page",
    "dma: bad: edu wrote 256 words of a VM's page",
    "dma: bad: edu read 256 words of a VM's page",
    "dma: bad: edu wrote 256 words of a VM's page",
    "dma: FAIL owners: 24 of 60 checks: *",
    "dma: bad: ahci wrote the visor's page 0x2000000",
    "dma: FAIL visor: 72 of 72 checks: *",
    "dma: bad: ahci wrote 512 words of a VM's page",
    "dma: bad: ahci writes a view: Done",
    "dma: FAIL roles: 24 of 60 checks: *",
    "dma: bad: round 0: * words of a VM's page changed",
    "dma: FAIL load: 100 of 104 checks: *",
    "dma: FAIL storm: 3 of 9 checks: *",
    "dma: bad: edu signals the other's: 10 interrupts",
    "dma: bad: edu behind the bridge signals the other's: 1 interrupts",
    "dma: bad: edu signals by no entry: 1 interrupts",
    "dma: bad: edu writes by no entry: 1 interrupts",
    "dma: bad: edu signals the other's by a subhandle: 10 interrupts",
    "dma: bad: edu signals past the table: 1 interrupts",
    "dma: bad: edu writes past the table: 1 interrupts",
    "dma: bad: edu signals what was withdrawn: 1 interrupts",
    "dma: FAIL interrupts: 8 of 15 checks: *",
];

/// The unit in legacy mode translates, has its queue, remaps interrupts and refuses those in compatibility
/// format: bit 23 of its status is 0.
const CLOSED: &[&str] = &[
    "dma: unit at 0xfed90000: Legacy, Open until on, status 0xc7000000, *",
    "dma: PASS works",
    "dma: PASS owners",
    "dma: PASS visor",
    "dma: PASS roles",
];
const LOADED: &[&str] = &["dma: PASS load", "dma: PASS storm", "dma: PASS interrupts"];
const TAKEN: &[&str] = &[
    "dma: unit at 0xfed90000: Legacy, Open until on, *",
    "dma: unit at 0xfed90000: Legacy, Firmware until on, status 0xc7000000, *",
    "dma: PASS take-over",
];
const SNOOPING: &[&str] = &["dma: PASS works", "dma: PASS owners", "dma: PASS roles"];
const CACHING: &[&str] = &["dma: PASS works", "dma: PASS owners", "dma: PASS load"];
const WIDE: &[&str] = &["dma: PASS works", "dma: PASS owners", "dma: PASS sizes"];
const SCALABLE: &[&str] = &[
    "dma: unit at 0xfed90000: Scalable, *",
    "dma: PASS works",
    "dma: PASS owners",
    "dma: PASS load",
];
/// A unit that is not asked to forget lets every device reach what it knows.
const STALE: &[&str] = &[
    "dma: bad: ahci read 512 words of a VM's page",
    "dma: bad: nvme wrote 512 words of a VM's page",
    "dma: bad: e1000e wrote 128 words of a VM's page",
    "dma: bad: virtio read 512 words of a VM's page",
    "dma: bad: edu wrote 256 words of a VM's page",
    "dma: FAIL owners: 24 of 60 checks: *",
    "dma: bad: round * words of a VM's page changed",
    "dma: FAIL load: *",
];
