//! Which writes to ports reset the machine or put it to sleep.

use std::cell::Cell;

use ept::list::Full;
use nested_vmx::io::{Access, Direction, Size};
use nested_vmx::power::{Trigger, Watch};
use proptest::prelude::*;

const SIZES: [(Size, u16); 3] = [(Size::Byte, 1), (Size::Word, 2), (Size::Dword, 4)];
/// A machine's registers by ACPI: a reset register, PM1a control's upper byte, sleep control.
const RESET: u16 = 0x1234;
const VALUE: u8 = 0x5a;
const PM1: u16 = 0x405;
const SLEEP: u16 = 0xb3f0;

fn watch() -> Watch {
    let mut watch = Watch::new();
    for trigger in [Trigger::reset(RESET, VALUE), Trigger::sleep(PM1), Trigger::sleep(SLEEP)] {
        watch.add(trigger).unwrap();
    }
    watch
}

fn out(port: u16, size: Size) -> Access {
    Access { port, size, direction: Direction::Out }
}

/// Whether the machine ends by `access`, with a keyboard controller that takes everything at once.
fn written(watch: &mut Watch, access: Access, value: u32) -> bool {
    let ends = watch.ends(access, value);
    if !ends {
        let _ = watch.perform(access, value, || true, || 0);
    }
    ends
}

/// Whether a byte is passed on, or [`None`] if the machine ends by it. `ready` is how often the controller is found to
/// have taken everything before it stops.
fn slowly(watch: &mut Watch, port: u16, byte: u32, ready: u32) -> Option<bool> {
    let access = out(port, Size::Byte);
    if watch.ends(access, byte) {
        return None;
    }
    let asked = Cell::new(0);
    let is_ready = || {
        asked.set(asked.get() + 1);
        asked.get() <= ready
    };
    let mut is_passed = false;
    let _ = watch.perform(access, byte, is_ready, || {
        is_passed = true;
        0
    });
    Some(is_passed)
}

/// Whether one byte at `port` ends the machine, by itself: the data sheets' and ACPI's words.
fn ends(port: u16, byte: u8) -> bool {
    match port {
        0xcf9 => byte & 0b100 != 0,
        0x92 => byte & 1 == 1,
        // Pulses lines of which the bit is 0; line 0 is reset.
        0x64 => byte >= 0xf0 && byte & 1 == 0,
        RESET => true,
        PM1 | SLEEP => byte & 0x20 != 0,
        _ => false,
    }
}

#[test]
fn every_byte_at_every_port_ends_the_machine_by_its_rule_alone() {
    let watch = watch();
    for port in 0..=u16::MAX {
        for byte in 0..=u8::MAX {
            // Command 0xd1 is about the byte after it.
            if (port, byte) != (0x64, 0xd1) {
                let found = watch.ends(out(port, Size::Byte), byte.into());
                assert_eq!(found, ends(port, byte), "{byte:#x} at {port:#x}");
            }
        }
    }
}

#[test]
fn what_hosts_write_every_day_ends_nothing() {
    // A20 by Linux, by both ways; the keyboard's lights; ACPI switched on; the reset register readied.
    let daily: [(u16, Size, u32); 14] = [
        (0x64, Size::Byte, 0xd1),
        (0x60, Size::Byte, 0xdf),
        (0x64, Size::Byte, 0xff),
        (0x92, Size::Byte, 0x02),
        (0x64, Size::Byte, 0x60),
        (0x60, Size::Byte, 0x46),
        (0x64, Size::Byte, 0xd4),
        (0x60, Size::Byte, 0xf4),
        (0x60, Size::Byte, 0xed),
        (0x60, Size::Byte, 0x02),
        (PM1 - 1, Size::Word, 0x0001),
        (PM1 - 1, Size::Word, 0x1401),
        (0xcf9, Size::Byte, 0x02),
        (0x61, Size::Byte, 0x0d),
    ];
    let mut watch = watch();
    for (port, size, value) in daily {
        assert!(!written(&mut watch, out(port, size), value), "{value:#x} to {port:#x}");
    }
}

#[test]
fn a_byte_for_the_output_port_resets_when_it_lowers_the_line() {
    for (between, byte) in [(None, 0xfe), (None, 0), (Some(0xae), 0xde), (Some(0xd1), 0xdc)] {
        let mut watch = watch();
        assert!(!written(&mut watch, out(0x60, Size::Byte), byte));
        assert!(!written(&mut watch, out(0x64, Size::Byte), 0xd1));
        if let Some(command) = between {
            assert!(!written(&mut watch, out(0x64, Size::Byte), command));
        }
        assert!(written(&mut watch, out(0x60, Size::Byte), byte), "{byte:#x}");
    }
    let mut watch = watch();
    assert!(!written(&mut watch, out(0x64, Size::Byte), 0xd1));
    assert!(!written(&mut watch, out(0x60, Size::Byte), 0xdf));
    assert!(!written(&mut watch, out(0x60, Size::Byte), 0xde));
}

