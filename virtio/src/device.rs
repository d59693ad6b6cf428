//! One transport: its registers as the VM and the host see them (virtio 1.2, 4.2.2). Those of a transport on
//! PCI are taken for the ones that mean the same.

use crate::chain::{Chain, Error};
use crate::layout::{Layout, NOTIFY_OFF, NUM_QUEUES, QUEUE_SIZE};
use crate::memory::{Failure, Memory, Missing};
use crate::queue::{self, LONGEST, Queue, Shared};
use crate::room::{LEAST, Room};
use crate::sealed::{self, Sealed};

/// Most queues of a device.
const QUEUES: u64 = 4;
/// What their shadows take in the device's part of the shared range.
const SHADOWS: u64 = QUEUES * queue::BYTES;

/// The least part of the shared range that a device can do with, in bytes.
pub const SMALLEST: u64 = SHADOWS + LEAST;
/// More than any device needs: the visor carries up to so much at once.
pub const LARGEST: u64 = 1 << 26;

const MAGIC: u64 = 0x00;
const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const VENDOR_ID: u64 = 0x0c;
pub(crate) const DEVICE_FEATURES: u64 = 0x10;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x14;
pub(crate) const DRIVER_FEATURES: u64 = 0x20;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x24;
pub(crate) const QUEUE_SEL: u64 = 0x30;
pub(crate) const QUEUE_NUM_MAX: u64 = 0x34;
pub(crate) const QUEUE_NUM: u64 = 0x38;
pub(crate) const QUEUE_READY: u64 = 0x44;
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
pub(crate) const STATUS: u64 = 0x70;
pub(crate) const QUEUE_DESC_LOW: u64 = 0x80;
pub(crate) const QUEUE_DESC_HIGH: u64 = 0x84;
pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x90;
pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x94;
pub(crate) const QUEUE_DEVICE_LOW: u64 = 0xa0;
pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0xa4;
/// Length and base of a region of shared memory, two halves each.
const SHM: [u64; 4] = [0xb0, 0xb4, 0xb8, 0xbc];
pub(crate) const CONFIG_GENERATION: u64 = 0xfc;
pub(crate) const CONFIG: u64 = 0x100;

/// In [`STATUS`].
const NEEDS_RESET: u64 = 1 << 6;
const NO_REGION: u64 = 0xffff_ffff;
pub(crate) const WORD: u64 = 0xffff_ffff;

/// VERSION_1, in the upper half of the features.
const VERSION_1: u64 = 1;

const ALL: u64 = 0xfffc_0001_00ff_ffff;
/// MQ and RSS. The control queue would be behind their queues.
const NETWORK_QUEUES: u64 = 1 << 22 | 1 << 60;
/// MQ.
const DISK_QUEUES: u64 = 1 << 12;
/// MULTIPORT.
const CONSOLE_QUEUES: u64 = 1 << 1;
/// Those of a device on PCI, whose kind is not among its registers.
const ANY: u64 = ALL & !(NETWORK_QUEUES | DISK_QUEUES | CONSOLE_QUEUES);

/// The id of disks.
const DISK: u64 = 2;
/// The id of memory balloons, of which the first queue has what the VM gives up (virtio 1.2, 5.5.2).
const BALLOON: u64 = 5;
/// MUST_TELL_HOST, DEFLATE_ON_OOM and VERSION_1. The others tell the host more of the VM's memory, or of pages by
/// descriptors, as which the visor would carry them.
const BALLOON_FEATURES: u64 = VERSION_1 << 32 | 1 << 2 | 1 << 0;

/// Features that a device with this id may have; `None` where it cannot work. GPUs, IOMMUs and persistent
/// memory are told of memory in other ways than by descriptors.
///
/// VERSION_1 and what belongs to the kind of device. The others are about how rings are used, addressed
/// or reset. Nor are there those that ask for more queues than [`QUEUES`].
const fn features(id: u64) -> Option<u64> {
    Some(match id {
        1 => ALL & !NETWORK_QUEUES,
        DISK => ALL & !DISK_QUEUES,
        3 => ALL & !CONSOLE_QUEUES,
        // Entropy, SCSI, 9P, input, sockets, file systems.
        4 | 8 | 9 | 18 | 19 | 26 => ALL,
        BALLOON => BALLOON_FEATURES,
        _ => return None,
    })
}

