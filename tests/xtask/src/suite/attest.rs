//! `attest/…`: a TPM holds what the visor is, and its log explains that.
//!
//! Emulators with VMX have no TPM. So most run the visor without VMX in QEMU, beside a TPM in software: it measures as
//! always, and the host, the distribution's kernel, shows what its TPM says and what the visor has logged.

mod chain;
mod host;
mod live;
mod tenant;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::iommu::powered_off;
use super::kit::LINUX;
use super::{Rig, Test};
use crate::machine::{self, Image, Interface, Loader, Payload, Tpm};
use crate::{paths, tool};

/// Processor time of QEMU for one boot, ten times what the longest takes.
const LIMIT: Duration = Duration::from_secs(300);

/// One boot.
#[derive(Clone, Copy)]
struct Case {
    interface: Interface,
    loader: Loader,
    /// What the machine has beyond the TPM.
    machine: &'static str,
    /// The visor's words.
    visor: &'static str,
    /// What the host does.
    actions: &'static str,
    lines: &'static [&'static str],
}

/// What the host's TPM says, and the visor's log.
pub(super) struct Shown {
    /// PCR 19, by the number of the algorithm.
    pcr: BTreeMap<u16, Vec<u8>>,
    /// PCR 17 and 18, by number and algorithm.
    pub(super) launch: BTreeMap<(u8, u16), Vec<u8>>,
    pub(super) log: Vec<u8>,
}

impl Case {
    fn run(&self, rig: &Rig<'_>) -> Result<Shown> {
        let dir = rig.dir.join("");
        paths::emptied(&dir)?;
        let _tpm = Tpm::start(&dir)?;
        let words = format!("{LINUX} iomem=relaxed init.do={}", self.actions);
        let modules =
            vec![Image::new(rig.kit.stock()?, words), Image::new(rig.kit.guests()?.initrd, "")];
        let kernel = Image::new(rig.kit.without_vmx()?, self.visor);
        let payload = Payload::Multiboot { kernel, modules };
        let loading = machine::loading(self.loader, &payload, &dir)?;
        let machine = format!("-m 1024 {} {}", self.machine, Tpm::arguments(self.interface));
        let (outcome, _) = powered_off(rig, (&machine, &loading), LIMIT, (self.lines, &[]))?;
        let bytes = fs::read(&outcome.serial).context("cannot read the serial log")?;
        shown(&String::from_utf8_lossy(&bytes))
    }
}

/// What `init` has printed.
pub(super) fn shown(serial: &str) -> Result<Shown> {
    let said = |start: &'static str| {
        serial.lines().filter_map(move |line| Some(line.split_once(start)?.1))
    };
    let mut launch = BTreeMap::new();
    for line in said("init: PCR ") {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [pcr, algorithm, value] = words[..]
            && let (Ok(pcr), Ok(algorithm)) = (pcr.parse(), algorithm.parse())
        {
            let _ = launch.insert((pcr, algorithm), bytes(value)?);
        }
    }
    let visors = launch.split_off(&(19, 0));
    let pcr = visors.into_iter().map(|((_, algorithm), value)| (algorithm, value)).collect();
    let mut log = Vec::new();
    for line in said("init: log ").filter(|line| !line.starts_with("of ")) {
        log.extend(bytes(line)?);
    }
    Ok(Shown { pcr, launch, log })
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let (pairs, rest) = hex.trim_end().as_bytes().as_chunks::<2>();
    ensure!(rest.is_empty(), "an odd number of digits: {hex}");
    let byte = |pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<_> = pairs.iter().map(|pair| byte(pair)).collect();
    bytes.with_context(|| format!("no bytes: {hex}"))
}

/// The digest of `parts` by one of the algorithms that are replayed here.
pub(super) fn digest(algorithm: u16, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let data = parts.concat();
    match algorithm {
        0xb => Some(Sha256::digest(data).to_vec()),
        0xc => Some(Sha384::digest(data).to_vec()),
        0xd => Some(Sha512::digest(data).to_vec()),
        _ => None,
    }
}

/// An event of a log: what each bank was extended by, and what that is a digest of.
struct Event {
    digests: BTreeMap<u16, Vec<u8>>,
    data: Vec<u8>,
}

/// Takes bytes and numbers off the front of a log.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).context("the log ends early")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, len: usize) -> Result<usize> {
        Ok(self.take(len)?.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }
}

/// The events of PCR 19 in `log`; its banks are in its header.
fn events(log: &[u8]) -> Result<Vec<Event>> {
    let mut reader = Reader(log);
    let _ = reader.take(28)?;
    let len = reader.number(4)?;
    let mut header = Reader(reader.take(len)?);
    ensure!(header.take(16)? == b"Spec ID Event03\0", "no header");
    let _ = header.take(8)?;
    let mut sizes = BTreeMap::new();
    for _ in 0..header.number(4)? {
        let _ = sizes.insert(header.number(2)?, header.number(2)?);
    }
    let mut events = Vec::new();
    while !reader.0.is_empty() {
        ensure!((reader.number(4)?, reader.number(4)?) == (19, 6), "an event of another kind");
        let mut digests = BTreeMap::new();
        for _ in 0..reader.number(4)? {
            let algorithm = reader.number(2)?;
            let size = *sizes.get(&algorithm).context("a digest of no bank")?;
            let _ = digests.insert(u16::try_from(algorithm)?, reader.take(size)?.to_vec());
        }
        let len = reader.number(4)?;
        events.push(Event { digests, data: reader.take(len)?.to_vec() });
    }
    Ok(events)
}

