//! Reading a ticket, one word at a time.

use core::{fmt, mem};

use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::error::Error;
use crate::fields::Fields;
use crate::{
    ADDRESS_END, Class, DISK_BLOCKS, DISK_BYTES, DISK_TOTAL, Disk, HEADER_BYTES, Header, MAGIC,
    MAX_PROCESSORS, MAX_RANGES, MAX_TRANSPORTS, PAGE, PAGE_BYTES, RANGE_BYTES, Range, Secret,
    State, TRAILER_BYTES, TRANSPORT_SHARED, VERSION,
};

/// Takes what a ticket says as it arrives.
///
/// Nothing of it counts before [`Progress::Complete`]: until then the checksum is not known to be right.
/// An error of the sink ends the parse.
pub trait Sink {
    /// Takes the header, before all else.
    ///
    /// # Errors
    /// Why the ticket is refused.
    fn header(&mut self, header: &Header) -> Result<(), Error>;

    /// Takes the next range: above the one before, in whole pages, below [`ADDRESS_END`].
    ///
    /// # Errors
    /// Why the ticket is refused.
    fn range(&mut self, range: Range) -> Result<(), Error>;

    /// Takes the next sealed disk: a device that the VM has, above the one before.
    ///
    /// # Errors
    /// Why the ticket is refused.
    fn disk(&mut self, disk: Disk) -> Result<(), Error>;

    /// Takes the next page of the manifest: the guest-physical address, a multiple of [`PAGE`] within a
    /// private range and above the page before, and the SHA-256 of its content.
    ///
    /// # Errors
    /// Why the ticket is refused.
    fn page(&mut self, address: u64, hash: &[u8; 32]) -> Result<(), Error>;
}

/// Whether a ticket has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// More words must come.
    More,
    /// The ticket is whole and right: what the sink was given counts.
    Complete,
}

/// Where a header has the VM's name and the secret.
const NAME_AND_SECRET: core::ops::Range<usize> = 16..64;
/// Where a disk has its key.
const DISK_KEY: core::ops::Range<usize> = 32..64;

/// Which element arrives.
#[derive(Clone, Copy)]
enum Part {
    Header,
    /// A range, and how many there are from it on.
    Range(u32),
    /// A disk, and how many there are from it on.
    Disk(u32),
    /// A page, and how many there are from it on.
    Page(u32),
    Trailer,
    /// None: why no word is taken any more.
    Over(Error),
}

impl Part {
    /// The first of `disks`, then of `pages`, or the trailer if there are none.
    const fn of_rest(disks: u32, pages: u32) -> Self {
        match (disks, pages) {
            (0, 0) => Self::Trailer,
            (0, _) => Self::Page(pages),
            _ => Self::Disk(disks),
        }
    }

    /// Bytes of the element, and which of them are secret and no part of what is measured.
    const fn layout(self) -> Result<(usize, core::ops::Range<usize>), Error> {
        Ok(match self {
            Self::Header => (HEADER_BYTES, NAME_AND_SECRET),
            Self::Range(_) => (RANGE_BYTES, 0..0),
            Self::Disk(_) => (DISK_BYTES, DISK_KEY),
            Self::Page(_) => (PAGE_BYTES, 0..0),
            Self::Trailer => (TRAILER_BYTES, 0..0),
            Self::Over(error) => return Err(error),
        })
    }
}

/// A ticket that is being received: one element of it, and its ranges, as the pages come after them.
pub struct Parser {
    part: Part,
    /// Bytes of the whole ticket, as announced.
    length: u32,
    element: [u8; HEADER_BYTES],
    /// Bytes of the element that have arrived.
    filled: usize,
    /// Over all elements that are complete.
    hash: Sha256,
    /// The same, without the VM's name and the secret.
    measure: Sha256,
    disks: u32,
    pages: u32,
    ranges: [Option<Range>; MAX_RANGES],
    /// The least transport that the next disk may have, and the least address of the next page.
    next_disk: u32,
    next_page: u64,
}