/// The bits of so many bytes.
const fn mask(bytes: u8) -> u64 {
    match bytes {
        1 => 0xff,
        2 => 0xffff,
        4 => WORD,
        _ => u64::MAX,
    }
}

/// A transport, the device behind it as the VM has set it up, and its part of the shared range.
pub struct Device {
    layout: Layout,
    queues: [Queue; 4],
    shared: Shared,
    /// Features that may be used; 0 as long as no device is known to be there.
    features: u64,
    is_modern: bool,
    /// The id that the VM was told; 0 if none.
    told: u64,
    /// Which halves of the features are at their registers, and which queue.
    device_half: u64,
    driver_half: u64,
    selected: u64,
    /// The host's disk is to have sealed blocks only.
    sealed: Option<&'static mut Sealed>,
    /// The VM has accepted VERSION_1.
    is_accepted: bool,
    is_broken: bool,
    failure: Option<Failure>,
}

impl core::fmt::Debug for Device {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Device").finish_non_exhaustive()
    }
}

impl Device {
    /// A transport without a part of the shared range: no queue of it can be made ready.
    pub const NONE: Self = Self {
        layout: Layout::Mmio,
        queues: [const { Queue::NONE }; 4],
        shared: Shared { room: Room::NONE, chain: Chain::NONE },
        features: 0,
        is_modern: false,
        told: 0,
        device_half: 0,
        driver_half: 0,
        selected: 0,
        sealed: None,
        is_accepted: false,
        is_broken: false,
        failure: None,
    };

    /// Makes it one that nobody has used yet, with such registers. Its part of the shared range begins at guest-physical address
    /// `address`, a multiple of 4096, and has `bytes`, at least [`SMALLEST`] and at most [`LARGEST`]; `None` for
    /// others.
    #[must_use]
    pub fn assign(&mut self, address: u64, bytes: u64, layout: Layout) -> Option<()> {
        let is_valid = address.is_multiple_of(4096) && (1..1 << 51).contains(&address);
        if !is_valid || !(SMALLEST..=LARGEST).contains(&bytes) {
            return None;
        }
        (self.layout, self.is_modern, self.told, self.failure) = (layout, false, 0, None);
        self.reset();
        self.features = match layout {
            Layout::Mmio => 0,
            Layout::Pci if self.sealed.is_some() => sealed::FEATURES,
            Layout::Pci => ANY,
        };
        (self.device_half, self.driver_half, self.selected) = (0, 0, 0);
        let mut shadow = address;
        for queue in &mut self.queues {
            queue.assign(shadow);
            shadow += queue::BYTES;
        }
        self.shared.room.assign(shadow, bytes - SHADOWS);
        Some(())
    }

