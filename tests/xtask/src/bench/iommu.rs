//! `iommu`: what a change of owner costs with an IOMMU, counted where the clock counts instructions.
//!
//! The unit is QEMU's, which does at once what it is asked for: its own time is not in the figures.

use anyhow::Result;

use super::{Figure, number};
use crate::suite::{Rig, iommu};

const BENCH: &str = "iommu";
/// What the image calls each kind of change, and how many pages it moves.
const CHANGES: [(&str, u64); 5] =
    [("first", 1), ("next", 1), ("512_single", 512), ("512_batch", 512), ("scattered", 16_384)];
const PAGES_PER_MIB: u64 = 256;
/// Memory that scattered pages are spread over.
const SCATTERED: u64 = 128 << 20;
const TABLE: u64 = 4096;

/// What changes cost, and the memory of tables.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let log = iommu::counted(rig, "figures")?;
    let mut figures = Vec::new();
    for (what, pages) in CHANGES {
        for to in ["to_vm", "to_host"] {
            figures.push(instructions(&log, what, to, pages)?);
            figures.push(entries(&log, what, to, pages)?);
        }
    }
    let base = number(&log, "dma: tables all_hosts ")?;
    figures.push(Figure::count(BENCH, "tables.all_hosts", base * TABLE, "B"));
    let added = number(&log, "dma: tables added ")? * TABLE;
    figures.push(Figure::ratio(BENCH, "tables.scattered", added, SCATTERED, "1")?);
    Ok(figures)
}

/// Instructions for each page.
fn instructions(log: &str, what: &str, to: &str, pages: u64) -> Result<Figure> {
    let ticks = number(log, &format!("dma: ticks {what} {to} "))?;
    let metric = format!("{what}.{to}.instructions");
    Figure::ratio(BENCH, &metric, ticks, pages, "instructions/page")
}

/// Entries of the queue, the requests to tell among them, for each MiB.
fn entries(log: &str, what: &str, to: &str, pages: u64) -> Result<Figure> {
    let entries = number(log, &format!("dma: entries {what} {to} "))?;
    let metric = format!("{what}.{to}.entries");
    Figure::ratio(BENCH, &metric, entries * PAGES_PER_MIB, pages, "1/MiB")
}
