//! The fields of the host's VMCS: which exist, where they are kept, how they are read in parts.

use std::collections::{BTreeMap, BTreeSet};

use nested_vmx::field::{self as f, Vmcs};
use nested_vmx::vmcs12::{
    Class, HOT, INFORMATION, LAUNCH_WORD, Launch, REVISION, Vmcs12, class, encodings, fill_bitmaps,
    read_part, write_part,
};
use proptest::prelude::*;

const ALL: &[Class] = &[
    Class::Control,
    Class::HotControl,
    Class::Host,
    Class::Guest,
    Class::HotGuest,
    Class::Information,
];

/// First and last encoding of a table of appendix B, as far as the fields are supported.
const MANUAL: &[(u32, u32, &str)] = &[
    (0x0000, 0x0000, "VPID"),
    (0x0800, 0x080e, "guest selectors"),
    (0x0c00, 0x0c0c, "host selectors"),
    (0x2000, 0x200c, "bitmaps, MSR lists, executive VMCS"),
    (0x2010, 0x2012, "TSC offset, virtual-APIC page"),
    (0x201a, 0x201a, "EPT pointer"),
    (0x202c, 0x202c, "XSS-exiting bitmap"),
    (0x2032, 0x2032, "TSC multiplier"),
    (0x2400, 0x2400, "guest-physical address"),
    (0x2800, 0x2810, "link pointer to PDPTEs"),
    (0x2c00, 0x2c04, "host PAT, EFER, PERF_GLOBAL_CTRL"),
    (0x4000, 0x4022, "controls"),
    (0x4400, 0x440e, "exit information"),
    (0x4800, 0x482a, "guest limits to SYSENTER_CS"),
    (0x482e, 0x482e, "preemption timer"),
    (0x4c00, 0x4c00, "host SYSENTER_CS"),
    (0x6000, 0x600e, "masks, shadows, CR3 targets"),
    (0x6400, 0x640a, "exit qualification to linear address"),
    (0x6800, 0x6826, "guest registers"),
    (0x6c00, 0x6c16, "host registers"),
];

fn manual() -> BTreeSet<u32> {
    MANUAL.iter().flat_map(|(first, last, _)| (*first..=*last).step_by(2)).collect()
}

#[test]
fn the_fields_are_those_of_the_manual_that_are_supported() {
    assert_eq!(encodings(ALL).collect::<BTreeSet<_>>(), manual());
    assert_eq!(encodings(ALL).count(), manual().len(), "each once");
}

#[test]
fn no_other_encoding_names_a_field() {
    let manual = manual();
    for encoding in (0..0x2_0000).chain([1 << 31, u32::MAX]) {
        // The upper half of a 64-bit field has an encoding of its own.
        let upper = encoding >> 13 == 1 && encoding & 1 == 1 && manual.contains(&(encoding - 1));
        let exists = manual.contains(&encoding) || upper;
        assert_eq!(class(encoding) != Class::None, exists, "{encoding:#x}");
    }
}

#[test]
fn a_class_is_what_the_type_in_the_encoding_says() {
    for encoding in manual() {
        let fits = match encoding >> 10 & 3 {
            0 => matches!(class(encoding), Class::Control | Class::HotControl),
            1 => class(encoding) == Class::Information,
            2 => {
                matches!(class(encoding), Class::Guest | Class::HotGuest)
                    || encoding == f::PREEMPTION_TIMER.encoding()
            }
            _ => class(encoding) == Class::Host,
        };
        assert!(fits, "{encoding:#x}");
    }
}

#[test]
fn hot_and_information_fields_are_those_of_the_classes() {
    let hot = encodings(ALL).filter(|e| matches!(class(*e), Class::HotGuest | Class::HotControl));
    assert_eq!(hot.collect::<BTreeSet<_>>(), HOT.into_iter().collect());
    let information = encodings(&[Class::Information]);
    assert_eq!(information.collect::<BTreeSet<_>>(), INFORMATION.into_iter().collect());
    for entry in [f::PRIMARY_CONTROLS.encoding(), f::ENTRY_INTERRUPTION.encoding(), 0x681e] {
        assert!(HOT.contains(&entry), "{entry:#x} changes at most entries");
    }
}

#[test]
fn every_field_has_a_place_of_its_own_outside_the_header() {
    let mut v12 = Box::new(Vmcs12::EMPTY);
    for encoding in manual() {
        v12.write_raw(encoding, encoding.into());
    }
    for encoding in manual() {
        assert_eq!(v12.read_raw(encoding), u64::from(encoding), "{encoding:#x}");
    }
    let mut words = BTreeMap::new();
    v12.store(|index, word| {
        let _ = words.insert(index, word);
    });
    assert_eq!(words.len(), 512);
    assert!((0..32).all(|index| words[&index] == 0), "the header");
}

