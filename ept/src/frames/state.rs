//! What a frame of RAM is, and the ownership policy: how it may become something else.

use crate::addr::{Frame, GuestFrame, PAGE};
use crate::entry::Level;

use super::number::{View, Vm};

/// Who walks a table of the host's; see [`crate::direct`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Processors, for an unprotected VM: what its leaves map is counted.
    Counted,
    /// The visor alone, for a protected VM: its leaves say only what the host would like.
    Guarded,
}

/// Who may use a frame of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The visor itself; never leaves this state.
    Visor,
    /// The host and its devices.
    Host,
    /// This protected VM; neither the host nor another VM can reach it.
    Vm(Vm),
}

/// What a frame of RAM is.
///
/// A table is one of an EPT12, which stays as the host left it; see [`crate::direct`]. Tables in
/// motion form lists through their entries here, since their number has no bound but the RAM:
/// `next` is the one after.
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
        /// Who walks it.
        guard: Guard,
        /// Entries that lead to it; one more for a root.
        links: u16,
        /// The list.
        next: Option<Frame>,
    },
    /// A table, read-only to the host, and what its entries lead to is counted: links, and leaves
    /// where processors walk it.
    Table {
        /// Its only level.
        level: Level,
        /// Who walks it.
        guard: Guard,
        /// Entries that lead to it; one more for a root.
        links: u16,
    },
    /// A table no more: plain as soon as every processor has forgotten it.
    Leaving {
        /// The list.
        next: Option<Frame>,
    },
    /// Private memory of a protected VM.
    Private {
        /// The VM.
        vm: Vm,
        /// Where it has the frame, and nowhere else.
        page: GuestFrame,
        /// What the host sees instead; `None`: nothing.
        view: Option<View>,
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
    /// An entry leads to it as such a table of this level. If it was none, it joins the list.
    Link(Level, Guard, Option<Frame>),
    /// What its entries lead to is counted.
    Count,
    /// Such an entry leads to it no more. If that was the last, it joins the list.
    Unlink(Option<Frame>),
    /// Every processor has forgotten that it was a table.
    Forget,
    /// It becomes private memory of this VM, which has it as this page.
    Take(Vm, GuestFrame),
    /// The host sees this view in its place, or none any more.
    View(Option<View>),
    /// It is the VM's no more, and holds nothing that the host must not see.
    Release,
}

/// Most entries that may lead to one table. Hosts have one or two.
const LINKS: u16 = (1 << 15) - 1;

