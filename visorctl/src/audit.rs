//! `audit`.

use std::fmt;

use serde::Serialize;
use ticket::audit::{EVENT_BYTES, Event, GENESIS, Kind, NO_VM, extend};
use ticket::port::{
    INDEX_AUDIT, INDEX_AUDIT_CHAIN, INDEX_AUDIT_END, INDEX_AUDIT_EVENT, INDEX_AUDIT_OLDEST,
};

use crate::failure::Failure;
use crate::hex;
use crate::port::Port;
use crate::reason;
use crate::receipt::{self, Signed};
use crate::visor::Visor;

/// How often the log is read anew because it changed meanwhile.
const ATTEMPTS: u32 = 16;

/// What is asked of the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Query {
    /// The first event to show.
    pub(crate) since: u32,
    /// The chain value before that event, if it is known.
    pub(crate) chain: Option<[u8; 32]>,
    /// What the visor is to sign the chain value with.
    pub(crate) nonce: Option<[u8; 32]>,
}

/// The log, as far as it is still there.
#[derive(Debug, Serialize)]
pub(crate) struct Audit {
    events: Vec<Line>,
    /// Events since boot.
    end: u32,
    /// Events that were asked for and are gone.
    lost: u32,
    /// After the last event.
    chain: String,
    /// Whether the events give the chain value; unknown if the value before them is.
    verified: bool,
    /// The visor's signature for the chain value, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    signed: Option<Signed>,
}

/// One event.
#[derive(Debug, Serialize)]
struct Line {
    sequence: u64,
    /// Nothing for a kind that this program does not know.
    kind: Option<&'static str>,
    kind_number: u16,
    vm: Option<u8>,
    cpu: u32,
    a: String,
    b: String,
    /// What `a` or `b` means.
    reason: Option<String>,
}

/// What the visor had at one moment.
struct Snapshot {
    oldest: u32,
    end: u32,
    /// From `oldest` on.
    events: Vec<[u8; EVENT_BYTES]>,
    chain: [u8; 32],
}

/// Reads the log.
///
/// # Errors
/// As [`Visor::find_with_tickets`]; [`Failure::NoEvent`], [`Failure::Moving`], and [`Failure::Chain`] if
/// the events do not give the chain value.
pub(crate) fn audit(port: impl Port, query: Query) -> Result<Audit, Failure> {
    let mut visor = Visor::find_with_tickets(port)?;
    for _ in 0..ATTEMPTS {
        let Some(log) = snapshot(&mut visor)? else {
            continue;
        };
        let signed = match &query.nonce {
            Some(_) if !visor.has_keys() => return Err(Failure::OldVisor(visor.version())),
            Some(nonce) => Some(receipt::audit_head(&mut visor, nonce)?),
            None => None,
        };
        let said = |signed: &Signed| signed.body.to_string().get(64..) == Some(log.head().as_str());
        if !signed.as_ref().is_none_or(said) {
            continue;
        }
        if query.since > log.end {
            return Err(Failure::NoEvent { since: query.since, end: log.end });
        }
        let answer = log.answer(query)?;
        return Ok(Audit { signed, ..answer });
    }
    Err(Failure::Moving)
}

/// The log at one moment; `None` if it changed while it was read.
fn snapshot<P: Port>(visor: &mut Visor<P>) -> Result<Option<Snapshot>, Failure> {
    let end = visor.value(INDEX_AUDIT_END);
    let oldest = visor.value(INDEX_AUDIT_OLDEST);
    let mut events = Vec::new();
    for number in oldest..end {
        visor.put(INDEX_AUDIT, number);
        events.push(visor.bytes(INDEX_AUDIT_EVENT));
    }
    let chain = visor.bytes(INDEX_AUDIT_CHAIN);
    if visor.value(INDEX_AUDIT_END) != end {
        return Ok(None);
    }
    if oldest > end {
        return Err(Failure::Protocol { index: INDEX_AUDIT_OLDEST, value: oldest });
    }
    Ok(Some(Snapshot { oldest, end, events, chain }))
}

impl Snapshot {
    /// What the visor signs behind the nonce, as digits: how many events there are, and the chain value.
    fn head(&self) -> String {
        hex::encode(&u64::from(self.end).to_le_bytes()) + &hex::encode(&self.chain)
    }

    fn answer(self, query: Query) -> Result<Audit, Failure> {
        let verified = self.verify(query)?;
        let mut events = Vec::new();
        for (number, bytes) in (self.oldest..).zip(&self.events) {
            let wrong = Failure::Protocol { index: INDEX_AUDIT_EVENT, value: number };
            let event = Event::of_bytes(bytes).filter(|event| event.sequence == u64::from(number));
            let event = event.ok_or(wrong)?;
            if number >= query.since {
                events.push(Line::of(&event));
            }
        }
        let lost = self.oldest.saturating_sub(query.since);
        let chain = hex::encode(&self.chain);
        Ok(Audit { events, end: self.end, lost, chain, verified, signed: None })
    }

    /// Whether the events give the chain value, where the value before them is known.
    fn verify(&self, query: Query) -> Result<bool, Failure> {
        let (first, before) = match query.chain {
            Some(chain) if query.since >= self.oldest => (query.since, chain),
            _ if self.oldest == 0 => (0, GENESIS),
            _ => return Ok(false),
        };
        let numbered = (self.oldest..).zip(&self.events).filter(|(number, _)| *number >= first);
        let chain = numbered.fold(before, |chain, (_, event)| extend(&chain, event));
        if chain == self.chain { Ok(true) } else { Err(Failure::Chain) }
    }
}

impl Line {
    fn of(event: &Event) -> Self {
        Self {
            sequence: event.sequence,
            kind: Kind::of_number(event.kind).map(Kind::label),
            kind_number: event.kind,
            vm: (event.vm != NO_VM).then_some(event.vm),
            cpu: event.cpu,
            a: format!("{:#x}", event.a),
            b: format!("{:#x}", event.b),
            reason: reason::of_event(event),
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lost != 0 {
            writeln!(f, "{} events are gone", self.lost)?;
        }
        for Line { sequence, kind, kind_number, vm, cpu, a, b, reason } in &self.events {
            write!(f, "{sequence:6}  cpu {cpu:<3}  ")?;
            match vm {
                Some(vm) => write!(f, "VM {vm:<2}  ")?,
                None => write!(f, "       ")?,
            }
            match kind {
                Some(kind) => write!(f, "{kind}")?,
                None => write!(f, "kind-{kind_number}")?,
            }
            write!(f, "  {a} {b}")?;
            match reason {
                Some(reason) => writeln!(f, "  {reason}")?,
                None => writeln!(f)?,
            }
        }
        let checked =
            if self.verified { "checked" } else { "NOT CHECKED: earlier events are gone" };
        writeln!(f, "chain value before event {}: {}, {checked}", self.end, self.chain)?;
        match &self.signed {
            Some(signed) => writeln!(f, "signed: {signed}"),
            None => Ok(()),
        }
    }
}
