//! `attest/launch…`: the visor after a measured launch by Intel TXT, and after what only looks like one.
//!
//! No emulator has TXT: the chipset is played ([`machine::txt`]), and so are SINIT, which measures a few bytes, and
//! tboot, for which GRUB stands in. The TPM is real in that its PCRs obey nobody else.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::attest::{Shown, configuration, measured, shown};
use super::iommu::{powered_off, printed};
use super::kit::LINUX;
use super::{Rig, Test, Then};
use crate::machine::txt::{
    self, Chipset, DIDVID, E2STS, ERRORCODE, ESTS, HEAP_BASE, HEAP_SIZE, Memory, STS, Senter,
};
use crate::machine::{self, Image, Payload};
use crate::paths;

/// Processor time of QEMU for one boot, ten times what the longest takes.
const LIMIT: Duration = Duration::from_secs(300);
/// The visor's words.
const WORDS: &str = "log=info";

/// A machine that says that it was launched, and how.
struct Case {
    memory: Memory,
    senter: Senter,
    /// The visor's command line.
    line: String,
}

impl Case {
    /// As tboot leaves a machine.
    fn launched() -> Self {
        let line = format!("{WORDS} {}", Memory::word());
        Self { memory: Memory::launched(), senter: Senter::AndMeasure, line }
    }

    /// Starts the chipset; what QEMU is told, to boot the visor with `modules`.
    fn start(&self, modules: Vec<Image>, rig: &Rig<'_>) -> Result<(Chipset, String, Vec<String>)> {
        let dir = rig.dir.join("");
        paths::emptied(&dir)?;
        let chipset = Chipset::start(&dir, &self.memory)?;
        let kernel = Image::new(rig.kit.without_vmx()?, self.line.as_str());
        let payload = Payload::Multiboot { kernel, modules };
        let loading = machine::loading_after(&txt::commands(self.senter), &payload, &dir)?;
        Ok((chipset, format!("-m 1024 {}", Chipset::arguments()), loading))
    }

    /// Boots as far as the visor has measured itself, which it says it was launched by `expected` for.
    fn says(&self, expected: &str, rig: &Rig<'_>) -> Result<()> {
        // Any host will do: the run is stopped when it starts.
        let modules = vec![Image::new(rig.kit.guests()?.probe, "triple-fault")];
        let (chipset, machine, loading) = self.start(modules, rig)?;
        let lines = [expected, "visor: [info] TPM: PCR 19 holds *"];
        let wanted = ((&lines[..], &[][..]), Then::Stop);
        let _ = printed(rig, (&machine, &loading), LIMIT, wanted)?;
        // Only a visor that was launched, as far as it knows, tries.
        let tries = expected == LAUNCHED || expected.ends_with("holds secrets");
        ensure!(chipset.keeps_secrets()? == tries, "the flag for secrets is set: {}", !tries);
        Ok(())
    }
}

/// The whole of a launch: the host sees what its TPM says, and the visor's log.
fn launch(rig: &Rig<'_>) -> Result<()> {
    let words = format!("{LINUX} iomem=relaxed init.do=tpm");
    let modules =
        vec![Image::new(rig.kit.stock()?, words), Image::new(rig.kit.guests()?.initrd, "")];
    let (chipset, machine, loading) = Case::launched().start(modules, rig)?;
    let (outcome, _) = powered_off(rig, (&machine, &loading), LIMIT, (MEASURED, &[]))?;
    ensure!(chipset.keeps_secrets()?, "the visor has not set the flag for secrets");
    let bytes = fs::read(&outcome.serial).context("cannot read the serial log")?;
    let shown = shown(&String::from_utf8_lossy(&bytes))?;
    measures(&shown)?;
    // tboot's word is not the operator's.
    let configuration = configuration("txt", WORDS, "no");
    measured(&shown, 0, &[&configuration, "iommu=none\nunits=0\n"], rig)
}

/// PCR 17 and 18 say, in SHA-256's bank, what was measured into them.
fn measures(shown: &Shown) -> Result<()> {
    const SHA256: u16 = 0xb;
    for (pcr, data) in [(17, txt::MODULE), (18, txt::LAUNCHED)] {
        let extended = Sha256::digest([&[0; 32][..], &Sha256::digest(data)].concat());
        let found = shown.launch.get(&(pcr, SHA256)).context("the TPM does not tell a PCR")?;
        ensure!(found[..] == extended[..], "PCR {pcr} holds something else");
    }
    Ok(())
}

