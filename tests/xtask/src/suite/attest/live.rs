//! `attest/tenant…`: the tenant's program against machines that are booted. The host collects evidence by its own
//! driver and stock tpm2-tools, and forges what it can.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::{Rig, Test};
use super::host::{Boot, Host, Start, talk};
use super::tenant::{Against, Operator, Tenant, rules};
use super::{bytes, configuration};
use crate::machine::txt::{Memory, Senter};
use crate::machine::{Authority, Loader};
use crate::{paths, tool};

/// The visor's command line.
const WORDS: &str = "log=info";

/// What no machine without VMX shows: it has no port at which the visor could sign. Nor does anything measure the
/// image here.
const WAIVED: &[&str] = &["visor-build", "vmx", "visor-alive"];
const WAIVERS: &str = "[insecure]\nwithout-vmx = true\nany-build = true\nno-signature = true\n";

/// A policy that accepts a visor that was launched like `launch`, with `words`, and of the boot before it what `rules`
/// say.
fn policy(launch: &str, words: &str, rules: &str, waivers: &str) -> String {
    let build = "00".repeat(32);
    format!(
        "format = 1\n[hardware]\nbindings = [\"certificate\"]\nrevocation-lists = \"if-given\"\n[visor]\nbuilds = [\"{build}\"]\n\
         command-lines = [\"{words}\"]\nlaunches = [\"{launch}\"]\niommu = [\"late\"]\n\
         unprotected-vms = [\"run\"]\n{rules}{waivers}"
    )
}

/// Evidence and a challenge, which answer each other if they have one name, of the machine that is enrolled, by the
/// policy that waives.
const fn of(evidence: &'static str, challenge: &'static str) -> Against {
    Against { evidence, challenge, machine: "machine.json", policy: "waiving.toml" }
}

/// A tenant in the test's folder, an authority, and a TPM that it has certified, for machines without a past.
fn parties(rig: &Rig<'_>) -> Result<(Tenant, Authority)> {
    paths::emptied(&rig.dir)?;
    let authority = Authority::new(&rig.dir.join("authority"))?;
    authority.certify(&rig.dir.join("tpm"))?;
    Ok((Tenant::new(&rig.dir.join("tenant"))?, authority))
}

/// A script by which the host extends `pcr`, in the bank of SHA-256, by sevens.
fn extend(pcr: u8) -> String {
    format!("tpm2_pcrextend {pcr}:sha256={}", "07".repeat(32))
}

/// A script by which root extends `pcr` as [`extend`] does, by the registers of locality 2 (TCG PC Client Platform
/// TPM Profile 1.06, 6.5): that it requests, gets, makes ready, fills, starts, waits for, and gives back.
fn extend_by_registers(pcr: u8) -> String {
    let command = format!(
        "800200000041000001820000{pcr:04x}0000000940000009000000000000000001000b{}",
        "07".repeat(32)
    );
    let bytes: Vec<_> = command.as_bytes().chunks(2).map(String::from_utf8_lossy).collect();
    format!(
        "at() {{ printf 0x%x $((0xfed42000 + $1)); }}\n\
         wait_for() {{ until [ $(($(devmem $(at $1) 8) & $2)) = $(($2)) ]; do :; done; }}\n\
         devmem $(at 0) 8 0x02; wait_for 0 0x20\n\
         devmem $(at 0x18) 8 0x40; wait_for 0x18 0x40\n\
         for byte in {}; do devmem $(at 0x24) 8 0x$byte; done\n\
         devmem $(at 0x18) 8 0x20; wait_for 0x18 0x90\n\
         for index in 0 1 2 3 4 5 6 7 8 9; do devmem $(at 0x24) 8; done | tr -d '\\n'\n\
         devmem $(at 0x18) 8 0x40; devmem $(at 0) 8 0x20\n",
        bytes.join(" ")
    )
}

/// The same tools on the build machine read what the host has collected: the quote of the evidence `good`, and both
/// logs.
fn others_agree(tenant: &Tenant, host: &Host<'_>) -> Result<()> {
    let _ = host.does("tpm2_readpublic -c 0x81005653 -f pem -o ak.pem")?;
    let evidence = tenant.json("good")?;
    let text = |at| evidence.pointer(at).and_then(Value::as_str).context("no such evidence");
    for (name, at) in [("quote", "/quote/attest"), ("signature", "/quote/signature")] {
        fs::write(host.file(name), bytes(text(at)?)?).context("cannot write a quote")?;
    }
    let challenge = tenant.json("good.challenge")?;
    let check = |nonce: &str| {
        let mut check = Command::new("tpm2_checkquote");
        let _ = check.arg("-u").arg(host.file("ak.pem")).arg("-m").arg(host.file("quote"));
        tool::output(check.arg("-s").arg(host.file("signature")).args(["-q", nonce]))
    };
    let nonce = challenge.pointer("/nonce").and_then(Value::as_str).context("no nonce")?;
    let _ = check(nonce).context("the quote is not what it should be")?;
    ensure!(check(&"00".repeat(32)).is_err(), "tpm2_checkquote takes any nonce");
    let log = tool::output(Command::new("tpm2_eventlog").arg(host.file("visor.log")))?;
    ensure!(log.matches("PCRIndex: 19").count() == 3, "tpm2_eventlog reads: {log}");
    let measured = bytes(text("/visor/log")?)?;
    let expected = configuration("plain", WORDS, "no");
    let is_there = measured.windows(expected.len()).any(|part| part == expected.as_bytes());
    ensure!(is_there, "the evidence is not of this visor");
    Ok(())
}

