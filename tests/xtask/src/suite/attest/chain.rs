//! `protected/tenant`: from a machine that nobody knows to a VM with a receipt, by the tenant's own program.
//!
//! Bochs has VMX and no TPM. So the visor is the build whose TPM is at the end of COM2, and so is the host's;
//! everything else is as it would be: tpm2-tools and `visorctl` in the host, `tenant` outside. The firmware and the boot
//! loader, which would have measured the visor's image, are played: one event of PCR 9, and the log of it. The TPM is
//! asked outside who it is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::super::kit::{Host, LINUX, Stack};
use super::super::{Boot, Rig, Test};
use super::tenant::{Against, Operator, Tenant};
use crate::image::vmms;
use crate::machine::{Authority, End, Image, Line, Peer, Shared};
use crate::packages::Built;
use crate::{build, paths, tool};

/// The visor's command line; ISOLINUX puts the name of the image's file before it.
const WORDS: &str = "insecure-no-iommu insecure-processor";
const FILE: &str = "/image0";
/// The VM's.
const VM_WORDS: &str = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check \
                        random.trust_cpu=on nokaslr init.do=";
/// What this machine cannot claim, and what a policy says to accept it all the same.
const WAIVED: &[&str] = &["tpm"];
const WAIVER: &str = "\n[insecure]\nserial-tpm = true\n";
/// PCRs that the firmware and the boot loader would have extended, but for the one with the visor's image.
const EMPTY: std::ops::RangeInclusive<u8> = 0..=8;
const LOADED: u8 = 9;

/// Two boots of the machine: what the host gives, and what was asked.
const FIRST: Against = of("first", "first.challenge");
const SECOND: Against = of("second", "second.challenge");

/// The challenge that a receipt answers.
const LATER: &str = "later.challenge";

/// Evidence and a challenge, which answer each other if they are of one boot.
const fn of(evidence: &'static str, challenge: &'static str) -> Against {
    Against { evidence, challenge, machine: "machine.json", policy: "waiving.toml" }
}

/// The tickets: the VM's, and one for a VM that nobody starts.
const TICKET: &str = "vm/ticket";
const NOBODYS: &str = "nobodys";
/// The other tenant's, for the VM.
const OTHERS: &str = "others";

/// Who asks the TPM, outside of the machine, who it is.
struct Outside<'a> {
    tpm: &'a Shared,
    dir: PathBuf,
    visorctl: PathBuf,
}

impl Operator for Outside<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn does(&self, words: &str) -> Result<String> {
        let words = words.strip_prefix("visorctl ").context("a word for another program")?;
        let mut command = self.tpm.tool(&self.visorctl);
        tool::output(command.args(words.split(' ')).current_dir(&self.dir))
    }
}

/// Two tenants; the first has the VM.
#[derive(Clone)]
struct Tenants {
    own: Tenant,
    other: Tenant,
}

impl Tenants {
    /// Both, with their files in folders of `dir`.
    fn new(dir: &Path) -> Result<Self> {
        let own = Tenant::new(&dir.join("tenant"))?;
        fs::rename(own.file("ticket"), own.file(NOBODYS)).context("no ticket")?;
        Ok(Self { own, other: Tenant::new(&dir.join("other-tenant"))? })
    }

    /// Accepts the evidence of a boot, and seals `ticket` to that visor: `NAME.sealed` and `NAME.record`, among the
    /// first one's files.
    fn seal(&self, by: &Tenant, boot: Against, (ticket, name): (&str, &str)) -> Result<()> {
        let _ = fs::copy(self.own.file(ticket), by.file("ticket")).context("no ticket")?;
        by.accepts(boot, WAIVED)?;
        for part in ["sealed", "record"] {
            let to = self.own.file(&format!("{name}.{part}"));
            fs::rename(by.file(part), to).context("nothing was sealed")?;
        }
        Ok(())
    }

    /// The other one knows the machine, too, and seals a ticket for the VM.
    fn seal_others(&self) -> Result<()> {
        let Against { evidence, challenge, machine, policy } = SECOND;
        for name in [evidence, challenge, machine, policy] {
            let _ = fs::copy(self.own.file(name), self.other.file(name)).context("no such file")?;
        }
        self.seal(&self.other, SECOND, (TICKET, OTHERS))
    }
}

