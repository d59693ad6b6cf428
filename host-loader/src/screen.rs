//! `screen_info`: what Linux's first console can draw on.
//!
//! Offsets: Linux 6.1, include/uapi/linux/screen_info.h; the framebuffer tag: Multiboot2
//! specification 2.0, section 3.6.12.

use crate::bytes::{put, u8_at, u32_at, u64_at};
use crate::handoff::Firmware;

/// `framebuffer_type` of direct colour.
const DIRECT: u8 = 1;
const VIDEO_TYPE_VLFB: u8 = 0x23;
const VIDEO_TYPE_EFI: u8 = 0x70;
/// `capabilities`: `ext_lfb_base` holds the upper half of the address.
const BASE_64BIT: u32 = 2;

/// Fills `info`, which is zero, from the framebuffer tag, if the boot loader gave one.
pub(crate) fn fill(info: &mut [u8], tag: Option<&[u8]>, firmware: Firmware) {
    match (tag, firmware) {
        (Some(tag), _) if u8_at(tag, 29) == Some(DIRECT) => {
            let _drawable = linear(info, tag, firmware);
        }
        (None, Firmware::Efi) => {}
        (Some(_) | None, _) => text(info),
    }
}

/// VGA mode 3: 80 by 25 characters of 16 lines.
fn text(info: &mut [u8]) {
    put(info, 0x06, &[3, 80]); // orig_video_mode, orig_video_cols
    put(info, 0x0a, &3_u16.to_le_bytes()); // orig_video_ega_bx: 256 KiB of EGA memory
    put(info, 0x0e, &[25, 1]); // orig_video_lines, orig_video_isVGA
    put(info, 0x10, &16_u16.to_le_bytes()); // orig_video_points
}

/// A framebuffer of direct colour; `None`, and nothing filled in, when the tag is cut short or
/// names a screen too large for the fields.
fn linear(info: &mut [u8], tag: &[u8], firmware: Firmware) -> Option<()> {
    let half = |at| u32_at(tag, at).and_then(|number| u16::try_from(number).ok());
    let (base, pitch, width, height) = (u64_at(tag, 8)?, half(16)?, half(20)?, half(24)?);
    let depth = u8_at(tag, 28)?;
    let [red, green, blue] = [32, 34, 36].map(|at| u8_at(tag, at).zip(u8_at(tag, at + 1)));
    let ((red_at, red), (green_at, green), (blue_at, blue)) = (red?, green?, blue?);
    let bytes = u32::from(pitch) * u32::from(height);
    let (kind, size) = match firmware {
        // The VESA driver counts in units of 64 KiB.
        Firmware::Bios => (VIDEO_TYPE_VLFB, bytes.div_ceil(1 << 16)),
        Firmware::Efi => (VIDEO_TYPE_EFI, bytes),
    };
    let [b0, b1, b2, b3, high @ ..] = base.to_le_bytes();
    let reserved = depth.saturating_sub(red.saturating_add(green).saturating_add(blue));
    put(info, 0x0f, &[kind]);
    put(info, 0x12, &width.to_le_bytes());
    put(info, 0x14, &height.to_le_bytes());
    put(info, 0x16, &u16::from(depth).to_le_bytes());
    put(info, 0x18, &[b0, b1, b2, b3]);
    put(info, 0x1c, &size.to_le_bytes());
    put(info, 0x24, &pitch.to_le_bytes());
    // Each colour's size and position; the unused bits come after the three.
    let unused_at = if reserved == 0 { 0 } else { red.saturating_add(green).saturating_add(blue) };
    put(info, 0x26, &[red, red_at, green, green_at, blue, blue_at, reserved, unused_at]);
    put(info, 0x36, &BASE_64BIT.to_le_bytes());
    put(info, 0x3a, &high);
    Some(())
}