impl Parser {
    /// Prepares for a ticket of `length` bytes.
    ///
    /// # Errors
    /// [`Error::Length`] if no ticket is that long.
    pub fn new(length: u32) -> Result<Self, Error> {
        check_length(length)?;
        Ok(Self {
            part: Part::Header,
            length,
            element: [0; HEADER_BYTES],
            filled: 0,
            hash: Sha256::new(),
            measure: Sha256::new(),
            disks: 0,
            pages: 0,
            ranges: [None; MAX_RANGES],
            next_disk: 0,
            next_page: 0,
        })
    }

    /// Takes the next four bytes, the first of them lowest.
    ///
    /// # Errors
    /// Why the ticket is refused; then, and after the last word, every further word is an error too.
    pub fn word(&mut self, word: u32, sink: &mut impl Sink) -> Result<Progress, Error> {
        let taken = self.take(word, sink);
        match taken {
            Ok(Progress::More) => {}
            Ok(Progress::Complete) => self.part = Part::Over(Error::NotBegun),
            Err(error) => self.part = Part::Over(error),
        }
        taken
    }

    /// The SHA-256 of what the ticket has said so far of how a VM begins, which is all but its name and its
    /// secret: zeros stand for them, and the checksum is left out.
    #[must_use]
    pub fn measurement(&self) -> [u8; 32] {
        self.measure.clone().finalize().into()
    }

    fn take(&mut self, word: u32, sink: &mut impl Sink) -> Result<Progress, Error> {
        let (size, secret) = self.part.layout()?;
        let rest = self.element.get_mut(self.filled..size).ok_or(Error::Length)?;
        *rest.first_chunk_mut().ok_or(Error::Length)? = word.to_le_bytes();
        self.filled += size_of::<u32>();
        if self.filled < size {
            return Ok(Progress::More);
        }
        self.filled = 0;
        let mut element = mem::replace(&mut self.element, [0; HEADER_BYTES]);
        let done = self.finish(element.get(..size).ok_or(Error::Length)?, sink);
        element.get_mut(secret).unwrap_or_default().zeroize();
        if done == Ok(Progress::More) {
            self.measure.update(element.get(..size).unwrap_or_default());
        }
        element.zeroize();
        done
    }

    /// An element is complete.
    fn finish(&mut self, element: &[u8], sink: &mut impl Sink) -> Result<Progress, Error> {
        let mut fields = Fields(element);
        self.part = match self.part {
            Part::Header => {
                let header = self.header(&mut fields)?;
                sink.header(&header)?;
                Part::Range(header.ranges)
            }
            Part::Range(left) => {
                let range = self.range(&mut fields)?;
                sink.range(range)?;
                match left - 1 {
                    0 if self.each(Class::Private).next().is_none() => {
                        return Err(Error::NoPrivate);
                    }
                    0 => {
                        self.check_virtio()?;
                        Part::of_rest(self.disks, self.pages)
                    }
                    more => Part::Range(more),
                }
            }
            Part::Disk(left) => {
                sink.disk(self.disk(&mut fields)?)?;
                Part::of_rest(left - 1, self.pages)
            }
            Part::Page(left) => {
                let (address, hash) = self.page(&mut fields)?;
                sink.page(address, &hash)?;
                Part::of_rest(0, left - 1)
            }
            Part::Trailer => {
                let hash = mem::replace(&mut self.hash, Sha256::new()).finalize();
                let is_right = hash.as_slice() == element;
                return if is_right { Ok(Progress::Complete) } else { Err(Error::Checksum) };
            }
            Part::Over(error) => return Err(error),
        };
        self.hash.update(element);
        Ok(Progress::More)
    }

