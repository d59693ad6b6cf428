//! What is remembered of a page that was outside, as a record.

use seal::page::Refusal;
use seal::record::Sealed;

use crate::sparse::{NONE, Record};

/// What became of a page after it was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Past {
    /// The host has it.
    Outside(Sealed),
    /// It came back, and is in the VM.
    Back(Sealed),
    /// None: the VM has given up what was in it. It has begun with zeros since then, or will, whatever the
    /// manifest says.
    GivenUp,
}

const OUTSIDE: u64 = 1;
const BACK: u64 = 2;
const GIVEN_UP: u64 = 3;

impl Past {
    /// The record.
    pub(crate) fn pack(self) -> Record {
        let (sealed, kind) = match self {
            Self::Outside(sealed) => (sealed, OUTSIDE),
            Self::Back(sealed) => (sealed, BACK),
            Self::GivenUp => return [0, 0, 0, GIVEN_UP],
        };
        let mut record = [kind; 4];
        for (word, bytes) in record.iter_mut().zip(sealed.to_bytes().as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        record
    }

    /// What `record` says; `Ok(None)`: the page was never outside.
    pub(crate) fn unpack(record: Record) -> Result<Option<Self>, Refusal> {
        if record == NONE {
            return Ok(None);
        }
        if record == Self::GivenUp.pack() {
            return Ok(Some(Self::GivenUp));
        }
        let mut bytes = [0; Sealed::BYTES];
        for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(record) {
            *bytes = word.to_le_bytes();
        }
        let sealed = Sealed::from_bytes(&bytes)?;
        let [.., kind] = record;
        Ok(Some(if kind == OUTSIDE { Self::Outside(sealed) } else { Self::Back(sealed) }))
    }
}
