//! Making tickets: for tools and tests.

use core::fmt;
use std::collections::BTreeMap;
use std::vec::Vec;

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::parse::{Parser, Progress, Sink, ticket_bytes};
use crate::{ADDRESS_END, Class, Disk, Header, MAGIC, PAGE, Range, State, VERSION};

/// [`PAGE`] as a length.
const PAGE_LEN: usize = 4096;
static ZEROS: [u8; PAGE_LEN] = [0; PAGE_LEN];

/// What a ticket is to say.
#[derive(PartialEq, Eq)]
pub struct Ticket {
    /// Names the VM.
    pub vm: [u8; 16],
    /// The tenant's secret.
    pub secret: [u8; 32],
    /// The first vCPU's first state.
    pub state: State,
    /// The memory map, in ascending order.
    pub ranges: Vec<Range>,
    /// The sealed disks, in ascending order of their transports.
    pub disks: Vec<Disk>,
    /// The manifest: the SHA-256 of a page by its guest-physical address.
    pub pages: BTreeMap<u64, [u8; 32]>,
    /// Number of processors that the VM may have.
    pub processors: u32,
    /// How often the VM may be started anew.
    pub restarts: u32,
}

/// Why an image does not go into a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The address is not a multiple of [`PAGE`], or too high.
    Address(u64),
    /// Two images have a part of the page at this address.
    Twice(u64),
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address(address) => write!(f, "no page of a VM begins at {address:#x}"),
            Self::Twice(address) => write!(f, "two images share the page at {address:#x}"),
        }
    }
}

impl core::error::Error for ImageError {}

impl Ticket {
    /// A ticket without memory, for a VM with one processor that begins in the reset state, once.
    #[must_use]
    pub const fn new(vm: [u8; 16], secret: [u8; 32]) -> Self {
        Self {
            vm,
            secret,
            state: State::Reset,
            ranges: Vec::new(),
            disks: Vec::new(),
            pages: BTreeMap::new(),
            processors: 1,
            restarts: 0,
        }
    }

    /// Adds a range to the memory map, which must ascend.
    #[must_use]
    pub fn range(mut self, start: u64, length: u64, class: Class) -> Self {
        self.ranges.push(Range { start, length, class });
        self
    }

    /// Adds the pages of `image`, which begins at guest-physical `address`, to the manifest. The rest of
    /// its last page counts as zeros.
    ///
    /// # Errors
    /// [`ImageError`]; some pages may have been added.
    pub fn image(&mut self, address: u64, image: &[u8]) -> Result<(), ImageError> {
        if !address.is_multiple_of(PAGE) || address >= ADDRESS_END {
            return Err(ImageError::Address(address));
        }
        for (content, at) in image.chunks(PAGE_LEN).zip((address..).step_by(PAGE_LEN)) {
            let rest = ZEROS.get(content.len()..).unwrap_or_default();
            let hash = Sha256::new().chain_update(content).chain_update(rest).finalize();
            if self.pages.insert(at, hash.into()).is_some() {
                return Err(ImageError::Twice(at));
            }
        }
        Ok(())
    }