/// A tenant at the other end of the line, for one boot of the machine.
struct Asked {
    tenants: Tenants,
    boot: Against,
}

impl Peer for Asked {
    fn get(&mut self, name: &str) -> Result<Vec<u8>> {
        let own = &self.tenants.own;
        let sealed = |of: &str| own.read(&format!("{of}.sealed"));
        match name {
            "challenge" => challenge(own, self.boot.challenge),
            "nonce" => {
                let _ = challenge(own, LATER)?;
                let later = own.json(LATER)?;
                let nonce = later.get("nonce").and_then(|nonce| nonce.as_str());
                Ok(nonce.context("a challenge without a nonce")?.into())
            }
            "firmware.log" => own.read(name),
            "sealed" => sealed(self.boot.evidence),
            "old" => sealed(FIRST.evidence),
            OTHERS => self.tenants.seal_others().and_then(|()| sealed(name)),
            "changed" => {
                let mut changed = sealed(self.boot.evidence)?;
                *changed.last_mut().context("an empty ticket")? ^= 1;
                Ok(changed)
            }
            _ => bail!("nothing is called {name}"),
        }
    }

    fn put(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let own = &self.tenants.own;
        match name {
            "evidence" => {
                own.write(self.boot.evidence, bytes)?;
                // Everything that it claims holds, but what kind of TPM it is.
                own.refuses(Against { policy: "strict.toml", ..self.boot }, WAIVED, &[])?;
                self.tenants.seal(own, self.boot, (TICKET, self.boot.evidence))
            }
            "receipt" => own.write(name, bytes),
            _ => bail!("nobody wants {name}"),
        }
    }
}

/// Makes a challenge, the file `name`.
fn challenge(tenant: &Tenant, name: &str) -> Result<Vec<u8>> {
    // By the build machine's clock, on which an emulator may have to wait for its turn.
    tenant.does(&["challenge", "--policy", "waiving.toml", "--minutes", "600", "--out", name])?;
    tenant.read(name)
}

/// The machine, and what it is booted from.
struct Rack {
    tenants: Tenants,
    tpm: Shared,
    visor: PathBuf,
    host: PathBuf,
}

impl Rack {
    /// The tenant makes the VM, and gets to know the machine.
    fn make(rig: &Rig<'_>) -> Result<Self> {
        let tenants = Tenants::new(&rig.dir)?;
        let visorctl = build::visorctl()?;
        let host = make_vm(rig, &tenants.own, &visorctl)?;
        let tpm = enrolled(rig, &tenants.own, visorctl)?;
        let visor = rig.kit.serial_tpm()?;
        let build = build::digest(&visor)?;
        tenants.own.write("firmware.log", firmware_log(&build)?)?;
        tenants.own.write("strict.toml", policy(&build))?;
        tenants.own.write("waiving.toml", policy(&build) + WAIVER)?;
        Ok(Self { tenants, tpm, visor, host })
    }

    /// Boots the machine; its host does `actions`, and says `lines` meanwhile.
    fn boot(
        &mut self,
        rig: &Rig<'_>,
        boot: Against,
        (actions, lines): (&str, &[&str]),
    ) -> Result<()> {
        self.tpm.restart()?;
        let mut measure = self.tpm.tool("tpm2_pcrextend");
        tool::run(measure.arg(format!("{LOADED}:sha256={}", build::digest(&self.visor)?)))?;
        let line = Line::with(&self.tpm.socket())?;
        let port = line.port()?;
        // A machine that waits for its tenant or its TPM must not skip the time until its deadline.
        let words = format!("{LINUX} idle=poll init.vm=vm init.do={actions}");
        let files = vec![
            Image::new(&self.visor, WORDS),
            Image::new(rig.kit.small()?, words),
            Image::new(&self.host, ""),
        ];
        let booted = Boot::of(Stack::bare(Host::Files(files)))
            .on(|machine| (machine.seconds, machine.com2) = (900, Some(port)))
            .expect(lines)
            .never("*init: FAIL *")
            .ends(End::PowerOff);
        let served = line.serve(Asked { tenants: self.tenants.clone(), boot })?;
        let ran = rig.check(boot.evidence, &booted);
        match (ran, served.finish()) {
            // What was not served may be why the machine failed, or the other way round.
            (Err(ran), Err(line)) => bail!("{ran:#}; {line:#}"),
            (ran, line) => ran.and(line.map(drop)),
        }
    }
}

