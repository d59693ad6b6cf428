//! Storage of a host's: it counts requests, may answer that they take time, and remembers what a power cut
//! can lose.

use std::collections::BTreeMap;

use disk::storage::{Block, Stop, Storage};

/// A small generator of numbers that look random (SplitMix64).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }
}

/// What a host did for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Read(u64, usize),
    Write(u64, Vec<Block>),
    Flush,
}

/// Storage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    /// What is safe from power cuts; blocks that are not there are noise.
    pub(crate) durable: BTreeMap<u64, Block>,
    /// What was written since.
    pub(crate) recent: Vec<(u64, Block)>,
    /// All that was done.
    pub(crate) events: Vec<Event>,
    /// Whether requests take time.
    pub(crate) slow: Option<Dice>,
    /// The request that is under way.
    pub(crate) pending: Option<Event>,
}

impl Host {
    /// What is read from `at`.
    pub(crate) fn block(&self, at: u64) -> Block {
        let recent = self.recent.iter().rev().find(|(place, _)| *place == at);
        recent
            .map(|(_, block)| *block)
            .or_else(|| self.durable.get(&at).copied())
            .unwrap_or_else(|| noise(at))
    }

    /// Changes what is stored at `at`.
    pub(crate) fn set(&mut self, at: u64, block: Block) {
        self.recent.retain(|(place, _)| *place != at);
        let _ = self.durable.insert(at, block);
    }

    /// Has the request wait now and then. The one that waits must come again.
    fn take(&mut self, event: Event) -> Result<(), Stop> {
        if let Some(pending) = &self.pending {
            assert!(*pending == event, "another request while one is under way");
        }
        if let Some(dice) = &mut self.slow
            && dice.below(2) == 0
        {
            self.pending = Some(event);
            return Err(Stop::Wait);
        }
        self.pending = None;
        self.events.push(event);
        Ok(())
    }

    /// All that may be left after a power cut: for each sector, what is durable or anything written since.
    pub(crate) fn cut(&self, mut keep: impl FnMut(usize) -> u8) -> Self {
        let mut after = Self { durable: self.durable.clone(), ..Self::default() };
        for (number, (at, block)) in self.recent.iter().enumerate() {
            let sectors = keep(number);
            let mut left = after.durable.get(at).copied().unwrap_or_else(|| noise(*at));
            for sector in (0..8).filter(|sector| sectors & 1 << sector != 0) {
                let range = sector * 512..(sector + 1) * 512;
                left[range.clone()].copy_from_slice(&block[range]);
            }
            let _ = after.durable.insert(*at, left);
        }
        after
    }
}

impl Storage for Host {
    fn read(&mut self, at: u64, into: &mut [Block]) -> Result<(), Stop> {
        into.fill([0xee; 4096]);
        self.take(Event::Read(at, into.len()))?;
        for (at, into) in (at..).zip(into) {
            *into = self.block(at);
        }
        Ok(())
    }

    fn write(&mut self, at: u64, from: &[Block]) -> Result<(), Stop> {
        self.take(Event::Write(at, from.to_vec()))?;
        self.recent.extend((at..).zip(from.iter().copied()));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.take(Event::Flush)?;
        self.durable.extend(self.recent.drain(..));
        Ok(())
    }
}

/// What is in a block that was never written: anything.
fn noise(at: u64) -> Block {
    let mut block = [0; 4096];
    let mut dice = Dice(at);
    block.iter_mut().for_each(|byte| *byte = dice.roll().to_le_bytes()[0]);
    block
}
