//! Which port accesses exit, and what they mean.

use nested_vmx::io::{
    Access, BITMAP_BYTES, CONTROL_PORT, ConfigWrite, DATA_PORT, Direction, PCI_ADDRESS, PCI_DATA,
    Size, Target, config_write, fill_bitmaps,
};
use proptest::prelude::*;

const SIZES: [(Size, u16); 3] = [(Size::Byte, 1), (Size::Word, 2), (Size::Dword, 4)];

#[test]
fn ports_are_where_the_standards_put_them() {
    assert_eq!([CONTROL_PORT, DATA_PORT, PCI_ADDRESS, PCI_DATA], [0xce0, 0xce4, 0xcf8, 0xcfc]);
}

#[test]
fn exactly_the_ports_with_a_rule_exit() {
    let more = [0, 0x64, 0x7fff, 0x8000, 0xb005, 0xffff];
    let (mut a, mut b) = (vec![0xa5; BITMAP_BYTES], vec![0xa5; BITMAP_BYTES]);
    let bitmaps = [&mut a, &mut b].map(|bitmap| bitmap.as_mut_slice().try_into().unwrap());
    fill_bitmaps(bitmaps, more.into_iter());
    for port in 0..=u16::MAX {
        let bitmap = if port < 0x8000 { &a } else { &b };
        let exits = bitmap[usize::from(port % 0x8000) / 8] & 1 << (port % 8) != 0;
        let kept = matches!(port, 0xce0..=0xce7 | 0xcf8 | 0xcfc..=0xcff);
        assert_eq!(exits, kept || more.contains(&port), "{port:#x}");
    }
}

#[test]
fn sizes_have_their_masks() {
    for (size, bytes) in SIZES {
        assert_eq!(u64::from(size.mask()), (1_u64 << (8 * bytes)) - 1);
    }
}

#[test]
fn an_access_is_decoded_from_its_size_direction_and_port() {
    // Every combination of size, direction, string and REP (SDM vol. 3, table 29-5).
    for low in 0..64_u64 {
        for port in [0, 0xce0, 0xcf8, 0xcfc, 0xffff_u16] {
            let size = match low & 7 {
                0 => Some(Size::Byte),
                1 => Some(Size::Word),
                3 => Some(Size::Dword),
                _ => None,
            };
            let string = low & 16 != 0;
            let direction = [Direction::Out, Direction::In][usize::from(low & 8 != 0)];
            let expected = size.filter(|_| !string).map(|size| Access { port, size, direction });
            let others = 0xffff_ffff_0000_ffc0;
            for rest in [0, others] {
                let raw = rest | u64::from(port) << 16 | low;
                assert_eq!(Access::decode(raw), expected, "{raw:#x}");
            }
        }
    }
}

/// What an access means, by the ports that it touches.
fn by_bytes(port: u16, size: Size, bytes: u16) -> Target {
    let touched = (0..bytes).map(|byte| u32::from(port) + u32::from(byte));
    if touched.clone().any(|port| (0xcfc..=0xcff).contains(&port)) {
        // One byte is enough to write a register of the host bridge.
        if port < 0xcfc { Target::Nothing } else { Target::PciData }
    } else if (port, size) == (0xcf8, Size::Dword) {
        Target::PciAddress
    } else if (port, size) == (0xce0, Size::Dword) {
        Target::Control
    } else if (port, size) == (0xce4, Size::Dword) {
        Target::Data
    } else {
        Target::Machine
    }
}

#[test]
fn no_byte_of_configuration_data_is_reached_without_its_rule() {
    for port in 0..=u16::MAX {
        for (size, bytes) in SIZES {
            for direction in [Direction::In, Direction::Out] {
                let access = Access { port, size, direction };
                assert_eq!(access.target(), by_bytes(port, size, bytes), "{access:x?}");
            }
        }
    }
}

#[test]
fn only_the_host_bridge_is_kept_from_configuration_writes() {
    for function in 0..=0xffff_u32 {
        for register in [0, 4, 0x3c, 0x40, 0x44, 0x90, 0xfc] {
            for top in [0, 1 << 31, 0x7f << 24, 0xff << 24] {
                let address = top | function << 8 | register;
                let expected = match (function, register) {
                    (0, 0..0x40) => ConfigWrite::Drop,
                    (0, _) => ConfigWrite::Refuse,
                    _ => ConfigWrite::Perform,
                };
                assert_eq!(config_write(address), expected, "{address:#x}");
            }
        }
    }
}

proptest! {
    #[test]
    fn every_register_of_the_host_bridge_is_kept(register in 0..256_u32, top: u8) {
        let address = u32::from(top) << 24 | register;
        let expected = if register < 64 { ConfigWrite::Drop } else { ConfigWrite::Refuse };
        prop_assert_eq!(config_write(address), expected);
    }
}
