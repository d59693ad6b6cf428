//! One protected VM, and the life of its private pages.
//!
//! A page is *fresh* until the VM first touches it; then *resident*, in a frame that neither the host
//! nor another VM can reach; and *sealed* while the host has it. What the host lends a frame for
//! becomes the VM's memory only if it is what the ticket says (fresh, in the manifest), what left
//! before (sealed), or zeroed (every other fresh page).
//!
//! The order of each change is what keeps pages secret, whatever processors still remember:
//!
//! 1. In: the frame leaves the host's reach, everybody flushes, its content is checked, it is mapped.
//! 2. Out: the page leaves the VM's reach, everybody flushes, it is sealed or zeroed, and only then is
//!    the frame the host's again.
//!
//! A page that the host looks at meanwhile stays where it is: a copy goes out, sealed, which the host sees
//! in the frame's place until the VM may write to the page again.
//!
//! A VM that was stopped never runs again, so its pages are not sealed any more but zeroed. Its ticket may
//! permit that it is started anew: that is another launch, with another key, from the manifest on, and nothing
//! of what the VM was is left then.

use core::fmt;

use ept::addr::{Frame, GuestFrame};
use ept::direct::{Machine, Refused};
use ept::ept01::{Exhausted, Flushed, TableMem};
use ept::frames;
use ept::shadow::Access;
use seal::key::{VmId, VmKey};
use seal::page::{GuestPage, Sealer};
use seal::record::Sealed;
use sha2::{Digest, Sha256};
use ticket::{Disk, Header, MAX_TRANSPORTS, Origin, Range, Secret, State, error::Error};

use crate::map::{Map, Transport};
use crate::past::Past;
use crate::processors::Processors;
use crate::sparse::{NONE, Record, Sparse};
use crate::tables::Tables;
use crate::walk::Found;
use crate::{Hardware, Progress};

mod restart;
mod run;

/// Why a VM was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// What came back for this page is not what left, or has been replaced since.
    Forged(GuestFrame),
    /// The first content of this page is not what the ticket says.
    Manifest(GuestFrame),
    /// The host lends a frame for this page that is in use otherwise, or is no RAM.
    Frame(GuestFrame),
    /// The host lends a second frame for this page.
    Elsewhere(GuestFrame),
    /// What the visor remembers of this page is not what it can be.
    Record(GuestFrame),
    /// The visor has no memory left for what it must remember of the VM.
    Memory,
    /// The VM has used up the versions of its pages.
    Versions,
    /// The VM accessed this address, which is a device's, in a way in which that cannot be done; or the host
    /// has memory there.
    Device(u64),
    /// The host destroys it.
    Destroyed,
    /// The host starts it anew, or would, but its ticket does not permit that so often.
    Restarted,
    /// The membrane of its processors says so, by a number of its own.
    Processor(u16),
}

impl Cause {
    /// The number that stands for it at the port and in the audit log, for ever the same.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::Forged(_) => 1,
            Self::Manifest(_) => 2,
            Self::Frame(_) => 3,
            Self::Elsewhere(_) => 4,
            Self::Record(_) => 5,
            Self::Memory => 6,
            Self::Versions => 7,
            Self::Device(_) => 8,
            Self::Destroyed => 9,
            Self::Restarted => 10,
            Self::Processor(number) => 0x100 + u32::from(number),
        }
    }

    /// The page that was refused.
    #[must_use]
    pub const fn page(self) -> Option<GuestFrame> {
        match self {
            Self::Forged(page)
            | Self::Manifest(page)
            | Self::Frame(page)
            | Self::Elsewhere(page)
            | Self::Record(page) => Some(page),
            Self::Memory
            | Self::Versions
            | Self::Device(_)
            | Self::Destroyed
            | Self::Restarted
            | Self::Processor(_) => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forged(page) => write!(f, "page {:#x} did not come back as it left", page.base()),
            Self::Manifest(page) => write!(f, "page {:#x} is not as in the ticket", page.base()),
            Self::Frame(page) => write!(f, "the frame for page {:#x} is not free", page.base()),
            Self::Elsewhere(page) => write!(f, "page {:#x} is in another frame", page.base()),
            Self::Record(page) => write!(f, "the record of page {:#x} is damaged", page.base()),
            Self::Memory => f.write_str("the visor has no memory left for the VM"),
            Self::Versions => f.write_str("the VM has no version left to seal a page with"),
            Self::Device(at) => write!(f, "{at:#x} is a device's, and cannot be accessed so"),
            Self::Destroyed => f.write_str("it was destroyed"),
            Self::Restarted => f.write_str("its host starts it anew"),
            Self::Processor(number) => write!(f, "a processor of it, cause {number}"),
        }
    }
}

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Its ticket waits for it.
    Waiting,
    /// It has taken its ticket.
    Running,
    /// It will never run again, but for a new launch, of which it will know nothing.
    Stopped(Cause),
}

