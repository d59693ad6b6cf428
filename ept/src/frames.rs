//! The frame table: who owns each page frame of RAM. The only source of truth about ownership;
//! page tables are projections of it.

use core::fmt;

use crate::addr::{Frame, PAGE, Span};

/// Who may use a frame of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The visor itself; never leaves this state.
    Visor,
    /// The host and its devices.
    Host,
}

/// What can happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The visor takes it for itself.
    Claim,
}

impl Owner {
    /// The whole ownership policy: the owner after `event`, or `None` if the owner's frames do not
    /// take part in it.
    #[must_use]
    pub const fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::Host, Event::Claim) => Some(Self::Visor),
            (Self::Visor, Event::Claim) => None,
        }
    }

    /// The entry of a frame that this owner has. Never 0: memory that was only cleared says
    /// nothing about owners.
    const fn encode(self) -> u64 {
        match self {
            Self::Visor => 1,
            Self::Host => 2,
        }
    }

    /// The owner that `entry` names. One that names nobody keeps everybody but the visor out.
    const fn decode(entry: u64) -> Self {
        match entry {
            2 => Self::Host,
            _ => Self::Visor,
        }
    }
}

/// Why a table cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// This span of RAM is not made of whole pages, or begins before the one before it ends.
    Disorder(Span),
    /// The storage has not one entry per frame.
    Storage,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disorder(span) => write!(
                f,
                "frame table: RAM {:#x}..{:#x} is out of order or not whole pages",
                span.start(),
                span.end()
            ),
            Self::Storage => f.write_str("frame table: its storage does not fit the RAM"),
        }
    }
}

/// Why frames keep their owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The span has a part that is not RAM.
    NotRam(Span),
    /// A frame in the span has this owner, which the event does not apply to.
    Owned(Span, Owner),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NotRam(span) | Self::Owned(span, _)) = self;
        write!(f, "frame table: {:#x}..{:#x} ", span.start(), span.end())?;
        match self {
            Self::NotRam(_) => f.write_str("is not all RAM"),
            Self::Owned(_, Owner::Visor) => f.write_str("has a frame of the visor's"),
            Self::Owned(_, Owner::Host) => f.write_str("has a frame of the host's"),
        }
    }
}

/// One entry of 8 bytes per frame of RAM, in the order of addresses, and nothing for the rest.
#[derive(Debug)]
pub struct FrameTable<'a> {
    ram: &'a [Span],
    entries: &'a mut [u64],
}

impl<'a> FrameTable<'a> {
    /// Number of entries for `ram`: one per whole frame.
    #[must_use]
    pub fn entries(ram: &[Span]) -> u64 {
        ram.iter().map(|span| span.len() / PAGE).sum()
    }

    /// A table in `storage`, which has exactly [`FrameTable::entries`], with all of `ram` (in
    /// ascending order, whole pages) the host's.
    ///
    /// # Errors
    /// [`TableError`] when `ram` or `storage` is not as described.
    pub fn new(ram: &'a [Span], storage: &'a mut [u64]) -> Result<Self, TableError> {
        let mut end = 0;
        for span in ram {
            if span.start() < end || span.grow_to(PAGE) != *span {
                return Err(TableError::Disorder(*span));
            }
            end = span.end();
        }
        if u64::try_from(storage.len()) != Ok(Self::entries(ram)) {
            return Err(TableError::Storage);
        }
        storage.fill(Owner::Host.encode());
        Ok(Self {
            ram,
            entries: storage,
        })
    }

    /// The owner of `frame`; `None` when it is not RAM.
    #[must_use]
    pub fn owner(&self, frame: Frame) -> Option<Owner> {
        let span = Span::sized(frame.base(), PAGE)?;
        self.uniform(span, |owner| owner).flatten()
    }

