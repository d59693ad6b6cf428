//! Records evidence from a software TPM, by stock tpm2-tools.
//!
//! `cargo build -p visorctl && cargo test -p tenant --test all record -- --ignored` writes
//! `tests/fixtures` anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use evidence::{Bytes, Challenge, Evidence, Readers, Statement};
use sha2::{Digest, Sha256};

use super::boot::{Event, Visor, firmware, launch, log};
use super::swtpm::{Swtpm, run, visorctl};

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn tenant() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tenant"))
}

/// A policy that accepts this boot.
pub(crate) fn policy(launch_kind: &str, events: &[Event]) -> String {
    let digest = |bytes: &[u8]| Bytes(Sha256::digest(bytes).to_vec()).to_string();
    let mut text = format!(
        "format = 1\n\n[hardware]\nbindings = [\"certificate\"]\n\
         revocation-lists = \"if-given\"\n\n[visor]\nbuilds = [\"{}\"]\n\
         command-lines = [\"{}\"]\nlaunches = [\"{launch_kind}\"]\niommu = [\"on\"]\nunprotected-vms = [\"run\"]\n",
        digest(super::boot::VISOR),
        super::boot::COMMAND_LINE
    );
    for pcr in 0..24 {
        let mut digests: Vec<_> = events
            .iter()
            .filter(|event| event.pcr == pcr && pcr != 19)
            .map(|event| format!("    \"{}\",\n", digest(&event.measured)))
            .collect();
        digests.dedup();
        // PCR 3 and 6 are the separator's alone; the settings are not held down to the last byte.
        if [1, 3, 5, 6].contains(&pcr) {
            text += &format!("\n[[pcr]]\nindex = {pcr}\nexplained = true\n");
        } else if [17, 18].contains(&pcr) && !digests.is_empty() {
            let event = events.iter().find(|event| event.pcr == pcr).unwrap();
            let value = digest(&[&[0; 32][..], &Sha256::digest(&event.measured)].concat());
            text += &format!("\n[[pcr]]\nindex = {pcr}\nvalues = [\"{value}\"]\n");
        } else if !digests.is_empty() {
            text += &format!("\n[[pcr]]\nindex = {pcr}\nevents = [\n{}]\n", digests.concat());
        }
    }
    text
}

pub(crate) fn extend(tpm: &Swtpm, locality: u8, events: &[Event]) {
    for event in events {
        assert_eq!(tpm.extend(locality, event), 0, "PCR {}", event.pcr);
    }
}

/// Writes a challenge and the evidence for it.
pub(crate) fn quote(tpm: &Swtpm, out: &Path, logs: (&[Event], &[Event]), visor: &Visor) {
    let file = |name: &str| out.join(name);
    for name in ["challenge.json", "evidence.json"] {
        let _ = fs::remove_file(file(name));
    }
    run(tenant()
        .args(["challenge", "--minutes", "1440", "--policy"])
        .arg(file("policy.toml"))
        .arg("--out")
        .arg(file("challenge.json")));
    collect(tpm, (&file("challenge.json"), &file("evidence.json")), logs, visor);
}