/// An access that had no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The guest-physical address.
    pub at: u64,
    /// What the VM tried.
    pub access: Access,
    /// Which word of the window page the processor has for itself.
    pub word: u8,
}

/// How such an access was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The VM is to repeat it.
    Mapped,
    /// The root is not loaded as a protected VM's, or not any more: the VM is to repeat it after that.
    Unloaded,
    /// The host is to be told of a write to the first byte of this page.
    ///
    /// It is never told of a read, for which KVM would lend pages that are not the VM's alone: that of
    /// zeros, and such that were merged.
    Absent(GuestFrame),
    /// The host is to be told of an access that its tables do not permit.
    Denied {
        /// The page.
        at: GuestFrame,
        /// What they permit.
        rights: Access,
    },
    /// It goes to a device, and the window page is fit to show that in.
    Device {
        /// The address.
        at: u64,
        /// The window page.
        window: GuestFrame,
    },
    /// The VM has been stopped.
    Stopped(Cause),
}

/// What becomes of the content of pages that leave a VM that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They are sealed, and may come back.
    Kept,
    /// They are zeroed: the VM has given them up.
    GivenUp,
}

/// [`MAX_TRANSPORTS`].
const TRANSPORTS: u64 = 8;
const _: () = assert!(MAX_TRANSPORTS == 8);

/// A protected VM.
#[derive(Debug)]
pub struct Vm {
    id: [u8; 16],
    /// New launches that its ticket still permits.
    pub(crate) restarts: u32,
    state: State,
    pub(crate) launch: u64,
    pub(crate) origin: Origin,
    pub(crate) life: Life,
    pub(crate) vcpus: u32,
    pub(crate) processors: Processors,
    /// The root of the host's tables that it used last.
    pub(crate) root: Option<Frame>,
    /// Accesses of the host's to its pages that were recorded.
    pub(crate) touches: u32,
    pub(crate) map: Map,
    /// Sealed disks, four records for each.
    disks: Sparse,
    /// Hashes of pages that are still fresh.
    manifest: Sparse,
    /// What is known of pages that were outside.
    pub(crate) pasts: Sparse,
    pub(crate) tables: Tables,
    sealer: Sealer,
    resident: u64,
    sealed: u64,
    /// Whether it has given up pages. The host drops their frames some time later.
    gives_up: bool,
    /// How far its pages have left for good.
    pub(crate) swept: GuestFrame,
    /// The page for which the host was asked last, and how often in a row.
    asked: (GuestFrame, u32),
}

impl Vm {
    /// A VM without memory. `launch` are random bytes that were never used before.
    ///
    /// # Errors
    /// [`Error::Memory`] when `mem` has no frame left.
    pub(crate) fn new(
        mem: &mut impl TableMem,
        header: &Header,
        launch: &[u8; 32],
    ) -> Result<Self, Error> {
        let key = VmKey::launch(VmId(header.vm), header.secret.bytes(), launch);
        Ok(Self {
            id: header.vm,
            restarts: header.restarts,
            state: header.state,
            launch: 0,
            origin: Origin::default(),
            life: Life::Waiting,
            vcpus: 0,
            processors: Processors::new(header.processors),
            root: None,
            touches: 0,
            map: Map::new(),
            disks: Sparse::new(),
            manifest: Sparse::new(),
            pasts: Sparse::new(),
            tables: Tables::new(mem).map_err(|Exhausted| Error::Memory)?,
            sealer: Sealer::new(key),
            resident: 0,
            sealed: 0,
            gives_up: false,
            swept: GuestFrame::containing(0),
            asked: (GuestFrame::containing(0), 0),
        })
    }