#[test]
fn a_command_and_its_byte_may_come_from_accesses_of_any_width() {
    let mut watch = watch();
    assert!(!written(&mut watch, out(0x61, Size::Dword), 0xd100_0000));
    assert!(written(&mut watch, out(0x60, Size::Word), 0x00fe));
    assert!(written(&mut watch, out(0x61, Size::Dword), 0xfe00_0000));
    assert!(written(&mut watch, out(PM1 - 3, Size::Dword), 0x2000_0000));
    assert!(written(&mut watch, out(0xcf8, Size::Word), 0x0600));
}

#[test]
fn reading_ends_nothing() {
    let mut watch = watch();
    for port in [0x60, 0x64, 0x92, 0xcf9, RESET, PM1, SLEEP] {
        for (size, _) in SIZES {
            let access = Access { port, size, direction: Direction::In };
            assert!(!written(&mut watch, access, u32::MAX) && !written(&mut watch, access, 0xd1));
        }
    }
    assert!(!written(&mut watch, out(0x60, Size::Byte), 0), "a read was taken for a command");
}

#[test]
fn a_slow_controller_gets_no_second_byte_in_place_of_the_first() {
    // D1, DF, DE, as the controller takes nothing more after the first, second and third question.
    for ready in 1..=3 {
        let mut watch = watch();
        assert_eq!(slowly(&mut watch, 0x64, 0xd1, ready), Some(true));
        assert_eq!(slowly(&mut watch, 0x60, 0xdf, ready - 1), Some(ready > 1));
        // A command in between changes nothing.
        assert_eq!(slowly(&mut watch, 0x64, 0xff, 0), Some(true));
        let is_over = ready == 3;
        assert_eq!(slowly(&mut watch, 0x60, 0xde, 0), is_over.then_some(true), "{ready}");
    }
}

#[test]
fn a_command_for_the_output_port_is_dropped_while_the_controller_has_not_taken_a_byte() {
    let mut watch = watch();
    assert_eq!(slowly(&mut watch, 0x60, 0xde, 0), Some(true));
    assert_eq!(slowly(&mut watch, 0x64, 0xd1, 0), Some(false));
    assert_eq!(slowly(&mut watch, 0x60, 0xde, 0), Some(true), "it never saw the command");
}

#[test]
fn a_reset_register_of_its_own_counts_whatever_is_written_and_a_shared_one_by_its_value() {
    let fires = |port, value, byte: u8| {
        let mut watch = Watch::new();
        watch.add(Trigger::reset(port, value)).unwrap();
        watch.ends(out(port, Size::Byte), byte.into())
    };
    for byte in 0..=u8::MAX {
        assert!(fires(0x1234, VALUE, byte) && fires(0x1234, 0, byte));
        for port in [0x92, 0xcf9] {
            let everywhere = ends(port, byte);
            assert_eq!(fires(port, 0x0a, byte), byte & 0x0a == 0x0a || everywhere, "{byte:#x}");
            assert_eq!(fires(port, 0, byte), byte == 0 || everywhere, "{byte:#x}");
        }
        // The keyboard's reset is 0xff, and so is a command that pulses nothing: Linux sends both.
        for port in [0x60, 0x64, 0xb2] {
            assert_eq!(fires(port, 0xfe, byte), byte == 0xfe || ends(port, byte), "{byte:#x}");
        }
    }
}

#[test]
fn every_port_that_can_end_the_machine_exits() {
    let watch = watch();
    let ports: Vec<u16> = watch.ports().collect();
    for port in 0..=u16::MAX {
        let counts = port == 0x60 || (0..=u8::MAX).any(|byte| ends(port, byte));
        assert_eq!(ports.contains(&port), counts, "{port:#x}");
    }
}

#[test]
fn there_is_room_for_all_that_acpi_has() {
    let mut watch = Watch::new();
    assert_eq!([0; 6].map(|_| watch.add(Trigger::sleep(1))), [Ok(()); 6]);
    assert_eq!(watch.add(Trigger::sleep(1)), Err(Full));
}

proptest! {
    #[test]
    fn an_access_ends_the_machine_if_one_of_its_bytes_does(
        near in prop::sample::select(vec![0x60_u16, 0x92, 0xcf9, RESET, PM1, SLEEP, 0xffff]),
        offset in 0..8_u16,
        size in 0..3_usize,
        value: u32,
    ) {
        let (size, bytes) = SIZES[size];
        let port = near.wrapping_sub(4).wrapping_add(offset);
        let touched = (0..bytes).map(|at| port.checked_add(at)).zip(value.to_le_bytes());
        let expected = touched.into_iter().any(|(port, byte)| port.is_some_and(|port| ends(port, byte)));
        prop_assert_eq!(watch().ends(out(port, size), value), expected);
    }
}