    fn header(&mut self, fields: &mut Fields<'_>) -> Result<Header, Error> {
        let raw = RawHeader::read(fields).ok_or(Error::Length)?;
        if raw.magic != MAGIC {
            return Err(Error::Magic);
        }
        if raw.version != VERSION {
            return Err(Error::Version);
        }
        if raw.length != self.length {
            return Err(Error::OtherLength);
        }
        if raw.flags != 0 {
            return Err(Error::Flags);
        }
        if raw.reserved != 0 {
            return Err(Error::Reserved);
        }
        let state = match (raw.state, raw.hash) {
            (0, hash) if hash == [0; 32] => State::Reset,
            (0, _) => return Err(Error::StateHash),
            (1, hash) => State::Hashed(hash),
            (2, field) => {
                let (base, rest) = field.split_first_chunk().ok_or(Error::StateHash)?;
                let base = u32::from_le_bytes(*base);
                if rest != [0; 28] || !u64::from(base).is_multiple_of(PAGE) {
                    return Err(Error::StateHash);
                }
                State::ResetIn(base)
            }
            _ => return Err(Error::StateKind),
        };
        if raw.ranges == 0 || !usize::try_from(raw.ranges).is_ok_and(|count| count <= MAX_RANGES) {
            return Err(Error::RangeCount);
        }
        if ticket_bytes(raw.ranges, raw.disks, raw.pages) != Some(self.length) {
            return Err(Error::Counts);
        }
        if raw.further >= MAX_PROCESSORS {
            return Err(Error::Processors);
        }
        if raw.restarts != 0 && matches!(state, State::Hashed(_)) {
            // Who starts a VM anew resets it.
            return Err(Error::RestartState);
        }
        (self.disks, self.pages) = (raw.disks, raw.pages);
        let processors = raw.further + 1;
        let RawHeader { vm, secret, ranges, disks, pages, restarts, .. } = raw;
        Ok(Header { vm, secret, state, ranges, disks, pages, processors, restarts })
    }

    fn range(&mut self, fields: &mut Fields<'_>) -> Result<Range, Error> {
        let mut next = || Some((fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?));
        let (start, length, class, reserved) = next().ok_or(Error::Length)?;
        if length == 0 || !start.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) {
            return Err(Error::RangeAlignment);
        }
        if start.checked_add(length).is_none_or(|end| end > ADDRESS_END) {
            return Err(Error::RangeEnd);
        }
        let class = Class::of_number(class).ok_or(Error::RangeClass)?;
        if reserved != 0 {
            return Err(Error::Reserved);
        }
        if self.ranges.iter().flatten().any(|before| before.end() > start) {
            return Err(Error::RangeOrder);
        }
        let range = Range { start, length, class };
        let free = self.ranges.iter_mut().find(|place| place.is_none());
        *free.ok_or(Error::RangeCount)? = Some(range);
        Ok(range)
    }

    fn disk(&mut self, fields: &mut Fields<'_>) -> Result<Disk, Error> {
        let raw = RawDisk::read(fields).ok_or(Error::Length)?;
        if raw.flags != 0 {
            return Err(Error::Flags);
        }
        if raw.reserved != [0; 16] {
            return Err(Error::Reserved);
        }
        let RawDisk { transport, blocks, total, id, key, moment, .. } = raw;
        let parts = self.each(Class::Shared).count();
        let has_device =
            self.ranges.iter().flatten().any(|range| range.class.registers().is_some());
        let is_device = has_device && usize::try_from(transport).is_ok_and(|number| number < parts);
        if !is_device || transport < self.next_disk {
            return Err(Error::DiskTransport);
        }
        if !DISK_BLOCKS.contains(&blocks) || total <= blocks || total > DISK_TOTAL {
            return Err(Error::DiskSize);
        }
        self.next_disk = transport + 1;
        Ok(Disk { transport, blocks, total, id, key, moment })
    }

    fn page(&mut self, fields: &mut Fields<'_>) -> Result<(u64, [u8; 32]), Error> {
        let mut next = || Some((fields.u64()?, fields.bytes()?));
        let (address, hash) = next().ok_or(Error::Length)?;
        if !address.is_multiple_of(PAGE) {
            return Err(Error::PageAlignment);
        }
        if address < self.next_page {
            return Err(Error::PageOrder);
        }
        if !self.each(Class::Private).any(|range| range.contains(address)) {
            return Err(Error::PageOutside);
        }
        self.next_page = address + 1;
        Ok((address, hash))
    }

    fn each(&self, class: Class) -> impl Iterator<Item = &Range> {
        self.ranges.iter().flatten().filter(move |range| range.class == class)
    }

    /// Whether there is one range of virtio devices, all that may be, and a shared range for each; or none.
    fn check_virtio(&self) -> Result<(), Error> {
        let parts = self.each(Class::Shared).count();
        let each = |range: &Range| Some((range.length, range.class.registers()?));
        let mut transports = self.ranges.iter().flatten().filter_map(each);
        let Some((length, each)) = transports.next() else { return Ok(()) };
        let whole: u64 = (0..MAX_TRANSPORTS).map(|_| each).sum();
        let is_one = length == whole && transports.next().is_none();
        if !is_one || !(1..=MAX_TRANSPORTS).contains(&parts) {
            return Err(Error::Transports);
        }
        let fits = |part: &Range| part.start != 0 && TRANSPORT_SHARED.contains(&part.length);
        if self.each(Class::Shared).all(fits) { Ok(()) } else { Err(Error::SharedSize) }
    }
}