    /// Adds a range to its memory.
    pub(crate) fn add_range(&mut self, range: Range) -> Result<(), Error> {
        self.map.add(range).map_err(|_| Error::Memory)
    }

    /// Makes a virtio device of its a sealed disk.
    pub(crate) fn add_disk(&mut self, mem: &mut impl TableMem, disk: &Disk) -> Result<(), Error> {
        let mut id = [0; 32];
        id.split_at_mut(16).0.copy_from_slice(&disk.id);
        let records =
            [[1, disk.blocks, disk.total, disk.moment], words(disk.key.bytes()), words(&id)];
        for (number, record) in (4 * u64::from(disk.transport)..).zip(records) {
            let set = self.disks.set(mem, number, record);
            set.map_err(|Exhausted| Error::Memory)?;
        }
        Ok(())
    }

    /// Adds the hash of a page to its manifest.
    pub(crate) fn add_page(
        &mut self,
        mem: &mut impl TableMem,
        page: GuestFrame,
        hash: &[u8; 32],
    ) -> Result<(), Error> {
        let set = self.manifest.set(mem, page.number(), words(hash));
        set.map_err(|Exhausted| Error::Memory)
    }

    /// Names the VM, as its ticket does.
    #[must_use]
    pub const fn id(&self) -> &[u8; 16] {
        &self.id
    }

    /// Where its ticket is from.
    #[must_use]
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The number of its launch among all since boot, from 1.
    #[must_use]
    pub const fn launch(&self) -> u64 {
        self.launch
    }

    /// The host-physical address of `address`, if the VM may access that so without being asked. Only valid
    /// in the same hold of the lock.
    #[must_use]
    pub fn reach(&self, mem: &impl TableMem, address: u64, access: Access) -> Option<u64> {
        let page = GuestFrame::at(address & !0xfff)?;
        let frame = self.tables.reach(mem, page, access)?;
        Some(frame.base() | address & 0xfff)
    }

    /// Whether `address` is a device's: the ticket has no memory there.
    #[must_use]
    pub fn is_device(&self, address: u64) -> bool {
        let page = GuestFrame::at(address & !0xfff);
        page.and_then(|page| self.map.class(page)).is_none()
    }

    /// The virtio device that has its registers at `address`, if the visor carries its data.
    #[must_use]
    pub fn transport(&self, address: u64) -> Option<Transport> {
        self.map.transport(address)
    }

    /// What its ticket says of the virtio device with this number, if that is a sealed disk.
    #[must_use]
    pub fn disk(&self, mem: &impl TableMem, transport: u32) -> Option<Disk> {
        let record = |part| self.disks.get(mem, 4 * u64::from(transport) + part);
        let [is_there, blocks, total, moment] = record(0);
        let key = Secret::new(bytes(record(1)));
        let id = *bytes(record(2)).first_chunk()?;
        (is_there == 1).then_some(Disk { transport, blocks, total, id, key, moment })
    }

    /// Whether it will never run again.
    pub(crate) const fn is_stopped(&self) -> bool {
        matches!(self.life, Life::Stopped(_))
    }

    /// Whether it runs.
    #[must_use]
    pub const fn life(&self) -> Life {
        self.life
    }

    /// The state in which its first vCPU has to begin.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The EPTP that processors run it with.
    #[must_use]
    pub const fn pointer(&self) -> u64 {
        self.tables.pointer()
    }

    /// Number of vCPUs.
    #[must_use]
    pub const fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Number of private pages that it has.
    #[must_use]
    pub const fn resident(&self) -> u64 {
        self.resident
    }

    /// Number of private pages that the host has.
    #[must_use]
    pub const fn sealed(&self) -> u64 {
        self.sealed
    }

    /// The page that the VM waits for and its host does not give it, or not as the VM wants it, and how
    /// often the host was told so in a row: a host that is only slow is told a few times.
    #[must_use]
    pub const fn asked(&self) -> (GuestFrame, u32) {
        self.asked
    }

    /// An access at `at` was answered so.
    pub(crate) fn answered(&mut self, at: u64, filled: Filled) {
        let (last, times) = self.asked;
        match filled {
            Filled::Absent(page) | Filled::Denied { at: page, .. } => {
                let times = if page == last { times.saturating_add(1) } else { 1 };
                self.asked = (page, times);
            }
            Filled::Mapped if last == GuestFrame::containing(at) => self.asked = (last, 0),
            Filled::Mapped | Filled::Unloaded | Filled::Device { .. } | Filled::Stopped(_) => {}
        }
    }

