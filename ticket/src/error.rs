//! Why a ticket is refused.

use core::fmt;

/// One list for what must agree: the names, the numbers and the lines.
macro_rules! errors {
    ($($name:ident = $number:literal, $line:literal;)*) => {
        /// Why a ticket is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Error {
            $(#[doc = $line] $name,)*
        }

        impl Error {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The number that stands for it at the port, for ever the same.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$name => $number,)*
                }
            }
        }

        impl fmt::Display for Error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $line,)*
                })
            }
        }
    };
}

// 1 to 63: what a parser finds. From 64: what the visor has against a ticket that is well formed.
errors! {
    Length = 1, "no ticket is that long";
    Magic = 2, "not a ticket";
    Version = 3, "a ticket of another version";
    OtherLength = 4, "the header gives another length than was announced";
    Counts = 5, "the numbers of ranges, disks and pages do not add up to the length";
    Flags = 6, "flags that do not exist";
    StateKind = 7, "a kind of first state that does not exist";
    StateHash = 8, "a hash for the reset state, or for one elsewhere not just a page's address";
    Reserved = 9, "reserved bytes that are not zero";
    RangeCount = 10, "no range, or more than 16";
    RangeAlignment = 11, "a range that is empty or not in whole pages";
    RangeEnd = 12, "a range that ends above 256 TiB";
    RangeOrder = 13, "ranges that overlap or do not ascend";
    RangeClass = 14, "a class of memory that does not exist";
    NoPrivate = 15, "no private memory";
    PageAlignment = 16, "a page address that is not a multiple of 4096";
    PageOrder = 17, "pages that do not ascend";
    PageOutside = 18, "a page outside of private memory";
    Checksum = 19, "the checksum is wrong: damaged on the way";
    Processors = 20, "no processor, or more than 64";
    Transports = 21, "virtio devices not in a range of their size, or without a shared range each";
    SharedSize = 22, "a virtio device's shared range at 0, or not of 264 KiB to 64 MiB";
    RestartState = 23, "to be started anew, but not in the reset state";
    DiskTransport = 24, "a sealed disk that is no virtio device of the VM's, or disks that do not ascend";
    DiskSize = 25, "a sealed disk without data, of over 16 TiB, or of a size that none has";
    ClearTickets = 64, "tickets in clear are off: the visor was started without dev-tickets";
    NotBegun = 65, "a word that belongs to no submission";
    Memory = 66, "the visor has no memory left for it";
    Slots = 67, "all 64 VMs exist already";
    Duplicate = 68, "a VM with this id exists already";
    NoIommu = 69, "no IOMMU keeps devices from memory: see insecure-no-iommu";
    Recipient = 70, "sealed for another visor, or for this one before it was booted";
    Sealed = 71, "what is sealed cannot be opened: changed on the way";
    Content = 72, "what is sealed is no ticket with a policy";
    Signature = 73, "not signed by its tenant";
    PlainLaunch = 74, "its tenant wants a measured launch, and this was none";
    OpenToDevices = 75, "its tenant wants an IOMMU that keeps devices from memory";
    Development = 76, "its tenant wants a visor that was started without dev-tickets";
    Expired = 77, "it has expired";
    Replayed = 78, "it was taken before, or a later one of its tenant's was";
    Tenants = 79, "there were tickets of too many tenants since boot";
    Processor = 80, "the processor does not keep a VM's memory from its host: see insecure-processor";
}

impl Error {
    /// Whether it is a fault of the ticket itself, which a reader has found.
    #[must_use]
    pub const fn is_of_ticket(self) -> bool {
        self.number() < 64
    }

    /// The error with this number.
    #[must_use]
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|error| error.number() == number)
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::Error;
    use std::string::ToString;

    #[test]
    fn numbers_ascend_and_read_back() {
        assert!(Error::ALL.is_sorted_by(|a, b| a.number() < b.number()));
        for error in Error::ALL {
            assert_eq!(Error::of_number(error.number()), Some(*error));
        }
        assert_eq!(Error::of_number(0), None);
    }

    #[test]
    fn every_error_is_one_line_of_its_own() {
        for (at, error) in Error::ALL.iter().enumerate() {
            let line = error.to_string();
            assert!(!line.is_empty() && line.len() < 80 && !line.contains('\n'), "{error:?}");
            assert!(Error::ALL[..at].iter().all(|other| other.to_string() != line), "{error:?}");
        }
    }
}
