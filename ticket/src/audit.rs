//! What the visor's audit log consists of: events of 32 bytes, chained by SHA-256.

use sha2::{Digest, Sha256};

use crate::fields::Fields;

/// Bytes of an event.
pub const EVENT_BYTES: usize = 32;
/// The chain value before the first event.
pub const GENESIS: [u8; 32] = [0; 32];
/// What [`Event::vm`] is when the event belongs to no VM.
pub const NO_VM: u8 = 0xff;

/// One list for what must agree: the names and the numbers.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal;)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The number in an event.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self {
                    $(Self::$name => $number,)*
                }
            }

            /// A name of lower-case letters and hyphens.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

kinds! {
    /// A ticket was accepted.
    Accepted = 1, "ticket-accepted";
    /// A ticket was refused: `a` is the number of the [`crate::error::Error`].
    Refused = 2, "ticket-refused";
    /// A VM took its ticket.
    Launched = 3, "vm-launched";
    /// A VM was stopped: `a` is the cause.
    Stopped = 4, "vm-stopped";
    /// A page was refused: `a` is its guest-physical address, `b` the cause.
    PageRefused = 5, "page-refused";
    /// A vCPU was added.
    CpuAdded = 6, "vcpu-added";
    /// A VM was destroyed.
    Destroyed = 7, "vm-destroyed";
    /// The host touched a private page: `a` is its guest-physical address. The first 16 of a VM only.
    Touched = 8, "host-touched-page";
    /// A VM was entered without a ticket: the first time since boot.
    Unprotected = 9, "unprotected-vm";
    /// The IOMMU refused an access of a device: of `a`, bits 15:0 are the device, as PCI numbers it, bits
    /// 23:16 the reason's number, bits 39:32 its code; `b` is the address. The first 64 since boot only.
    Dma = 10, "dma-refused";
    /// A sealed disk came back changed, or could not be opened: of `a`, bits 7:0 are the transport, and bits 15:8 what is
    /// wrong; `b` is the number of the block. The first 4 of a device and
    /// launch only.
    Disk = 11, "disk-refused";
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub fn of_number(number: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.number() == number)
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number since boot, from 0.
    pub sequence: u64,
    /// The number of its [`Kind`], which a reader may be too old to know.
    pub kind: u16,
    /// The VM's slot, or [`NO_VM`].
    pub vm: u8,
    /// The processor on which it happened.
    pub cpu: u32,
    /// By kind.
    pub a: u64,
    /// By kind.
    pub b: u64,
}

impl Event {
    /// The event as it is chained and read: little-endian fields in the order of the struct, with a
    /// zero byte after `vm`.
    #[must_use]
    pub fn bytes(&self) -> [u8; EVENT_BYTES] {
        let head = u64::from(self.kind) | u64::from(self.vm) << 16 | u64::from(self.cpu) << 32;
        let mut bytes = [0; EVENT_BYTES];
        let words = [self.sequence, head, self.a, self.b];
        for (chunk, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }

    /// The event with these bytes; `None` if the byte that must be zero is not.
    #[must_use]
    pub fn of_bytes(bytes: &[u8; EVENT_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let sequence = fields.u64()?;
        let kind = u16::from_le_bytes(fields.bytes()?);
        let [vm, 0] = fields.bytes()? else {
            return None;
        };
        Some(Self { sequence, kind, vm, cpu: fields.u32()?, a: fields.u64()?, b: fields.u64()? })
    }
}

/// The chain value after `event`, given the one before it.
#[must_use]
pub fn extend(chain: &[u8; 32], event: &[u8; EVENT_BYTES]) -> [u8; 32] {
    Sha256::new().chain_update(chain).chain_update(event).finalize().into()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;
    use std::string::String;

    const EVENT: Event = Event { sequence: 2, kind: 0x0304, vm: 5, cpu: 6, a: 7, b: 8 };

    #[test]
    fn an_event_is_laid_out_as_documented_and_reads_back() {
        let hex: String = EVENT.bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "020000000000000004030500060000000700000000000000 0800000000000000".replace(' ', "")
        );
        assert_eq!(Event::of_bytes(&EVENT.bytes()), Some(EVENT));
        let mut bytes = EVENT.bytes();
        bytes[11] = 1;
        assert_eq!(Event::of_bytes(&bytes), None);
    }

    #[test]
    fn the_chain_is_sha_256_of_the_value_before_and_the_event() {
        // printf of 32 zero bytes and the bytes above, through sha256sum.
        let hex: String =
            extend(&GENESIS, &EVENT.bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "394544e9416f254ad05b7ba9c2cfab67c20a48eba71b2301ea10adf03df69d7f");
    }

    #[test]
    fn kinds_have_numbers_and_labels_of_their_own() {
        for (at, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(usize::from(kind.number()), at + 1);
            assert_eq!(Kind::of_number(kind.number()), Some(*kind));
            assert!(Kind::ALL[..at].iter().all(|other| other.label() != kind.label()));
        }
        assert_eq!(Kind::of_number(0), None);
    }
}
