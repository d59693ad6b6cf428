//! The frame table: what each page frame of RAM is, and who has it. The only source of truth about
//! ownership; page tables are projections of it.

mod number;
mod state;

use core::fmt;

pub use number::{View, Vm};
pub use state::{Event, Guard, Owner, State};

use crate::addr::{Frame, HUGE, LARGE, PAGE, Span};
use crate::entry::Level;

/// Why a table cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// This span of RAM is not made of whole pages, or begins before the one before it ends.
    Disorder(Span),
    /// The storage has not the size that the RAM asks for.
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

/// Why frames stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This part is not RAM, or not whole pages.
    NotRam(Span),
    /// This frame is in a state that does not take part in the event.
    State(Frame, State),
    /// A large leaf of a table maps this frame.
    Mapped(Frame),
    /// This block has frames that are the visor's, tables, or private.
    Closed(Span),
    /// The count of leaves that map this block has come to its end.
    Count(Span),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("frame table: ")?;
        match self {
            Self::NotRam(span) => write!(f, "{span} is not all RAM"),
            Self::State(frame, State::Visor) => write!(f, "{:#x} is the visor's", frame.base()),
            Self::State(frame, State::Plain { maps }) => {
                write!(f, "{:#x} is mapped {maps} times", frame.base())
            }
            Self::State(frame, State::Fresh { level, .. } | State::Table { level, .. }) => {
                write!(f, "{:#x} is a table of level {level:?}", frame.base())
            }
            Self::State(frame, State::Leaving { .. }) => {
                write!(f, "{:#x} was a table until now", frame.base())
            }
            Self::State(frame, State::Private { vm, .. }) => {
                write!(f, "{:#x} is private to VM {}", frame.base(), vm.number())
            }
            Self::Mapped(frame) => write!(f, "{:#x} lies in a large page", frame.base()),
            Self::Closed(span) => write!(f, "{span} has frames of the visor's, of VMs, or tables"),
            Self::Count(span) => write!(f, "{span} is mapped too often, or was not"),
        }
    }
}

/// One word of 8 bytes per frame of RAM, and one per block of 2 MiB and of 1 GiB that has RAM.
///
/// Large leaves are counted per block and not per frame. A block's word has the number of its
/// frames that are [`State::closed`], in bits 19:0, and of the large leaves that map it, above;
/// not both are other than 0. RAM of several pieces may share a block: each piece then has a word
/// for its part.
#[derive(Debug)]
pub struct FrameTable<'a> {
    ram: &'a [Span],
    /// Where the words of each piece of RAM begin, one per piece; then piece by piece those of its
    /// frames, its 2 MiB blocks, its 1 GiB blocks.
    words: &'a mut [u64],
    views: Span,
}

/// One leaf in a block's word.
const LEAF: u64 = 1 << 20;

/// A piece of RAM, and where its words begin.
#[derive(Clone, Copy)]
struct Home {
    ram: Span,
    first: usize,
}

impl Home {
    /// Index of the word for the frame, or the block of the leaves of `level`, around `address`.
    #[inline(always)]
    fn word(self, address: u64, level: Level) -> usize {
        let number = |bytes: u64| address / bytes - self.ram.start() / bytes;
        let frames = self.ram.len() / PAGE;
        self.first
            + index(match level {
                Level::Pt => number(PAGE),
                Level::Pd => frames + number(LARGE),
                Level::Pdpt | Level::Pml4 => frames + blocks(self.ram, LARGE) + number(HUGE),
            })
    }
}

/// Number of blocks of `bytes` that `ram` has a part in.
fn blocks(ram: Span, bytes: u64) -> u64 {
    ram.grow_to(bytes).len() / bytes
}

