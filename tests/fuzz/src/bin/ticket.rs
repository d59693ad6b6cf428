//! Tickets: a first byte that says whether the rest gets the length and the checksum of a ticket, and
//! where the sink refuses; then a ticket.
#![no_main]

use sha2::{Digest, Sha256};
use ticket::build::{Ticket, parse};
use ticket::error::Error;
use ticket::parse::{Parser, Progress, Sink};
use ticket::{ADDRESS_END, Class, Disk, Header, PAGE, Range, State};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&control, ticket)) = data.split_first() else {
        return;
    };
    let mut bytes = ticket.to_vec();
    if control & 1 != 0 {
        repair(&mut bytes);
    }
    let mut read = Ticket::new([0; 16], [0; 32]);
    let result = parse(&bytes, &mut read);
    match (&result, model(&bytes)) {
        (Ok(()), Some(expected)) => {
            assert_eq!(read, expected);
            // No two sequences of bytes say the same.
            assert_eq!(read.bytes_unchecked(), bytes);
        }
        (Err(error), None) => fuzz::one_line(&error.to_string()),
        (result, expected) => panic!("{result:?}, but the model says {expected:?}"),
    }
    check_stream(&bytes, result, usize::from(control >> 1));
});

/// Gives the bytes the length and the checksum that they would have as a ticket.
fn repair(bytes: &mut [u8]) {
    let length = u32::try_from(bytes.len()).expect("inputs are short");
    if let Some(field) = bytes.get_mut(8..12) {
        field.copy_from_slice(&length.to_le_bytes());
    }
    if let Some((said, checksum)) = bytes.split_last_chunk_mut::<32>() {
        *checksum = Sha256::digest(said).into();
    }
}

/// What a ticket says, by reading it as a whole.
fn model(bytes: &[u8]) -> Option<Ticket> {
    let (said, checksum) = bytes.split_last_chunk::<32>()?;
    let u32_at =
        |at: usize| said.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    let u64_at =
        |at: usize| said.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap()));
    let hash_at = |at: usize| said.get(at..at + 32).map(|b| <[u8; 32]>::try_from(b).unwrap());
    let (ranges, pages) =
        (usize::try_from(u32_at(104)?).ok()?, usize::try_from(u32_at(108)?).ok()?);
    let first_page = 128 + 24 * ranges;
    let is_well = Sha256::digest(said)[..] == checksum[..]
        && said.starts_with(b"VISRTKT1")
        && usize::try_from(u32_at(8)?).ok()? == bytes.len()
        && said.len() == first_page + 40 * pages
        && u32_at(12)? == 1
        && u32_at(68)? == 0
        && u32_at(112)? < 64
        && said[120..128] == [0; 8]
        && (1..=16).contains(&ranges);
    if !is_well {
        return None;
    }
    let mut ticket = Ticket::new(said[16..32].try_into().unwrap(), hash_at(32)?);
    ticket.state = match (u32_at(64)?, hash_at(72)?) {
        (0, hash) if hash == [0; 32] => State::Reset,
        (1, hash) => State::Hashed(hash),
        (2, hash) if hash[4..] == [0; 28] => {
            State::ResetIn(u32_at(72).filter(|base| u64::from(*base).is_multiple_of(PAGE))?)
        }
        _ => return None,
    };
    ticket.processors = u32_at(112)? + 1;
    ticket.restarts = u32_at(116)?;
    if ticket.restarts != 0 && matches!(ticket.state, State::Hashed(_)) {
        return None;
    }
    for at in (128..first_page).step_by(24) {
        let class = [Class::Private, Class::Shared, Class::Window, Class::Virtio, Class::VirtioPci];
        let class = *class.get(usize::try_from(u32_at(at + 16)?.checked_sub(1)?).ok()?)?;
        ticket = ticket.range(u64_at(at)?, u64_at(at + 8)?, class);
        let Range { start, length, .. } = *ticket.ranges.last()?;
        let is_range =
            u32_at(at + 20)? == 0 && (start | length).is_multiple_of(PAGE) && length != 0;
        if !is_range || u128::from(start) + u128::from(length) > u128::from(ADDRESS_END) {
            return None;
        }
    }
    let ascend = |pair: &[Range]| pair[0].start + pair[0].length <= pair[1].start;
    let private: Vec<_> = ticket.ranges.iter().filter(|r| r.class == Class::Private).collect();
    let of = |class| ticket.ranges.iter().filter(move |range| range.class == class);
    let lengths = |class| of(class).map(|range| range.length).collect::<Vec<_>>();
    let transports = [lengths(Class::Virtio), lengths(Class::VirtioPci)];
    let has_room = transports == [vec![], vec![]]
        || (transports == [vec![PAGE], vec![]] || transports == [vec![], vec![128 << 10]])
            && (1..=8).contains(&of(Class::Shared).count())
            && of(Class::Shared)
                .all(|part| part.start != 0 && (264 << 10..=64 << 20).contains(&part.length));
    if !ticket.ranges.windows(2).all(ascend) || private.is_empty() || !has_room {
        return None;
    }
    let addresses: Vec<u64> =
        (0..pages).filter_map(|page| u64_at(first_page + 40 * page)).collect();
    let is_page = |page: &u64| {
        page.is_multiple_of(PAGE)
            && private.iter().any(|r| (r.start..r.start + r.length).contains(page))
    };
    if !addresses.is_sorted_by(|a, b| a < b) || !addresses.iter().all(is_page) {
        return None;
    }
    for (page, address) in addresses.iter().enumerate() {
        ticket.pages.insert(*address, hash_at(first_page + 40 * page + 8)?);
    }
    Some(ticket)
}

/// A sink that refuses one of its calls.
struct Picky {
    calls: usize,
    refuses: usize,
}

impl Picky {
    fn call(&mut self) -> Result<(), Error> {
        assert!(self.calls <= self.refuses, "it was called after it had refused");
        self.calls += 1;
        if self.calls > self.refuses { Err(Error::Memory) } else { Ok(()) }
    }
}

impl Sink for Picky {
    fn header(&mut self, _: &Header) -> Result<(), Error> {
        assert_eq!(self.calls, 0);
        self.call()
    }

    fn range(&mut self, _: Range) -> Result<(), Error> {
        self.call()
    }

    fn disk(&mut self, _: Disk) -> Result<(), Error> {
        self.call()
    }

    fn page(&mut self, _: u64, _: &[u8; 32]) -> Result<(), Error> {
        self.call()
    }
}

/// Word by word: the first error is the last word, whoever had it, and an end is an end.
fn check_stream(bytes: &[u8], result: Result<(), Error>, refuses: usize) {
    let Ok(mut parser) = Parser::new(u32::try_from(bytes.len()).expect("inputs are short")) else {
        return;
    };
    let mut sink = Picky { calls: 0, refuses };
    let mut ended = None;
    for word in bytes.as_chunks().0 {
        let taken = parser.word(u32::from_le_bytes(*word), &mut sink);
        match ended {
            None if taken == Ok(Progress::More) => {}
            None => ended = Some(taken),
            Some(Err(error)) => assert_eq!(taken, Err(error)),
            Some(Ok(_)) => panic!("a word after the end was taken"),
        }
    }
    if sink.calls > refuses {
        assert_eq!(ended, Some(Err(Error::Memory)));
    } else {
        assert_eq!(ended.unwrap_or(Err(Error::Length)).map(drop), result);
    }
    assert!(parser.word(0, &mut sink).is_err() || ended.is_none());
}
