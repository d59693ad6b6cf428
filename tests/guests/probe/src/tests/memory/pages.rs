//! Plain accesses: every page, the edges, and every page size and alias.

use super::{Reservation, Shown, execute, is_refusal, read, write};
use crate::fault::{GP, PF, catch_ring3};
use crate::info::Info;
use crate::paging::{self, GIB, MIB2, PAGE};
use crate::report::Checks;
use crate::{console, cpu};

const PATTERN: u64 = 0x5a5a_1234_a5a5_c3c3;
const RETURN: u64 = 0xc3;
/// Of a page fault's error code.
const RESERVED_BIT: u64 = 1 << 3;
/// Of a page-table entry.
const PRESENT: u64 = 1;

/// Reads, writes and executes each page through a 4 KiB mapping.
pub(super) fn every_page(checks: &mut Checks, reservation: Reservation) {
    let mut page = reservation.base;
    while page < reservation.end {
        // A varying offset: the first and last bytes, and the ones between, in different pages.
        let offset = (page / PAGE * 8) % PAGE;
        refused(checks, "4 KiB page", paging::page(0, page) + offset, page);
        page += PAGE;
    }
    let pages = (reservation.end - reservation.base) / PAGE;
    console::line(format_args!("{pages} pages read, written, executed"));
}

/// All three kinds of access to `address`, which maps `physical`.
fn refused(checks: &mut Checks, how: &str, address: u64, physical: u64) {
    let found = read(address);
    note(checks, how, "read", physical, found);
    note(checks, how, "write", physical, write(address, RETURN));
    // What can be read may be anything: it is run only where the `ret` above arrived.
    let runs = found.is_err() || read(address) == Ok(RETURN);
    if runs {
        note(checks, how, "execute", physical, execute(address));
    }
    if let Ok(value) = found {
        let _ = write(address, value);
    }
}

fn note(
    checks: &mut Checks,
    how: &str,
    kind: &str,
    physical: u64,
    result: Result<u64, crate::fault::Fault>,
) {
    checks.that(
        is_refusal(result),
        format_args!("{kind} of {physical:#x} by {how} raises #GP(0), {}", Shown(result)),
    );
}

/// The pages next to the reservation stay usable, and accesses that straddle an edge are refused
/// as a whole.
pub(super) fn edges(checks: &mut Checks, reservation: Reservation, info: &Info) {
    let before = reservation.base.wrapping_sub(PAGE);
    for neighbour in [before, reservation.end] {
        if info.is_ram(neighbour, PAGE) {
            usable(checks, paging::page(1, neighbour), neighbour);
        } else {
            console::line(format_args!("{neighbour:#x} is not RAM: not tried"));
        }
    }
    if info.is_ram(before, PAGE) {
        let first = paging::page(1, before);
        let _ = paging::page(2, reservation.base);
        straddles(checks, first + PAGE - 4, first + PAGE - 8);
        runs_into(checks, first + PAGE - 3);
    }
    if info.is_ram(reservation.end, PAGE) {
        let _ = paging::page(1, reservation.end - PAGE);
        let next = paging::page(2, reservation.end);
        straddles(checks, next - 4, next);
    }
}

fn usable(checks: &mut Checks, address: u64, physical: u64) {
    for place in [address, address + PAGE - 8] {
        let kept = read(place);
        let _ = write(place, PATTERN);
        let holds = read(place) == Ok(PATTERN);
        let _ = write(place, RETURN);
        let runs = execute(place).is_ok();
        let _ = write(place, kept.unwrap_or(0));
        checks.that(
            kept.is_ok() && holds && runs,
            format_args!("the host's page {physical:#x} is usable"),
        );
    }
}

/// Eight bytes at `address`, of which four are the visor's and four in the host's word.
fn straddles(checks: &mut Checks, address: u64, host_word: u64) {
    let before = read(host_word);
    for result in [read(address), write(address, PATTERN)] {
        checks.that(
            is_refusal(result),
            format_args!("an access across an edge raises #GP(0), {}", Shown(result)),
        );
    }
    checks.that(
        before == read(host_word),
        format_args!("a refused write changes no byte on the host's side"),
    );
}

/// An instruction whose last two bytes are the visor's: `mov eax, imm32` is five bytes long.
fn runs_into(checks: &mut Checks, address: u64) {
    let kept = read(address - 5);
    // nop … nop, then B8 and two bytes of its operand, in the host's last eight bytes.
    let _ = write(address - 5, 0x0000_b890_9090_9090);
    let result = if is_refusal(read(address + 3)) { execute(address - 5) } else { Ok(0) };
    checks.that(
        is_refusal(result),
        format_args!("code that runs into the reservation raises #GP(0), {}", Shown(result)),
    );
    let _ = write(address - 5, kept.unwrap_or(0));
}

/// From ring 3, through pages that are open to it.
pub(super) fn from_ring3(checks: &mut Checks, reservation: Reservation) {
    for physical in reservation.samples() {
        let address = paging::page(3, physical);
        let load = || {
            // SAFETY: one load; a fault is caught.
            unsafe { (address as *const u64).read_volatile() }
        };
        let store = || {
            // SAFETY: one store to memory that is the visor's, or that no one uses.
            unsafe { (address as *mut u64).write_volatile(RETURN) };
            0
        };
        note(checks, "ring 3", "read", physical, catch_ring3(load));
        note(checks, "ring 3", "write", physical, catch_ring3(store));
    }
}

/// Through 2 MiB pages of the probe's own.
pub(super) fn large_pages(checks: &mut Checks, reservation: Reservation) {
    for physical in reservation.samples() {
        let address = paging::large(1, physical) + physical % MIB2;
        refused(checks, "2 MiB page", address, physical);
    }
}

/// Through 1 GiB pages, where the processor has them.
pub(super) fn huge_pages(checks: &mut Checks, reservation: Reservation) {
    if !paging::has_huge() {
        return console::line(format_args!("no 1 GiB pages: not tried"));
    }
    for physical in reservation.samples() {
        let address = paging::huge(1, physical) + physical % GIB;
        refused(checks, "1 GiB page", address, physical);
    }
}

/// Physical address bits that the processor does not have are reserved, not ignored.
pub(super) fn beyond_physical(checks: &mut Checks, reservation: Reservation) {
    for bit in cpu::physical_bits()..52 {
        let entry = reservation.base | 1 << bit | PRESENT;
        let result = read(paging::page_entry(0, entry));
        let reserved =
            result.err().is_some_and(|fault| fault.vector == PF && fault.error & RESERVED_BIT != 0);
        checks.that(
            reserved,
            format_args!("address bit {bit} raises #PF(reserved), {}", Shown(result)),
        );
    }
}

/// There is no way around the page tables by an address that is not canonical.
pub(super) fn not_canonical(checks: &mut Checks) {
    for address in [1 << 47, 1 << 62, 0xffff_7fff_ffff_f000] {
        let result = read(address);
        let refused = result.err().is_some_and(|fault| fault.vector == GP);
        checks.that(refused, format_args!("address {address:#x} raises #GP, {}", Shown(result)));
    }
}
