//! Looking for a piece of free RAM.

use ept::addr::Span;

/// What is looked for: `len` bytes at a multiple of `align` (a power of two) within `within`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    pub(crate) len: u64,
    pub(crate) align: u64,
    pub(crate) within: Span,
}

/// The highest piece of `ram` that meets `need` and shares nothing with `busy`.
pub(crate) fn highest(ram: impl Iterator<Item = Span>, need: &Need, busy: &[Span]) -> Option<Span> {
    ram.filter_map(|span| top_of(span.intersect(need.within), need, busy))
        .max_by_key(|found| found.start())
}

/// The lowest piece of `ram` that meets `need` and shares nothing with `busy`.
pub(crate) fn lowest(ram: impl Iterator<Item = Span>, need: &Need, busy: &[Span]) -> Option<Span> {
    ram.filter_map(|span| bottom_of(span.intersect(need.within), need, busy))
        .min_by_key(|found| found.start())
}

fn top_of(room: Span, need: &Need, busy: &[Span]) -> Option<Span> {
    let mut end = room.end();
    loop {
        let start = end.checked_sub(need.len)?;
        let found = Span::sized(start - start % need.align, need.len)?;
        if !room.covers(found) {
            return None;
        }
        match obstacle(found, busy) {
            Some(obstacle) => end = obstacle.start(),
            None => return Some(found),
        }
    }
}

fn bottom_of(room: Span, need: &Need, busy: &[Span]) -> Option<Span> {
    let mut start = room.start();
    loop {
        let found = Span::sized(start.checked_next_multiple_of(need.align)?, need.len)?;
        if !room.covers(found) {
            return None;
        }
        match obstacle(found, busy) {
            Some(obstacle) => start = obstacle.end(),
            None => return Some(found),
        }
    }
}

fn obstacle(span: Span, busy: &[Span]) -> Option<Span> {
    busy.iter().copied().find(|other| other.overlaps(span))
}
