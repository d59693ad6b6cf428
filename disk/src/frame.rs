//! Frames of the log: what has changed since the anchor.

use seal::aead::{AeadKey, Forged, Tag};

use crate::bytes::{self, BODY, array, put, word, zeros};
use crate::geometry::Geometry;
use crate::record::Record;
use crate::storage::{Block, Error};

/// Blocks of the longest frame: its head, and what it carries.
pub const LONGEST: usize = 32;

/// Entries of the fullest frame.
pub(crate) const ENTRIES: usize = 101;

/// Where entries begin, and how long each is.
const FIRST: usize = BODY + 16;
const ENTRY: usize = 40;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Blocks that were written or forgotten.
    Changes,
    /// Nodes of a checkpoint.
    Nodes,
    /// The root of a checkpoint, of which all else is durable.
    Checkpoint,
}

/// What an entry says of a node, or of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// It is in its own place.
    Placed(Record),
    /// It is the next block that the frame carries.
    Carried(Record),
    /// So many blocks from this one on read as zeros.
    Forgotten(u64),
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// 0 for data, or the level of the node.
    pub(crate) level: u8,
    /// The number in the level.
    pub(crate) index: u64,
    pub(crate) what: What,
}

impl Entry {
    /// Puts it into a head as entry `number`.
    pub(crate) fn store(&self, head: &mut Block, number: usize) {
        let at = FIRST + ENTRY * number;
        let (kind, record) = match self.what {
            What::Placed(record) => (0, record),
            What::Carried(record) => (1, record),
            What::Forgotten(count) => {
                let mut record = Record::NONE;
                put(&mut record.0, 0, &count.to_le_bytes());
                (2, record)
            }
        };
        put(head, at, &self.index.to_le_bytes());
        put(head, at + 5, &[self.level, kind, 0]);
        put(head, at + 8, &record.0);
    }

    /// Entry `number` of an opened head.
    pub(crate) fn load(head: &Block, number: usize) -> Result<Self, Error> {
        let at = FIRST + ENTRY * number;
        let [a, b, c, d, e, level, kind, zero] = array(head, at);
        let record = Record(array(head, at + 8));
        let what = match (kind, zero) {
            (0, 0) => What::Placed(record),
            (1, 0) => What::Carried(record),
            (2, 0) if zeros(&record.0, 8) => What::Forgotten(word(&record.0, 0)),
            _ => return Err(Error::Malformed),
        };
        Ok(Self { level, index: u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]), what })
    }

    /// Whether a writer puts it into a frame of this kind.
    fn fits(&self, kind: Kind, disk: Geometry) -> bool {
        let exists = self.level <= disk.top() && self.index < disk.nodes(self.level);
        exists
            && match (kind, self.what) {
                (Kind::Changes, What::Placed(record) | What::Carried(record)) => {
                    self.level == 0 && !record.is_none()
                }
                (Kind::Changes, What::Forgotten(count)) => {
                    self.level == 0 && (1..=disk.capacity() - self.index).contains(&count)
                }
                (Kind::Nodes, What::Carried(record)) => self.level > 0 && !record.is_none(),
                (Kind::Checkpoint, What::Placed(_)) => self.level == disk.top(),
                (Kind::Nodes, What::Placed(_) | What::Forgotten(_))
                | (Kind::Checkpoint, What::Carried(_) | What::Forgotten(_)) => false,
            }
    }
}

/// Where a frame is in the only chain that it fits into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) generation: u64,
    /// The number of the frame in its generation.
    pub(crate) index: u64,
    /// The tag of the frame before it, or of the anchor.
    pub(crate) tag: Tag,
    /// The moment of that.
    pub(crate) moment: u64,
}

impl Chain {
    fn ad(&self) -> [u8; 32] {
        let mut ad = [0; 32];
        put(&mut ad, 0, &self.generation.to_le_bytes());
        put(&mut ad, 8, &self.index.to_le_bytes());
        put(&mut ad, 16, &self.tag);
        ad
    }

    /// Where the frame after the one with `tag` is.
    pub(crate) const fn next(&self, tag: Tag) -> Self {
        let Self { generation, index, moment, .. } = *self;
        Self { generation, index: index + 1, tag, moment: moment + 1 }
    }
}

/// What a head says besides entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    /// How many entries there are, and how many blocks follow.
    pub(crate) entries: usize,
    pub(crate) carried: usize,
}

impl Head {
    /// Seals a head whose entries are in `block` already.
    pub(crate) fn seal(
        &self,
        key: &AeadKey,
        nonce: [u8; 16],
        chain: &Chain,
        block: &mut Block,
    ) -> Tag {
        let kind = match self.kind {
            Kind::Changes => 0,
            Kind::Nodes => 1,
            Kind::Checkpoint => 2,
        };
        put(block, BODY, &(chain.moment + 1).to_le_bytes());
        put(block, BODY + 8, &[kind, 0, 0, 0]);
        put(block, BODY + 12, &array::<4>(&self.entries.to_le_bytes(), 0));
        bytes::seal(key, nonce, &chain.ad(), block)
    }

    /// Opens the head in `block` in place, if it is the one that follows in `chain`.
    ///
    /// # Errors
    /// [`Error::Log`] if it is not, [`Error::Malformed`] if it is, and no writer writes such.
    pub(crate) fn open(
        key: &AeadKey,
        disk: Geometry,
        chain: &Chain,
        block: &mut Block,
    ) -> Result<(Self, Tag), Error> {
        let tag = bytes::open(key, &chain.ad(), block).map_err(|Forged| Error::Log)?;
        let [kind, zero @ ..] = array::<4>(block, BODY + 8);
        let kind = match (kind, zero) {
            (0, [0, 0, 0]) => Kind::Changes,
            (1, [0, 0, 0]) => Kind::Nodes,
            (2, [0, 0, 0]) => Kind::Checkpoint,
            _ => return Err(Error::Malformed),
        };
        let entries = u32::from_le_bytes(array(block, BODY + 12));
        let entries = usize::try_from(entries).map_err(|_| Error::Malformed)?;
        let body = block.get(..block.len() - tag.len()).unwrap_or_default();
        let next = word(block, BODY) == chain.moment + 1;
        let whole = (1..=ENTRIES).contains(&entries) && zeros(body, FIRST + ENTRY * entries);
        if !next || !whole || kind == Kind::Checkpoint && entries != 1 {
            return Err(Error::Malformed);
        }
        let mut carried = 0;
        for number in 0..entries {
            let entry = Entry::load(block, number)?;
            if !entry.fits(kind, disk) {
                return Err(Error::Malformed);
            }
            carried += usize::from(matches!(entry.what, What::Carried(_)));
        }
        if carried >= LONGEST {
            return Err(Error::Malformed);
        }
        Ok((Self { kind, entries, carried }, tag))
    }
}