/// What hosts can do to their TPM's registers while they run, and what the tenant says then.
fn registers(tenant: &Tenant, host: &Host<'_>) -> Result<()> {
    for pcr in 17..23 {
        let (_, said) = host.tries(&extend(pcr))?;
        ensure!(said.contains("0x907"), "the host extends PCR {pcr}: {said}");
    }
    for pcr in [16, 23] {
        let _ = host.does(&extend(pcr))?;
    }
    tenant.ask(host, "busy")?;
    tenant.accepts(of("busy", "busy.challenge"), WAIVED)?;
    let _ = host.does(&extend(9))?;
    tenant.ask(host, "pretending")?;
    tenant.refuses(of("pretending", "pretending.challenge"), &["pcr-explained 9"], WAIVED)?;
    // Without VMX nothing keeps the host from these.
    let said = host.does(&extend_by_registers(19))?;
    ensure!(said.ends_with("0x000x000x000x00"), "the TPM answers {said}");
    tenant.ask(host, "open")?;
    let broken = ["pcr-explained 9", "pcr-explained 19"];
    tenant.refuses(of("open", "open.challenge"), &broken, WAIVED)
}

/// SeaBIOS: the firmware's log explains the boot.
fn bios(rig: &Rig<'_>) -> Result<()> {
    let (tenant, authority) = parties(rig)?;
    let tpm = rig.dir.join("tpm");
    let boot = Boot { start: Start::By(Loader::Grub2), tpm: &tpm, visor: WORDS };
    talk(&rig.part("first"), &boot, |host| {
        tenant.enroll(host, &authority, "machine.json")?;
        let log = "/sys/kernel/security/tpm0/binary_bios_measurements";
        let _ = host.does(&format!("cp {log} firmware.log"))?;
        let log = tool::output(Command::new("tpm2_eventlog").arg(host.file("firmware.log")))?;
        tenant.write("waiving.toml", policy("plain", WORDS, &rules(&log), WAIVERS))?;
        tenant.write("strict.toml", policy("plain", WORDS, &rules(&log), ""))?;
        tenant.ask(host, "good")?;
        let good = of("good", "good.challenge");
        tenant.refuses(Against { policy: "strict.toml", ..good }, WAIVED, &[])?;
        tenant.accepts(good, WAIVED)?;
        others_agree(&tenant, host)?;
        registers(&tenant, host)
    })?;
    let boot = Boot { visor: "log=debug", ..boot };
    talk(&rig.part("changed"), &boot, |host| {
        tenant.ask(host, "changed")?;
        tenant.refuses(of("changed", "changed.challenge"), &["command-line"], WAIVED)?;
        // What this host has kept of the boot that was accepted.
        tenant.refuses(of("good", "changed.challenge"), &["quote-nonce"], WAIVED)?;
        tenant.splice("changed", "good", "/visor/key", "old-key")?;
        let broken = ["command-line", "visor-key"];
        tenant.refuses(of("old-key", "changed.challenge"), &broken, WAIVED)?;
        tenant.splice("changed", "good", "/visor", "old-visor")?;
        tenant.refuses(of("old-visor", "changed.challenge"), &["pcr-explained 19"], WAIVED)
    })
}

/// What no host of UEFI's shows without the firmware's log, beside [`WAIVED`].
const UNEXPLAINED: &[&str] = &[
    "boot-log",
    "pcr-explained 0",
    "pcr-explained 1",
    "pcr-explained 2",
    "pcr-explained 3",
    "pcr-explained 4",
    "pcr-explained 5",
    "pcr-explained 6",
    "pcr-explained 7",
];