impl Shown {
    /// Whether the log explains the register in all banks that are replayed, from bytes `start` on; what each event
    /// says.
    fn explained(&self, start: u8) -> Result<Vec<Vec<u8>>> {
        let events = events(&self.log)?;
        let mut replayed = 0;
        for (&algorithm, value) in &self.pcr {
            let mut pcr = vec![start; value.len()];
            for event in &events {
                let noted = event.digests.get(&algorithm).context("a bank without a digest")?;
                let Some(found) = digest(algorithm, &[&event.data]) else { continue };
                ensure!(found == *noted, "a digest in bank {algorithm} is not that of its event");
                pcr = digest(algorithm, &[&pcr, noted]).unwrap_or_default();
            }
            if digest(algorithm, &[]).is_some() {
                ensure!(pcr == *value, "bank {algorithm} holds what the log does not explain");
                replayed += 1;
            }
        }
        ensure!(replayed > 1, "{replayed} banks were replayed");
        Ok(events.into_iter().map(|event| event.data).collect())
    }
}

/// Checks the log by replaying it from bytes `start`, and by the usual tool, and that it says what is `expected`.
pub(super) fn measured(shown: &Shown, start: u8, expected: &[&str], rig: &Rig<'_>) -> Result<()> {
    let events = shown.explained(start)?;
    let file = rig.dir.join("visor.log");
    fs::write(&file, &shown.log).context("cannot write the log")?;
    let parsed = tool::output(Command::new("tpm2_eventlog").arg(&file))?;
    let known = parsed.matches("PCRIndex: 19").count();
    ensure!(known == events.len(), "tpm2_eventlog finds {known} of {} events", events.len());
    for (event, expected) in events.iter().zip(expected) {
        let text = event.get(8..).unwrap_or_default();
        ensure!(text == expected.as_bytes(), "measured: {}", String::from_utf8_lossy(text));
    }
    // The third one is the visor's key.
    let lengths: Vec<usize> = events.iter().skip(expected.len()).map(Vec::len).collect();
    ensure!(lengths == [8 + 64], "besides, events of {lengths:?} bytes were measured");
    Ok(())
}

/// The configuration that is measured, with the command line `line`.
pub(super) fn configuration(launch: &str, line: &str, dev_tickets: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "format=1\nvisor={version}\nlaunch={launch}\nvmx=no\ncommand-line={line}\ndev-tickets={dev_tickets}\nunprotected-vms=run\n"
    )
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    let fifo = Case {
        interface: Interface::Fifo,
        loader: Loader::Grub2,
        machine: "",
        visor: "insecure-no-iommu dev-tickets",
        actions: "tpm",
        lines: MEASURED,
    };
    let uefi = Case {
        loader: Loader::GrubEfi,
        machine: "-vga std -device intel-iommu,intremap=on",
        visor: "log=info",
        ..fifo
    };
    let crb = Case { interface: Interface::Crb, visor: "", lines: NO_LOCALITY, ..fifo };
    let open = Case { visor: "", actions: "tpm-locality,tpm", lines: OPEN, ..fifo };
    let mut tests = vec![
        Test::new("attest/fifo", 10, move |rig| {
            let configuration = configuration("plain", "insecure-no-iommu dev-tickets", "yes");
            measured(&fifo.run(rig)?, 0xff, &[&configuration, "iommu=insecure\nunits=0\n"], rig)
        }),
        Test::new("attest/uefi", 20, move |rig| {
            let configuration = configuration("plain", "log=info", "no");
            measured(&uefi.run(rig)?, 0xff, &[&configuration, "iommu=late\nunits=1\n"], rig)
        }),
        Test::new("attest/crb", 10, move |rig| {
            let shown = crb.run(rig)?;
            ensure!(shown.log.is_empty(), "there is a log");
            let is_fresh = |value: &Vec<u8>| value.iter().all(|byte| *byte == 0xff);
            ensure!(shown.pcr.values().all(is_fresh), "PCR 19 was extended");
            Ok(())
        }),
        Test::new("attest/open-locality", 10, move |rig| match open.run(rig)?.explained(0xff) {
            Err(why) if why.to_string().contains("does not explain") => Ok(()),
            Err(why) => Err(why),
            Ok(_) => bail!("the register is as the visor has left it"),
        }),
    ];
    tests.extend(live::tests());
    tests.extend(chain::tests());
    tests
}

/// A TPM with all localities is used; the host cannot extend what the visor has.
const MEASURED: &[&str] = &[
    "visor: [info] TPM: FIFO, * banks; PCR 19 is all ones, as without a measured launch",
    "visor: [info] TPM: PCR 19 holds *",
    "*init: the TPM answers 28 bytes, code 0x0",
    "*init: extends PCR 19 at locality 0: code 0x907",
    "*init: log of * bytes",
];
/// The host uses a TPM that has locality 0 only, and the visor none.
const NO_LOCALITY: &[&str] = &[
    "visor: [warn] no TPM holds what the visor is: it did not finish granting the locality in time",
    "*init: the TPM answers 28 bytes, code 0x0",
    "*init: extends PCR 19 at locality 0: code 0x907",
    "*init: log of 0 bytes",
];
/// Where nothing keeps the host from locality 2, it makes of the register what it likes.
const OPEN: &[&str] = &[
    "visor: [info] TPM: PCR 19 holds *",
    "*init: extends PCR 19 at locality 2: code 0x0",
    "*init: log of * bytes",
];
