//! `challenge`, `verify` and `policy test`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use evidence::{Bytes, Challenge, Document, Evidence, Readers};
use serde::{Deserialize, Serialize};

use crate::cli::Verification;
use crate::eat;
use crate::enroll::write;
use crate::failure::{Exit, Failure};
use crate::machine::Machine;
use crate::policy::{NoPolicy, Policy};
use crate::random::Random;
use crate::tpm::revocation::List;
use crate::verify::{Against, Check, Claim, Outcome, State, Verdict, verify};
use crate::visor::Measured;

/// What `challenge` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Challenged {
    /// The nonce.
    pub nonce: Bytes,
    /// When it is worth nothing any more, in seconds since 1970.
    pub expires: u64,
    /// What is asked for.
    pub pcrs: Vec<u8>,
}

/// Reads a policy.
///
/// # Errors
/// [`Failure::File`] and [`Failure::Policy`].
pub fn read_policy(path: &Path) -> Result<Policy, Failure> {
    let text = fs::read_to_string(path).map_err(|why| Failure::File(path.into(), why))?;
    Policy::parse(&text).map_err(|why| Failure::Policy(path.into(), why))
}

/// Writes a challenge for this policy.
///
/// # Errors
/// [`Failure`].
pub fn challenge(policy: &Path, out: &Path, minutes: u16, now: u64) -> Result<Challenged, Failure> {
    let pcrs = read_policy(policy)?.quoted();
    let mut random = Random::new().map_err(|_| Failure::Random)?;
    let nonce = Bytes(random.array::<32>().to_vec());
    let expires = now.saturating_add(u64::from(minutes) * 60);
    let format = Challenge::FORMAT.into();
    let bank = "sha256".into();
    let challenge =
        Challenge { format, nonce: nonce.clone(), issued: now, expires, bank, pcrs: pcrs.clone() };
    write(out, &challenge, Readers::All)?;
    Ok(Challenged { nonce, expires, pcrs })
}

/// What `verify` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// What a tenant may conclude.
    pub verdict: Verdict,
    /// The visor's public keys, if they can be believed.
    pub key: Option<Bytes>,
    /// Why.
    pub claims: Vec<Claim>,
    /// What the visor said.
    #[serde(skip)]
    pub visor: Option<Measured>,
    /// How old the visor said that it is, in 2^32 ticks of the TSC.
    #[serde(skip)]
    pub age: Option<u64>,
}

impl Verified {
    /// How the program ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self.verdict {
            Verdict::Trusted => Exit::Trusted,
            Verdict::NotTrusted => Exit::NotTrusted,
            Verdict::Insecure => Exit::Insecure,
        }
    }

    /// The names of the claims in any of these states.
    #[must_use]
    pub fn ids(&self, states: &[State]) -> Vec<&'static str> {
        let of = |claim: &Claim| states.contains(&claim.state).then_some(claim.id);
        self.claims.iter().filter_map(of).collect()
    }
}

impl Verified {
    fn new(evidence: &Evidence, outcome: Outcome) -> Self {
        let key = outcome.visor.as_ref().map(|visor| Bytes(visor.key.to_vec()));
        let body = evidence.visor.alive.as_ref().map(|alive| alive.body.0.as_slice());
        let is_met =
            |claim: &Claim| claim.id == Check::VisorAlive.id() && claim.state == State::Met;
        let body = body.filter(|_| outcome.claims.iter().any(is_met));
        let age = body.and_then(<[u8]>::last_chunk).copied().map(u64::from_le_bytes);
        let Outcome { verdict, claims, visor } = outcome;
        Self { verdict, key, claims, visor, age }
    }
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for claim in &self.claims {
            let pcr = claim.pcr.map_or_else(String::new, |pcr| format!(" {pcr}"));
            let name = format!("{}{pcr}", claim.id);
            let word = match claim.state {
                State::Met => {
                    writeln!(f, "  ok       {name}")?;
                    continue;
                }
                State::Unmet => "NOT",
                State::Waived => "waived",
                State::Unknown => "unknown",
            };
            writeln!(f, "  {word:8} {name}")?;
            writeln!(f, "           expected: {}", claim.expected)?;
            writeln!(f, "           actual:   {}", claim.actual)?;
            writeln!(f, "           from:     {}", claim.source)?;
            writeln!(f, "           {}", claim.remedy)?;
        }
        match self.verdict {
            Verdict::Trusted => writeln!(f, "trusted"),
            Verdict::NotTrusted => writeln!(f, "NOT TRUSTED"),
            Verdict::Insecure => writeln!(f, "INSECURE: the policy waives what does not hold"),
        }
    }
}