/// How much of a launch there was, what else the chipset shows, and what the visor says of that.
type Lie = (Senter, fn(Memory) -> Memory, &'static str);

const NONE_MEASURED: &str = "PCR 17 to 19 are not as after one";
const NO_PAGE: &str = "no page of tboot's is where its word says";

/// Machines that are not as after a launch: the visor takes none of them for one.
const LIES: [Lie; 20] = [
    // The chipset tells of a launch that the TPM knows nothing of, or half of.
    (Senter::None, |memory| memory, NONE_MEASURED),
    (Senter::Forge, |memory| memory, NONE_MEASURED),
    (Senter::Only, |memory| memory, NONE_MEASURED),
    // Nobody knows of one, but for a word that anybody can write.
    (Senter::None, |memory| memory.public(DIDVID, u64::MAX), "no chipset with TXT answers"),
    // The TPM knows of a launch, and the chipset does not, or not any more.
    (ALL, |memory| memory.public(DIDVID, 0), "no chipset with TXT answers"),
    (ALL, |memory| memory.public(STS, 0), "the chipset knows of none that lasts"),
    (ALL, |memory| memory.public(STS, 0x93), "the chipset knows of none that lasts"),
    (ALL, |memory| memory.public(STS, 0x1), "TXT's private registers are closed"),
    (ALL, |memory| memory.public(ESTS, 1), "TXT tells of errors: status 0x1, code 0x0"),
    (ALL, |memory| memory.public(ERRORCODE, 1 << 31), "TXT tells of errors: *, code 0x80000000"),
    // A heap that leads elsewhere.
    (ALL, |memory| memory.public(HEAP_BASE, u64::MAX), "TXT's heap and SINIT are no two *"),
    (ALL, |memory| memory.public(HEAP_SIZE, 1 << 40), "TXT's heap and SINIT are no two *"),
    (ALL, |memory| memory.public(HEAP_SIZE, 20), "bad BiosData in TXT's heap"),
    (ALL, |memory| memory.heap(0, u64::MAX), "bad BiosData in TXT's heap"),
    (ALL, |memory| memory.heap(44, 0), "bad OsMleData in TXT's heap"),
    (ALL, |memory| memory.heap(352, 1), "bad OsSinitData in TXT's heap"),
    (ALL, |memory| memory.heap(452, 1 << 63), "bad SinitMleData in TXT's heap"),
    // A page that is none of tboot's, and one of a tboot whose processors cannot be started.
    (ALL, |memory| memory.page(8, 0), NO_PAGE),
    (ALL, |memory| memory.page(568, 1), "tboot was told ap_wake_mwait: leave that out"),
    // The chipset keeps no secrets.
    (ALL, |memory| memory.private(E2STS, 0), "TXT does not note that memory holds secrets"),
];
const ALL: Senter = Senter::AndMeasure;

/// Boots all of [`LIES`], and a machine on which there is nothing where tboot's word says.
fn lies(rig: &Rig<'_>) -> Result<()> {
    let boot = |case: Case, why: &str| {
        let line = format!("visor: [warn] TXT: this is not taken for a measured launch: {why}");
        case.says(&line, rig).with_context(|| why.to_owned())
    };
    for (senter, change, why) in LIES {
        boot(Case { senter, memory: change(Memory::launched()), ..Case::launched() }, why)?;
    }
    let line = "log=info tboot=0xfffffff8".to_owned();
    boot(Case { line, ..Case::launched() }, NO_PAGE)
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("attest/launch", 15, launch),
        Test::new("attest/launch-without-tboot", 3, |rig| {
            let case = Case { line: WORDS.to_owned(), ..Case::launched() };
            case.says(LAUNCHED, rig)
        }),
        Test::new("attest/launch-lies", 40, lies),
    ]
}

/// What the visor says of a launch.
const LAUNCHED: &str =
    "visor: [info] TXT: this is a measured launch; memory is scrubbed after a reset";
/// The visor sees the launch, and the host has no way to extend what the visor has.
const MEASURED: &[&str] = &[
    "visor: [info] TPM: FIFO, * banks; PCR 19 is zero, as after a measured launch",
    LAUNCHED,
    "visor: [info] TPM: PCR 19 holds *",
    "*init: the TPM answers 28 bytes, code 0x0",
    "*init: extends PCR 19 at locality 0: code 0x907",
    "*init: log of * bytes",
];
