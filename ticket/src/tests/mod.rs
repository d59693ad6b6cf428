//! What must hold of tickets as a whole.

mod disks;
mod seeds;

use std::collections::BTreeMap;
use std::format;
use std::vec::Vec;

use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::build::{Discard, ImageError, Ticket, parse};
use crate::error::Error;
use crate::parse::{Parser, Progress, Sink};
use crate::{
    ADDRESS_END, Class, Disk, HEADER_BYTES, Header, PAGE, RANGE_BYTES, Range, Secret, State,
};

const EMPTY: Ticket = Ticket::new([0; 16], [0; 32]);

/// Three ranges, two pages.
fn small() -> Ticket {
    let mut ticket = Ticket::new([0x11; 16], [0x22; 32])
        .range(0, 4 * PAGE, Class::Private)
        .range(4 * PAGE, PAGE, Class::Shared)
        .range(8 * PAGE, PAGE, Class::Window);
    ticket.state = State::Hashed([0x33; 32]);
    ticket.processors = 3;
    ticket.image(PAGE, &[0x44; 5000]).unwrap();
    ticket
}

fn read(bytes: &[u8]) -> Result<Ticket, Error> {
    let mut ticket = EMPTY;
    parse(bytes, &mut ticket).map(|()| ticket)
}

/// The small ticket with `new` at `offset` and the right checksum.
fn changed(offset: usize, new: &[u8]) -> Result<Ticket, Error> {
    changed_in(&small(), offset, new)
}

/// Likewise of any ticket.
fn changed_in(ticket: &Ticket, offset: usize, new: &[u8]) -> Result<Ticket, Error> {
    let mut bytes = ticket.bytes().unwrap();
    bytes[offset..offset + new.len()].copy_from_slice(new);
    let end = bytes.len() - 32;
    let checksum = Sha256::digest(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum);
    read(&bytes)
}

const FIRST_RANGE: usize = HEADER_BYTES;
const SECOND_RANGE: usize = FIRST_RANGE + RANGE_BYTES;
const FIRST_PAGE: usize = FIRST_RANGE + 3 * RANGE_BYTES;
const SECOND_PAGE: usize = FIRST_PAGE + 40;

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::Private), Just(Class::Shared), Just(Class::Window)]
}

fn state() -> impl Strategy<Value = State> {
    let base = (0_u32..1 << 20).prop_map(|page| State::ResetIn(page << 12));
    prop_oneof![Just(State::Reset), any::<[u8; 32]>().prop_map(State::Hashed), base]
}

prop_compose! {
    /// Any ticket that is right: ranges with gaps from a private one on, pages within private ones.
    fn tickets()(
        vm in any::<[u8; 16]>(),
        secret in any::<[u8; 32]>(),
        state in state(),
        processors in 1_u32..=64,
        restarts: u32,
        first in 0..ADDRESS_END / PAGE / 2,
        pieces in prop::collection::vec((0..1_u64 << 20, 1..1_u64 << 20, class()), 0..16),
        pages in prop::collection::vec((any::<prop::sample::Index>(), any::<[u8; 32]>()), 0..40),
    ) -> Ticket {
        let mut ticket = Ticket::new(vm, secret).range(first * PAGE, 50 * PAGE, Class::Private);
        ticket.state = state;
        ticket.processors = processors;
        ticket.restarts = if matches!(state, State::Hashed(_)) { 0 } else { restarts };
        let mut end = first + 50;
        for (gap, length, class) in pieces {
            ticket = ticket.range((end + gap) * PAGE, length * PAGE, class);
            end += gap + length;
        }
        let is_private = |range: &&Range| range.class == Class::Private;
        let private: Vec<Range> = ticket.ranges.iter().filter(is_private).copied().collect();
        for (place, hash) in pages {
            let range = private[place.index(private.len())];
            let page = place.index(usize::try_from(range.length / PAGE).unwrap());
            let address = range.start + u64::try_from(page).unwrap() * PAGE;
            let _ = ticket.pages.insert(address, hash);
        }
        ticket
    }
}

