//! One claim each: what is refused, and what a wrong claim of the caller's does.

use seal::key::{VmId, VmKey};
use seal::page::{GuestPage, Page, Refusal, Sealer};
use seal::record::Sealed;
use sha2::{Digest, Sha256};

const CLEAR: Page = [0x42; 4096];

fn sealer(vm: u8) -> Sealer {
    launched(vm, 3)
}

fn launched(vm: u8, launch: u8) -> Sealer {
    Sealer::new(VmKey::launch(VmId([vm; 16]), &[2; 32], &[launch; 32]))
}

fn at(address: u64) -> GuestPage {
    GuestPage::at(address).unwrap()
}

/// A page of VM 1, sealed at 0x5000.
fn sealed(sealer: &Sealer) -> (Page, Sealed) {
    let mut page = CLEAR;
    let record = sealer.seal(at(0x5000), &mut page).unwrap();
    (page, record)
}

/// `page` is refused at `address`, and nothing is left of it.
fn refused(sealer: &Sealer, address: u64, mut page: Page, record: &Sealed) {
    let refusal = Err(Refusal::Forged(at(address)));
    assert_eq!(sealer.unseal(at(address), &mut page, record), refusal);
    assert_eq!(page, [0; 4096]);
}

#[test]
fn a_page_comes_back_where_it_was() {
    let sealer = sealer(1);
    let (mut page, record) = sealed(&sealer);
    assert_ne!(page, CLEAR);
    assert!(sealer.unseal(at(0x5000), &mut page, &record).is_ok());
    assert_eq!(page, CLEAR);
}

#[test]
fn an_old_version_is_refused_for_the_new_record() {
    let sealer = sealer(1);
    let (old, _) = sealed(&sealer);
    let (new, record) = sealed(&sealer);
    assert_ne!(old, new);
    refused(&sealer, 0x5000, old, &record);
}

#[test]
fn an_old_record_is_refused_for_the_new_version() {
    let sealer = sealer(1);
    let (_, record) = sealed(&sealer);
    let (new, _) = sealed(&sealer);
    refused(&sealer, 0x5000, new, &record);
}

#[test]
fn a_page_of_one_launch_is_refused_in_the_next_of_the_same_vm() {
    let first = sealer(1);
    let next = first.anew(&[4; 32]);
    let [before, after] = [&first, &next].map(sealed);
    assert_ne!(before.0, after.0, "the same page, in version 1 both times");
    refused(&next, 0x5000, before.0, &before.1);
    refused(&first, 0x5000, after.0, &after.1);
}

#[test]
fn a_page_is_refused_at_another_address() {
    let sealer = sealer(1);
    let (page, record) = sealed(&sealer);
    refused(&sealer, 0x6000, page, &record);
    refused(&sealer, 0x5000 | 1 << 51, page, &record);
}

#[test]
fn a_page_is_refused_in_another_vm() {
    let (page, record) = sealed(&sealer(1));
    refused(&sealer(4), 0x5000, page, &record);
}

#[test]
fn a_page_is_refused_in_another_launch_of_its_vm() {
    let (page, record) = sealed(&sealer(1));
    refused(&launched(1, 9), 0x5000, page, &record);
}

#[test]
fn a_page_with_any_bit_flipped_is_refused() {
    let sealer = sealer(1);
    let (page, record) = sealed(&sealer);
    // Each byte once with each eighth of the bits: all would be 32,768 pages.
    for byte in (0..4096).step_by(61).chain([4095]) {
        let mut flipped = page;
        flipped[byte] ^= 1 << (byte % 8);
        refused(&sealer, 0x5000, flipped, &record);
    }
}

#[test]
fn a_record_with_any_bit_flipped_is_refused() {
    let sealer = sealer(1);
    let (page, record) = sealed(&sealer);
    for bit in 0..Sealed::BYTES * 8 {
        let mut stored = record.to_bytes();
        stored[bit / 8] ^= 1 << (bit % 8);
        match Sealed::from_bytes(&stored) {
            Ok(record) => refused(&sealer, 0x5000, page, &record),
            Err(refusal) => assert_eq!((refusal, bit / 8), (Refusal::Algorithm(stored[7]), 7)),
        }
    }
}

#[test]
fn an_unchanged_page_is_sealed_to_the_same_bytes_and_record() {
    let sealer = sealer(1);
    let (first, record) = sealed(&sealer);
    let mut page = first;
    let resident = sealer.unseal(at(0x5000), &mut page, &record).unwrap();
    assert_eq!(sealer.reseal(at(0x5000), &mut page, resident), Ok(record));
    assert_eq!(page, first);
}

#[test]
fn a_page_wrongly_called_unchanged_gets_a_new_version() {
    let sealer = sealer(1);
    let (mut page, record) = sealed(&sealer);
    let resident = sealer.unseal(at(0x5000), &mut page, &record).unwrap();
    page[4095] ^= 1;
    let changed = page;
    let new = sealer.reseal(at(0x5000), &mut page, resident).unwrap();
    assert_eq!((record.version(), new.version()), (1, 2));
    assert!(sealer.unseal(at(0x5000), &mut page, &new).is_ok());
    assert_eq!(page, changed);
}

#[test]
fn another_pages_memory_of_itself_is_no_harm() {
    let sealer = sealer(1);
    let (mut page, record) = sealed(&sealer);
    let resident = sealer.unseal(at(0x5000), &mut page, &record).unwrap();
    let new = sealer.reseal(at(0x6000), &mut page, resident).unwrap();
    assert_eq!(new.version(), 2);
    assert!(sealer.unseal(at(0x6000), &mut page, &new).is_ok());
    assert_eq!(page, CLEAR);
}

#[test]
fn equal_pages_look_different_at_other_places_and_times() {
    let sealer = sealer(1);
    let (first, _) = sealed(&sealer);
    let (again, _) = sealed(&sealer);
    let mut elsewhere = CLEAR;
    let _ = sealer.seal(at(0x6000), &mut elsewhere).unwrap();
    for [a, b] in [[first, again], [first, elsewhere], [again, elsewhere]] {
        let same = a.chunks(16).zip(b.chunks(16)).filter(|(a, b)| a == b).count();
        assert_eq!(same, 0);
    }
}

#[test]
fn an_algorithm_that_is_not_known_is_refused() {
    let (_, record) = sealed(&sealer(1));
    let mut stored = record.to_bytes();
    stored[7] = 2;
    let refusal = Sealed::from_bytes(&stored).unwrap_err();
    assert_eq!(refusal.to_string(), "sealing: a record of algorithm 2, which is not known");
}

#[test]
fn only_whole_pages_below_52_bits_are_guest_pages() {
    assert_eq!(GuestPage::at(0x7000).map(GuestPage::number), Some(7));
    assert_eq!(at((1 << 52) - 0x1000).base(), (1 << 52) - 0x1000);
    assert_eq!((GuestPage::at(0x7001), GuestPage::at(1 << 52)), (None, None));
}

#[test]
fn the_format_is_what_it_was() {
    let (page, record) = sealed(&sealer(1));
    let mut digest = String::new();
    for byte in Sha256::digest([&page[..], &record.to_bytes()].concat()) {
        digest += &format!("{byte:02x}");
    }
    assert_eq!(digest, "475d9a1bf43703782057ec833ab8c35e2f6fbe300e74191435a189237691e6c7");
}