/// An index into the words. A table of more than a slice can have was refused when it was made.
fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<'a> FrameTable<'a> {
    /// Number of words that a table for `ram` takes.
    #[must_use]
    pub fn entries(ram: &[Span]) -> u64 {
        ram.iter().map(|ram| 1 + Self::words(*ram)).sum()
    }

    /// Words of one piece of RAM.
    fn words(ram: Span) -> u64 {
        ram.len() / PAGE + blocks(ram, LARGE) + blocks(ram, HUGE)
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
        storage.fill(0);
        let mut first = ram.len();
        for (piece, span) in ram.iter().enumerate() {
            let frames = first..first + index(span.len() / PAGE);
            let plain = State::Plain { maps: 0 }.encode();
            storage.get_mut(frames).unwrap_or_default().fill(plain);
            if let Some(word) = storage.get_mut(piece) {
                *word = u64::try_from(first).map_err(|_| TableError::Storage)?;
            }
            first += index(Self::words(*span));
        }
        Ok(Self { ram, words: storage, views: Span::EMPTY })
    }

    /// Makes the frames of `span` views: they are the visor's, and the host may see whatever it lets
    /// [`Event::View`] show.
    pub const fn set_views(&mut self, span: Span) {
        self.views = span;
    }

    /// The frame of `view`; `None` if there are not so many.
    #[must_use]
    pub fn view(&self, view: View) -> Option<Frame> {
        let frame = Frame::at(self.views.start() + u64::from(view.0) * PAGE);
        frame.filter(|frame| self.views.contains(frame.base()))
    }

    /// The owner of `frame`; `None` when it is not RAM.
    #[must_use]
    pub fn owner(&self, frame: Frame) -> Option<Owner> {
        self.state(frame).map(State::owner)
    }

    /// What `frame` is; `None` when it is not RAM.
    #[must_use]
    #[inline(always)]
    pub fn state(&self, frame: Frame) -> Option<State> {
        let word = self.home(frame)?.word(frame.base(), Level::Pt);
        self.words.get(word).map(|word| State::decode(*word))
    }

    /// Lets `event` happen to `frame`, and says what it is now.
    ///
    /// # Errors
    /// [`Refusal`] names the obstacle; nothing has changed then.
    pub fn change(&mut self, frame: Frame, event: Event) -> Result<State, Refusal> {
        let (home, old, new) = self.next(frame, event)?;
        let at = home.word(frame.base(), Level::Pt);
        let word = self.words.get_mut(at).ok_or(Refusal::NotRam(page(frame)))?;
        *word = new.encode();
        if old.closed() != new.closed() {
            for level in LARGER {
                if let Some(word) = self.words.get_mut(home.word(frame.base(), level)) {
                    *word = if new.closed() { *word + 1 } else { *word - 1 };
                }
            }
        }
        Ok(new)
    }

    /// Lets `event` happen to every frame of `span`, which is made of whole pages, or to none.
    ///
    /// # Errors
    /// [`Refusal`] names the first obstacle; nothing has changed then.
    pub fn apply(&mut self, span: Span, event: Event) -> Result<(), Refusal> {
        self.apply_each(span, |_| event)
    }

    /// The same, with an event for each frame.
    ///
    /// # Errors
    /// [`Refusal`] names the first obstacle; nothing has changed then.
    pub fn apply_each(
        &mut self,
        span: Span,
        event: impl Fn(Frame) -> Event,
    ) -> Result<(), Refusal> {
        if span.grow_to(PAGE) != span {
            return Err(Refusal::NotRam(span));
        }
        let frames =
            || (span.start() / PAGE..span.end() / PAGE).map(|n| Frame::containing(n * PAGE));
        for frame in frames() {
            let _ = self.next(frame, event(frame))?;
        }
        for frame in frames() {
            let _ = self.change(frame, event(frame))?;
        }
        Ok(())
    }

    /// Counts a leaf of `level` that maps `block`. What of it is not RAM is no concern of this
    /// table's.
    ///
    /// # Errors
    /// [`Refusal`] when a frame in it is [`State::closed`]; nothing has changed then.
    pub fn map(&mut self, block: Span, level: Level) -> Result<(), Refusal> {
        match level {
            Level::Pml4 => return Err(Refusal::Count(block)),
            Level::Pt => return self.count(block, Event::Map),
            Level::Pdpt | Level::Pd => {}
        }
        for at in self.homes(block, level) {
            let word = self.words.get(at).copied().unwrap_or_default();
            if word % LEAF != 0 {
                return Err(Refusal::Closed(block));
            }
            let _ = word.checked_add(LEAF).ok_or(Refusal::Count(block))?;
        }
        for at in self.homes(block, level) {
            if let Some(word) = self.words.get_mut(at) {
                *word += LEAF;
            }
        }
        Ok(())
    }

    /// Takes back a [`FrameTable::map`].
    ///
    /// # Errors
    /// [`Refusal`] when there was none.
    pub fn unmap(&mut self, block: Span, level: Level) -> Result<(), Refusal> {
        if matches!(level, Level::Pt) {
            return self.count(block, Event::Unmap);
        }
        for at in self.homes(block, level) {
            let word = self.words.get_mut(at).ok_or(Refusal::Count(block))?;
            *word = word.checked_sub(LEAF).ok_or(Refusal::Count(block))?;
        }
        Ok(())
    }

    /// Whether no frame in `block`, the block of a leaf of `level`, is [`State::closed`].
    #[must_use]
    pub fn open(&self, block: Span, level: Level) -> bool {
        if matches!(level, Level::Pt) {
            return !self.state(Frame::containing(block.start())).is_some_and(State::closed);
        }
        let mut words = self.homes(block, level).filter_map(|at| self.words.get(at));
        words.all(|word| word % LEAF == 0)
    }

    /// Whether all frames in `block`, an aligned one of 2 MiB, are RAM and [`State::closed`].
    #[must_use]
    pub fn shut(&self, block: Span) -> bool {
        let words = self.homes(block, Level::Pd).filter_map(|at| self.words.get(at));
        words.map(|word| word % LEAF).sum::<u64>() == LARGE / PAGE
    }

    /// What `event` would make of `frame`: where it lies, what it is and would be.
    fn next(&self, frame: Frame, event: Event) -> Result<(Home, State, State), Refusal> {
        let home = self.home(frame).ok_or(Refusal::NotRam(page(frame)))?;
        let word = |level| self.words.get(home.word(frame.base(), level)).copied();
        let old = State::decode(word(Level::Pt).unwrap_or_default());
        let new = old.after(event).ok_or(Refusal::State(frame, old))?;
        let mapped = |level| word(level).is_none_or(|word| word >= LEAF);
        if new.closed() && !old.closed() && LARGER.into_iter().any(mapped) {
            return Err(Refusal::Mapped(frame));
        }
        Ok((home, old, new))
    }

    /// Counts a leaf at the start of `block`, if that is RAM, by an event that opens and closes
    /// nothing.
    #[inline(always)]
    fn count(&mut self, block: Span, event: Event) -> Result<(), Refusal> {
        let frame = Frame::containing(block.start());
        let home = self.home(frame).map(|home| home.word(frame.base(), Level::Pt));
        let Some(word) = home.and_then(|at| self.words.get_mut(at)) else {
            return Ok(());
        };
        let old = State::decode(*word);
        *word = old.after(event).ok_or(Refusal::State(frame, old))?.encode();
        Ok(())
    }

    /// Where `frame` lies, if it is RAM. The last piece is the largest on most machines.
    #[inline(always)]
    fn home(&self, frame: Frame) -> Option<Home> {
        let piece = self.ram.iter().rposition(|ram| ram.contains(frame.base()))?;
        let first = index(*self.words.get(piece)?);
        Some(Home { ram: *self.ram.get(piece)?, first })
    }

    /// Indexes of the words for `block`, one per piece of RAM that has a part in it.
    fn homes(&self, block: Span, level: Level) -> impl Iterator<Item = usize> + use<'a> {
        let ram = self.ram;
        let mut next = ram.len();
        ram.iter().filter_map(move |ram| {
            let home = Home { ram: *ram, first: next };
            next += index(Self::words(*ram));
            let part = ram.intersect(block);
            (!part.is_empty()).then(|| home.word(part.start(), level))
        })
    }
}

/// The levels whose leaves map more than one frame.
const LARGER: [Level; 2] = [Level::Pd, Level::Pdpt];

/// The span of `frame`.
fn page(frame: Frame) -> Span {
    Span::sized(frame.base(), PAGE).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_entry_is_neither_the_hosts_nor_claimed_again() {
        let ram = [Span::sized(0, 2 * PAGE).unwrap()];
        let mut storage = [0; 5];
        let mut table = FrameTable::new(&ram, &mut storage).unwrap();
        let second = Frame::containing(PAGE);
        table.words[2] = 0;
        assert_eq!(table.owner(second), Some(Owner::Visor));
        let refusal = Refusal::State(second, State::Visor);
        assert_eq!(table.apply(ram[0], Event::Claim), Err(refusal));
    }
}
