//! What a frame of RAM is, and the ownership policy: how it may become something else.

use crate::addr::{Frame, PAGE};
use crate::entry::Level;

/// Who may use a frame of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The visor itself; never leaves this state.
    Visor,
    /// The host and its devices.
    Host,
}

/// What a frame of RAM is.
///
/// A table is one of an EPT12, which the processor walks as the host left it; see
/// [`crate::direct`]. Tables in motion form lists through their entries here, since their number
/// has no bound but the RAM: `next` is the one after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The visor's own.
    Visor,
    /// The host's, to do with as it likes.
    Plain {
        /// 4 KiB leaves of tables that map it.
        maps: u64,
    },
    /// A table whose entries nobody has read yet: read-only, but perhaps not yet to everybody.
    Fresh {
        /// Its only level.
        level: Level,
        /// Entries that lead to it; one more for a root.
        links: u16,
        /// The list.
        next: Option<Frame>,
    },
    /// A table, read-only to the host, and what its entries lead to is counted.
    Table {
        /// Its only level.
        level: Level,
        /// Entries that lead to it; one more for a root.
        links: u16,
    },
    /// A table no more: plain as soon as every processor has forgotten it.
    Leaving {
        /// The list.
        next: Option<Frame>,
    },
}

/// What can happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The visor takes it for itself.
    Claim,
    /// A 4 KiB leaf of a table maps it.
    Map,
    /// Such a leaf maps it no more.
    Unmap,
    /// An entry leads to it as a table of this level. If it was none, it joins the list.
    Link(Level, Option<Frame>),
    /// What its entries lead to is counted.
    Count,
    /// Such an entry leads to it no more. If that was the last, it joins the list.
    Unlink(Option<Frame>),
    /// Every processor has forgotten that it was a table.
    Forget,
}

/// Most entries that may lead to one table. Hosts have one or two.
const LINKS: u16 = (1 << 15) - 1;

impl State {
    /// The whole ownership policy: the state after `event`, or `None` if frames in this state do
    /// not take part in it. No frame is both mapped and a table, or a table of two levels.
    #[must_use]
    #[inline(always)]
    pub fn after(self, event: Event) -> Option<Self> {
        match (self, event) {
            (Self::Plain { maps: 0 }, Event::Claim) => Some(Self::Visor),
            (Self::Plain { maps }, Event::Map) if maps < MAPS => {
                Some(Self::Plain { maps: maps + 1 })
            }
            (Self::Plain { maps }, Event::Unmap) => {
                Some(Self::Plain { maps: maps.checked_sub(1)? })
            }
            (Self::Plain { maps: 0 }, Event::Link(level, next)) => {
                Some(Self::Fresh { level, links: 1, next })
            }
            (Self::Fresh { level, links, next }, Event::Link(wanted, _))
                if level == wanted && links < LINKS =>
            {
                Some(Self::Fresh { level, links: links + 1, next })
            }
            (Self::Table { level, links }, Event::Link(wanted, _))
                if level == wanted && links < LINKS =>
            {
                Some(Self::Table { level, links: links + 1 })
            }
            (Self::Fresh { level, links, .. }, Event::Count) => Some(Self::Table { level, links }),
            (Self::Fresh { links: 1, .. } | Self::Table { links: 1, .. }, Event::Unlink(next)) => {
                Some(Self::Leaving { next })
            }
            (Self::Fresh { level, links, next }, Event::Unlink(_)) => {
                Some(Self::Fresh { level, links: links.checked_sub(1)?, next })
            }
            (Self::Table { level, links }, Event::Unlink(_)) => {
                Some(Self::Table { level, links: links.checked_sub(1)? })
            }
            (Self::Leaving { .. }, Event::Forget) => Some(Self::Plain { maps: 0 }),
            (
                Self::Visor
                | Self::Plain { .. }
                | Self::Fresh { .. }
                | Self::Table { .. }
                | Self::Leaving { .. },
                _,
            ) => None,
        }
    }

    /// Who has the frame.
    #[must_use]
    pub const fn owner(self) -> Owner {
        match self {
            Self::Visor => Owner::Visor,
            Self::Plain { .. } | Self::Fresh { .. } | Self::Table { .. } | Self::Leaving { .. } => {
                Owner::Host
            }
        }
    }

    /// Whether something is withheld from the host, or will be when translations are flushed.
    #[must_use]
    pub const fn closed(self) -> bool {
        match self {
            Self::Visor | Self::Fresh { .. } | Self::Table { .. } => true,
            Self::Plain { .. } | Self::Leaving { .. } => false,
        }
    }

    /// The entry of a frame in this state: the kind in bits 7:0, its count from bit 8, its list
    /// from bit 23. Never 0: memory that was only cleared says nothing about frames.
    pub(super) fn encode(self) -> u64 {
        let list = |next: Option<Frame>| next.map_or(0, |frame| frame.base() / PAGE + 1) << LIST;
        match self {
            Self::Visor => 1,
            Self::Plain { maps } => PLAIN | maps << COUNT,
            Self::Leaving { next } => LEAVING | list(next),
            Self::Table { level, links } => TABLE | number(level) | u64::from(links) << COUNT,
            Self::Fresh { level, links, next } => {
                FRESH | number(level) | u64::from(links) << COUNT | list(next)
            }
        }
    }

