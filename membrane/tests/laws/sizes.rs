//! What the visor remembers of each page, in bytes.

use ept::addr::{GuestFrame, LARGE, PAGE, Span};
use ept::entry::Level;
use ept::frames::FrameTable;
use ept::shadow::Access;
use membrane::sparse::Sparse;
use membrane::tables::Tables;
use membrane::vms::Vms;

use crate::board::Board;
use crate::world::frame;

const PAGES: u64 = 128 * 1024;

/// Bytes for each of [`PAGES`], rounded up.
fn each(frames: usize) -> u64 {
    (u64::try_from(frames).unwrap() * PAGE).div_ceil(PAGES)
}

#[test]
fn a_page_takes_some_16_bytes_while_the_vm_has_it_and_48_while_the_host_has_it() {
    let mut board = Board::new(usize::MAX);
    let mut tables = Tables::new(&mut board).unwrap();
    let mut pasts = Sparse::new();
    for number in 0..PAGES {
        let page = GuestFrame::at(number * PAGE).unwrap();
        let place = tables.reserve(&mut board, page, Level::Pt).unwrap();
        tables.map(&mut board, place, frame(number * PAGE), Access::ALL);
    }
    let ept02 = board.used();
    for number in 0..PAGES {
        pasts.set(&mut board, number, [number + 1; 4]).unwrap();
    }
    let past = board.used() - ept02;
    let ram = Span::sized(0, PAGES * PAGE).unwrap();
    let words = FrameTable::entries(&[ram]);
    // One word more for each block of 2 MiB and of 1 GiB, and one for each piece of RAM.
    assert!(words * 8 <= PAGES * 8 + (PAGES * PAGE / LARGE) * 8 + 16);
    // What is rounded up are the tables above the last.
    assert_eq!(each(ept02), 8 + 1);
    assert_eq!(each(past), 32 + 1);
}

#[test]
fn all_vms_without_their_pages_take_less_than_80_kib() {
    assert!(size_of::<Vms>() < 80 << 10, "{}", size_of::<Vms>());
}