impl State {
    /// The whole ownership policy: the state after `event`, or `None` if frames in this state do
    /// not take part in it. No frame is two of these: mapped, private, a table, or a table of
    /// another level or guard.
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
            (Self::Plain { maps: 0 }, Event::Link(level, guard, next)) => {
                Some(Self::Fresh { level, guard, links: 1, next })
            }
            (Self::Fresh { level, guard, links, next }, Event::Link(wanted, by, _))
                if (level, guard) == (wanted, by) && links < LINKS =>
            {
                Some(Self::Fresh { level, guard, links: links + 1, next })
            }
            (Self::Table { level, guard, links }, Event::Link(wanted, by, _))
                if (level, guard) == (wanted, by) && links < LINKS =>
            {
                Some(Self::Table { level, guard, links: links + 1 })
            }
            (Self::Fresh { level, guard, links, .. }, Event::Count) => {
                Some(Self::Table { level, guard, links })
            }
            (Self::Fresh { links: 1, .. } | Self::Table { links: 1, .. }, Event::Unlink(next)) => {
                Some(Self::Leaving { next })
            }
            (Self::Fresh { level, guard, links, next }, Event::Unlink(_)) => {
                Some(Self::Fresh { level, guard, links: links.checked_sub(1)?, next })
            }
            (Self::Table { level, guard, links }, Event::Unlink(_)) => {
                Some(Self::Table { level, guard, links: links.checked_sub(1)? })
            }
            (Self::Plain { maps: 0 }, Event::Take(vm, page)) => {
                Some(Self::Private { vm, page, view: None })
            }
            (Self::Private { vm, page, view: old }, Event::View(view))
                if old.is_none() != view.is_none() =>
            {
                Some(Self::Private { vm, page, view })
            }
            (Self::Leaving { .. }, Event::Forget) | (Self::Private { .. }, Event::Release) => {
                Some(Self::Plain { maps: 0 })
            }
            (
                Self::Visor
                | Self::Plain { .. }
                | Self::Fresh { .. }
                | Self::Table { .. }
                | Self::Leaving { .. }
                | Self::Private { .. },
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
            Self::Private { vm, .. } => Owner::Vm(vm),
        }
    }

    /// Whether something is withheld from the host, or will be when translations are flushed.
    #[must_use]
    pub const fn closed(self) -> bool {
        match self {
            Self::Visor | Self::Fresh { .. } | Self::Table { .. } | Self::Private { .. } => true,
            Self::Plain { .. } | Self::Leaving { .. } => false,
        }
    }

    /// The entry of a frame in this state: the kind in bits 7:0; its count from bit 8, its list
    /// from bit 23; or its VM in bits 15:8, its page in bits 51:16, and its view above, 0 for none.
    /// Never 0: memory that was only cleared says nothing about frames.
    pub(super) fn encode(self) -> u64 {
        let list = |next: Option<Frame>| next.map_or(0, |frame| frame.base() / PAGE + 1) << LIST;
        match self {
            Self::Visor => 1,
            Self::Plain { maps } => PLAIN | maps << COUNT,
            Self::Leaving { next } => LEAVING | list(next),
            Self::Table { level, guard, links } => {
                TABLE | kind(level, guard) | u64::from(links) << COUNT
            }
            Self::Fresh { level, guard, links, next } => {
                FRESH | kind(level, guard) | u64::from(links) << COUNT | list(next)
            }
            Self::Private { vm, page, view } => {
                let view = view.map_or(0, |view| u64::from(view.0) + 1) << VIEW;
                PRIVATE | u64::from(vm.0) << COUNT | page.number() << PAGE_NUMBER | view
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
        if kind == PRIVATE {
            return private(entry).unwrap_or(Self::Visor);
        }
        let links = u16::try_from(entry >> COUNT & u64::from(LINKS)).unwrap_or(0);
        let guard = if kind & GUARDED == 0 { Guard::Counted } else { Guard::Guarded };
        let level = match kind & 0b11 {
            0 => Level::Pml4,
            1 => Level::Pdpt,
            2 => Level::Pd,
            _ => Level::Pt,
        };
        match kind & !(GUARDED | 0b11) {
            TABLE if list == 0 => Self::Table { level, guard, links },
            FRESH => {
                frame(list).map_or(Self::Visor, |next| Self::Fresh { level, guard, links, next })
            }
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

/// The private memory that `entry` names.
fn private(entry: u64) -> Option<State> {
    let [_, vm, ..] = entry.to_le_bytes();
    let page = GuestFrame::containing((entry >> PAGE_NUMBER) * PAGE);
    let view = (entry >> VIEW).checked_sub(1).map(u8::try_from).transpose().ok()?.map(View);
    Some(State::Private { vm: Vm::new(vm)?, page, view })
}

/// Kinds; the two low bits of those of tables are the level, and bit 4 the guard.
const PLAIN: u64 = 2;
const PRIVATE: u64 = 3;
const LEAVING: u64 = 4;
const TABLE: u64 = 8;
const FRESH: u64 = 12;
const GUARDED: u64 = 16;
/// Where the count begins.
const COUNT: u32 = 8;
/// Where the list begins: the number of the next frame and one, 0 at the end.
const LIST: u32 = 23;
/// Most leaves that an entry can count.
const MAPS: u64 = (1 << (64 - COUNT)) - 1;

/// Where the number of a VM's page begins.
const PAGE_NUMBER: u32 = 16;
/// Where the number of its view begins, and one.
const VIEW: u32 = 52;

const fn kind(level: Level, guard: Guard) -> u64 {
    let level = match level {
        Level::Pml4 => 0,
        Level::Pdpt => 1,
        Level::Pd => 2,
        Level::Pt => 3,
    };
    match guard {
        Guard::Counted => level,
        Guard::Guarded => level | GUARDED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{GUEST_END, PHYSICAL_END};
    use proptest::prelude::*;
    use std::vec;

    fn level() -> impl Strategy<Value = Level> {
        proptest::sample::select(vec![Level::Pml4, Level::Pdpt, Level::Pd, Level::Pt])
    }

    fn guard() -> impl Strategy<Value = Guard> {
        proptest::sample::select(vec![Guard::Counted, Guard::Guarded])
    }

    fn vm() -> impl Strategy<Value = Vm> {
        (0..Vm::MAX).prop_map(Vm)
    }

    fn page() -> impl Strategy<Value = GuestFrame> {
        let address = prop_oneof![0..GUEST_END, Just(0), Just(GUEST_END - 1)];
        address.prop_map(GuestFrame::containing)
    }

    fn view() -> impl Strategy<Value = Option<View>> {
        proptest::option::of(any::<u8>().prop_map(View))
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
            (level(), guard(), links.clone(), next()).prop_map(|(level, guard, links, next)| {
                State::Fresh { level, guard, links, next }
            }),
            (level(), guard(), links).prop_map(|(level, guard, links)| State::Table {
                level,
                guard,
                links
            }),
            next().prop_map(|next| State::Leaving { next }),
            (vm(), page(), view()).prop_map(|(vm, page, view)| State::Private { vm, page, view }),
        ]
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Claim),
            Just(Event::Map),
            Just(Event::Unmap),
            (level(), guard(), next())
                .prop_map(|(level, guard, next)| Event::Link(level, guard, next)),
            Just(Event::Count),
            next().prop_map(Event::Unlink),
            Just(Event::Forget),
            (vm(), page()).prop_map(|(vm, page)| Event::Take(vm, page)),
            view().prop_map(Event::View),
            Just(Event::Release),
        ]
    }

    /// Leaves that map a frame, and entries that lead to it.
    fn counts(state: State) -> (u64, u16) {
        match state {
            State::Plain { maps } => (maps, 0),
            State::Fresh { links, .. } | State::Table { links, .. } => (0, links),
            State::Visor | State::Leaving { .. } | State::Private { .. } => (0, 0),
        }
    }

    /// The guard of a table.
    fn guard_of(state: State) -> Option<Guard> {
        match state {
            State::Fresh { guard, .. } | State::Table { guard, .. } => Some(guard),
            State::Visor | State::Plain { .. } | State::Leaving { .. } | State::Private { .. } => {
                None
            }
        }
    }

    proptest! {
        #[test]
        fn a_state_survives_its_entry(state in state()) {
            prop_assert_eq!(State::decode(state.encode()), state);
        }

        #[test]
        fn an_entry_that_names_no_state_is_the_visors(entry in any::<u64>(), low in 0..64_u64) {
            // Also one that has a VM and a page, and perhaps one bit more.
            let private = entry & 0xfff7_ffff_ffff_3f00 | 1 << (entry % 64) | low;
            for entry in [entry, entry & !0xff | low, low, private] {
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
                Event::Claim
                | Event::Count
                | Event::Forget
                | Event::Take(..)
                | Event::View(_)
                | Event::Release => (0, links),
            };
            prop_assert_eq!(counts(after), expected);
            prop_assert_eq!(after == State::Visor, event == Event::Claim);
            // Whatever is claimed or becomes a table was mapped nowhere.
            prop_assert!(!after.closed() || maps == 0);
            prop_assert!(State::decode(after.encode()) == after);
        }

        #[test]
        fn a_frame_of_a_vm_is_its_until_it_is_released(
            vm in vm(), page in page(), view in view(), event in event(), state in state(),
        ) {
            let private = State::Private { vm, page, view };
            prop_assert_eq!(private.owner(), Owner::Vm(vm));
            let plain = State::Plain { maps: 0 };
            let after = match (view, event) {
                (_, Event::Release) => Some(plain),
                // One at a time, and from one to the other only by way of none.
                (None, Event::View(view @ Some(_))) | (Some(_), Event::View(view @ None)) => {
                    Some(State::Private { vm, page, view })
                }
                _ => None,
            };
            prop_assert_eq!(private.after(event), after);
            // Only what is the host's alone becomes a VM's.
            let taken = state.after(Event::Take(vm, page));
            let private = State::Private { vm, page, view: None };
            prop_assert_eq!(taken, (state == plain).then_some(private));
            // Nothing else has a view.
            let is_private = matches!(state, State::Private { .. });
            prop_assert!(is_private || state.after(Event::View(view)).is_none());
        }

        #[test]
        fn a_table_keeps_its_guard_and_takes_links_of_no_other(
            state in state(), event in event(),
        ) {
            let Some(guard) = guard_of(state) else { return Ok(()) };
            let Some(after) = state.after(event) else { return Ok(()) };
            prop_assert!(guard_of(after).is_none_or(|after| after == guard));
            if let Event::Link(_, wanted, _) = event {
                prop_assert_eq!(wanted, guard);
            }
        }
    }

    #[test]
    fn there_are_64_protected_vms_at_most() {
        assert_eq!(Vm::new(63).map(Vm::number), Some(63));
        assert_eq!(Vm::new(64), None);
        let page = GuestFrame::containing(0);
        let last = State::Private { vm: Vm(63), page, view: None }.encode();
        assert_eq!(State::decode(last + (1 << COUNT)), State::Visor);
    }

    #[test]
    fn a_view_beyond_256_keeps_everybody_out() {
        let (vm, page) = (Vm(0), GuestFrame::containing(0));
        let last = State::Private { vm, page, view: Some(View(255)) }.encode();
        assert_eq!(State::decode(last + (1 << VIEW)), State::Visor);
    }

    #[test]
    fn a_table_has_one_level_and_is_neither_mapped_nor_claimed() {
        let guard = Guard::Counted;
        let link = |level, guard| Event::Link(level, guard, None);
        let table = State::Table { level: Level::Pd, guard, links: 1 };
        let fresh = State::Fresh { level: Level::Pd, guard, links: 1, next: None };
        for state in [table, fresh] {
            let links = [link(Level::Pt, guard), link(Level::Pd, Guard::Guarded)];
            for event in [Event::Claim, Event::Map, Event::Unmap].into_iter().chain(links) {
                assert_eq!(state.after(event), None, "{event:?}");
            }
            assert!(state.after(link(Level::Pd, guard)).is_some());
        }
        let mapped = State::Plain { maps: 1 };
        assert_eq!(mapped.after(link(Level::Pd, guard)), None);
        assert_eq!(mapped.after(Event::Claim), None);
    }
}
