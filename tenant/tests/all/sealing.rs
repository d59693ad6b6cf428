//! Tickets leave the tenant's hands only for a visor whose evidence holds; receipts are about them.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use attest::envelope::Visor as Recipient;
use attest::policy::Weaknesses;
use attest::statement::{Receipt, Statement};
use attest::submission::Submission;
use clap::Parser;
use evidence::{Bytes, Challenge, Document};
use serde_json::Value;
use tenant::cli::Cli;
use tenant::run::run;
use tenant::seal::Record;
use ticket::build::Ticket;
use ticket::error::Error;
use ticket::parse::Progress;
use ticket::{Class, Origin};

use super::boot::Visor;
use super::enrollment::Folder;
use super::record::fixtures;
use super::schema;

/// Runs `tenant --json` at `now`.
fn tenant(now: u64, words: impl IntoIterator<Item = impl Into<OsString>>) -> Value {
    let words = words.into_iter().map(Into::into);
    let cli =
        Cli::try_parse_from(["tenant", "--json"].map(OsString::from).into_iter().chain(words));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = run(&cli.unwrap(), now, &mut out, &mut err);
    let told: Value = serde_json::from_slice(&out).unwrap();
    schema::check(&told);
    assert_eq!(told["exit"], exit.code());
    told
}

fn ticket() -> Ticket {
    Ticket::new([6; 16], [9; 32]).range(0, 1 << 20, Class::Private)
}

/// Seals a ticket for the visor of recorded evidence.
struct Sealing {
    folder: Folder,
    name: &'static str,
    policy: PathBuf,
    more: Vec<&'static str>,
}

impl Sealing {
    fn new(test: &str, name: &'static str) -> Self {
        let folder = Folder::new(test);
        fs::write(folder.path("ticket"), ticket().bytes().unwrap()).unwrap();
        let policy = fixtures().join(name).join("policy.toml");
        Self { folder, name, policy, more: Vec::new() }
    }

    /// With a policy that waives what the lax visor does.
    fn insecure(test: &str) -> Self {
        let this = Self::new(test, "lax");
        let text = fs::read_to_string(&this.policy).unwrap();
        let text = text.replace("console=com1", "dev-tickets insecure-no-iommu")
            + "\n[insecure]\ndev-tickets = true\nany-iommu = true\nwithout-vmx = true\n";
        let policy = this.folder.path("policy.toml");
        fs::write(&policy, text).unwrap();
        Self { policy, ..this }
    }

    fn seal(&self) -> Value {
        let file = |file: &str| fixtures().join(self.name).join(file);
        let challenge: Challenge = evidence::read(&file("challenge.json")).unwrap();
        let now = challenge.issued + 1;
        let _ = tenant(now, ["key".into(), self.folder.path("key")]);
        let mut words: Vec<OsString> =
            vec!["seal".into(), self.folder.path("ticket").into(), file("evidence.json").into()];
        let files = [
            ("--challenge", file("challenge.json")),
            ("--machine", fixtures().join("machine.json")),
            ("--policy", self.policy.clone()),
            ("--key", self.folder.path("key")),
            ("--out", self.folder.path("sealed")),
            ("--record", self.folder.path("record")),
        ];
        words.extend(files.into_iter().flat_map(|(word, path)| [word.into(), path.into()]));
        words.extend(self.more.iter().map(OsString::from));
        tenant(now, words)
    }

    /// What a visor says of the sealed ticket.
    fn open(&self, visor: &Visor, weaknesses: Weaknesses, age: u64) -> Result<Origin, Error> {
        let sealed = fs::read(self.folder.path("sealed")).unwrap();
        let keys = visor.keys();
        let recipient = Recipient { keys: &keys, weaknesses, age };
        let mut submission = Box::new(Submission::new());
        let mut opened = Ticket::new([0; 16], [0; 32]);
        submission.begin(u32::try_from(sealed.len()).unwrap())?;
        let mut progress = Progress::More;
        for word in sealed.as_chunks().0 {
            progress = submission.word(u32::from_le_bytes(*word), &recipient, &mut opened)?;
        }
        assert_eq!(progress, Progress::Complete);
        assert_eq!(opened.bytes().unwrap(), ticket().bytes().unwrap());
        Ok(*submission.origin().unwrap())
    }
}