#[test]
fn the_header_holds_the_revision_and_the_launch_state() {
    let mut v12 = Box::new(Vmcs12::EMPTY);
    assert_eq!(v12.launched(), Launch::Clear);
    v12.load(|index| if index == 0 { 0xabcd_ef01_2345_6789 } else { 0 });
    let word = |v12: &Vmcs12, wanted| {
        let mut found = 0;
        v12.store(|index, word| found |= if index == wanted { word } else { 0 });
        found
    };
    for state in [Launch::Launched, Launch::Clear, Launch::Launched] {
        v12.set_launched(state);
        assert_eq!(v12.launched(), state);
        assert_eq!(word(&v12, 0), 0xabcd_ef01_0000_0000 | u64::from(REVISION));
    }
    // VMCLEAR of a region that is not loaded only writes this word.
    let mut words = BTreeMap::new();
    v12.store(|index, word| {
        let _ = words.insert(index, if index == LAUNCH_WORD { 0 } else { word });
    });
    v12.load(|index| words[&index]);
    assert_eq!(v12.launched(), Launch::Clear);
    assert_eq!(REVISION >> 31, 0, "bit 31 is for shadow VMCSs");
}

#[test]
fn a_state_that_no_vmlaunch_has_written_is_clear() {
    let mut v12 = Box::new(Vmcs12::EMPTY);
    v12.load(|_| u64::MAX);
    assert_eq!(v12.launched(), Launch::Clear);
}

#[test]
fn only_all_ones_link_to_nothing() {
    let mut v12 = Box::new(Vmcs12::EMPTY);
    assert!(!v12.is_unlinked());
    v12.write(f::VMCS_LINK_POINTER, u64::MAX);
    assert!(v12.is_unlinked());
}

#[test]
fn the_shadow_vmcs_is_open_for_hot_fields_and_to_read_information() {
    let (mut read, mut write) = ([0; 4096], [0; 4096]);
    fill_bitmaps(&mut read, &mut write);
    for encoding in 0..0x8000_u32 {
        let at = usize::try_from(encoding / 8).unwrap();
        let exits = |bitmap: &[u8; 4096]| bitmap[at] >> (encoding % 8) & 1 == 1;
        let (hot, information) = (HOT.contains(&encoding), INFORMATION.contains(&encoding));
        assert_eq!(exits(&read), !hot && !information, "{encoding:#x}");
        assert!(exits(&write) || hot, "{encoding:#x}");
        // Control registers and access rights are seldom written.
        let often = hot && !matches!(encoding, 0x4816 | 0x4818 | 0x6800..=0x6804);
        assert!(!exits(&write) || !often, "{encoding:#x}");
    }
}

#[test]
fn a_part_of_a_field_is_what_its_width_and_access_type_say() {
    const VALUE: u64 = 0x1122_3344_5566_7788;
    let rows = [
        (0x0800, 0x7788, 0x7788),
        (0x2800, VALUE, VALUE),
        (0x2801, 0x1122_3344, 0x5566_7788_ffff_ffff),
        (0x4800, 0x5566_7788, 0x5566_7788),
        (0x6800, VALUE, VALUE),
    ];
    for (encoding, read, written) in rows {
        assert_eq!(read_part(encoding, VALUE), read, "{encoding:#x}");
        assert_eq!(write_part(encoding, u64::MAX, VALUE), written, "{encoding:#x}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(value: u64, old: u64, choice in 0..4_usize, high: bool) {
        let encoding = [0x0800, 0x2800, 0x4800, 0x6800][choice] | u32::from(high && choice == 1);
        let kept = write_part(encoding, old, value);
        let mask = [0xffff, u64::MAX, 0xffff_ffff, u64::MAX][choice];
        let mask = if encoding & 1 == 1 { 0xffff_ffff } else { mask };
        prop_assert_eq!(read_part(encoding, kept), value & mask);
    }

    #[test]
    fn a_region_is_stored_as_it_was_loaded(words in proptest::collection::vec(any::<u64>(), 512)) {
        let mut v12 = Box::new(Vmcs12::EMPTY);
        v12.load(|index| words[index]);
        let mut stored = vec![0; 512];
        v12.store(|index, word| stored[index] = word);
        prop_assert_eq!(stored, words);
    }
}