    /// Gives the VM a private `page`, for which the host lends the frame of `found`.
    pub(crate) fn fill<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
        page: GuestFrame,
        found: &Found,
    ) -> Result<(), Cause> {
        let has = self.tables.frame(machine.hardware, page);
        if has.is_none() && !self.gives_up && self.fill_run(machine, number, page, found)? {
            return Ok(());
        }
        let place = self.tables.reserve(machine.hardware, page, found.level);
        let place = place.map_err(|Exhausted| Cause::Memory)?;
        match has {
            Some(frame) if frame == found.frame => {
                // It may write to the page from now on.
                let _ = machine.hide(frame).flush(machine.hardware);
            }
            Some(_) => return Err(Cause::Elsewhere(page)),
            None => self.take(machine, number, page, found.frame)?,
        }
        self.tables.map(machine.hardware, place, found.frame, found.rights);
        Ok(())
    }

    /// Makes `frame` the VM's, as `page`, with the right content. On any error it is the host's, and
    /// zeroed if the host was ever without it.
    fn take<H: Hardware>(
        &mut self,
        machine: &mut Machine<'_, '_, H>,
        number: frames::Vm,
        page: GuestFrame,
        frame: Frame,
    ) -> Result<(), Cause> {
        machine.take(frame, number, page).map_err(|refused| {
            let memory = matches!(refused, Refused::Exhausted(_));
            if memory { Cause::Memory } else { Cause::Frame(page) }
        })?;
        let admitted = self.admit(machine.hardware, page, frame);
        if admitted.is_ok() {
            self.resident += 1;
        } else {
            machine.hardware.with_page(frame, |bytes| bytes.fill(0));
            // It was taken just now.
            let _ = machine.release(&[frame]);
        }
        admitted
    }

    /// Makes the content of `frame`, which nobody else can reach, that of `page`, if it may be.
    fn admit<H: Hardware>(
        &mut self,
        hardware: &mut H,
        page: GuestFrame,
        frame: Frame,
    ) -> Result<(), Cause> {
        let past = Past::unpack(self.pasts.get(hardware, page.number()));
        match past.map_err(|_| Cause::Record(page))? {
            Some(Past::Outside(sealed)) => {
                let at = GuestPage::at(page.base()).ok_or(Cause::Record(page))?;
                let unsealed = hardware.with_page(frame, |bytes| {
                    self.sealer.unseal(at, bytes, &sealed).map_err(|_| Cause::Forged(page))
                });
                let _ = unsealed?;
                self.sealed -= 1;
                let kept = self.pasts.set(hardware, page.number(), Past::Back(sealed).pack());
                kept.map_err(|Exhausted| Cause::Memory)
            }
            Some(Past::Back(_)) => Err(Cause::Record(page)),
            Some(Past::GivenUp) => {
                hardware.with_page(frame, |bytes| bytes.fill(0));
                Ok(())
            }
            None => self.admit_fresh(hardware, page, frame),
        }
    }

    /// The same for a page that the VM touches for the first time.
    fn admit_fresh<H: Hardware>(
        &mut self,
        hardware: &mut H,
        page: GuestFrame,
        frame: Frame,
    ) -> Result<(), Cause> {
        let expected = self.manifest.get(hardware, page.number());
        if expected == NONE {
            hardware.with_page(frame, |bytes| bytes.fill(0));
            return Ok(());
        }
        let hash = hardware.with_page(frame, |bytes| Sha256::digest(bytes));
        if words(&hash.into()) != expected {
            return Err(Cause::Manifest(page));
        }
        // Another launch will need it again.
        let kept = if self.restarts == 0 { NONE } else { expected };
        let spent = self.manifest.set(hardware, page.number(), kept);
        spent.map_err(|Exhausted| Cause::Memory)
    }

    /// Makes the private `page` in `frame` fit for the host, to whom the caller then gives it: sealed if
    /// the VM runs and needs it, else zeroed. All rights to it have been withdrawn and flushed.
    ///
    /// # Errors
    /// Why the VM has to be stopped; the frame is zeroed.
    pub(crate) fn vacate<H: Hardware>(
        &mut self,
        hardware: &mut H,
        page: GuestFrame,
        frame: Frame,
        (fate, _): (Fate, &Flushed),
    ) -> Result<(), Cause> {
        let is_kept = self.life == Life::Running && fate == Fate::Kept;
        let sealed = if is_kept { self.seal(hardware, page, frame) } else { Ok(()) };
        if !is_kept || sealed.is_err() {
            hardware.with_page(frame, |bytes| bytes.fill(0));
        }
        self.tables.forget(hardware, page);
        self.resident -= 1;
        sealed
    }

    /// Makes a copy of `page`, in the frame `copy`, fit for the host, who may bring that back if the page
    /// leaves as it is now.
    pub(crate) fn copied<H: Hardware>(
        &mut self,
        hardware: &mut H,
        page: GuestFrame,
        copy: Frame,
    ) -> Result<(), Cause> {
        let sealed = self.encrypt(hardware, page, copy)?;
        // What there is no memory to remember costs the page a new version.
        if hardware.may_spend() {
            let _ = self.pasts.set(hardware, page.number(), Past::Back(sealed).pack());
        }
        Ok(())
    }

    /// Seals `page` in its `frame`, and remembers that.
    fn seal<H: Hardware>(
        &mut self,
        hardware: &mut H,
        page: GuestFrame,
        frame: Frame,
    ) -> Result<(), Cause> {
        let sealed = self.encrypt(hardware, page, frame)?;
        let kept = self.pasts.set(hardware, page.number(), Past::Outside(sealed).pack());
        kept.map_err(|Exhausted| Cause::Memory)?;
        self.sealed += 1;
        Ok(())
    }

    /// Seals the content of `page` that lies in `frame`: to the bytes of before, if it is that of before.
    fn encrypt<H: Hardware>(
        &self,
        hardware: &mut H,
        page: GuestFrame,
        frame: Frame,
    ) -> Result<Sealed, Cause> {
        let past = Past::unpack(self.pasts.get(hardware, page.number()));
        let at = GuestPage::at(page.base()).ok_or(Cause::Record(page))?;
        hardware.with_page(frame, |bytes| match past {
            Ok(None | Some(Past::GivenUp)) => {
                self.sealer.seal(at, bytes).map_err(|_| Cause::Versions)
            }
            Ok(Some(Past::Back(was))) => {
                let sealed = self.sealer.reseal(at, bytes, was.resident());
                sealed.map_err(|_| Cause::Versions)
            }
            Ok(Some(Past::Outside(_))) | Err(_) => Err(Cause::Record(page)),
        })
    }

    /// Forgets what was in `page`, which no frame is: it begins anew, with zeros.
    ///
    /// # Errors
    /// Why the VM has to be stopped.
    pub(crate) fn forget(
        &mut self,
        mem: &mut impl TableMem,
        page: GuestFrame,
    ) -> Result<(), Cause> {
        let past = Past::unpack(self.pasts.get(mem, page.number()));
        let past = past.map_err(|_| Cause::Record(page))?;
        self.gives_up = true;
        self.sealed -= u64::from(matches!(past, Some(Past::Outside(_))));
        let is_known = self.manifest.get(mem, page.number()) != NONE;
        let record = if is_known { Past::GivenUp.pack() } else { NONE };
        self.pasts.set(mem, page.number(), record).map_err(|Exhausted| Cause::Memory)
    }

    /// Gives back all memory that the VM has from the visor, at most `budget` frames. It was stopped, has
    /// no page, and processors have forgotten it.
    pub(crate) fn free(&mut self, mem: &mut impl TableMem, budget: &mut u32) -> Progress {
        // Keys do not wait for another use of their frame.
        let records = if self.disks.is_empty() { 0 } else { 4 * TRANSPORTS };
        for number in 0..records {
            let _ = self.disks.set(mem, number, NONE);
        }
        for sparse in [&mut self.manifest, &mut self.pasts, &mut self.disks] {
            if sparse.clear(mem, budget) == Progress::Again {
                return Progress::Again;
            }
        }
        self.tables.free(mem, budget)
    }
}

/// What a record is of.
fn bytes(record: Record) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(record) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

/// A hash, or another 32 bytes, as a record.
fn words(hash: &[u8; 32]) -> Record {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(hash.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}