    /// Makes it a sealed disk, or takes what it was before.
    pub const fn seal(&mut self, disk: Option<&'static mut Sealed>) -> Option<&'static mut Sealed> {
        core::mem::replace(&mut self.sealed, disk)
    }

    /// The sealed disk that it is.
    #[must_use]
    pub fn sealed(&mut self) -> Option<&mut Sealed> {
        self.sealed.as_deref_mut()
    }

    /// The VM stores `bytes` bytes of `value` at `offset`: returns what the host is to see stored there.
    /// If that notifies a queue, its requests are in the shared range afterwards.
    ///
    /// # Errors
    /// [`Missing`]: to be called again when the page is there. The host must not see the store before.
    pub fn store(
        &mut self,
        offset: u64,
        bytes: u8,
        value: u64,
        memory: &impl Memory,
    ) -> Result<u64, Missing> {
        let Some(offset) = self.layout.register(offset, bytes) else { return Ok(0) };
        let value = value & mask(bytes);
        match offset {
            DEVICE_FEATURES_SEL => self.device_half = value,
            DRIVER_FEATURES_SEL => self.driver_half = value,
            DRIVER_FEATURES => return Ok(self.accept(value)),
            QUEUE_SEL => self.selected = value,
            QUEUE_NOTIFY => self.notified(value, memory)?,
            STATUS if value == 0 => self.reset(),
            INTERRUPT_ACK | STATUS | CONFIG => {}
            _ => return self.store_queue(offset, value, memory),
        }
        Ok(value)
    }

    /// A store to a register of the selected queue. Others have no rule, and the host sees 0 there.
    fn store_queue(
        &mut self,
        offset: u64,
        value: u64,
        memory: &impl Memory,
    ) -> Result<u64, Missing> {
        let selected = usize::try_from(self.selected).ok();
        let Some(queue) = selected.and_then(|selected| self.queues.get_mut(selected)) else {
            return Ok(0);
        };
        let (ring, shift) = match offset {
            QUEUE_NUM | QUEUE_SIZE => return Ok(queue.resize(value)),
            QUEUE_READY if value == 0 => {
                queue.stop(&mut self.shared);
                if let Some(disk) = self.sealed.as_deref_mut().filter(|_| self.selected == 0) {
                    disk.abandon();
                }
                return Ok(0);
            }
            QUEUE_READY if self.is_broken => return Ok(0),
            QUEUE_READY => {
                let started = match &mut self.sealed {
                    _ if !self.is_accepted => Err(Error::Failed(Failure::Setup)),
                    None => queue.start(memory),
                    Some(disk) if self.selected == 0 => {
                        disk.start(queue, self.shared.room.place(), memory)
                    }
                    Some(_) => Err(Error::Failed(Failure::Setup)),
                };
                self.note(started)?;
                return Ok(u64::from(!self.is_broken));
            }
            QUEUE_DESC_LOW => (0, 0),
            QUEUE_DESC_HIGH => (0, 32),
            QUEUE_DRIVER_LOW => (1, 0),
            QUEUE_DRIVER_HIGH => (1, 32),
            QUEUE_DEVICE_LOW => (2, 0),
            QUEUE_DEVICE_HIGH => (2, 32),
            _ => return Ok(0),
        };
        Ok(queue.locate(ring, shift, value))
    }

    /// Features that may be used, in this half.
    const fn allowed(&self, half: u64) -> u64 {
        match half {
            0 => self.features & WORD,
            1 => self.features >> 32,
            _ => 0,
        }
    }

    /// The VM accepts features: returns which of them the host is to see.
    fn accept(&mut self, value: u64) -> u64 {
        let value = value & self.allowed(self.driver_half);
        if self.driver_half == 1 {
            self.is_accepted = value & VERSION_1 != 0;
        }
        match &mut self.sealed {
            Some(disk) if self.driver_half == 0 => disk.accept(value),
            _ => value,
        }
    }

    fn notified(&mut self, number: u64, memory: &impl Memory) -> Result<(), Missing> {
        let queue = usize::try_from(number).ok().and_then(|number| self.queues.get_mut(number));
        if let (Some(queue), false) = (queue, self.is_broken) {
            let published = match &mut self.sealed {
                None => queue.publish(&mut self.shared, memory),
                Some(disk) if number == 0 => disk.drive(queue, &mut self.shared.chain, memory),
                Some(_) => Ok(()),
            };
            // What this store tells the host need not be told again.
            queue.is_owed &= published.is_err();
            self.note(published)?;
        }
        Ok(())
    }

    /// The host has answered a load of `bytes` bytes at `offset` with `value`: returns what the VM gets.
    pub fn loaded(&mut self, offset: u64, bytes: u8, value: u64) -> u64 {
        if let (Some(disk), Some(at)) = (&self.sealed, self.layout.configuration(offset)) {
            return disk.configuration(at) & mask(bytes);
        }
        let Some(offset) = self.layout.register(offset, bytes) else { return 0 };
        let value = value & mask(bytes);
        match offset {
            VERSION => {
                self.is_modern = value == 2;
                if self.is_modern { value } else { 0 }
            }
            DEVICE_ID => {
                let is_right = self.sealed.is_none() || value == DISK;
                let features = features(value).filter(|_| self.is_modern && is_right);
                let sealed = self.sealed.as_ref().map(|_| sealed::FEATURES);
                self.features = features.map_or(0, |features| sealed.unwrap_or(features));
                self.told = features.map_or(0, |_| value);
                self.told
            }
            DEVICE_FEATURES => {
                let value = match &mut self.sealed {
                    Some(disk) if self.device_half == 0 => disk.offer(value),
                    _ => value,
                };
                value & self.allowed(self.device_half)
            }
            QUEUE_NUM_MAX | QUEUE_SIZE if self.selected < QUEUES => {
                value.min(u64::try_from(LONGEST).unwrap_or(0))
            }
            NUM_QUEUES => value.min(QUEUES),
            // Where [`Self::kick`] takes it to be.
            NOTIFY_OFF if self.selected < QUEUES => self.selected,
            STATUS if self.is_broken => value | NEEDS_RESET,
            MAGIC | VENDOR_ID | QUEUE_READY | INTERRUPT_STATUS | STATUS | CONFIG_GENERATION
            | CONFIG => value,
            _ if SHM.contains(&offset) => NO_REGION,
            _ => 0,
        }
    }

    /// Gives the VM what the host has finished, and the host what waited for the room. To be called
    /// before the VM is entered while [`Self::is_waiting`], ahead of any interrupt.
    ///
    /// # Errors
    /// [`Missing`]: to be called again when the page is there.
    pub fn complete(&mut self, memory: &impl Memory) -> Result<(), Missing> {
        if self.is_broken {
            return Ok(());
        }
        let mut done = Ok(());
        if let Some(disk) = &mut self.sealed {
            let [queue, ..] = &mut self.queues;
            done = disk.drive(queue, &mut self.shared.chain, memory);
            return self.note(done);
        }
        for queue in &mut self.queues {
            done = done.and_then(|()| queue.complete(&mut self.shared, memory));
        }
        for queue in self.queues.iter_mut().filter(|queue| queue.is_stalled) {
            done = done.and_then(|()| queue.publish(&mut self.shared, memory));
        }
        self.note(done)
    }

    /// Whether the host has requests, or is to get some.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.is_broken
            && match &self.sealed {
                Some(disk) => disk.is_waiting(),
                None => self.queues.iter().any(Queue::is_waiting),
            }
    }