proptest! {
    #[test]
    fn a_ticket_that_was_made_reads_back(ticket in tickets()) {
        prop_assert_eq!(read(&ticket.bytes().unwrap()).unwrap(), ticket);
    }

    #[test]
    fn a_ticket_that_ends_early_is_refused(ticket in tickets(), cut in any::<prop::sample::Index>()) {
        let bytes = ticket.bytes().unwrap();
        let cut = cut.index(bytes.len());
        prop_assert!(read(&bytes[..cut]).is_err());
        // The words that are there are not a ticket either, whatever length was announced.
        let mut parser = Parser::new(u32::try_from(bytes.len()).unwrap()).unwrap();
        for word in bytes[..cut].as_chunks().0 {
            prop_assert_eq!(parser.word(u32::from_le_bytes(*word), &mut Discard), Ok(Progress::More));
        }
    }

    #[test]
    fn any_change_of_a_ticket_is_refused(
        ticket in tickets(), at in any::<prop::sample::Index>(), bits in 1..=255_u8,
    ) {
        let mut bytes = ticket.bytes().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn what_is_accepted_is_what_would_have_been_made(
        mut bytes in tickets().prop_map(|ticket| ticket.bytes().unwrap()),
        at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        // With the right checksum, a change is either refused or another ticket: no two
        // sequences of bytes say the same.
        let end = bytes.len() - 32;
        bytes[at.index(end)] = value;
        let checksum = Sha256::digest(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum);
        if let Ok(ticket) = read(&bytes) {
            prop_assert_eq!(ticket.bytes_unchecked(), bytes);
        }
    }
}

#[test]
fn each_flipped_bit_is_refused() {
    let bytes = small().bytes().unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn the_layout_is_the_documented_one() {
    let hex =
        |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let mut page = [0; 4096];
    page[..904].fill(0x44);
    let expected = [
        hex(b"VISRTKT1"),
        // 128 + 3 * 24 + 2 * 40 + 32 bytes, version 1.
        "38010000 01000000".into(),
        "11".repeat(16),
        "22".repeat(32),
        "01000000 00000000".into(),
        "33".repeat(32),
        "03000000 02000000".into(),
        "02000000".into(),
        "00000000".into(),
        "00".repeat(8),
        "0000000000000000 0040000000000000 01000000 00000000".into(),
        "0040000000000000 0010000000000000 02000000 00000000".into(),
        "0080000000000000 0010000000000000 03000000 00000000".into(),
        "0010000000000000".into(),
        hex(&Sha256::digest([0x44; 4096])),
        "0020000000000000".into(),
        hex(&Sha256::digest(page)),
    ]
    .concat()
    .replace(' ', "");
    let bytes = small().bytes().unwrap();
    let (said, checksum) = bytes.split_at(bytes.len() - 32);
    assert_eq!(hex(said), expected);
    assert_eq!(checksum, &Sha256::digest(said)[..]);
}

#[test]
fn every_fault_has_its_own_error() {
    let page = PAGE.to_le_bytes();
    let cases: &[(usize, &[u8], Error)] = &[
        (0, b"X", Error::Magic),
        (8, &[0x40], Error::OtherLength),
        (8, &[0x30], Error::OtherLength),
        (12, &[2], Error::Version),
        (64, &[3], Error::StateKind),
        (64, &[2], Error::StateHash),
        (64, &[0], Error::StateHash),
        (68, &[0, 0, 0, 1], Error::Flags),
        (104, &[0], Error::RangeCount),
        (104, &[17], Error::RangeCount),
        (104, &[2], Error::Counts),
        (108, &[3], Error::Counts),
        (108, &[0xff; 4], Error::Counts),
        (112, &[64], Error::Processors),
        (112, &[0xff; 4], Error::Processors),
        (116, &[1], Error::RestartState),
        (116, &[0, 0, 0, 0x80], Error::RestartState),
        (120, &[1], Error::Counts),
        (120, &[0xff; 4], Error::Counts),
        (124, &[1], Error::Reserved),
        (127, &[1], Error::Reserved),
        (FIRST_RANGE, &[1], Error::RangeAlignment),
        (FIRST_RANGE + 8, &[1], Error::RangeAlignment),
        (FIRST_RANGE + 8, &[0; 8], Error::RangeAlignment),
        (FIRST_RANGE + 8, &(5 * PAGE).to_le_bytes(), Error::RangeOrder),
        (FIRST_RANGE + 16, &[0], Error::RangeClass),
        (FIRST_RANGE + 16, &[6], Error::RangeClass),
        (FIRST_RANGE + 20, &[1], Error::Reserved),
        (FIRST_RANGE + 16, &[2], Error::NoPrivate),
        (SECOND_RANGE + 16, &[4], Error::Transports),
        (SECOND_RANGE + 16, &[5], Error::Transports),
        (SECOND_RANGE, &[0; 8], Error::RangeOrder),
        (SECOND_RANGE, &(9 * PAGE).to_le_bytes(), Error::RangeOrder),
        (SECOND_RANGE, &ADDRESS_END.to_le_bytes(), Error::RangeEnd),
        (SECOND_RANGE, &(ADDRESS_END - PAGE).to_le_bytes(), Error::RangeOrder),
        (SECOND_RANGE, &(u64::MAX - PAGE + 1).to_le_bytes(), Error::RangeEnd),
        (FIRST_PAGE, &[1], Error::PageAlignment),
        (SECOND_PAGE, &page, Error::PageOrder),
        (SECOND_PAGE, &[0; 8], Error::PageOrder),
        (SECOND_PAGE, &(4 * PAGE).to_le_bytes(), Error::PageOutside),
        (SECOND_PAGE, &(20 * PAGE).to_le_bytes(), Error::PageOutside),
    ];
    for (offset, new, error) in cases {
        assert_eq!(changed(*offset, new), Err(*error), "{offset}: {new:x?}");
    }
    let mut bytes = small().bytes().unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(read(&bytes), Err(Error::Checksum));
}

#[test]
fn virtio_devices_are_in_one_range_and_have_a_shared_range_each() {
    for (class, pages) in [(Class::Virtio, 1), (Class::VirtioPci, 32)] {
        transports(class, pages);
    }
}

fn transports(class: Class, enough: u64) {
    let shared = |count: u64| {
        let add = |ticket: Ticket, at| ticket.range((at + 1) << 20, 66 * PAGE, Class::Shared);
        (0..count).fold(EMPTY.range(0, PAGE, Class::Private), add)
    };
    let with = |count, pages| shared(count).range(32 << 20, pages * PAGE, class);
    let made = |ticket: Ticket| ticket.bytes().map(drop);
    assert_eq!(made(shared(9)), Ok(()));
    for (count, expected) in [(0, false), (1, true), (8, true), (9, false)] {
        assert_eq!(made(with(count, enough)).is_ok(), expected, "{count}");
    }
    for wrong in [enough - 1, enough + 1] {
        let wrong = made(with(1, wrong.max(2)));
        assert_eq!(wrong, Err(Error::Transports));
    }
    for (more, pages) in [(Class::Virtio, 1), (Class::VirtioPci, 32)] {
        let both = with(1, enough).range(64 << 20, pages * PAGE, more);
        assert_eq!(made(both), Err(Error::Transports));
    }
}

#[test]
fn the_shared_range_of_a_virtio_device_is_not_at_0_and_has_264_kib_to_64_mib() {
    const PAGES: u64 = (64 << 20) / PAGE;
    let alone = |at, pages| {
        EMPTY.range(at, pages * PAGE, Class::Shared).range(128 << 20, PAGE, Class::Private)
    };
    let with = |at, pages| alone(at, pages).range(1 << 30, PAGE, Class::Virtio).bytes().map(drop);
    for (at, pages, is_right) in [
        (PAGE, 65, false),
        (PAGE, 66, true),
        (PAGE, PAGES, true),
        (PAGE, PAGES + 1, false),
        (0, 66, false),
    ] {
        let expected = if is_right { Ok(()) } else { Err(Error::SharedSize) };
        assert_eq!(with(at, pages), expected, "{pages} pages at {at}");
        assert_eq!(alone(at, pages).bytes().map(drop), Ok(()), "no device, no matter");
    }
    let second = alone(PAGE, 66).range(512 << 20, PAGE, Class::Shared);
    let second = second.range(1 << 30, PAGE, Class::Virtio);
    assert_eq!(second.bytes().map(drop), Err(Error::SharedSize), "of every device");
}

#[test]
fn only_what_begins_in_the_reset_state_may_be_started_anew() {
    let mut ticket = EMPTY.range(0, PAGE, Class::Private);
    ticket.restarts = u32::MAX;
    assert_eq!(ticket.bytes().map(drop), Ok(()));
    ticket.state = State::ResetIn(PAGE.try_into().unwrap());
    assert_eq!(ticket.bytes().map(drop), Ok(()));
    ticket.state = State::Hashed([1; 32]);
    assert_eq!(ticket.bytes().map(drop), Err(Error::RestartState));
}

#[test]
fn a_state_after_reset_elsewhere_is_an_address_of_a_page_and_nothing_else() {
    let at = |base| Ticket { state: State::ResetIn(base), ..small() };
    let mut bytes = at(0xffff_f000).bytes().unwrap();
    assert_eq!(
        (&bytes[64..68], &bytes[72..78]),
        (&[2, 0, 0, 0][..], &[0, 0xf0, 0xff, 0xff, 0, 0][..])
    );
    for wrong in [1, 0x800, 0x10_0010] {
        assert_eq!(at(wrong).bytes().map(drop), Err(Error::StateHash));
    }
    bytes[76] = 1;
    assert_eq!(read(&bytes), Err(Error::StateHash), "it has 32 bits");
}

#[test]
fn the_highest_address_is_the_last_that_a_range_may_have() {
    let top = |end: u64| EMPTY.range(end - PAGE, PAGE, Class::Private).bytes().map(|_| ());
    assert_eq!(top(ADDRESS_END), Ok(()));
    assert_eq!(top(ADDRESS_END + PAGE), Err(Error::RangeEnd));
}

#[test]
fn sixteen_ranges_are_the_most() {
    let many = |count: u64| {
        let add = |ticket: Ticket, at| ticket.range(at * PAGE, PAGE, Class::Private);
        (0..count).fold(EMPTY, add).bytes().map(|_| ())
    };
    assert_eq!(many(16), Ok(()));
    assert_eq!(many(17), Err(Error::RangeCount));
    assert_eq!(many(0), Err(Error::Length));
}

#[test]
fn a_length_that_no_ticket_has_is_refused_before_its_first_word() {
    for length in [0, 4, 128, 183, 176, 185, 188, u32::MAX] {
        assert!(matches!(Parser::new(length), Err(Error::Length)), "{length}");
    }
    assert!(Parser::new(184).is_ok());
}

#[test]
fn after_an_error_no_word_is_taken_and_the_sink_sees_nothing_more() {
    struct Once(u32);
    impl Sink for Once {
        fn header(&mut self, _: &Header) -> Result<(), Error> {
            self.0 += 1;
            Ok(())
        }
        fn range(&mut self, _: Range) -> Result<(), Error> {
            self.0 += 1;
            Err(Error::Memory)
        }
        fn disk(&mut self, _: Disk) -> Result<(), Error> {
            self.0 += 1;
            Ok(())
        }
        fn page(&mut self, _: u64, _: &[u8; 32]) -> Result<(), Error> {
            self.0 += 1;
            Ok(())
        }
    }
    let bytes = small().bytes().unwrap();
    let mut sink = Once(0);
    let mut parser = Parser::new(u32::try_from(bytes.len()).unwrap()).unwrap();
    for (at, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
        let taken = parser.word(u32::from_le_bytes(*word), &mut sink);
        let is_over = (at + 1) * 4 >= HEADER_BYTES + RANGE_BYTES;
        assert_eq!(taken, if is_over { Err(Error::Memory) } else { Ok(Progress::More) });
    }
    assert_eq!(sink.0, 2);
}

#[test]
fn after_the_last_word_none_is_taken() {
    let bytes = small().bytes().unwrap();
    let mut parser = Parser::new(u32::try_from(bytes.len()).unwrap()).unwrap();
    let words = bytes.as_chunks().0;
    let last = words.iter().map(|word| parser.word(u32::from_le_bytes(*word), &mut Discard)).last();
    assert_eq!(last, Some(Ok(Progress::Complete)));
    assert_eq!(parser.word(0, &mut Discard), Err(Error::NotBegun));
}

#[test]
fn an_image_becomes_the_hashes_of_its_pages() {
    let mut ticket = EMPTY;
    ticket.image(2 * PAGE, &[7; 4097]).unwrap();
    let mut last = [0; 4096];
    last[0] = 7;
    let hash = |page: &[u8; 4096]| <[u8; 32]>::from(Sha256::digest(page));
    let expected = BTreeMap::from([(2 * PAGE, hash(&[7; 4096])), (3 * PAGE, hash(&last))]);
    assert_eq!(ticket.pages, expected);
    assert_eq!(ticket.image(3 * PAGE, &[1]), Err(ImageError::Twice(3 * PAGE)));
    assert_eq!(ticket.image(1, &[1]), Err(ImageError::Address(1)));
    assert_eq!(ticket.image(ADDRESS_END, &[1]), Err(ImageError::Address(ADDRESS_END)));
}

#[test]
fn nothing_of_a_secret_is_printed() {
    let secret = Secret::new([0xa5; 32]);
    assert_eq!(format!("{secret:?}"), "Secret { .. }");
    let ticket = format!("{:?}", Ticket::new([1; 16], [0xa5; 32]));
    assert!(!ticket.contains("165"), "{ticket}");
    let parser = Parser::new(184).unwrap();
    assert_eq!(format!("{parser:?}"), "Parser { length: 184, .. }");
}
