//! What must hold after every step.

use std::collections::{BTreeMap, BTreeSet};

use ept::addr::{GuestFrame, PAGE, Span};
use ept::frames::{Guard, State};

use crate::world::{END, PLENTY, SHARED, World, frame, tables};

impl World {
    /// Where the host's tables have a page of the VM, by any root that is loaded.
    fn named(&self, vm: usize, page: u64) -> Vec<(u64, u64)> {
        let roots = tables(vm).roots.into_iter();
        let loaded = roots.filter(|root| {
            matches!(
                self.table.state(frame(*root)),
                Some(State::Table { guard: Guard::Guarded, .. })
            )
        });
        loaded.filter_map(|root| self.lookup(root, page)).collect()
    }

    /// Where tables of the host have `page`: frame and rights, by a walk written from the manual.
    fn lookup(&self, root: u64, page: u64) -> Option<(u64, u64)> {
        let (mut table, mut rights) = (root, 7);
        for shift in [27, 18, 9, 0] {
            let raw = self.entry(table, page >> shift & 0x1ff);
            rights &= raw;
            if raw & 7 == 0 || raw & 3 == 2 {
                return None;
            }
            let base = raw & 0x000f_ffff_ffff_f000;
            if shift == 0 || shift < 27 && raw & 0x80 != 0 {
                let offset = page & ((1 << shift) - 1);
                return Some((base - base % (PAGE << shift) + offset * PAGE, rights));
            }
            table = base;
        }
        None
    }

    /// What must hold after every step.
    pub(crate) fn check(&mut self) {
        self.board.remember();
        self.board.check_secrets();
        let mut maps: BTreeMap<u64, u64> = BTreeMap::new();
        let mut residents = 0;
        for vm in 0..2 {
            residents += self.check_vm(vm, &mut maps);
        }
        let found = self.board.frames().flat_map(|base| self.board.host_finds(base).into_keys());
        let mut views = BTreeSet::new();
        for (at, to) in found.filter(|(at, to)| at != to) {
            assert!(views.insert(to), "the view at {at:#x} is elsewhere too");
        }
        let mut private = 0;
        for base in self.board.frames() {
            private += u64::from(self.check_frame(base, &maps));
        }
        assert_eq!(private, residents, "private frames are those of VMs");
        let (machine, vms) = self.parts();
        let all = Span::new(0, END).unwrap();
        assert_eq!(vms.disagreement(&machine, all), None);
        if self.honest {
            assert_eq!([self.cause(0), self.cause(1)], [None, None], "an honest host's VM");
        }
    }

    /// What must hold of each page of a VM. Counts shared frames, and gives the number of private ones.
    fn check_vm(&self, vm: usize, maps: &mut BTreeMap<u64, u64>) -> u64 {
        let Some(guest) = &self.guests[vm] else { return 0 };
        let mut resident = 0;
        for page in self.pages() {
            let raw = self.board.leaf(guest.eptp, page * PAGE);
            let base = raw & 0x000f_ffff_ffff_f000;
            for (to, rights) in self.board.guest_may(guest.eptp, page * PAGE) {
                assert_eq!(to, base, "page {page:#x} is where it was");
                assert_eq!(rights & !raw, 0, "page {page:#x} keeps rights that it has not");
            }
            if raw == 0 {
                continue;
            }
            assert!(raw & 0xff8 == 0x70, "write-back, whatever the PAT says, and no flags");
            let state = self.table.state(frame(base)).unwrap();
            if SHARED.contains(&page) {
                *maps.entry(base).or_default() += 1;
                assert!(matches!(state, State::Plain { .. }), "{state:?} is shared");
                let named = self.named(vm, page);
                let fits = |(to, rights): &(u64, u64)| *to == base && raw & 7 & !rights == 0;
                // What nobody watches is forgotten before the VM runs again.
                let fits = named.is_empty() || raw & 7 == 0 || named.iter().any(fits);
                assert!(fits, "{page:#x} is not what the host's tables say any more");
            } else {
                resident += 1;
                let page = GuestFrame::at(page * PAGE).unwrap();
                let State::Private { vm, page: at, view } = state else { panic!("{state:?}") };
                assert_eq!((vm, at), (guest.number, page));
                assert!(view.is_none() || raw & 2 == 0, "the VM may write and the host see less");
                assert_eq!(self.board.host_may(base), 0, "the host reaches private {base:#x}");
            }
        }
        let vm = self.vms.vm(guest.number).unwrap();
        assert_eq!(vm.resident(), resident);
        resident
    }

    /// What must hold of each frame; true if it is private.
    fn check_frame(&self, base: u64, maps: &BTreeMap<u64, u64>) -> bool {
        let may = self.board.host_may(base);
        match self.table.state(frame(base)).unwrap() {
            State::Plain { maps: counted } => {
                let shared = maps.get(&base).copied().unwrap_or(0);
                assert!(counted >= shared, "{base:#x} is shared {shared} times, not {counted}");
                assert_eq!(may, 7, "{base:#x} is the host's");
                assert!(shared != 0 || !self.board.any_guest_may(base), "{base:#x} was given back");
                false
            }
            State::Private { view, .. } => {
                assert_eq!(may, 0);
                let view = view.map(|view| self.table.view(view).unwrap().base());
                let seen: Vec<u64> =
                    self.board.host_finds(base).into_keys().map(|at| at.1).collect();
                assert_eq!(seen, Vec::from_iter(view), "what the host sees at {base:#x}");
                true
            }
            State::Table { .. } => {
                assert_eq!(may, 1, "{base:#x} is a table");
                false
            }
            other @ (State::Visor | State::Fresh { .. } | State::Leaving { .. }) => {
                panic!("{base:#x} is left as {other:?}")
            }
        }
    }

    /// Destroys all VMs and asserts that the visor has all of its memory again.
    pub(crate) fn finish(mut self) {
        self.honest = false;
        self.board.left += PLENTY;
        for vm in 0..2 {
            let _ = self.destroy(vm);
        }
        for vm in 0..3 {
            for root in tables(vm).roots {
                self.forget_root(frame(root));
            }
        }
        self.check();
        assert_eq!(self.board.used(), self.board.hanging(self.board.host), "memory was lost");
        for base in self.board.frames() {
            assert_eq!(self.table.state(frame(base)), Some(State::Plain { maps: 0 }));
        }
    }
}