fn read_list(path: &Path) -> Result<List, Failure> {
    let bytes = fs::read(path).map_err(|why| Failure::File(path.into(), why))?;
    List::parse(&bytes).ok_or_else(|| Failure::RevocationList(path.into()))
}

/// Holds evidence against a policy.
///
/// # Errors
/// [`Failure`]: something cannot be read. What does not hold is in the answer.
pub fn check(files: &Verification, now: u64) -> Result<Verified, Failure> {
    let policy = read_policy(&files.policy)?;
    let own = |path: &Path, why| Failure::Document(path.into(), why);
    let challenge: Challenge =
        evidence::read(&files.challenge).map_err(|why| own(&files.challenge, why))?;
    let machine: Machine =
        evidence::read(&files.machine).map_err(|why| own(&files.machine, why))?;
    let evidence = eat::read(&files.evidence)?;
    let lists = files.lists.iter().map(|path| read_list(path)).collect::<Result<Vec<_>, _>>()?;
    let against =
        Against { challenge: &challenge, machine: &machine, policy: &policy, lists: &lists, now };
    Ok(Verified::new(&evidence, verify(&evidence, against)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    case: Vec<Case>,
}

/// Evidence whose verdict is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    evidence: PathBuf,
    challenge: PathBuf,
    machine: PathBuf,
    #[serde(default)]
    crls: Vec<PathBuf>,
    now: u64,
    verdict: String,
    /// The names of what does not hold or is waived, in order.
    #[serde(default)]
    claims: Vec<String>,
}

/// What `policy test` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Tested {
    /// How many cases came out as they should.
    pub cases: usize,
}

/// Reads a policy, and holds the evidence of each case against it.
///
/// # Errors
/// [`Failure::Cases`], and what [`check`] has.
pub fn test_policy(policy: &Path, cases: Option<&Path>) -> Result<Tested, Failure> {
    let _ = read_policy(policy)?;
    let Some(path) = cases else { return Ok(Tested { cases: 0 }) };
    let text = fs::read_to_string(path).map_err(|why| Failure::File(path.into(), why))?;
    let wrong = |why: toml::de::Error| {
        Failure::Policy(path.into(), NoPolicy::Form(why.to_string().trim_end().to_owned()))
    };
    let cases: Cases = toml::from_str(&text).map_err(wrong)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut different = Vec::new();
    for case in &cases.case {
        let files = Verification {
            evidence: folder.join(&case.evidence),
            challenge: folder.join(&case.challenge),
            machine: folder.join(&case.machine),
            policy: policy.into(),
            lists: case.crls.iter().map(|path| folder.join(path)).collect(),
        };
        let verified = check(&files, case.now)?;
        let verdict = match verified.verdict {
            Verdict::Trusted => "trusted",
            Verdict::NotTrusted => "not-trusted",
            Verdict::Insecure => "insecure",
        };
        let claims = verified.ids(&[State::Unmet, State::Unknown, State::Waived]);
        if verdict != case.verdict || claims != case.claims {
            different.push(format!("{}: {verdict} {}", case.name, claims.join(", ")));
        }
    }
    if different.is_empty() {
        Ok(Tested { cases: cases.case.len() })
    } else {
        Err(Failure::Cases(different))
    }
}
