//! `reservation`: how much memory the visor takes from machines of several sizes.
//!
//! The smallest machine is booted; for the others, which no emulator here could hold, the visor's
//! own computation runs with their memory. That it is the same computation is checked on the
//! smallest.

use anyhow::{Context, Result, ensure};
use ept::addr::{HUGE, Span};
use ept::reserve::{Need, size};

use super::Figure;
use crate::machine::End;
use crate::suite::{Boot, Host, Rig, Stack};

const BENCH: &str = "reservation";

/// Upper bound of what a processor takes: its stacks, VMCS and state.
const PER_PROCESSOR: u64 = 128 << 10;

/// A machine of the bench: its name, GiB of memory, processors, physical-address bits.
const MACHINES: [(&str, u64, u32, u8); 3] =
    [("1GiB", 1, 1, 40), ("16GiB", 16, 8, 39), ("512GiB", 512, 64, 46)];

/// Boots the smallest machine and computes the others.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let boot = Boot::of(Stack::on_visor(Host::Probe("stats".to_owned())))
        .on(|machine| machine.memory_mib = 1024)
        .expect(&["visor: *image of * KiB", "*reservation.length *"])
        .ends(End::PowerOff);
    let serial = rig.check("", &boot)?;
    let image = number(&serial, "image of ")? << 10;
    let taken = number(&serial, "reservation.length ")?;
    let computed = MACHINES.map(|(name, gib, processors, width)| {
        let ram = ram(gib);
        let per_processor = PER_PROCESSOR;
        (name, size(&Need { image, processors, per_processor, ram: &ram, width }).total())
    });
    let same = computed.first().is_some_and(|(_, bytes)| *bytes == taken);
    ensure!(same, "the visor took {taken} bytes, computed here: {computed:?}");
    Ok(computed
        .map(|(name, bytes)| Figure::count(BENCH, format!("bytes@{name}"), bytes, "bytes"))
        .to_vec())
}

/// The RAM of a PC with `gib` GiB: up to 3 GiB below the hole for devices, the rest from 4 GiB on.
fn ram(gib: u64) -> Vec<Span> {
    let low = gib.min(3);
    let spans = [Span::sized(0, low * HUGE), Span::sized(4 * HUGE, (gib - low) * HUGE)];
    spans.into_iter().flatten().filter(|span| !span.is_empty()).collect()
}

/// The number that follows `words` in `text`.
fn number(text: &str, words: &str) -> Result<u64> {
    let (_, rest) = text.split_once(words).with_context(|| format!("no line with: {words}"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().with_context(|| format!("no number after: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_beyond_the_hole_for_devices_continues_at_4_gib() {
        assert_eq!(ram(1), [Span::sized(0, HUGE).unwrap()]);
        let large = ram(16);
        assert_eq!(large.iter().map(|span| span.len()).sum::<u64>(), 16 * HUGE);
        assert_eq!(large[1].start(), 4 * HUGE);
    }

    #[test]
    fn a_number_is_found_behind_its_words() {
        assert_eq!(number("visor: [info] image of 288 KiB", "image of ").unwrap(), 288);
        assert!(number("image of x", "image of ").is_err());
    }
}
