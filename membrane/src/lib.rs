#![no_std]
#![doc = include_str!("../README.md")]

pub mod audit;
mod held;
pub mod map;
mod past;
pub mod processors;
pub mod sparse;
pub mod tables;
pub mod vm;
pub mod vms;
mod walk;

use ept::addr::Frame;
use ept::direct;

/// The content of frames that only the visor can reach, and who works on it.
pub trait Pages {
    /// Lets `work` have the bytes of `frame`, which neither the host nor a VM can reach.
    fn with_page<T>(&mut self, frame: Frame, work: impl FnOnce(&mut [u8; 4096]) -> T) -> T;
    /// Makes the content of `to`, which only the visor can reach, that of `from`, to which nobody can
    /// write.
    fn copy(&mut self, from: Frame, to: Frame);
    /// The number of this processor, for the audit log.
    fn cpu(&self) -> u32;
    /// Whether there is memory for what can be done without.
    fn may_spend(&self) -> bool;
    /// The 8 bytes at `index` of the page, at guest-physical address `window`, in which the host is shown
    /// accesses to devices. The first are an entry of a page table for `window`.
    fn window_word(index: usize, window: u64) -> u64;
}

/// What protected VMs are run with: tables, the host's memory, all processors, and pages.
pub trait Hardware: direct::Hardware + Pages {}

impl<T: direct::Hardware + Pages> Hardware for T {}

/// How far something came that is done in pieces, so that the host's interrupts are never held up
/// for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what is not done has to be asked for again"]
pub enum Progress {
    /// All of it.
    Done,
    /// A piece. It has to be asked for again.
    Again,
}
