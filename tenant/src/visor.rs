//! What the visor says of itself: three events in PCR 19, and statements that it signs.

use ed25519_dalek::{Signature, VerifyingKey};

use crate::bank::Bank;
use crate::reader::Reader;
use crate::tpm::log::{Event, Log, TAGGED};

/// The PCR that the visor extends.
pub const PCR: u8 = 19;

/// The events' numbers, in order.
const IDS: [u32; 3] = [0x5653_0001, 0x5653_0002, 0x5653_0003];

/// The keys of the configuration, in order. The command line has another where it is too long.
const CONFIGURATION: [&str; 5] = ["format", "visor", "launch", "dev-tickets", "unprotected-vms"];
const LONG_COMMAND_LINE: &str = "command-line-sha256";
const HASHED: &str = "sha256:";

/// What the visor measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Its version.
    pub version: String,
    /// `txt` or `plain`.
    pub launch: String,
    /// `no` for the image for tests, whose host runs natively; `yes` for all others, which do not say it.
    pub vmx: String,
    /// Which TPM it has measured itself by: `machine`, or `serial` in an image for tests.
    pub tpm: String,
    /// Its command line, or `sha256:` and its hash where it is too long.
    pub command_line: String,
    /// `yes` if it takes tickets in clear.
    pub dev_tickets: String,
    /// `run` or `refuse`.
    pub unprotected_vms: String,
    /// `on`, `late`, `none` or `insecure`.
    pub iommu: String,
    /// Its public keys of this boot: X25519, and then Ed25519.
    pub key: [u8; 64],
}

/// Why a log's events are not the visor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotMeasured {
    /// PCR 19 has so many events, and not three.
    Count(usize),
    /// The event with this number, from 0, is not the one that belongs there.
    Event(usize),
    /// The event with this number has a digest that is not its content's.
    Digest(usize),
    /// The event with this number does not say what it should.
    Content(usize),
}

impl std::fmt::Display for NotMeasured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(events) => write!(f, "{events} events"),
            Self::Event(at) => write!(f, "event {at} is not the one that belongs there"),
            Self::Digest(at) => write!(f, "event {at} has a digest that is not its content's"),
            Self::Content(at) => write!(f, "event {at} does not say what it should"),
        }
    }
}

impl Measured {
    /// Reads the three events of PCR 19.
    ///
    /// # Errors
    /// [`NotMeasured`].
    pub fn read(log: &Log, bank: Bank) -> Result<Self, NotMeasured> {
        let events: Vec<&Event> = log.extending(PCR).collect();
        let [configuration, iommu, key] = events.as_slice() else {
            return Err(NotMeasured::Count(events.len()));
        };
        let all = [configuration, iommu, key];
        for (at, (event, id)) in all.into_iter().zip(IDS).enumerate() {
            if tagged(event, id).is_none() {
                return Err(NotMeasured::Event(at));
            }
            if event.digests.get(&bank) != Some(&bank.hash(&[&event.data])) {
                return Err(NotMeasured::Digest(at));
            }
        }
        let [configuration, iommu, key] = [(configuration, 0), (iommu, 1), (key, 2)]
            .map(|(event, at)| IDS.get(at).and_then(|id| tagged(event, *id)).unwrap_or_default());
        let mut measured = read_configuration(configuration).ok_or(NotMeasured::Content(0))?;
        measured.iommu = read_iommu(iommu).ok_or(NotMeasured::Content(1))?;
        measured.key = key.try_into().map_err(|_| NotMeasured::Content(2))?;
        Ok(measured)
    }
}

/// The content of a TCG_PCClientTaggedEvent with this number.
fn tagged(event: &Event, id: u32) -> Option<&[u8]> {
    let mut reader = Reader(&event.data);
    let is_it = event.kind == TAGGED && reader.le32()? == id;
    let content = reader.long()?;
    (is_it && reader.is_done()).then_some(content)
}

fn read_configuration(text: &[u8]) -> Option<Measured> {
    let lines = read_lines(text)?;
    let [format, visor, launch, rest @ ..] = lines.as_slice() else { return None };
    // What only builds for tests say.
    let (vmx, rest) = match rest {
        [("vmx", "no"), rest @ ..] => ("no", rest),
        _ => ("yes", rest),
    };
    let (tpm, rest) = match rest {
        [("tpm", "serial"), rest @ ..] => ("serial", rest),
        _ => ("machine", rest),
    };
    let [command_line, dev_tickets, unprotected] = rest else { return None };
    let fixed = [format, visor, launch, dev_tickets, unprotected].map(|(key, _)| *key);
    let is_known = fixed == CONFIGURATION
        && format.1 == "1"
        && matches!(launch.1, "txt" | "plain")
        && matches!(dev_tickets.1, "yes" | "no")
        && matches!(unprotected.1, "run" | "refuse");
    let command_line = match *command_line {
        // What stands for a long one is none.
        ("command-line", line) if !line.starts_with(HASHED) => line.to_owned(),
        (LONG_COMMAND_LINE, hash) => format!("{HASHED}{hash}"),
        _ => return None,
    };
    is_known.then(|| Measured {
        version: visor.1.to_owned(),
        launch: launch.1.to_owned(),
        vmx: vmx.to_owned(),
        tpm: tpm.to_owned(),
        command_line,
        dev_tickets: dev_tickets.1.to_owned(),
        unprotected_vms: unprotected.1.to_owned(),
        iommu: String::new(),
        key: [0; 64],
    })
}

fn read_iommu(text: &[u8]) -> Option<String> {
    let lines = read_lines(text)?;
    let [("iommu", state), ("units", units)] = lines.as_slice() else { return None };
    let is_known = matches!(*state, "on" | "late" | "none" | "insecure");
    let is_number = !units.is_empty() && units.bytes().all(|digit| digit.is_ascii_digit());
    (is_known && is_number).then(|| (*state).to_owned())
}

/// Lines `key=value`, each with its end.
fn read_lines(text: &[u8]) -> Option<Vec<(&str, &str)>> {
    let lines = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    // They are shown on terminals.
    if lines.chars().any(|letter| letter.is_control() && letter != '\n') {
        return None;
    }
    lines.split('\n').map(|line| line.split_once('=')).collect()
}

/// What the visor signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A nonce: that it is alive.
    Nonce,
    /// What became of a ticket.
    Receipt,
}

impl Kind {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Nonce => b"nonce",
            Self::Receipt => b"receipt",
        }
    }
}

/// Whether the visor with these public keys has signed `body` as a statement of this kind.
///
/// The check is the strict one: no key of small order, and one signature for each statement.
#[must_use]
pub fn has_signed(keys: &[u8; 64], kind: Kind, body: &[u8], signature: &[u8; 64]) -> bool {
    let Some(key) = keys.last_chunk::<32>() else { return false };
    let Ok(key) = VerifyingKey::from_bytes(key) else { return false };
    let message = [b"visor statement 1\0", kind.name(), b"\0", body].concat();
    key.verify_strict(&message, &Signature::from_bytes(signature)).is_ok()
}