/// The machine's TPM, which the tenant knows then by its certificate.
fn enrolled(rig: &Rig<'_>, tenant: &Tenant, visorctl: PathBuf) -> Result<Shared> {
    let (dir, state) = (rig.dir.join("outside"), rig.dir.join("tpm"));
    for dir in [&dir, &state] {
        paths::emptied(dir)?;
    }
    let authority = Authority::new(&rig.dir.join("authority"))?;
    authority.certify(&state)?;
    let mut tpm = Shared::of(&state);
    tpm.restart()?;
    tenant.enroll(&Outside { tpm: &tpm, dir, visorctl }, &authority, "machine.json")?;
    Ok(tpm)
}

/// Makes the VM, and the initial RAM file system of the host that runs it.
fn make_vm(rig: &Rig<'_>, tenant: &Tenant, visorctl: &Path) -> Result<PathBuf> {
    let (kernel, initrd, vm) = (rig.kit.small()?, rig.kit.guests()?.initrd, tenant.file("vm"));
    let words = ["--cmdline", VM_WORDS, "--memory", "64M"];
    build::linux_vm(visorctl, [&kernel, &initrd], &words, &vm)?;
    vmms::asked(visorctl, &vm, &Built::Small.kvm()?, &rig.dir.join("host.cpio"))
}

/// What accepts the visor's image with the digest `build`, on a machine whose firmware measures nothing else.
fn policy(build: &str) -> String {
    let zeros = "0".repeat(64);
    let empty = EMPTY.map(|pcr| format!("\n[[pcr]]\nindex = {pcr}\nvalues = [\"{zeros}\"]\n"));
    format!(
        "format = 1\n\n[hardware]\nbindings = [\"certificate\"]\nrevocation-lists = \"if-given\"\n\n\
         [visor]\nbuilds = [\"{build}\"]\ncommand-lines = [\"{FILE} {WORDS}\"]\nlaunches = [\"plain\"]\n\
         iommu = [\"insecure\"]\nunprotected-vms = [\"run\"]\n\n\
         [[pcr]]\nindex = {LOADED}\nevents = [\"{build}\"]\n{}",
        empty.collect::<String>()
    )
}

/// A log in the TCG's crypto-agile format (PC Client Platform Firmware Profile, 10.4) with one event, of the type
/// EV_IPL, that has the digest `build`.
fn firmware_log(build: &str) -> Result<Vec<u8>> {
    const SHA256: u16 = 0xb;
    const NO_ACTION: u32 = 3;
    const IPL: u32 = 0xd;
    let digest = super::bytes(build)?;
    // Version 2.0 for machines with 64 bits, and one algorithm.
    let banks = [&1_u32.to_le_bytes()[..], &SHA256.to_le_bytes(), &32_u16.to_le_bytes(), &[0]];
    let header = [b"Spec ID Event03\0", &[0, 0, 0, 0, 0, 2, 0, 2][..], &banks.concat()].concat();
    let sized = |data: &[u8]| -> Result<Vec<u8>> {
        Ok([&u32::try_from(data.len())?.to_le_bytes()[..], data].concat())
    };
    let first = [&[0; 4][..], &NO_ACTION.to_le_bytes(), &[0; 20], &sized(&header)?].concat();
    let numbers = [u32::from(LOADED), IPL, 1].map(u32::to_le_bytes).concat();
    let event = [&numbers[..], &SHA256.to_le_bytes(), &digest, &sized(b"visor.elf")?].concat();
    Ok([first, event].concat())
}