const NONE: Weaknesses = Weaknesses { plain_launch: false, no_iommu: false, development: false };

#[test]
fn a_ticket_is_sealed_to_the_verified_visor_and_permits_what_that_is_and_no_more() {
    let sealing = Sealing::new("seal-txt", "txt");
    let told = sealing.seal();
    assert_eq!(told["exit"], 0, "{told}");
    let origin = sealing.open(&Visor::new("txt"), NONE, u64::MAX - 1).unwrap();
    assert_eq!(Bytes(origin.file.to_vec()).to_string(), told["answer"]["file"]);
    let plain = Weaknesses { plain_launch: true, ..NONE };
    assert_eq!(sealing.open(&Visor::new("txt"), plain, 0), Err(Error::PlainLaunch));
    let other = Visor { random: 1, ..Visor::new("txt") };
    assert_eq!(sealing.open(&other, NONE, 0), Err(Error::Recipient));

    let sealing = Sealing::new("seal-plain", "plain");
    assert_eq!(sealing.seal()["exit"], 0);
    assert!(sealing.open(&Visor::new("plain"), plain, 0).is_ok());
    let no_iommu = Weaknesses { no_iommu: true, ..plain };
    assert_eq!(sealing.open(&Visor::new("plain"), no_iommu, 0), Err(Error::OpenToDevices));
}

#[test]
fn a_lifetime_counts_from_the_age_that_the_visor_signed() {
    let sealing = Sealing { more: vec!["--lifetime", "10"], ..Sealing::new("seal-age", "txt") };
    assert_eq!(sealing.seal()["exit"], 0);
    // It said 7.
    assert!(sealing.open(&Visor::new("txt"), NONE, 16).is_ok());
    assert_eq!(sealing.open(&Visor::new("txt"), NONE, 17), Err(Error::Expired));
}

#[test]
fn nothing_is_sealed_for_a_visor_that_is_not_trusted() {
    for name in ["lax", "liar"] {
        let sealing = Sealing { more: vec!["--insecure"], ..Sealing::new("seal-bad", name) };
        let told = sealing.seal();
        assert_eq!((&told["exit"], &told["error"]["code"]), (&1.into(), &"not-trusted".into()));
        assert!(!sealing.folder.path("sealed").exists() && !sealing.folder.path("record").exists());
    }
}

#[test]
fn what_a_policy_waives_needs_one_word_more_and_is_told() {
    let sealing = Sealing::insecure("seal-waived");
    let told = sealing.seal();
    assert_eq!((&told["exit"], &told["error"]["code"]), (&3.into(), &"insecure".into()));
    assert!(!sealing.folder.path("sealed").exists());
    let sealing = Sealing { more: vec!["--insecure"], ..Sealing::insecure("seal-insecure") };
    let told = sealing.seal();
    assert_eq!(told["answer"]["waived"], serde_json::json!(["iommu", "vmx", "dev-tickets"]));
    let all = Weaknesses { plain_launch: true, no_iommu: true, development: true };
    assert!(sealing.open(&Visor::new("plain"), all, 0).is_ok());
}

#[test]
fn what_is_no_ticket_or_no_key_is_not_sealed() {
    let sealing = Sealing::new("seal-none", "txt");
    fs::write(sealing.folder.path("ticket"), b"VISRTKT1").unwrap();
    assert_eq!(sealing.seal()["exit"], 2);
    let sealing = Sealing::new("seal-nokey", "txt");
    let _ = fs::copy(fixtures().join("machine.json"), sealing.folder.path("key")).unwrap();
    assert_eq!(sealing.seal()["exit"], 5);
}

/// A receipt's file for what the visor states.
fn receipt(folder: &Folder, name: &str, (body, signature): (Vec<u8>, Vec<u8>)) -> PathBuf {
    let format = evidence::Receipt::FORMAT.into();
    let receipt = evidence::Receipt { format, body: Bytes(body), signature: Bytes(signature) };
    folder.write(name, &receipt)
}

/// A sealed ticket, and the receipt that its visor would sign.
struct Launched {
    sealing: Sealing,
    challenge: PathBuf,
    nonce: Vec<u8>,
    now: u64,
    receipt: Receipt,
}

