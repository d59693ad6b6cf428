//! What must hold of sealed tickets and of statements as a whole.

use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;
use ticket::build::{self, Ticket};
use ticket::error::Error;
use ticket::parse::{Progress, Sink};
use ticket::{Class, Disk, Header, Origin, PAGE, Range};

use crate::envelope::{HEADER_BYTES, INFO_BYTES, PIECE, TAG, Visor};
use crate::keys::Keys;
use crate::policy::{POLICY_BYTES, Policy, Weaknesses};
use crate::seal::{SealError, Tenant, seal, seal_unchecked};
use crate::serials::Serials;
use crate::statement::{Kind, Receipt, Statement, verify};
use crate::submission::Submission;

/// A visor of age 5 without weaknesses.
struct World {
    keys: Keys,
    tenant: Tenant,
    weaknesses: Weaknesses,
}

const ALL: Weaknesses = Weaknesses { plain_launch: true, no_iommu: true, development: true };

impl World {
    fn new() -> Self {
        let keys = Keys::new(&[7; 64], None).unwrap();
        let tenant = Tenant::new(&[8; 32]).unwrap();
        Self { keys, tenant, weaknesses: Weaknesses::default() }
    }

    fn policy(&self) -> Policy {
        let tenant = self.tenant.public();
        Policy { tenant, serial: 3, not_after: 6, permits: Weaknesses::default() }
    }

    fn sealed(&self, policy: &Policy) -> Vec<u8> {
        seal(&small(), policy, &self.tenant, self.keys.public()).unwrap()
    }

    fn read(&self, bytes: &[u8]) -> Result<(Ticket, Origin), Error> {
        let mut submission = std::boxed::Box::new(Submission::new());
        let mut ticket = Ticket::new([0; 16], [0; 32]);
        submission.begin(u32::try_from(bytes.len()).unwrap())?;
        let visor = Visor { keys: &self.keys, weaknesses: self.weaknesses, age: 5 };
        let mut progress = Progress::More;
        for word in bytes.as_chunks().0 {
            assert_eq!(submission.origin(), None);
            let taken = submission.word(u32::from_le_bytes(*word), &visor, &mut ticket);
            if let Err(error) = taken {
                assert_eq!(submission.word(0, &visor, &mut ticket), Err(error), "it stays so");
                assert_eq!(submission.origin(), None);
                return Err(error);
            }
            progress = taken.unwrap();
        }
        assert_eq!(progress, Progress::Complete, "a ticket ends with its last word");
        let origin = *submission.origin().unwrap();
        assert_eq!(submission.word(0, &visor, &mut ticket), Err(Error::NotBegun));
        Ok((ticket, origin))
    }

    fn refused(&self, bytes: &[u8]) -> Error {
        self.read(bytes).expect_err("it must be refused")
    }
}

fn described(pages: usize) -> Ticket {
    let mut ticket = Ticket::new([0x11; 16], [0x22; 32]).range(0, 1 << 30, Class::Private);
    ticket.image(PAGE, &std::vec![0x44; 4096 * pages]).unwrap();
    ticket
}

fn small() -> Vec<u8> {
    described(2).bytes().unwrap()
}