    /// A queue in which the host has requests that it was not told of, as they had waited for room: where its
    /// number is to be stored, and that, before the VM runs; until there are no more.
    pub fn kick(&mut self) -> Option<(u64, u64)> {
        let owed = self.queues.iter().position(|queue| queue.is_owed)?;
        self.queues.get_mut(owed)?.is_owed = false;
        let owed = u64::try_from(owed).ok()?;
        Some((self.layout.notify(owed), owed))
    }

    /// Why the device is not served any more until the VM resets it: said once.
    pub const fn failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    fn reset(&mut self) {
        for queue in &mut self.queues {
            queue.stop(&mut self.shared);
        }
        if let Some(disk) = &mut self.sealed {
            disk.reset();
        }
        // What the VM is told later, while a driver has the device, is nothing that this goes by.
        let [first, ..] = &mut self.queues;
        first.gives_up = self.told == BALLOON;
        (self.is_accepted, self.is_broken) = (false, false);
    }

    fn note(&mut self, result: Result<(), Error>) -> Result<(), Missing> {
        match result {
            Ok(()) => Ok(()),
            Err(Error::Missing(missing)) => Err(missing),
            Err(Error::Failed(failure)) => {
                (self.is_broken, self.failure) = (true, Some(failure));
                Ok(())
            }
        }
    }
}