/// OVMF: the host has no log of the firmware's, as Linux asks for that in its EFI stub, which the visor goes round. So
/// the policy has values, and does without explanations. Then another machine that boots the same.
fn uefi(rig: &Rig<'_>) -> Result<()> {
    let (tenant, authority) = parties(rig)?;
    let (tpm, second) = (rig.dir.join("tpm"), rig.dir.join("second-tpm"));
    let waived = [UNEXPLAINED, WAIVED].concat();
    let boot = Boot { start: Start::By(Loader::GrubEfi), tpm: &tpm, visor: WORDS };
    talk(&rig.part("first"), &boot, |host| {
        tenant.enroll(host, &authority, "machine.json")?;
        let values = values(&host.does("tpm2_pcrread sha256:0,2,4,7,8,9")?);
        let unexplained = format!("{WAIVERS}unexplained = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n");
        tenant.write("waiving.toml", policy("plain", WORDS, &values, &unexplained))?;
        tenant.write("strict.toml", policy("plain", WORDS, &values, WAIVERS))?;
        tenant.ask(host, "good")?;
        let good = of("good", "good.challenge");
        tenant.refuses(Against { policy: "strict.toml", ..good }, UNEXPLAINED, WAIVED)?;
        tenant.accepts(good, &waived)?;
        let _ = host.does(&extend(4))?;
        tenant.ask(host, "pretending")?;
        tenant.refuses(of("pretending", "pretending.challenge"), &["pcr-accepted 4"], &waived)
    })?;
    authority.certify(&second)?;
    let boot = Boot { tpm: &second, ..boot };
    talk(&rig.part("second"), &boot, |host| {
        // It cannot become the first one.
        tenant.give(host, "machine.json.activation")?;
        let wrong = "visorctl attest identity own && visorctl attest activate machine.json.activation secret";
        let (_, said) = host.tries(wrong)?;
        ensure!(said.contains("tpm2_activatecredential"), "the other TPM says: {said}");
        tenant.ask(host, "other")?;
        // What is not signed says nothing of PCRs.
        let unsigned = [&["boot-log"], WAIVED].concat();
        let broken = ["ak-enrolled", "quote-signature"];
        tenant.refuses(of("other", "other.challenge"), &broken, &unsigned)?;
        tenant.splice("other", "good", "/ak", "alias")?;
        tenant.refuses(of("alias", "other.challenge"), &["quote-signature"], &unsigned)?;
        tenant.enroll(host, &authority, "second.json")?;
        let second = Against { machine: "second.json", ..of("other", "other.challenge") };
        tenant.accepts(second, &waived)
    })
}

/// The rules that accept these values, as `tpm2_pcrread` prints them, for PCRs 0 to 9; for those that hold no code,
/// any.
fn values(read: &str) -> String {
    let any = [1, 3, 5, 6].map(|pcr| format!("[[pcr]]\nindex = {pcr}\nexplained = true\n"));
    pinned(read) + &any.concat()
}

/// The rules that accept these values alone.
fn pinned(read: &str) -> String {
    let values = read.lines().filter_map(|line| line.trim().split_once(": 0x"));
    let rules = values.map(|(pcr, value)| {
        format!("[[pcr]]\nindex = {}\nvalues = [\"{}\"]\n", pcr.trim(), value.to_lowercase())
    });
    rules.collect()
}

/// What no host shows after a launch that is emulated, beside [`WAIVED`]: what SINIT would have logged.
const UNLOGGED: &[&str] = &["pcr-explained 17", "pcr-explained 18"];

/// After a measured launch, which takes the place of all that firmware and boot loader have measured. Then the same
/// machine when nothing has launched the visor, though its chipset tells of a launch.
fn launched(rig: &Rig<'_>) -> Result<()> {
    let (tenant, authority) = parties(rig)?;
    let (tpm, words) = (rig.dir.join("tpm"), format!("{WORDS} {}", Memory::word()));
    let waived = [UNLOGGED, WAIVED].concat();
    let boot = Boot { start: Start::After(Senter::AndMeasure), tpm: &tpm, visor: &words };
    talk(&rig.part("launched"), &boot, |host| {
        tenant.enroll(host, &authority, "machine.json")?;
        let values = pinned(&host.does("tpm2_pcrread sha256:17,18")?);
        let unexplained = format!("{WAIVERS}unexplained = [17, 18]\n");
        tenant.write("waiving.toml", policy("txt", WORDS, &values, &unexplained))?;
        tenant.write("strict.toml", policy("txt", WORDS, &values, WAIVERS))?;
        for pcr in 17..23 {
            let (_, said) = host.tries(&extend(pcr))?;
            ensure!(said.contains("0x907"), "the host extends PCR {pcr}: {said}");
        }
        tenant.ask(host, "good")?;
        let good = of("good", "good.challenge");
        tenant.accepts(good, &waived)?;
        tenant.refuses(Against { policy: "strict.toml", ..good }, UNLOGGED, WAIVED)?;
        // Another visor, as tboot would have measured it; by root, from which only VMX keeps these registers.
        let _ = host.does(&extend_by_registers(18))?;
        tenant.ask(host, "other")?;
        tenant.refuses(of("other", "other.challenge"), &["pcr-accepted 18"], &waived)
    })?;
    let boot = Boot { start: Start::After(Senter::Forge), ..boot };
    talk(&rig.part("forged"), &boot, |host| {
        tenant.ask(host, "forged")?;
        tenant.refuses(of("forged", "forged.challenge"), &["launch-accepted"], &waived)?;
        tenant.splice("forged", "good", "/visor", "pretending")?;
        let broken = ["pcr-accepted 17", "pcr-accepted 18", "pcr-explained 19"];
        tenant.refuses(of("pretending", "forged.challenge"), &broken, &waived)
    })
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("attest/tenant", 30, bios),
        Test::new("attest/tenant-uefi", 35, uefi),
        Test::new("attest/tenant-launched", 30, launched),
    ]
}