#[test]
fn a_sealed_ticket_says_what_it_said_in_clear() {
    let world = World::new();
    let sealed = world.sealed(&world.policy());
    let (ticket, origin) = world.read(&sealed).unwrap();
    assert_eq!(ticket, described(2));
    assert_eq!(origin.file, sha(&sealed));
    assert_eq!(origin.measurement, build::measurement(&small()).unwrap());
    assert_eq!((origin.tenant, origin.serial), (world.tenant.public(), 3));
    assert!(!sealed.windows(8).any(|window| window == [0x22; 8]), "the secret is seen");
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

#[test]
fn a_ticket_that_another_program_has_sealed_opens() {
    // By `vectors/sealed.py`: keys, formats and constants are those of the documentation, not of this crate.
    let sealed = include_bytes!("../vectors/sealed.bin");
    let processor: [u8; 64] = core::array::from_fn(|at| u8::try_from(at).unwrap());
    let tpm: [u8; 32] = core::array::from_fn(|at| u8::try_from(64 + at).unwrap());
    let mut world = World { keys: Keys::new(&processor, Some(&tpm)).unwrap(), ..World::new() };
    world.weaknesses.plain_launch = true;
    let (ticket, origin) = world.read(sealed).unwrap();
    assert_eq!(ticket, described(110));
    assert_eq!((origin.tenant, origin.serial), (world.tenant.public(), 3));
    world.weaknesses.no_iommu = true;
    assert_eq!(world.refused(sealed), Error::OpenToDevices);
}

#[test]
fn what_one_ticket_was_is_forgotten_when_the_next_begins() {
    let world = World::new();
    let sealed = world.sealed(&world.policy());
    let mut submission = std::boxed::Box::new(Submission::new());
    submission.begin(u32::try_from(sealed.len()).unwrap()).unwrap();
    let visor = Visor { keys: &world.keys, weaknesses: world.weaknesses, age: 5 };
    let mut ticket = Ticket::new([0; 16], [0; 32]);
    for word in sealed.as_chunks().0 {
        let _ = submission.word(u32::from_le_bytes(*word), &visor, &mut ticket).unwrap();
    }
    assert!(submission.origin().is_some());
    submission.begin(u32::try_from(sealed.len()).unwrap()).unwrap();
    assert_eq!(submission.origin(), None);
}

#[test]
fn a_ticket_in_clear_is_for_development_only() {
    let mut world = World::new();
    assert_eq!(world.refused(&small()), Error::ClearTickets);
    world.weaknesses.development = true;
    let (ticket, origin) = world.read(&small()).unwrap();
    assert_eq!(ticket, described(2));
    assert_eq!(origin.file, sha(&small()));
    assert_eq!((origin.tenant, origin.serial), ([0; 32], 0));
}

#[test]
fn a_measurement_is_of_all_but_name_and_secret() {
    let of = |ticket: &Ticket| build::measurement(&ticket.bytes().unwrap()).unwrap();
    let expected = {
        let mut bytes = small();
        bytes[16..64].fill(0);
        sha(&bytes[..bytes.len() - 32])
    };
    assert_eq!(of(&described(2)), expected);
    let mut same = described(2);
    (same.vm, same.secret) = ([1; 16], [2; 32]);
    assert_eq!(of(&same), expected);
    let mut other = described(2);
    other.processors = 2;
    assert_ne!(of(&other), expected);
    let mut other = described(2);
    let _ = other.pages.insert(PAGE, [9; 32]);
    assert_ne!(of(&other), expected);
}

#[test]
fn a_ticket_changed_in_any_byte_is_refused_for_the_reason_of_its_place() {
    let world = World::new();
    let sealed = world.sealed(&world.policy());
    for at in 0..sealed.len() {
        let mut changed = sealed.clone();
        changed[at] ^= 0x40;
        let expected = match at {
            0..8 => Error::Magic,
            8..12 => Error::OtherLength,
            12..20 => Error::Version,
            20..24 => Error::Reserved,
            24..INFO_BYTES => Error::Recipient,
            _ => Error::Sealed,
        };
        assert_eq!(world.refused(&changed), expected, "byte {at}");
    }
}

#[test]
fn a_ticket_for_another_visor_or_an_earlier_boot_is_refused() {
    let (world, other) = (World::new(), Keys::new(&[9; 64], None).unwrap());
    let sealed = seal(&small(), &world.policy(), &world.tenant, other.public()).unwrap();
    assert_eq!(world.refused(&sealed), Error::Recipient);
    // Said to be for this one, it does not open.
    let mut renamed = sealed;
    renamed[24..INFO_BYTES].copy_from_slice(&world.keys.name());
    assert_eq!(world.refused(&renamed), Error::Sealed);
}

#[test]
fn pieces_cannot_be_left_out_or_change_places() {
    let world = World::new();
    let ticket = described(200).bytes().unwrap();
    let sealed = seal(&ticket, &world.policy(), &world.tenant, world.keys.public()).unwrap();
    assert!(world.read(&sealed).is_ok());
    let piece = |number: usize| {
        let start = HEADER_BYTES + number * (PIECE + TAG);
        start..(start + PIECE + TAG).min(sealed.len())
    };
    let with = |pieces: &[usize]| {
        let mut bytes = sealed[..HEADER_BYTES].to_vec();
        pieces.iter().for_each(|number| bytes.extend(&sealed[piece(*number)]));
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes
    };
    assert!(with(&[0, 1, 2]) == sealed, "there are three");
    for pieces in [&[1, 0, 2][..], &[0, 1], &[0, 2], &[0, 1, 1, 2], &[0, 1, 2, 2], &[1, 2]] {
        assert_eq!(world.refused(&with(pieces)), Error::Sealed, "{pieces:?}");
    }
}

#[test]
fn a_ticket_that_somebody_else_signed_is_refused() {
    let world = World::new();
    let other = Tenant::new(&[3; 32]).unwrap();
    let sealed = seal_unchecked(&small(), &world.policy(), &other, world.keys.public()).unwrap();
    assert_eq!(world.refused(&sealed), Error::Signature);
    let checked = seal(&small(), &world.policy(), &other, world.keys.public());
    assert_eq!(checked, Err(SealError::Policy));
}

#[test]
fn a_visor_that_a_tenant_does_not_want_refuses_by_a_number_for_each_reason() {
    let mut world = World::new();
    type Of = fn(&mut Weaknesses) -> &mut bool;
    let reasons: [(Of, Error); 3] = [
        (|all| &mut all.plain_launch, Error::PlainLaunch),
        (|all| &mut all.no_iommu, Error::OpenToDevices),
        (|all| &mut all.development, Error::Development),
    ];
    for (weakness, error) in reasons {
        let mut permitting = Policy { permits: ALL, ..world.policy() };
        world.weaknesses = Weaknesses::default();
        *weakness(&mut world.weaknesses) = true;
        assert!(world.read(&world.sealed(&permitting)).is_ok());
        *weakness(&mut permitting.permits) = false;
        assert_eq!(world.refused(&world.sealed(&permitting)), error);
    }
}

#[test]
fn a_ticket_is_taken_below_an_age_only() {
    let world = World::new();
    for (not_after, is_taken) in [(0, false), (5, false), (6, true), (u64::MAX, true)] {
        let read = world.read(&world.sealed(&Policy { not_after, ..world.policy() }));
        assert_eq!(read.err(), (!is_taken).then_some(Error::Expired));
    }
}

#[test]
fn what_is_sealed_is_refused_without_saying_why() {
    let world = World::new();
    let public = world.keys.public();
    let mut damaged = small();
    damaged[200] ^= 1;
    let sealed = seal_unchecked(&damaged, &world.policy(), &world.tenant, public).unwrap();
    assert_eq!(world.refused(&sealed), Error::Content);
    assert_eq!(
        seal(&damaged, &world.policy(), &world.tenant, public),
        Err(SealError::Ticket(Error::Checksum))
    );
    let nothing = Policy { serial: 0, ..world.policy() };
    let sealed = seal_unchecked(&small(), &nothing, &world.tenant, public).unwrap();
    assert_eq!(world.refused(&sealed), Error::Content);
    assert_eq!(seal(&small(), &nothing, &world.tenant, public), Err(SealError::Policy));
}

#[test]
fn a_policy_has_one_encoding() {
    let policy = Policy { permits: ALL, ..World::new().policy() };
    let bytes = policy.bytes();
    assert_eq!(Policy::read(&bytes), Ok(policy));
    for (at, bit) in [(0, 1), (8, 8), (8, 0x80), (11, 1), (12, 1), (15, 0x80)] {
        let mut changed: [u8; POLICY_BYTES] = bytes;
        changed[at] ^= bit;
        assert_eq!(Policy::read(&changed), Err(Error::Content), "byte {at}");
    }
}

#[test]
fn a_refusal_by_the_sink_ends_the_ticket() {
    struct Full;
    impl Sink for Full {
        fn header(&mut self, _: &Header) -> Result<(), Error> {
            Err(Error::Memory)
        }
        fn range(&mut self, _: Range) -> Result<(), Error> {
            panic!("the header was refused")
        }
        fn disk(&mut self, _: Disk) -> Result<(), Error> {
            panic!("the header was refused")
        }
        fn page(&mut self, _: u64, _: &[u8; 32]) -> Result<(), Error> {
            panic!("the header was refused")
        }
    }
    let world = World::new();
    let sealed = world.sealed(&world.policy());
    let visor = Visor { keys: &world.keys, weaknesses: world.weaknesses, age: 0 };
    let mut submission = Submission::new();
    submission.begin(u32::try_from(sealed.len()).unwrap()).unwrap();
    let words = sealed.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
    let taken: Vec<_> = words.map(|word| submission.word(word, &visor, &mut Full)).collect();
    assert_eq!(taken.last(), Some(&Err(Error::Memory)));
}

#[test]
fn a_length_that_no_sealed_ticket_has_is_refused() {
    let world = World::new();
    let sealed = world.sealed(&world.policy());
    for length in (184..sealed.len() + 64).step_by(8).filter(|length| *length != sealed.len()) {
        let mut other = sealed.clone();
        other.resize(length, 0);
        let said = u32::try_from(length).unwrap();
        other[8..12].copy_from_slice(&said.to_le_bytes());
        let error = world.refused(&other);
        assert!([Error::Length, Error::Sealed].contains(&error), "{length}: {error:?}");
    }
}

fn origin(tenant: u8, serial: u64) -> Origin {
    Origin { tenant: [tenant; 32], serial, ..Origin::default() }
}

/// What is only looked at is not spent.
fn take(serials: &mut Serials, ticket: Origin) -> Result<(), Error> {
    let checked = serials.check(&ticket);
    assert_eq!(serials.check(&ticket), checked);
    checked.map(|()| serials.note(&ticket))
}

#[test]
fn no_serial_is_taken_twice_and_none_below_it() {
    let mut serials = Serials::new();
    let expected = [
        (origin(1, 5), Ok(())),
        (origin(1, 5), Err(Error::Replayed)),
        (origin(1, 4), Err(Error::Replayed)),
        (origin(2, 4), Ok(())),
        (origin(1, 6), Ok(())),
        (origin(1, 5), Err(Error::Replayed)),
        // Tickets in clear have no tenant.
        (Origin::default(), Ok(())),
        (Origin::default(), Ok(())),
    ];
    for (ticket, result) in expected {
        assert_eq!(take(&mut serials, ticket), result, "{ticket:?}");
    }
}

#[test]
fn there_is_room_for_64_tenants_and_tickets_in_clear_take_none() {
    let mut serials = Serials::new();
    assert_eq!(take(&mut serials, Origin::default()), Ok(()));
    for tenant in 1..=64 {
        assert_eq!(take(&mut serials, origin(tenant, 1)), Ok(()));
    }
    assert_eq!(take(&mut serials, origin(65, 1)), Err(Error::Tenants));
    assert_eq!(take(&mut serials, origin(64, 2)), Ok(()));
    assert_eq!(take(&mut serials, Origin::default()), Ok(()));
}

fn statements() -> [Statement; 3] {
    let origin =
        Origin { file: [1; 32], measurement: [2; 32], tenant: [3; 32], serial: 0x0405_0607 };
    let receipt = Receipt { origin, vm: [8; 16], launch: 9, state: 2, cause: 10 };
    [
        Statement::Nonce { age: 77 },
        Statement::Receipt(receipt),
        Statement::AuditHead { events: 12, chain: [13; 32] },
    ]
}

#[test]
fn a_statement_is_believed_as_it_was_signed_only() {
    let (keys, other) = (World::new().keys, Keys::new(&[1; 64], None).unwrap());
    let nonce = [0xaa; 32];
    for statement in statements() {
        let kind = statement.kind();
        let body = statement.body(&nonce);
        let signature = keys.state(kind, &body);
        let public = keys.public();
        let checked = |kind, body: &[u8], signature: &[u8; 64], nonce: &[u8; 32]| {
            verify(public, kind, (body, signature), nonce)
        };
        assert_eq!(checked(kind, &body, &signature, &nonce), Some(statement));
        assert_eq!(checked(kind, &body, &signature, &[0; 32]), None, "another nonce");
        assert_eq!(verify(other.public(), kind, (&body, &signature), &nonce), None);
        for at in 0..body.len() {
            let mut changed = body.to_vec();
            changed[at] ^= 1;
            assert_eq!(checked(kind, &changed, &signature, &nonce), None, "byte {at}");
            assert_eq!(checked(kind, &body[..at], &signature, &nonce), None, "cut at {at}");
        }
        let mut longer = body.to_vec();
        longer.push(0);
        assert_eq!(checked(kind, &longer, &signature, &nonce), None);
        for at in 0..64 {
            let mut changed = signature;
            changed[at] ^= 1;
            assert_eq!(checked(kind, &body, &changed, &nonce), None, "byte {at}");
        }
    }
}

#[test]
fn a_statement_of_one_kind_is_none_of_another() {
    let keys = World::new().keys;
    let body = Statement::Nonce { age: 1 }.body(&[0; 32]);
    let label = |kind: Kind| keys.state(kind, &body);
    let signatures = [Kind::Nonce, Kind::Receipt, Kind::AuditHead].map(label);
    assert!(signatures[0] != signatures[1] && signatures[1] != signatures[2]);
    assert_eq!(verify(keys.public(), Kind::Nonce, (&body, &signatures[1]), &[0; 32]), None);
    for kind in [Kind::Nonce, Kind::Receipt, Kind::AuditHead] {
        assert_eq!(Kind::of_number(kind.number()), Some(kind));
    }
    assert_eq!(Kind::of_number(0), None);
}

/// So that other implementations can be written from the documentation.
#[test]
fn the_signed_bytes_are_those_of_the_documentation() {
    let keys = World::new().keys;
    let mut message = b"visor statement 1\0audit-head\0".to_vec();
    message.extend([0xaa; 32]);
    message.extend(12_u64.to_le_bytes());
    message.extend([13; 32]);
    let statement = statements()[2];
    let signature = keys.state(Kind::AuditHead, &statement.body(&[0xaa; 32]));
    assert!(crate::keys::is_signed(keys.public().last_chunk().unwrap(), &message, &signature));
    assert_eq!(statements()[1].body(&[0; 32]).len(), crate::statement::MAX_BODY);
}

#[test]
fn every_error_of_sealing_is_one_line() {
    let errors =
        [SealError::Ticket(Error::Magic), SealError::Policy, SealError::Key, SealError::Length];
    for error in errors {
        assert!(!error.to_string().contains('\n'), "{error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn tickets_of_every_length_are_sealed_and_opened(pages in 0_usize..400) {
        let world = World::new();
        let ticket = described(pages);
        let bytes = ticket.bytes().unwrap();
        let sealed = seal(&bytes, &world.policy(), &world.tenant, world.keys.public()).unwrap();
        prop_assert_eq!(world.read(&sealed).unwrap().0, ticket);
    }

    #[test]
    fn arbitrary_bytes_are_no_sealed_ticket(mut bytes: Vec<[u8; 8]>, magic: bool) {
        let world = World::new();
        if magic {
            let _ = bytes.splice(0..0, [*b"VISRTKS1"]);
        }
        prop_assert!(world.read(bytes.as_flattened()).is_err());
    }
}