    /// The state that `entry` names. One that names none keeps everybody but the visor out.
    #[inline]
    pub(super) fn decode(entry: u64) -> Self {
        let (kind, list) = (entry & 0xff, entry >> LIST);
        if kind == PLAIN {
            return Self::Plain { maps: entry >> COUNT };
        }
        let links = u16::try_from(entry >> COUNT & u64::from(LINKS)).unwrap_or(0);
        let level = match kind & 0b11 {
            0 => Level::Pml4,
            1 => Level::Pdpt,
            2 => Level::Pd,
            _ => Level::Pt,
        };
        match kind & !0b11 {
            TABLE if list == 0 => Self::Table { level, links },
            FRESH => frame(list).map_or(Self::Visor, |next| Self::Fresh { level, links, next }),
            LEAVING if kind == LEAVING && links == 0 => {
                frame(list).map_or(Self::Visor, |next| Self::Leaving { next })
            }
            _ => Self::Visor,
        }
    }
}

/// The frame after in a list; `None` if there can be no such frame.
fn frame(list: u64) -> Option<Option<Frame>> {
    list.checked_sub(1).map_or(Some(None), |number| Frame::at(number * PAGE).map(Some))
}

/// Kinds; the two low bits of those of tables are the level.
const PLAIN: u64 = 2;
const LEAVING: u64 = 4;
const TABLE: u64 = 8;
const FRESH: u64 = 12;
/// Where the count begins.
const COUNT: u32 = 8;
/// Where the list begins: the number of the next frame and one, 0 at the end.
const LIST: u32 = 23;
/// Most leaves that an entry can count.
const MAPS: u64 = (1 << (64 - COUNT)) - 1;

const fn number(level: Level) -> u64 {
    match level {
        Level::Pml4 => 0,
        Level::Pdpt => 1,
        Level::Pd => 2,
        Level::Pt => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PHYSICAL_END;
    use proptest::prelude::*;
    use std::vec;

    fn level() -> impl Strategy<Value = Level> {
        proptest::sample::select(vec![Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt])
    }

    fn next() -> impl Strategy<Value = Option<Frame>> {
        let frame = prop_oneof![0..PHYSICAL_END, Just(0), Just(PHYSICAL_END - 1)];
        proptest::option::of(frame.prop_map(Frame::containing))
    }

    fn state() -> impl Strategy<Value = State> {
        let links = prop_oneof![1..4_u16, Just(LINKS)];
        let maps = prop_oneof![0..3_u64, Just(MAPS)];
        prop_oneof![
            Just(State::Visor),
            maps.prop_map(|maps| State::Plain { maps }),
            (level(), links.clone(), next()).prop_map(|(level, links, next)| State::Fresh {
                level,
                links,
                next
            }),
            (level(), links).prop_map(|(level, links)| State::Table { level, links }),
            next().prop_map(|next| State::Leaving { next }),
        ]
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Claim),
            Just(Event::Map),
            Just(Event::Unmap),
            (level(), next()).prop_map(|(level, next)| Event::Link(level, next)),
            Just(Event::Count),
            next().prop_map(Event::Unlink),
            Just(Event::Forget),
        ]
    }

    /// Leaves that map a frame, and entries that lead to it.
    fn counts(state: State) -> (u64, u16) {
        match state {
            State::Plain { maps } => (maps, 0),
            State::Fresh { links, .. } | State::Table { links, .. } => (0, links),
            State::Visor | State::Leaving { .. } => (0, 0),
        }
    }

    proptest! {
        #[test]
        fn a_state_survives_its_entry(state in state()) {
            prop_assert_eq!(State::decode(state.encode()), state);
        }

        #[test]
        fn an_entry_that_names_no_state_is_the_visors(entry in any::<u64>(), low in 0..16_u64) {
            for entry in [entry, entry & !0xff | low, low] {
                let state = State::decode(entry);
                prop_assert!(state == State::Visor || state.encode() == entry);
            }
        }

        #[test]
        fn nothing_takes_a_frame_from_the_visor(event in event()) {
            prop_assert_eq!(State::Visor.after(event), None);
        }

        #[test]
        fn every_event_counts_by_one_or_is_refused(state in state(), event in event()) {
            let (maps, links) = counts(state);
            let Some(after) = state.after(event) else { return Ok(()) };
            let expected = match event {
                Event::Map => (maps + 1, 0),
                Event::Unmap => (maps - 1, 0),
                Event::Link(..) => (0, links + 1),
                Event::Unlink(_) => (0, links - 1),
                Event::Claim | Event::Count | Event::Forget => (0, links),
            };
            prop_assert_eq!(counts(after), expected);
            prop_assert_eq!(after == State::Visor, event == Event::Claim);
            // Whatever is claimed or becomes a table was mapped nowhere.
            prop_assert!(!after.closed() || maps == 0);
            prop_assert!(State::decode(after.encode()) == after);
        }
    }

    #[test]
    fn a_table_has_one_level_and_is_neither_mapped_nor_claimed() {
        let table = State::Table { level: Level::Pd, links: 1 };
        let fresh = State::Fresh { level: Level::Pd, links: 1, next: None };
        for state in [table, fresh] {
            for event in [Event::Claim, Event::Map, Event::Unmap, Event::Link(Level::Pt, None)] {
                assert_eq!(state.after(event), None, "{event:?}");
            }
            assert!(state.after(Event::Link(Level::Pd, None)).is_some());
        }
        let mapped = State::Plain { maps: 1 };
        assert_eq!(mapped.after(Event::Link(Level::Pd, None)), None);
        assert_eq!(mapped.after(Event::Claim), None);
    }
}
