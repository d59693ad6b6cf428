//! A host that does with a VM's pages what it likes, and a visor that is careless with everything but
//! the current records. What must hold is asserted after each step.

use seal::key::{VmId, VmKey};
use seal::page::{GuestPage, Page, Refusal, Sealer};
use seal::record::{Resident, Sealed};

use crate::reference::Reference;

const VM: [u8; 16] = *b"a virtual machin";
const SECRET: [u8; 32] = [0x5e; 32];
const LAUNCH: [u8; 32] = [0x1a; 32];

/// The pages: neighbours, and the last that can be.
const PLACES: [u64; 3] = [0, 0x1000, (1 << 52) - 0x1000];

/// One thing that happens to the page with a number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// The VM writes a byte at a place.
    Write(u8, u16, u8),
    /// It is taken from the VM.
    Seal(u8),
    /// So it is, as if unchanged since any moment of any page.
    Reseal(u8, u8),
    /// What was ever sealed, by number, comes back, a byte at a place xored.
    Back(u8, u8, u16, u8),
    /// Its own bytes come back, and a byte of the record is xored.
    Record(u8, u8, u8),
}

/// What was sealed once.
struct Release {
    slot: usize,
    clear: Page,
    bytes: Page,
    record: Sealed,
    resident: Option<Resident>,
}

/// The system.
pub(crate) struct Run {
    sealer: Sealer,
    reference: Reference,
    clear: [Page; 3],
    /// The release that is current, while the page is away.
    away: [Option<usize>; 3],
    releases: Vec<Release>,
}

impl Run {
    pub(crate) fn new() -> Self {
        Self {
            sealer: Sealer::new(VmKey::launch(VmId(VM), &SECRET, &LAUNCH)),
            reference: Reference::new(VM, SECRET, LAUNCH),
            clear: [[0; 4096]; 3],
            away: [None; 3],
            releases: Vec::new(),
        }
    }

    pub(crate) fn step(&mut self, step: Step) {
        match step {
            Step::Write(slot, at, byte) => {
                let slot = slot_of(slot);
                if self.away[slot].is_none() {
                    self.clear[slot][usize::from(at) % 4096] = byte;
                }
            }
            Step::Seal(slot) => self.seal(slot_of(slot), None),
            Step::Reseal(slot, since) => {
                let residents: Vec<&Release> =
                    self.releases.iter().filter(|release| release.resident.is_some()).collect();
                let since = residents.get(usize::from(since) % residents.len().max(1));
                let since = since.map(|release| {
                    let same =
                        release.slot == slot_of(slot) && release.clear == self.clear[release.slot];
                    (release.resident.expect("filtered"), same.then_some(release.record))
                });
                self.seal(slot_of(slot), since);
            }
            Step::Back(slot, which, at, flip) => self.back(slot_of(slot), which, (at, flip)),
            Step::Record(slot, at, flip) => self.record(slot_of(slot), at, flip),
        }
    }

    /// `since`: a moment, and the record that must result if the page is as it was then.
    fn seal(&mut self, slot: usize, since: Option<(Resident, Option<Sealed>)>) {
        if self.away[slot].is_some() {
            return;
        }
        let (clear, mut bytes) = (self.clear[slot], self.clear[slot]);
        let record = match since {
            None => self.sealer.seal(place(slot), &mut bytes),
            Some((resident, _)) => self.sealer.reseal(place(slot), &mut bytes, resident),
        };
        let record = record.expect("versions are left");
        let former = since.and_then(|(_, former)| former);
        match former {
            Some(former) => assert_eq!(record, former, "unchanged, and yet another record"),
            None => assert!(
                self.releases.iter().all(|old| old.record.version() < record.version()),
                "no new version"
            ),
        }
        for old in &self.releases {
            let same_nonce = old.slot == slot && old.record.version() == record.version();
            assert!(!same_nonce || old.bytes == bytes, "two ciphertexts under one nonce");
        }
        let (expected, stored) = self.reference.seal(PLACES[slot], record.version(), &clear);
        assert!(bytes[..] == expected && record.to_bytes()[..] == stored, "not the format");
        assert_eq!(Sealed::from_bytes(&record.to_bytes()), Ok(record));
        self.away[slot] = Some(self.releases.len());
        self.releases.push(Release { slot, clear, bytes, record, resident: None });
    }

    fn back(&mut self, slot: usize, which: u8, (at, flip): (u16, u8)) {
        let Some(current) = self.away[slot] else {
            return;
        };
        let mut bytes = self.releases[usize::from(which) % self.releases.len()].bytes;
        bytes[usize::from(at) % 4096] ^= flip;
        let expected = bytes == self.releases[current].bytes;
        let now = &mut self.releases[current];
        match self.sealer.unseal(place(slot), &mut bytes, &now.record) {
            Ok(resident) => {
                assert!(expected, "accepted what is not the page");
                assert!(bytes == now.clear, "another content");
                now.resident = Some(resident);
                self.away[slot] = None;
            }
            Err(refusal) => {
                assert!(!expected, "refused the page itself");
                assert_eq!(refusal, Refusal::Forged(place(slot)));
                assert!(bytes == [0; 4096], "something is left of a forged page");
            }
        }
    }

    fn record(&mut self, slot: usize, at: u8, flip: u8) {
        let (Some(current), 1..) = (self.away[slot], flip) else {
            return;
        };
        let now = &self.releases[current];
        let mut stored = now.record.to_bytes();
        stored[usize::from(at) % Sealed::BYTES] ^= flip;
        let refused = match Sealed::from_bytes(&stored) {
            Ok(record) => {
                let mut bytes = now.bytes;
                let refused = self.sealer.unseal(place(slot), &mut bytes, &record);
                assert!(bytes == [0; 4096], "something is left of a forged page");
                refused.expect_err("a forged record is accepted")
            }
            Err(refusal) => refusal,
        };
        let message = refused.to_string();
        assert!(message.starts_with("sealing: ") && !message.contains('\n'));
    }
}

fn slot_of(raw: u8) -> usize {
    usize::from(raw) % PLACES.len()
}

fn place(slot: usize) -> GuestPage {
    GuestPage::at(PLACES[slot]).expect("a page")
}