    /// Lets `event` happen to every frame of `span`, which is made of whole pages, or to none.
    ///
    /// # Errors
    /// [`Refusal`] names the first obstacle; nothing has changed then.
    pub fn apply(&mut self, span: Span, event: Event) -> Result<(), Refusal> {
        let covered: u64 = self.pieces(span).map(|(piece, _)| piece.len()).sum();
        if covered != span.len() || span.grow_to(PAGE) != span {
            return Err(Refusal::NotRam(span));
        }
        for entry in self.pieces(span).flat_map(|(_, entries)| entries) {
            let owner = Owner::decode(*entry);
            let _ = owner.after(event).ok_or(Refusal::Owned(span, owner))?;
        }
        let mut rest = &mut *self.entries;
        for ram in self.ram {
            let (entries, others) = rest.split_at_mut(index(ram.len()).min(rest.len()));
            rest = others;
            let piece = ram.intersect(span);
            let first = index(piece.start().saturating_sub(ram.start()));
            for entry in entries.iter_mut().skip(first).take(index(piece.len())) {
                // Every owner has just been found to take part.
                *entry = Owner::decode(*entry)
                    .after(event)
                    .map_or(*entry, Owner::encode);
            }
        }
        Ok(())
    }

    /// What `view` makes of every frame in `span` (`None`: not RAM), if that is the same for all;
    /// `None` if it differs or the span is empty.
    pub fn uniform<T: PartialEq>(
        &self,
        span: Span,
        view: impl Fn(Option<Owner>) -> T,
    ) -> Option<T> {
        let span = span.grow_to(PAGE);
        let mut seen = None;
        let mut agrees = |owner| {
            let new = view(owner);
            match &seen {
                Some(old) => *old == new,
                None => {
                    seen = Some(new);
                    true
                }
            }
        };
        let mut next = span.start();
        for (piece, entries) in self.pieces(span) {
            if piece.start() > next && !agrees(None) {
                return None;
            }
            // Neighbours are mostly equal: only a change is worth a decision.
            for run in entries.chunk_by(|a, b| a == b) {
                if !agrees(run.first().copied().map(Owner::decode)) {
                    return None;
                }
            }
            next = piece.end();
        }
        if next < span.end() && !agrees(None) {
            return None;
        }
        seen
    }

    /// The pieces of RAM in `span` with their entries, in ascending order.
    fn pieces(&self, span: Span) -> impl Iterator<Item = (Span, &[u64])> {
        let mut before = 0;
        self.ram.iter().filter_map(move |ram| {
            let first = before;
            before += index(ram.len());
            let piece = ram.intersect(span);
            if piece.is_empty() {
                return None;
            }
            let first = first + index(piece.start() - ram.start());
            let entries = self.entries.get(first..first + index(piece.len()))?;
            Some((piece, entries))
        })
    }
}

/// Number of entries that `bytes` of RAM have.
fn index(bytes: u64) -> usize {
    // A table of more entries than a slice can have was refused when it was made.
    usize::try_from(bytes / PAGE).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_takes_a_frame_from_the_visor() {
        assert_eq!(Owner::Visor.after(Event::Claim), None);
        assert_eq!(Owner::Host.after(Event::Claim), Some(Owner::Visor));
    }

    #[test]
    fn an_owner_survives_its_entry() {
        for owner in [Owner::Visor, Owner::Host] {
            assert_eq!(Owner::decode(owner.encode()), owner);
        }
    }

    proptest! {
        #[test]
        fn an_entry_that_names_nobody_is_the_visors(entry in any::<u64>()) {
            for entry in [entry, entry % 8] {
                prop_assert_eq!(Owner::decode(entry) == Owner::Host, entry == Owner::Host.encode());
            }
        }
    }

    #[test]
    fn a_damaged_entry_is_neither_the_hosts_nor_claimed_again() {
        let ram = [Span::sized(0, 2 * PAGE).unwrap()];
        let mut storage = [0; 2];
        let mut table = FrameTable::new(&ram, &mut storage).unwrap();
        table.entries[1] = 0;
        assert_eq!(table.owner(Frame::containing(PAGE)), Some(Owner::Visor));
        let refusal = Refusal::Owned(ram[0], Owner::Visor);
        assert_eq!(table.apply(ram[0], Event::Claim), Err(refusal));
    }
}