/// Writes the evidence for a challenge.
fn collect(
    tpm: &Swtpm,
    (challenge, out): (&Path, &Path),
    (firmware, measured): (&[Event], &[Event]),
    visor: &Visor,
) {
    let folder = env::temp_dir().join(format!("tenant-record-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let part = folder.join("evidence.json");
    let _ = fs::remove_file(&part);
    fs::write(folder.join("firmware"), log(firmware)).unwrap();
    fs::write(folder.join("visor"), log(measured)).unwrap();
    run(visorctl(tpm)
        .args(["attest", "quote"])
        .args([challenge, &part])
        .arg("--firmware-log")
        .arg(folder.join("firmware"))
        .arg("--visor-log")
        .arg(folder.join("visor")));
    let asked: Challenge = evidence::read(challenge).unwrap();
    let mut evidence: Evidence = evidence::read(&part).unwrap();
    let (body, signature) = visor.alive(&asked.nonce.0);
    evidence.visor.alive = Some(Statement { body: Bytes(body), signature: Bytes(signature) });
    let _ = fs::remove_file(out);
    evidence::write(out, &evidence, Readers::All).unwrap();
    fs::remove_dir_all(&folder).unwrap();
}

/// Gets to know a machine, by a certificate of an endorsement key of this kind.
pub(crate) fn enroll(tpm: &Swtpm, out: &Path, root: &Path, ek: &str) {
    let names = ["identity", "pending", "activation", "activated", "machine"];
    let [identity, pending, activation, activated, machine] =
        names.map(|name| out.join(format!("{name}.json")));
    for file in [&identity, &pending, &activation, &activated, &machine] {
        let _ = fs::remove_file(file);
    }
    run(visorctl(tpm).args(["attest", "identity", "--ek", ek]).arg(&identity));
    run(tenant()
        .args(["enroll", "begin", "--root"])
        .arg(root)
        .arg(&identity)
        .arg("--pending")
        .arg(&pending)
        .arg("--activation")
        .arg(&activation));
    run(visorctl(tpm).args(["attest", "activate", "--ek", ek]).args([&activation, &activated]));
    run(tenant()
        .args(["enroll", "finish"])
        .args([&pending, &activated])
        .arg("--machine")
        .arg(&machine));
}

/// For the challenge in `out`: the TPM's time, and PCRs of the bank SHA-1.
fn record_others(tpm: &Swtpm, out: &Path, (boot, visor): (&[Event], &Visor)) {
    let mut asked: Challenge = evidence::read(&out.join("challenge.json")).unwrap();
    asked.bank = "sha1".into();
    let other = env::temp_dir().join(format!("tenant-challenge-{}", std::process::id()));
    evidence::write(&other, &asked, Readers::All).unwrap();
    collect(tpm, (&other, &out.join("sha1.json")), (boot, &visor.events()), visor);
    fs::remove_file(&other).unwrap();
    let nonce = asked.nonce.to_string();
    let words = ["-c", "0x81005653", "-q", &nonce, "-g", "sha256", "-o", "time.signature"];
    run(Command::new("tpm2_gettime")
        .env("TPM2TOOLS_TCTI", tpm.tools())
        .args(words)
        .args(["--attestation", "time.attest"])
        .current_dir(out));
}

/// A boot whose visor says that it was launched by TXT, and was not; and one that permits what it should
/// not.
fn record_others_boots(tpm: &mut Swtpm, out: &Path, boot: &[Event]) {
    let lax = Visor {
        command_line: "dev-tickets insecure-no-iommu".into(),
        for_tests: "vmx=no\n",
        dev_tickets: "yes",
        iommu: "insecure",
        ..Visor::new("plain")
    };
    for (name, visor) in [("liar", Visor::new("txt")), ("lax", lax)] {
        tpm.reset();
        extend(tpm, 0, boot);
        // No locality but 2 and 3 can do that.
        for locality in [0, 1, 4] {
            assert_ne!(tpm.extend(locality, &visor.events()[0]), 0, "locality {locality}");
        }
        extend(tpm, 2, &visor.events());
        let _ =
            fs::copy(out.join("plain/policy.toml"), out.join(name).join("policy.toml")).unwrap();
        quote(tpm, &out.join(name), (boot, &visor.events()), &visor);
    }
}

#[test]
#[ignore = "writes the fixtures; needs swtpm, tpm2-tools, and visorctl to be built"]
fn record() {
    let folder = env::temp_dir().join(format!("tenant-swtpm-{}", std::process::id()));
    let authority = folder.join("authority");
    let mut one = Swtpm::make(&folder.join("one"), &authority);
    let other = Swtpm::make(&folder.join("other"), &authority);
    let stranger = folder.join("stranger");
    drop(Swtpm::make(&folder.join("third"), &stranger));
    let out = fixtures();
    let root = out.join("root.pem");
    for name in ["plain", "txt", "other", "old", "liar", "lax"] {
        fs::create_dir_all(out.join(name)).unwrap();
    }
    let certificates = ["issuercert.pem", "swtpm-localca-rootca-cert.pem"];
    let certificates = certificates.map(|name| fs::read_to_string(authority.join(name)).unwrap());
    fs::write(&root, certificates.concat()).unwrap();
    let _ = fs::copy(stranger.join("issuercert.pem"), out.join("stranger.pem")).unwrap();

    enroll(&one, &out, &root, "rsa");
    enroll(&other, &out.join("other"), &root, "rsa");

    let (boot, visor) = (firmware(), Visor::new("plain"));
    fs::write(out.join("plain/policy.toml"), policy("plain", &boot)).unwrap();
    let _ = fs::copy(out.join("plain/policy.toml"), out.join("old/policy.toml")).unwrap();
    for tpm in [&one, &other] {
        extend(tpm, 0, &boot);
        extend(tpm, 2, &visor.events());
    }
    quote(&one, &out.join("old"), (&boot, &visor.events()), &visor);
    quote(&one, &out.join("plain"), (&boot, &visor.events()), &visor);
    record_others(&one, &out.join("plain"), (&boot, &visor));
    let challenge = out.join("plain/challenge.json");
    let logs = (boot.as_slice(), &visor.events()[..]);
    collect(&other, (&challenge, &out.join("other/evidence.json")), logs, &visor);

    // Another TPM does not give the secret out.
    let wrong = [out.join("activation.json"), folder.join("activated.json")];
    let refused = visorctl(&other).args(["attest", "activate"]).args(&wrong).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));

    record_others_boots(&mut one, &out, &boot);
    one.reset();
    let visor = Visor::new("txt");
    let measured = launch();
    let events: Vec<_> = measured.iter().chain(&visor.events()).cloned().collect();
    fs::write(out.join("txt/policy.toml"), policy("txt", &measured)).unwrap();
    extend(&one, 0, &boot);
    one.launch(&measured[0].measured);
    extend(&one, 2, &measured[1..]);
    extend(&one, 2, &visor.events());
    quote(&one, &out.join("txt"), (&boot, &events), &visor);
    fs::remove_dir_all(&folder).unwrap();
}

/// A boot of the visor whose TPM is at the end of a serial line, on a machine of its own.
#[test]
#[ignore = "writes a fixture; needs swtpm, tpm2-tools, and visorctl to be built"]
fn record_serial() {
    let folder = env::temp_dir().join(format!("tenant-serial-{}", std::process::id()));
    let authority = folder.join("authority");
    let tpm = Swtpm::make(&folder.join("tpm"), &authority);
    let root = folder.join("root.pem");
    let certificates = ["issuercert.pem", "swtpm-localca-rootca-cert.pem"];
    let certificates = certificates.map(|name| fs::read_to_string(authority.join(name)).unwrap());
    fs::write(&root, certificates.concat()).unwrap();
    enroll(&tpm, &folder, &root, "rsa");
    let out = fixtures().join("serial");
    fs::create_dir_all(&out).unwrap();
    let _ = fs::copy(folder.join("machine.json"), out.join("machine.json")).unwrap();
    let boot = firmware();
    let visor = Visor { for_tests: "tpm=serial\n", ..Visor::new("plain") };
    fs::write(out.join("policy.toml"), policy("plain", &boot)).unwrap();
    extend(&tpm, 0, &boot);
    extend(&tpm, 2, &visor.events());
    quote(&tpm, &out, (&boot, &visor.events()), &visor);
    fs::remove_dir_all(&folder).unwrap();
}