    /// The ticket, if it is one that the visor would take as well formed.
    ///
    /// # Errors
    /// What [`Parser`] has against it.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        let bytes = self.bytes_unchecked();
        parse(&bytes, &mut Discard)?;
        Ok(bytes)
    }

    /// The ticket, right or wrong, with the length and the checksum that it should have; more pages
    /// or ranges than a ticket can count give one that is refused.
    #[must_use]
    pub fn bytes_unchecked(&self) -> Vec<u8> {
        let count = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        let (ranges, pages) = (count(self.ranges.len()), count(self.pages.len()));
        let disks = count(self.disks.len());
        let (kind, hash) = match self.state {
            State::Reset => (0_u32, [0; 32]),
            State::Hashed(hash) => (1, hash),
            State::ResetIn(base) => {
                let mut field = [0; 32];
                let (first, _) = field.split_at_mut(4);
                first.copy_from_slice(&base.to_le_bytes());
                (2, field)
            }
        };
        let mut bytes = Vec::from(MAGIC);
        bytes.extend(ticket_bytes(ranges, disks, pages).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.vm);
        bytes.extend(self.secret);
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(hash);
        bytes.extend(ranges.to_le_bytes());
        bytes.extend(pages.to_le_bytes());
        bytes.extend(self.processors.wrapping_sub(1).to_le_bytes());
        bytes.extend(self.restarts.to_le_bytes());
        bytes.extend(disks.to_le_bytes());
        bytes.extend([0; 4]);
        for range in &self.ranges {
            bytes.extend(range.start.to_le_bytes());
            bytes.extend(range.length.to_le_bytes());
            bytes.extend(range.class.number().to_le_bytes());
            bytes.extend([0; 4]);
        }
        for disk in &self.disks {
            bytes.extend(disk.transport.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend(disk.blocks.to_le_bytes());
            bytes.extend(disk.id);
            bytes.extend(disk.key.bytes());
            bytes.extend(disk.moment.to_le_bytes());
            bytes.extend(disk.total.to_le_bytes());
            bytes.extend([0; 16]);
        }
        for (address, hash) in &self.pages {
            bytes.extend(address.to_le_bytes());
            bytes.extend(hash);
        }
        let checksum = Sha256::digest(&bytes);
        bytes.extend(checksum);
        bytes
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vm, state, ranges, disks, pages, processors, restarts, .. } = self;
        let mut shown = f.debug_struct("Ticket");
        let _ = shown.field("vm", vm).field("state", state).field("ranges", ranges);
        let _ = shown.field("disks", disks);
        let _ = shown.field("processors", processors).field("restarts", restarts);
        shown.field("pages", &pages.len()).finish_non_exhaustive()
    }
}

/// Gives the whole ticket `bytes` to `sink`.
///
/// # Errors
/// Why the ticket is refused; also if it is shorter or longer than it says itself.
pub fn parse(bytes: &[u8], sink: &mut impl Sink) -> Result<(), Error> {
    measurement_of(bytes, sink).map(|_| ())
}

/// [`Parser::measurement`] of the ticket `bytes`.
///
/// # Errors
/// Why the ticket is refused.
pub fn measurement(bytes: &[u8]) -> Result<[u8; 32], Error> {
    measurement_of(bytes, &mut Discard)
}

fn measurement_of(bytes: &[u8], sink: &mut impl Sink) -> Result<[u8; 32], Error> {
    let mut parser = Parser::new(u32::try_from(bytes.len()).map_err(|_| Error::Length)?)?;
    let mut progress = Progress::More;
    // The length is a multiple of 8: nothing remains.
    for word in bytes.as_chunks().0 {
        progress = parser.word(u32::from_le_bytes(*word), sink)?;
    }
    match progress {
        Progress::Complete => Ok(parser.measurement()),
        Progress::More => Err(Error::Length),
    }
}

/// A sink for those who only want to know whether a ticket is right.
#[derive(Clone, Copy, Debug)]
pub struct Discard;

impl Sink for Discard {
    fn header(&mut self, _: &Header) -> Result<(), Error> {
        Ok(())
    }

    fn range(&mut self, _: Range) -> Result<(), Error> {
        Ok(())
    }

    fn disk(&mut self, _: Disk) -> Result<(), Error> {
        Ok(())
    }

    fn page(&mut self, _: u64, _: &[u8; 32]) -> Result<(), Error> {
        Ok(())
    }
}

/// The ticket that is read back.
impl Sink for Ticket {
    fn header(&mut self, header: &Header) -> Result<(), Error> {
        *self = Self::new(header.vm, *header.secret.bytes());
        self.state = header.state;
        self.processors = header.processors;
        self.restarts = header.restarts;
        Ok(())
    }

    fn range(&mut self, range: Range) -> Result<(), Error> {
        self.ranges.push(range);
        Ok(())
    }

    fn disk(&mut self, disk: Disk) -> Result<(), Error> {
        self.disks.push(disk);
        Ok(())
    }

    fn page(&mut self, address: u64, hash: &[u8; 32]) -> Result<(), Error> {
        // The parser gives each page once.
        let _ = self.pages.insert(address, *hash);
        Ok(())
    }
}
