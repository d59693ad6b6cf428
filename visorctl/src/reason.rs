//! Words for the visor's numbers.

use ticket::audit::{Event, Kind};
use ticket::error::Error;

/// Causes from here on are those of a VM's processors.
const PROCESSOR: u64 = 0x100;

/// Why the visor stopped a VM or refused a page; nothing for a cause of a newer visor.
pub(crate) fn of_cause(number: u64) -> Option<&'static str> {
    Some(match number {
        1 => "a page did not come back as it left",
        2 => "a page is not as in the ticket",
        3 => "the host lent a frame that is in use otherwise",
        4 => "the host lent two frames for one page",
        5 => "what the visor remembers of a page is damaged",
        6 => "the visor has no memory left for the VM",
        7 => "no version is left to seal a page with",
        8 => "an access to a device that cannot be done, or the host has memory there",
        9 => "the host destroyed it",
        10 => "the host started it anew, more often than its ticket permits or not to the end",
        PROCESSOR.. => "one of its processors did what has no rule",
        _ => return None,
    })
}

/// Why the IOMMU refused an access, by the first word of the event.
fn of_dma(word: u64) -> Option<&'static str> {
    Some(match word >> 16 & 0xff {
        1 => "the device has no domain",
        2 => "the address is beyond all memory",
        3 => "the device may not write there",
        4 => "the device may not read there",
        5 => "ATS is off",
        6 => "there is no such interrupt",
        7 => "the interrupt is another device's",
        8 => "the interrupt is in compatibility format",
        9 => "the IOMMU takes a table for broken",
        10 => "the IOMMU gave a reason that is not known",
        _ => return None,
    })
}

/// Why a sealed disk was refused, by the first word of the event.
fn of_disk(word: u64) -> Option<&'static str> {
    Some(match word >> 8 & 0xff {
        1 => "there is no sealed disk",
        2 => "it is sealed in a version that is not known",
        3 => "its header was changed, or is of another key",
        4 => "it is another disk, or of another size",
        5 => "it is of a moment before that of the ticket",
        6 if word >> 16 & 0xff == 0 => "a block came back changed",
        6 => "a node of its tree came back changed",
        7 => "its anchors or its log came back changed",
        8 => "the host's disk failed",
        9 => "its log needs more memory than there is for a disk",
        10 => "it is not written to any more, after an earlier failure",
        _ => return None,
    })
}

/// What the numbers of `event` mean, as far as they stand for a reason.
pub(crate) fn of_event(event: &Event) -> Option<String> {
    match Kind::of_number(event.kind)? {
        Kind::Refused => Error::of_number(event.a.try_into().ok()?).map(|error| error.to_string()),
        Kind::Stopped => of_cause(event.a).map(str::to_owned),
        Kind::PageRefused => of_cause(event.b).map(str::to_owned),
        Kind::Dma => of_dma(event.a).map(str::to_owned),
        Kind::Disk => of_disk(event.a).map(str::to_owned),
        Kind::Accepted
        | Kind::Launched
        | Kind::CpuAdded
        | Kind::Destroyed
        | Kind::Touched
        | Kind::Unprotected => None,
    }
}
