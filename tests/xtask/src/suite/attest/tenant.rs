//! The tenant: its program, and its folder.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::Authority;
use crate::{build, paths, tool};

/// A ticket for a VM that nobody starts.
const TICKET: &str = "\
vm = \"000102030405060708090a0b0c0d0e0f\"
state = \"reset\"
[[range]]
start = 0
length = 0x10_0000
class = \"private\"
";

/// Evidence with what it is held against: names of files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Against {
    pub(super) evidence: &'static str,
    pub(super) challenge: &'static str,
    pub(super) machine: &'static str,
    pub(super) policy: &'static str,
}

/// What `tenant verify` has said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    exit: i32,
    /// The claims that do not hold, with their PCRs.
    broken: Vec<String>,
    /// Those of which the policy accepts that.
    waived: Vec<String>,
}

/// Who has a machine: does what the tenant asks for, in a folder of files.
pub(super) trait Operator {
    /// The file `name` of the folder.
    fn file(&self, name: &str) -> PathBuf;

    /// Runs `words` in the folder, which must succeed; what was printed.
    fn does(&self, words: &str) -> Result<String>;
}

/// A tenant with a ticket and a key.
#[derive(Clone)]
pub(super) struct Tenant {
    program: PathBuf,
    dir: PathBuf,
}

impl Tenant {
    /// One whose files will be in the folder `dir`.
    pub(super) fn new(dir: &Path) -> Result<Self> {
        paths::emptied(dir)?;
        let tenant = Self { program: build::tenant()?, dir: dir.to_path_buf() };
        tenant.write("ticket.toml", TICKET)?;
        let mut make = Command::new(build::visorctl()?);
        tool::run(make.args(["ticket", "make", "ticket.toml", "ticket"]).current_dir(dir))?;
        tenant.does(&["key", "key.json"])?;
        Ok(tenant)
    }

    /// The file `name` of the folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the file `name`.
    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        fs::write(self.file(name), content).with_context(|| format!("cannot write {name}"))
    }

    /// What is in the file `name`.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        fs::read(self.file(name)).with_context(|| format!("no {name}"))
    }

    /// The file `name`, which is JSON.
    pub(super) fn json(&self, name: &str) -> Result<Value> {
        serde_json::from_slice(&self.read(name)?).with_context(|| format!("{name} is no JSON"))
    }

    /// Writes the file `out`: the evidence of `into`, but with what that of `from` has at `place`.
    pub(super) fn splice(&self, into: &str, from: &str, place: &str, out: &str) -> Result<()> {
        let (mut evidence, from) = (self.json(into)?, self.json(from)?);
        let (old, new) = (evidence.pointer_mut(place), from.pointer(place));
        *old.context("no such place")? = new.context("no such place")?.clone();
        self.write(out, evidence.to_string())
    }

    /// Runs the program: its exit code, and its answer.
    pub(super) fn run(&self, words: &[&str]) -> Result<(i32, Value)> {
        let mut command = Command::new(&self.program);
        let output = command.arg("--json").args(words).current_dir(&self.dir).output();
        let output = output.context("cannot start tenant")?;
        let answer = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("tenant {}: no answer in JSON", words.join(" ")))?;
        Ok((output.status.code().context("tenant was killed")?, answer))
    }

    /// Runs the program, which must do what it is told.
    pub(super) fn does(&self, words: &[&str]) -> Result<()> {
        let (exit, answer) = self.run(words)?;
        ensure!(exit == 0, "tenant {}: {exit}, {answer}", words.join(" "));
        Ok(())
    }

    /// Takes the file `name` from who has the machine.
    pub(super) fn take(&self, host: &dyn Operator, name: &str) -> Result<()> {
        let _ = fs::copy(host.file(name), self.file(name))
            .with_context(|| format!("the host has left no {name}"))?;
        Ok(())
    }

    /// Gives the file `name` to who has the machine.
    pub(super) fn give(&self, host: &dyn Operator, name: &str) -> Result<()> {
        let _ = fs::copy(self.file(name), host.file(name))
            .with_context(|| format!("the tenant has no {name}"))?;
        Ok(())
    }

    /// Gets to know the machine by the certificate of its TPM. What is believed is in the file `machine` then; what
    /// the TPM was asked, in `machine.activation`.
    pub(super) fn enroll(
        &self,
        host: &dyn Operator,
        authority: &Authority,
        machine: &str,
    ) -> Result<()> {
        let names = ["identity", "pending", "activation", "activated"];
        let [identity, pending, activation, activated] =
            names.map(|name| format!("{machine}.{name}"));
        let _ = host.does(&format!("visorctl attest identity {identity}"))?;
        self.take(host, &identity)?;
        let roots = authority.certificates();
        let mut words = vec!["enroll", "begin", &identity];
        for root in &roots {
            words.extend(["--root", root.to_str().context("a folder has no plain path")?]);
        }
        words.extend(["--pending", &pending, "--activation", &activation]);
        self.does(&words)?;
        self.give(host, &activation)?;
        let _ = host.does(&format!("visorctl attest activate {activation} {activated}"))?;
        self.take(host, &activated)?;
        self.does(&["enroll", "finish", &pending, &activated, "--machine", machine])
    }

    /// Has the host answer a new challenge, `name.challenge`; the evidence is in the file `name`.
    pub(super) fn ask(&self, host: &dyn Operator, name: &str) -> Result<()> {
        let challenge = format!("{name}.challenge");
        self.does(&["challenge", "--policy", "waiving.toml", "--out", &challenge])?;
        self.give(host, &challenge)?;
        let _ = host.does("visor-log visor.log")?;
        let quote = format!("visorctl attest quote {challenge} {name} --visor-log visor.log");
        let _ = host.does(&quote)?;
        self.take(host, name)
    }

    /// What the program says of evidence.
    pub(super) fn verify(&self, of: Against) -> Result<Verdict> {
        let Against { evidence, challenge, machine, policy } = of;
        let words = ["--challenge", challenge, "--machine", machine, "--policy", policy];
        let (exit, answer) = self.run(&[&["verify", evidence], &words[..]].concat())?;
        let claims = answer.pointer("/answer/claims").and_then(Value::as_array);
        let claims = claims.with_context(|| format!("no claims about {of:?}: {answer}"))?;
        let of = |states: &[&str]| {
            let has = |claim: &&Value| states.contains(&text(claim, "state"));
            claims.iter().filter(has).map(named).collect()
        };
        Ok(Verdict { exit, broken: of(&["unmet", "unknown"]), waived: of(&["waived"]) })
    }

    /// Has the program seal the ticket; its exit code. There is a sealed ticket if and only if that is 0.
    pub(super) fn seal(&self, of: Against, words: &[&str]) -> Result<i32> {
        for name in ["sealed", "record"] {
            let _ = fs::remove_file(self.file(name));
        }
        let Against { evidence, challenge, machine, policy } = of;
        let against = ["--challenge", challenge, "--machine", machine, "--policy", policy];
        let out = ["--key", "key.json", "--out", "sealed", "--record", "record"];
        let (exit, _) =
            self.run(&[&["seal", "ticket", evidence], &against[..], &out, words].concat())?;
        let is_there = self.file("sealed").exists();
        ensure!(
            is_there == (exit == 0),
            "seal ends with {exit}, and the ticket's file is there: {is_there}"
        );
        Ok(exit)
    }

    /// The evidence holds but for `waived`, and tickets are sealed for that visor by whoever insists.
    pub(super) fn accepts(&self, of: Against, waived: &[&str]) -> Result<()> {
        let expected = Verdict { exit: 3, broken: Vec::new(), waived: owned(waived) };
        let found = self.verify(of)?;
        ensure!(found == expected, "{of:?}: {found:?}, expected {expected:?}");
        let codes = (self.seal(of, &[])?, self.seal(of, &["--insecure"])?);
        ensure!(codes == (3, 0), "{of:?}: seal ends with {codes:?}");
        Ok(())
    }

    /// The evidence does not hold, for `broken` alone and what is `waived`, and no ticket is sealed.
    pub(super) fn refuses(&self, of: Against, broken: &[&str], waived: &[&str]) -> Result<()> {
        let expected = Verdict { exit: 1, broken: owned(broken), waived: owned(waived) };
        let found = self.verify(of)?;
        ensure!(found == expected, "{of:?}: {found:?}, expected {expected:?}");
        let codes = (self.seal(of, &[])?, self.seal(of, &["--insecure"])?);
        ensure!(codes == (1, 1), "{of:?}: seal ends with {codes:?}");
        Ok(())
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What a claim has as `key`.
fn text<'a>(claim: &'a Value, key: &str) -> &'a str {
    claim.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A claim, with its PCR.
