//! The header: the disk's key, wrapped, and its sizes.

use core::fmt;

use zeroize::Zeroize;

use crate::bytes::{array, put, word, zeros};
use crate::geometry::Geometry;
use crate::key::derive;
use crate::storage::Block;

const MAGIC: &[u8; 8] = b"VISORDSK";
const VERSION: u64 = 1;

/// Bytes in clear: magic, version and salt. All of them are authenticated.
const CLEAR: usize = 48;

/// What a header says. The key is wiped when it is dropped.
pub struct Header {
    /// Names the disk: 16 random bytes.
    pub id: [u8; 16],
    /// What all keys but the header's are derived from: 32 random bytes.
    pub volume: [u8; 32],
    /// The sizes.
    pub geometry: Geometry,
    /// Of two headers the greater one counts.
    pub sequence: u64,
}

/// Why there is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Neither block claims to be one.
    Absent,
    /// The only one that claims to be one is of another version.
    Version(u64),
    /// It was made with another key, or changed.
    Forged,
    /// It is of a disk of another size.
    Size,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("disk: ")?;
        match self {
            Self::Absent => f.write_str("not a sealed disk"),
            Self::Version(version) => write!(f, "sealed in version {version}, which is not known"),
            Self::Forged => f.write_str("the header was changed, or is of another key"),
            Self::Size => f.write_str("of another size than its header says"),
        }
    }
}

impl core::error::Error for Refusal {}

impl Header {
    /// Puts the header into `block`. `salt` is 32 random bytes that were never used before: they make the key
    /// that this block alone is sealed with.
    pub fn seal(&self, wrapping: &[u8; 32], salt: &[u8; 32], block: &mut Block) {
        block.fill(0);
        put(block, 0, MAGIC);
        put(block, 8, &VERSION.to_le_bytes());
        put(block, 16, salt);
        put(block, CLEAR, &self.id);
        put(block, CLEAR + 16, &self.volume);
        let sizes = self.geometry;
        let numbers = [sizes.capacity(), sizes.log().into(), sizes.entries().into(), self.sequence];
        for (at, number) in (CLEAR + 48..).step_by(8).zip(numbers) {
            put(block, at, &number.to_le_bytes());
        }
        let key = derive(salt, wrapping, 0);
        let Some((clear, rest)) = block.split_at_mut_checked(CLEAR) else { return };
        let Some((body, tag)) = rest.split_last_chunk_mut() else { return };
        *tag = key.encrypt(&[0; 16], clear, body);
    }

    /// Reads the header in `block` of a disk of `total` blocks. What was decrypted is wiped.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn open(block: &mut Block, wrapping: &[u8; 32], total: u64) -> Result<Self, Refusal> {
        if !block.starts_with(MAGIC) {
            return Err(Refusal::Absent);
        }
        if word(block, 8) != VERSION {
            return Err(Refusal::Version(word(block, 8)));
        }
        let key = derive(&array(block, 16), wrapping, 0);
        let (clear, rest) = block.split_at_mut_checked(CLEAR).ok_or(Refusal::Forged)?;
        let (body, tag) = rest.split_last_chunk_mut().ok_or(Refusal::Forged)?;
        key.decrypt(&[0; 16], clear, body, tag).map_err(|_| Refusal::Forged)?;
        let geometry = Geometry::new(word(body, 48), word(body, 56), word(body, 64));
        let geometry = geometry.filter(|sizes| sizes.total() == total && zeros(body, 80));
        let header = geometry.map(|geometry| Self {
            id: array(body, 0),
            volume: array(body, 16),
            geometry,
            sequence: word(body, 72),
        });
        body.zeroize();
        header.ok_or(Refusal::Size)
    }

    /// The newer of a disk's two headers; one may have been lost in a power cut.
    ///
    /// # Errors
    /// What is wrong with the second, if nothing is right with either; but a header that there is not
    /// says less than one that is wrong.
    pub fn newest(
        [first, second]: &mut [Block; 2],
        wrapping: &[u8; 32],
        total: u64,
    ) -> Result<Self, Refusal> {
        let both = (Self::open(first, wrapping, total), Self::open(second, wrapping, total));
        match both {
            (Ok(first), Ok(second)) if first.sequence > second.sequence => Ok(first),
            (_, Ok(header)) | (Ok(header), Err(_)) => Ok(header),
            (Err(why), Err(Refusal::Absent)) | (Err(_), Err(why)) => Err(why),
        }
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        self.volume.zeroize();
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Header");
        let _ = shown.field("id", &self.id).field("geometry", &self.geometry);
        shown.field("sequence", &self.sequence).finish_non_exhaustive()
    }
}
