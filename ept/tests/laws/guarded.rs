//! Protected VMs: their tables, and pages that change hands.

use ept::addr::{Frame, GuestFrame, Span};
use ept::direct::Refused;
use ept::entry::Level;
use ept::ept01::Exhausted;
use ept::frames::{Event, Guard, Refusal, State, View, Vm};

use crate::board::{DENIED, TABLES, VIEWS, VISOR};
use crate::direct::{PAGE, PD, PDPT, PT, ROOT, TREE, build, maps, set, with_tree, with_world};
use crate::hostile::World;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const HOLE: u64 = 2 * MIB + 0x8_0000;
const AT: GuestFrame = GuestFrame::containing(0x7000);

fn vm() -> Vm {
    Vm::new(9).unwrap()
}

fn private(view: Option<View>) -> State {
    State::Private { vm: vm(), page: AT, view }
}

fn take(world: &mut World<'_>, page: u64) -> Result<(), Refused> {
    let taken = world.parts().0.take(Frame::containing(page), vm(), AT);
    if taken.is_ok() {
        assert_eq!(world.state(page), Some(private(None)));
        let _ = world.board.private.insert(page);
        world.board.observe();
    }
    taken
}

fn release(world: &mut World<'_>, pages: &[u64]) -> Result<(), Refused> {
    let frames: Vec<_> = pages.iter().map(|page| Frame::containing(*page)).collect();
    world.board.private.retain(|page| !pages.contains(page));
    let released = world.parts().0.release(&frames);
    world.board.views.retain(|page, _| !pages.contains(page));
    released
}

fn refused(world: &World<'_>, page: u64) -> Result<(), Refused> {
    let state = world.state(page).unwrap();
    Err(Refused::Frame(Refusal::State(Frame::containing(page), state)))
}

