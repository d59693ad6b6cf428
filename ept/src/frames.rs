//! The frame table: who owns each page frame of RAM. The only source of truth about ownership;
//! page tables are projections of it.

use core::fmt;
use core::ops::Range;

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
        f.write_str("frame table: ")?;
        match self {
            Self::Disorder(span) => write!(f, "RAM {span} is out of order or not whole pages"),
            Self::Storage => f.write_str("its storage does not fit the RAM"),
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
        f.write_str("frame table: ")?;
        match self {
            Self::NotRam(span) => write!(f, "{span} is not all RAM"),
            Self::Owned(span, Owner::Visor) => write!(f, "{span} has a frame of the visor's"),
            Self::Owned(span, Owner::Host) => write!(f, "{span} has a frame of the host's"),
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
        Ok(Self { ram, entries: storage })
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
        for (_, range) in self.pieces(span) {
            for entry in self.entries.get(range).unwrap_or_default() {
                let owner = Owner::decode(*entry);
                let _ = owner.after(event).ok_or(Refusal::Owned(span, owner))?;
            }
        }
        for (_, range) in self.pieces(span) {
            for entry in self.entries.get_mut(range).unwrap_or_default() {
                // Every owner has just been found to take part.
                *entry = Owner::decode(*entry).after(event).map_or(*entry, Owner::encode);
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
        let mut next = span.start();
        let end = Span::sized(span.end(), 0)?;
        let mut views = (self.pieces(span).chain([(end, 0..0)]))
            .flat_map(|(piece, range)| {
                let gap = (next < piece.start()).then_some(None);
                next = piece.end();
                let entries = self.entries.get(range).unwrap_or_default();
                // Neighbours are mostly equal: only a change is worth a look.
                let runs = entries.chunk_by(|a, b| a == b).filter_map(<[u64]>::first);
                gap.into_iter().chain(runs.map(|entry| Some(Owner::decode(*entry))))
            })
            .map(view);
        let first = views.next()?;
        views.all(|other| other == first).then_some(first)
    }

    /// The pieces of RAM in `span` with the indexes of their entries, in ascending order.
    fn pieces(&self, span: Span) -> impl Iterator<Item = (Span, Range<usize>)> + use<'a> {
        let mut before = 0;
        self.ram.iter().filter_map(move |ram| {
            let piece = ram.intersect(span);
            let first = before + index(piece.start().saturating_sub(ram.start()));
            before += index(ram.len());
            (!piece.is_empty()).then(|| (piece, first..first + index(piece.len())))
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