impl Launched {
    fn new(test: &str) -> Self {
        let sealing = Sealing::new(test, "txt");
        assert_eq!(sealing.seal()["exit"], 0);
        let origin = sealing.open(&Visor::new("txt"), NONE, 0).unwrap();
        let challenge = fixtures().join("txt/challenge.json");
        let asked: Challenge = evidence::read(&challenge).unwrap();
        let (nonce, now) = (asked.nonce.0, asked.issued + 1);
        let receipt = Receipt { origin, vm: [6; 16], launch: 3, state: 2, cause: 0 };
        Self { sealing, challenge, nonce, now, receipt }
    }

    /// What is told of a statement with its signature.
    fn check(&self, name: &str, statement: (Vec<u8>, Vec<u8>)) -> Value {
        let folder = &self.sealing.folder;
        let (receipt, record) = (receipt(folder, name, statement), folder.path("record"));
        let files = [("--record", &record), ("--challenge", &self.challenge)];
        let mut words: Vec<OsString> = vec!["receipt".into(), receipt.into()];
        words.extend(files.into_iter().flat_map(|(word, path)| [word.into(), path.into()]));
        tenant(self.now, words)
    }

    /// The same of a receipt of this visor's.
    fn state(&self, name: &str, visor: &Visor, change: impl FnOnce(&mut Receipt)) -> Value {
        let mut receipt = self.receipt;
        change(&mut receipt);
        self.check(name, visor.state(&Statement::Receipt(receipt), &self.nonce))
    }
}

#[test]
fn a_receipt_tells_of_the_tenants_vm() {
    let launched = Launched::new("receipt");
    let told = launched.state("good", &Visor::new("txt"), |_| {});
    let answer = &told["answer"];
    assert_eq!((&told["exit"], &answer["state"]), (&0.into(), &"running".into()), "{told}");
    assert_eq!(answer["launch"], 3);
    let record = launched.sealing.folder.path("record");
    assert_eq!(evidence::read::<Record>(&record).unwrap().visor.0, Visor::new("txt").key());
}

#[test]
fn a_receipt_of_anything_else_is_refused() {
    let mut launched = Launched::new("receipts");
    launched.now += 86_400;
    let late = launched.state("late", &Visor::new("txt"), |_| {});
    assert_eq!(late["exit"], 1, "{late}");
    launched.now -= 86_400;
    let (visor, other) = (Visor::new("txt"), Visor { random: 1, ..Visor::new("txt") });
    let with = |name, change: fn(&mut Receipt)| launched.state(name, &visor, change);
    let old = visor.state(&Statement::Receipt(launched.receipt), &[1; 32]);
    let forgeries = [
        (
            launched.state("visor", &other, |_| {}),
            "the visor that the ticket was sealed for has not signed it",
        ),
        (
            launched.check("alive", visor.alive(&launched.nonce)),
            "the visor that the ticket was sealed for has not signed it",
        ),
        (launched.check("old", old), "it answers another challenge"),
        (with("file", |told| told.origin.file[0] ^= 1), "it is about another sealed ticket"),
        (with("began", |told| told.origin.measurement[0] ^= 1), "the VM began with something else"),
        (
            with("tenant", |told| told.origin.tenant = [0; 32]),
            "it is about another tenant's ticket",
        ),
        (with("vm", |told| told.vm = [7; 16]), "it is about another VM"),
        (
            with("serial", |told| told.origin.serial += 1),
            "it is about a ticket with another serial",
        ),
        (with("state", |told| told.state = 9), "it says nothing of what the VM does"),
    ];
    for (told, why) in forgeries {
        let expected = format!("the receipt does not hold: {why}");
        assert_eq!((&told["exit"], &told["error"]["message"]), (&1.into(), &expected.into()));
    }
}

#[test]
fn what_makes_no_vm_is_told_and_leaves_nothing() {
    let folder = Folder::new("measure");
    let measure = |kernel: &str| {
        let words = ["measure".into(), "--kernel".into(), folder.path(kernel)];
        tenant(1, words.into_iter().chain(["--output-dir".into(), folder.path("vm")]))
    };
    fs::write(folder.path("text"), "no kernel").unwrap();
    for (kernel, exit, code) in [("text", 2, "ticket"), ("missing", 5, "file")] {
        let told = measure(kernel);
        assert_eq!((&told["exit"], &told["error"]["code"]), (&exit.into(), &code.into()), "{told}");
        assert!(!folder.path("vm").exists());
    }
}