/// What the host says in the boot that ends with a VM.
const LAUNCHED: &[&str] = &[
    "visor: [warn] TEST BUILD WITH A TPM ON COM2: *",
    "visor: [info] TPM: CRB, * banks; PCR 19 is all ones, as without a measured launch",
    "visor: [info] TPM: PCR 19 holds *",
    "*init: PASS quote,*",
    "visor: [warn] a ticket is refused: sealed for another visor, or for this one before it was booted",
    "visor: [warn] a ticket is refused: what is sealed cannot be opened: changed on the way",
    "*init: PASS forged,*",
    "*init: PASS sealed,*",
    "visor: [warn] a ticket is refused: it was taken before, or a later one of its tenant's was",
    "visorctl: the visor refused the ticket: a VM with this id exists already*",
    "*init: PASS again,*",
    "*guest: *init: userspace reached*",
    "*guest: *init: done",
    "*init: PASS boot,*",
    "*init: PASS receipt,*",
    "*init: done",
];

fn chain(rig: &Rig<'_>) -> Result<()> {
    paths::emptied(&rig.dir)?;
    let mut rack = Rack::make(rig)?;
    rack.boot(
        rig,
        FIRST,
        ("quote,sealed", &["*init: PASS quote,*", "*init: PASS sealed,*", "*init: done"]),
    )?;
    let launch = "modules,quote,forged,sealed,again,boot,receipt";
    rack.boot(rig, SECOND, (launch, LAUNCHED))?;
    let tenants = &rack.tenants;
    // What was evidence of the boot before is none for this challenge, nor is this boot's for that one.
    for (of, asked) in [(FIRST, SECOND), (SECOND, FIRST)] {
        let against = Against { challenge: asked.challenge, ..of };
        tenants.own.refuses(against, &["quote-nonce", "visor-alive"], WAIVED)?;
    }
    tenants.seal(&tenants.own, SECOND, (NOBODYS, NOBODYS))?;
    receipts(&tenants.own)
}

/// What the program says of a receipt, for the record and the challenge of these names.
fn receipt(tenant: &Tenant, of: [&str; 3]) -> Result<(i32, Value)> {
    let [receipt, record, challenge] = of;
    let record = format!("{record}.record");
    tenant.run(&["receipt", receipt, "--record", &record, "--challenge", challenge])
}

/// The VM's receipt, with the record of its ticket and the challenge that it answers.
const RECEIPT: [&str; 3] = ["receipt", SECOND.evidence, LATER];
/// What it is held against in vain, and why.
const WRONG: [([&str; 3], &str); 6] = [
    (["body", RECEIPT[1], RECEIPT[2]], "has not signed it"),
    (["signature", RECEIPT[1], RECEIPT[2]], "has not signed it"),
    ([RECEIPT[0], NOBODYS, RECEIPT[2]], "another sealed ticket"),
    ([RECEIPT[0], OTHERS, RECEIPT[2]], "another sealed ticket"),
    ([RECEIPT[0], FIRST.evidence, RECEIPT[2]], "has not signed it"),
    ([RECEIPT[0], RECEIPT[1], SECOND.challenge], "another challenge"),
];

/// The receipt is good for what it is about, and nothing else.
fn receipts(tenant: &Tenant) -> Result<()> {
    let (exit, told) = receipt(tenant, RECEIPT)?;
    ensure!(exit == 0 && told.pointer("/answer/launch") == Some(&1.into()), "{exit}: {told}");
    forge(tenant, RECEIPT[0])?;
    for (wrong, why) in WRONG {
        let (exit, told) = receipt(tenant, wrong)?;
        let is_right = exit == 1 && told.to_string().contains(why);
        ensure!(is_right, "{wrong:?}: {exit}: {told}, not {why}");
    }
    Ok(())
}

/// Writes copies of a receipt, named by a part of it, in which the last digit of that is another one.
fn forge(tenant: &Tenant, receipt: &str) -> Result<()> {
    for part in ["body", "signature"] {
        let mut forged = tenant.json(receipt)?;
        let place = forged.get_mut(part).context("a receipt without a part")?;
        let mut digits = place.as_str().unwrap_or_default().to_owned();
        let last = if digits.pop() == Some('0') { '1' } else { '0' };
        digits.push(last);
        *place = digits.into();
        tenant.write(part, forged.to_string())?;
    }
    Ok(())
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![Test::new("protected/tenant", 65, chain)]
}