/// The same world as [`with_tree`] has, but the tree is a protected VM's.
fn with_guarded_tree(test: impl FnOnce(&mut World<'_>)) {
    with_world(|world| {
        build(world);
        let _ = world.load_for(ROOT, Guard::Guarded).unwrap();
        test(world);
    });
}

#[test]
fn a_guarded_tree_is_read_only_and_its_leaves_count_for_nothing() {
    with_guarded_tree(|world| {
        for table in TREE {
            assert!(world.parts().0.is_guarded(Frame::containing(table)), "{table:#x}");
            assert!(!world.board.may_write_now(table));
        }
        assert_eq!(maps(world, PAGE), Some(0));
        let flushes = world.board.flushes;
        // Whatever the host would like: nobody follows these.
        for (index, page) in [PAGE, VISOR.0, DENIED.0, PT, 32 * GIB, HOLE].into_iter().enumerate() {
            set(world, (PT, index), page & !0xfff | 0x37).unwrap();
            set(world, (PD, 1 + index), page & !0x1f_ffff | 0xb7).unwrap();
        }
        assert_eq!((maps(world, PAGE), world.board.flushes), (Some(0), flushes));
        world.release(ROOT);
        assert!(TREE.iter().all(|table| world.board.may_write_now(*table)));
    });
}

#[test]
fn a_bad_leaf_does_not_keep_a_guarded_tree_from_loading_and_a_bad_link_does() {
    with_world(|world| {
        build(world);
        world.board.store((PT, 1), VISOR.0 | 7);
        assert_eq!(world.load(ROOT), refused(world, VISOR.0).map(|()| 0));
        assert!(world.load_for(ROOT, Guard::Guarded).is_ok());
        world.release(ROOT);
        world.board.store((PD, 1), VISOR.0 | 7);
        assert_eq!(world.load_for(ROOT, Guard::Guarded), refused(world, VISOR.0).map(|()| 0));
        assert!(TREE.iter().all(|table| maps(world, *table) == Some(0)));
    });
}

#[test]
fn no_table_is_used_under_both_guards() {
    with_guarded_tree(|world| {
        assert_eq!(world.load(ROOT), refused(world, ROOT).map(|()| 0));
        let other = TABLES[0][1];
        world.board.store((other, 0), PDPT | 7);
        assert_eq!(world.load(other), refused(world, PDPT).map(|()| 0));
        world.board.store((other, 0), 0);
        let _ = world.load(other).unwrap();
        assert_eq!(set(world, (other, 0), PDPT | 7), refused(world, PDPT));
        // Twice under one is fine.
        set(world, (PDPT, 1), PD | 7).unwrap();
        let twice = State::Table { level: Level::Pd, guard: Guard::Guarded, links: 2 };
        assert_eq!(world.state(PD), Some(twice));
    });
}

#[test]
fn a_taken_page_is_out_of_everybodys_reach_until_it_is_released() {
    with_tree(|world| {
        // The VM may still remember it, though its tables map it no more.
        set(world, (PT, 0), 0).unwrap();
        let flushes = world.board.flushes;
        take(world, PAGE).unwrap();
        assert_eq!(world.board.flushes, flushes + 1);
        assert_eq!(set(world, (PT, 0), PAGE | 0x37), refused(world, PAGE));
        let block = GIB + 2 * MIB;
        take(world, block + 0x3000).unwrap();
        let closed = set(world, (PD, 1), block | 0xb7);
        assert!(matches!(closed, Err(Refused::Frame(Refusal::Closed(_)))), "{closed:?}");
        assert_eq!(set(world, (PD, 1), PAGE | 7), refused(world, PAGE));
        assert_eq!(take(world, PAGE), refused(world, PAGE));
        let claim = world.frames.change(Frame::containing(PAGE), Event::Claim).unwrap_err();
        assert_eq!(claim.to_string(), "frame table: 0x408000 is private to VM 9");
        release(world, &[PAGE, block + 0x3000]).unwrap();
        assert!(world.board.may_write_now(PAGE));
        set(world, (PD, 1), block | 0xb7).unwrap();
        set(world, (PT, 0), PAGE | 0x37).unwrap();
    });
}

#[test]
fn the_host_sees_the_view_of_a_private_page_until_that_is_hidden_or_the_page_its_own() {
    with_tree(|world| {
        set(world, (PT, 0), 0).unwrap();
        let (frame, view) = (Frame::containing(PAGE), View(1));
        let seen = |world: &World<'_>| world.board.tables.hardware_walk(PAGE + 5);
        assert_eq!(world.parts().0.show(frame, view), refused(world, PAGE));
        assert!(world.parts().0.hide(frame).span().is_empty(), "there is none");
        take(world, PAGE).unwrap();
        let _ = world.board.views.insert(PAGE, VIEWS.0 + 0x1000);
        world.parts().0.show(frame, view).unwrap();
        world.board.observe();
        assert_eq!(world.state(PAGE), Some(private(Some(view))));
        // Readable, writable, executable, write-back.
        assert_eq!(seen(world), Some((VIEWS.0 + 0x1005, 0x37)));
        assert_eq!(world.parts().0.show(frame, View(2)), refused(world, PAGE));
        assert_eq!(set(world, (PT, 0), PAGE | 0x37), refused(world, PAGE));
        assert_eq!(take(world, PAGE), refused(world, PAGE));
        let stale = world.parts().0.hide(frame);
        let _ = stale.flush(&mut world.board);
        let _ = world.board.views.remove(&PAGE);
        world.board.observe();
        assert_eq!((seen(world), world.state(PAGE)), (None, Some(private(None))));
        let _ = world.board.views.insert(PAGE, VIEWS.0 + 0x1000);
        world.parts().0.show(frame, view).unwrap();
        let flushes = world.board.flushes;
        release(world, &[PAGE]).unwrap();
        assert_eq!(world.board.flushes, flushes + 1, "the host forgets the view");
        assert_eq!(seen(world), Some((PAGE + 5, 0x37)));
    });
}

#[test]
fn a_view_that_there_is_not_shows_nothing() {
    with_tree(|world| {
        let page = PAGE + 0x1000;
        take(world, page).unwrap();
        let beyond = View(4);
        assert_eq!(world.frames.view(beyond), None);
        world.parts().0.show(Frame::containing(page), beyond).unwrap();
        assert_eq!(world.board.tables.hardware_walk(page), None);
        release(world, &[page]).unwrap();
    });
}

#[test]
fn only_what_is_the_hosts_alone_is_taken() {
    with_tree(|world| {
        let block = GIB + 2 * MIB;
        set(world, (PD, 1), block | 0xb7).unwrap();
        let flushes = world.board.flushes;
        for page in [PAGE, PT, ROOT, VISOR.0] {
            assert_eq!(take(world, page), refused(world, page), "{page:#x}");
        }
        let inside = Refusal::Mapped(Frame::containing(block));
        assert_eq!(take(world, block), Err(Refused::Frame(inside)));
        assert!(matches!(take(world, HOLE), Err(Refused::Frame(Refusal::NotRam(_)))));
        for page in [DENIED.0, 32 * GIB] {
            assert!(matches!(take(world, page), Err(Refused::Denied(_))), "{page:#x}");
        }
        assert_eq!(world.board.flushes, flushes);
    });
}

#[test]
fn ram_that_is_denied_is_neither_taken_nor_shared() {
    with_world(|world| {
        let page = Span::sized(PAGE, 0x1000).unwrap();
        let (denied, frame) = ([Span::sized(PAGE + 8, 8).unwrap()], Frame::containing(PAGE));
        let mut machine = world.parts().0;
        machine.denied = &denied;
        assert_eq!(machine.take(frame, vm(), AT), Err(Refused::Denied(page)));
        assert_eq!(machine.share(frame), Err(Refused::Denied(page)));
        assert_eq!(maps(world, PAGE), Some(0));
    });
}

#[test]
fn a_shared_page_is_neither_taken_nor_a_table_until_it_is_not_shared() {
    with_tree(|world| {
        let page = PAGE + 0x1000;
        let frame = Frame::containing(page);
        for _ in 0..2 {
            world.parts().0.share(frame).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(take(world, page), refused(world, page));
            assert_eq!(set(world, (PD, 1), page | 7), refused(world, page));
            world.parts().0.unshare(frame).unwrap();
        }
        assert_eq!(world.parts().0.unshare(frame), refused(world, page));
        take(world, page).unwrap();
        assert_eq!(world.parts().0.share(frame), refused(world, page));
        release(world, &[page]).unwrap();
        for page in [DENIED.0, 32 * GIB, HOLE, VISOR.0, PT] {
            assert!(world.parts().0.share(Frame::containing(page)).is_err(), "{page:#x}");
        }
    });
}

#[test]
fn pages_are_released_together_and_leave_no_tables_of_ept01_behind() {
    with_world(|world| {
        let block = GIB + 2 * MIB;
        let pages = [0, 0x1000, 0xf_f000].map(|page| block + page);
        let shape = world.shape();
        for page in pages {
            take(world, page).unwrap();
        }
        let flushes = world.board.flushes;
        release(world, &pages[..2]).unwrap();
        assert_eq!(world.board.flushes, flushes, "nothing was taken away");
        take(world, pages[0]).unwrap();
        // One that no VM has does not keep the others from the host.
        let mixed = [pages[0], pages[1], pages[2]];
        assert_eq!(release(world, &mixed), refused(world, pages[1]));
        assert_eq!(world.board.flushes, flushes + 2);
        assert_eq!(world.shape(), shape);
    });
}

#[test]
fn without_memory_for_ept01_a_page_stays_the_hosts() {
    with_tree(|world| {
        let page = GIB + 2 * MIB;
        world.board.tables.left = 0;
        assert_eq!(take(world, page), Err(Refused::Exhausted(Exhausted)));
        // The host's tables cannot translate it, but a VM's can, and processors remember it.
        set(world, (PT, 1), page | 0x37).unwrap();
        set(world, (PT, 1), 0).unwrap();
        world.board.tables.left = 64;
        take(world, page).unwrap();
        release(world, &[page]).unwrap();
        assert!(world.board.may_write_now(page));
    });
}

#[test]
fn only_stores_to_guarded_tables_are_announced() {
    with_guarded_tree(|world| {
        let other = TABLES[0][1];
        let _ = world.load(other).unwrap();
        let machine = world.parts().0;
        let store = machine.before_write(PT + 4, 4, |old| old | 1 << 31).unwrap().unwrap();
        assert_eq!((store.old, store.new), (PAGE | 0x37, 1 << 63 | PAGE | 0x37));
        assert_eq!((store.table.base(), store.index, store.level), (PT, 0, Level::Pt));
        for elsewhere in [other, PAGE, HOLE] {
            assert_eq!(machine.before_write(elsewhere, 8, |old| old), Ok(None));
        }
        let across = machine.before_write(PT + 4, 8, |old| old);
        assert_eq!(across, Err(Refused::Operand(PT + 4)));
        assert_eq!(world.board.cell((PT, 0)), PAGE | 0x37);
    });
}