impl Drop for Parser {
    fn drop(&mut self) {
        // It may hold the half of a header.
        self.element.zeroize();
    }
}

impl fmt::Debug for Parser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parser").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Looks at the length of what is to be submitted. Sealed tickets are longer by a multiple of 8.
///
/// # Errors
/// [`Error::Length`] if no ticket is that long.
pub fn check_length(length: u32) -> Result<(), Error> {
    let size = usize::try_from(length).map_err(|_| Error::Length)?;
    let is_enough = size >= HEADER_BYTES + RANGE_BYTES + TRAILER_BYTES;
    if is_enough && size.is_multiple_of(8) { Ok(()) } else { Err(Error::Length) }
}

/// Bytes of a ticket with so many ranges, disks and pages.
pub(crate) fn ticket_bytes(ranges: u32, disks: u32, pages: u32) -> Option<u32> {
    let parts = [(1, HEADER_BYTES + TRAILER_BYTES), (ranges, RANGE_BYTES), (disks, DISK_BYTES)];
    parts.into_iter().chain([(pages, PAGE_BYTES)]).try_fold(0_u32, |sum, (count, bytes)| {
        sum.checked_add(count.checked_mul(u32::try_from(bytes).ok()?)?)
    })
}

/// The header's fields in their order.
struct RawHeader {
    magic: [u8; 8],
    length: u32,
    version: u32,
    vm: [u8; 16],
    secret: Secret,
    state: u32,
    flags: u32,
    hash: [u8; 32],
    ranges: u32,
    pages: u32,
    further: u32,
    restarts: u32,
    disks: u32,
    reserved: u32,
}

impl RawHeader {
    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            magic: fields.bytes()?,
            length: fields.u32()?,
            version: fields.u32()?,
            vm: fields.bytes()?,
            secret: Secret::new(fields.bytes()?),
            state: fields.u32()?,
            flags: fields.u32()?,
            hash: fields.bytes()?,
            ranges: fields.u32()?,
            pages: fields.u32()?,
            further: fields.u32()?,
            restarts: fields.u32()?,
            disks: fields.u32()?,
            reserved: fields.u32()?,
        })
    }
}
const _: () = assert!(8 + 4 + 4 + 16 + 32 + 4 + 4 + 32 + 4 + 4 + 4 + 4 + 4 + 4 == HEADER_BYTES);

/// A disk's fields in their order.
struct RawDisk {
    transport: u32,
    flags: u32,
    blocks: u64,
    id: [u8; 16],
    key: Secret,
    moment: u64,
    total: u64,
    reserved: [u8; 16],
}

impl RawDisk {
    fn read(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            transport: fields.u32()?,
            flags: fields.u32()?,
            blocks: fields.u64()?,
            id: fields.bytes()?,
            key: Secret::new(fields.bytes()?),
            moment: fields.u64()?,
            total: fields.u64()?,
            reserved: fields.bytes()?,
        })
    }
}
const _: () = assert!(4 + 4 + 8 + 16 + 32 + 8 + 8 + 16 == DISK_BYTES);