fn named(claim: &Value) -> String {
    let id = text(claim, "id");
    claim
        .get("pcr")
        .and_then(Value::as_u64)
        .map_or_else(|| id.to_owned(), |pcr| format!("{id} {pcr}"))
}

/// The rules for PCRs 0 to 9 that accept the boot of which `tpm2_eventlog` has printed `log`, and others that differ
/// in settings alone.
pub(super) fn rules(log: &str) -> String {
    let mut text = String::new();
    for pcr in 0..10 {
        // Those hold no code.
        let rule = if [1, 3, 5, 6].contains(&pcr) {
            "explained = true".to_owned()
        } else {
            format!("events = {:?}", digests(log, pcr))
        };
        // Text grows without fail.
        let _ = write!(text, "[[pcr]]\nindex = {pcr}\n{rule}\n");
    }
    text
}

/// By what a PCR was extended in the bank of SHA-256, as `tpm2_eventlog` prints it.
fn digests(log: &str, pcr: u32) -> Vec<String> {
    let (mut found, mut is_pcr, mut is_bank) = (Vec::new(), false, false);
    for line in log.lines().map(str::trim) {
        if let Some(index) = line.strip_prefix("PCRIndex: ") {
            (is_pcr, is_bank) = (index == pcr.to_string(), false);
        } else if let Some(bank) = line.strip_prefix("- AlgorithmId: ") {
            is_bank = bank == "sha256";
        } else if let Some(digest) = line.strip_prefix("Digest: ").filter(|_| is_pcr && is_bank) {
            found.push(digest.trim_matches('"').to_owned());
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::digests;

    #[test]
    fn digests_are_those_of_one_bank_and_register_each_once() {
        let event = |pcr, digest| {
            format!(
                "- EventNum: 1\n  PCRIndex: {pcr}\n  Digests:\n  - AlgorithmId: sha1\n    Digest: \"00\"\n  \
                 - AlgorithmId: sha256\n    Digest: \"{digest}\"\n"
            )
        };
        let log = [event(4, "bb"), event(14, "cc"), event(4, "aa"), event(4, "bb")].concat();
        assert_eq!(digests(&log, 4), ["aa", "bb"]);
        assert_eq!(digests(&log, 1), [""; 0]);
    }
}
