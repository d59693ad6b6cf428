//! Event logs in the crypto-agile format (TCG PC Client Platform Firmware Profile, 1.06, 10).

use std::collections::BTreeMap;

use crate::bank::Bank;
use crate::reader::Reader;

/// EV_NO_ACTION: extends no PCR.
pub const NO_ACTION: u32 = 3;
/// EV_EVENT_TAG: the event is a number, a length, and as many bytes.
pub const TAGGED: u32 = 6;
/// EV_IPL: GRUB's commands and files.
pub const IPL: u32 = 13;

const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";
/// More algorithms than any TPM has.
const MOST_BANKS: u32 = 16;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The PCR it extends.
    pub pcr: u32,
    /// What it is: [`NO_ACTION`], [`TAGGED`], [`IPL`], …
    pub kind: u32,
    /// What it extends the PCR by, in each bank that this program knows.
    pub digests: BTreeMap<Bank, Vec<u8>>,
    /// What is said of it.
    pub data: Vec<u8>,
}

/// A log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// All events but the header, in order.
    pub events: Vec<Event>,
}

/// Why bytes are no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLog {
    /// They do not begin with the header of a crypto-agile log.
    Header,
    /// The event with this number, from 0, ends too early, or says what the header does not permit.
    Event(usize),
}

impl std::fmt::Display for NoLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("no header of a crypto-agile log"),
            Self::Event(at) => write!(f, "event {at} is malformed or cut off"),
        }
    }
}

impl Log {
    /// Reads a log. It ends where its bytes end.
    ///
    /// # Errors
    /// [`NoLog`].
    pub fn parse(bytes: &[u8]) -> Result<Self, NoLog> {
        let mut reader = Reader(bytes);
        let sizes = header(&mut reader).ok_or(NoLog::Header)?;
        let mut events = Vec::new();
        while !reader.is_done() {
            let event = event(&mut reader, &sizes).ok_or(NoLog::Event(events.len()))?;
            events.push(event);
        }
        Ok(Self { events })
    }

    /// The events that extend `pcr`.
    pub fn extending(&self, pcr: u8) -> impl Iterator<Item = &Event> {
        self.events
            .iter()
            .filter(move |event| event.pcr == u32::from(pcr) && event.kind != NO_ACTION)
    }

    /// The locality from which the firmware started the TPM, which is what PCR 0 begins with.
    #[must_use]
    pub fn startup_locality(&self) -> Option<u8> {
        let of = |event: &Event| {
            let (mark, rest) = event.data.split_first_chunk()?;
            let is_it = (event.pcr, event.kind, mark) == (0, NO_ACTION, STARTUP_LOCALITY);
            rest.first().copied().filter(|_| is_it)
        };
        self.events.iter().find_map(of)
    }

    /// The value that `pcr` has after all events, if it began with `first`. `None` where an event has no
    /// digest in this bank.
    #[must_use]
    pub fn replay(&self, bank: Bank, pcr: u8, first: Vec<u8>) -> Option<Vec<u8>> {
        self.extending(pcr)
            .try_fold(first, |value, event| Some(bank.hash(&[&value, event.digests.get(&bank)?])))
    }
}

/// The header, TCG_EfiSpecIdEvent in an event of the old format: how long the digests of each algorithm
/// are.
fn header(r: &mut Reader<'_>) -> Option<BTreeMap<u16, usize>> {
    let (pcr, kind) = (r.le32()?, r.le32()?);
    let _digest = r.array::<20>()?;
    let mut r = Reader(r.long()?);
    if (pcr, kind) != (0, NO_ACTION) || r.array::<16>()? != *SPEC_ID {
        return None;
    }
    let _class = r.le32()?;
    let _version = r.array::<4>()?;
    let count = r.le32().filter(|count| *count <= MOST_BANKS)?;
    let mut sizes = BTreeMap::new();
    for _ in 0..count {
        let (id, size) = (r.le16()?, usize::from(r.le16()?));
        let is_right = Bank::of(id).is_none_or(|bank| bank.bytes() == size);
        if !is_right || sizes.insert(id, size).is_some() {
            return None;
        }
    }
    let vendor = r.byte()?;
    let _vendor = r.take(usize::from(vendor))?;
    r.is_done().then_some(sizes)
}

/// TCG_PCR_EVENT2: with one digest for each algorithm of the header's.
fn event(r: &mut Reader<'_>, sizes: &BTreeMap<u16, usize>) -> Option<Event> {
    let (pcr, kind) = (r.le32()?, r.le32()?);
    let count = r.le32()?;
    if usize::try_from(count).ok()? != sizes.len() {
        return None;
    }
    let (mut seen, mut digests) = (Vec::new(), BTreeMap::new());
    for _ in 0..count {
        let id = r.le16().filter(|id| !seen.contains(id))?;
        let digest = r.take(*sizes.get(&id)?)?;
        seen.push(id);
        if let Some(bank) = Bank::of(id) {
            let _ = digests.insert(bank, digest.to_vec());
        }
    }
    Some(Event { pcr, kind, digests, data: r.long()?.to_vec() })
}
