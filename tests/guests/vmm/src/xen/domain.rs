//! A domain with one processor, made as a toolstack makes a PVH one, with nothing but a local APIC.

use std::fmt;
use std::thread::sleep;
use std::time::Duration;

use super::call::{Body, Xen};
use super::guest::{CODE, Guest, MEMORY};
use crate::memory::PAGE;
use crate::protected::launch::{Id, Visor};
use ticket::port::VmState;

/// xen/include/public/domctl.h.
const CREATE: u32 = 1;
const DESTROY: u32 = 2;
pub(super) const PAUSE: u32 = 3;
pub(super) const UNPAUSE: u32 = 4;
const INFORMATION: u32 = 5;
const SHADOW: u32 = 10;
const MAX_MEMORY: u32 = 11;
const MAX_VCPUS: u32 = 15;
const SET_CONTEXT: u32 = 34;
const POPULATE: u64 = 6;
/// Flags of [`CREATE`] and [`INFORMATION`].
const HVM_AND_HAP: u32 = 3;
const LOCAL_APIC: u32 = 1;
const SHUT_DOWN: u32 = 1 << 2;

/// Records of a processor's state (public/arch-x86/hvm/save.h): header, processor, end.
const MAGIC: u32 = 0x5438_1286;
const HEADER_LEN: usize = 8 + 24;

/// How a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It goes on, and its memory and registers are as they must be.
    Well,
    /// It goes on, and they are not.
    Harmed,
    /// Xen says that it has shut down.
    Ended,
    /// The visor has stopped it for this cause.
    Stopped(u32),
    /// It says nothing.
    Silent,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Well => f.write_str("well"),
            Self::Harmed => f.write_str("harmed"),
            Self::Ended => f.write_str("ended"),
            Self::Stopped(cause) => write!(f, "stopped cause={cause}"),
            Self::Silent => f.write_str("silent"),
        }
    }
}

/// A domain, with its guest.
#[derive(Debug)]
pub(super) struct Domain {
    number: u32,
    pub(super) guest: Guest,
    id: Option<Id>,
}

impl Domain {
    /// Makes a domain, with a ticket if there is a visor, that has said once that it is well.
    pub(super) fn start(xen: &mut Xen, mut visor: Option<&mut Visor>) -> Result<Self, String> {
        xen.count += 1;
        let guest = Guest::new(xen.count);
        let id = visor.is_some().then_some([xen.count as u8; 16]);
        if let (Some(visor), Some(id)) = (visor.as_deref_mut(), id) {
            visor.submit(&guest.ticket(id)?)?;
        }
        let mut domain = Self { number: create(xen)?, guest, id };
        domain.fill(xen)?;
        let _ = xen.domctl(UNPAUSE, domain.number, Body::of(&[]))?;
        match domain.health(xen, visor)? {
            Health::Well => Ok(domain),
            other => Err(format!("a new domain is {other}")),
        }
    }

    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    /// Its name in its ticket, if it has one.
    pub(super) const fn id(&self) -> Option<Id> {
        self.id
    }

    fn fill(&mut self, xen: &Xen) -> Result<(), String> {
        for at in (0..MEMORY).step_by(2 << 20) {
            let frame = at / PAGE as u64;
            // One extent of 2^9 pages.
            let mut words = [(&raw const frame) as u64, 1, 9, self.number.into()];
            match xen.memory(POPULATE, &mut words)? {
                1 => {}
                count => return Err(format!("{count} extents of memory, not 1")),
            }
        }
        xen.map(self.number, &[CODE / PAGE as u64])?.write(0, &self.guest.image());
        self.set_state(xen, &first_record())
    }

    /// Gives the processor the state of a record.
    pub(super) fn set_state(&self, xen: &Xen, record: &[u8]) -> Result<(), String> {
        let mut context = vec![0; HEADER_LEN];
        for (at, word) in [(0, 1), (4, 24), (8, MAGIC), (12, 1)] {
            context[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
        }
        context.extend(u32::to_le_bytes(2));
        context.extend((record.len() as u32).to_le_bytes());
        context.extend_from_slice(record);
        context.extend([0; 8]);
        let body = Body::of(&[(0, context.len() as u32)]).long(8, context.as_ptr() as u64);
        xen.domctl(SET_CONTEXT, self.number, body).map(drop)
    }

    /// Waits until the guest has said something, or cannot any more.
    pub(super) fn health(
        &mut self,
        xen: &mut Xen,
        mut visor: Option<&mut Visor>,
    ) -> Result<Health, String> {
        let [well, harmed] = self.guest.words();
        xen.forget()?;
        for _ in 0..100 {
            sleep(Duration::from_millis(20));
            let said = xen.console()?;
            if said.contains(&harmed) {
                return Ok(Health::Harmed);
            }
            // The first may be about what was before.
            if said.matches(&well).count() > 1 {
                return Ok(Health::Well);
            }
            if let (Some(visor), Some(id)) = (visor.as_deref_mut(), self.id)
                && let (VmState::Stopped, cause) = visor.state(id)?
            {
                return Ok(Health::Stopped(cause));
            }
            let answer = xen.domctl(INFORMATION, self.number, Body::of(&[]))?;
            if answer.domain != self.number || answer.body.0[1] & SHUT_DOWN != 0 {
                return Ok(Health::Ended);
            }
        }
        Ok(Health::Silent)
    }

    pub(super) fn disguised(&self) -> String {
        self.guest.disguised()
    }

    pub(super) fn destroy(self, xen: &Xen) -> Result<(), String> {
        // Xen asks for more calls as long as there is memory to take back.
        for _ in 0..1000 {
            match xen.domctl(DESTROY, self.number, Body::of(&[])) {
                Ok(_) => return Ok(()),
                Err(_) => sleep(Duration::from_millis(1)),
            }
        }
        Err(format!("domain {} does not go", self.number))
    }
}

/// A new domain without memory.
fn create(xen: &Xen) -> Result<u32, String> {
    let handle = [4, 8, 12, 16].map(|at| (at, 0x0101_0101 * xen.count));
    let mut words = vec![(20, HVM_AND_HAP), (28, 1), (32, 1023), (36, 4), (40, 4), (44, 1)];
    words.extend(handle);
    words.push((56, LOCAL_APIC));
    let number = xen.domctl(CREATE, 0, Body::of(&words))?.domain;
    let kib = Body::of(&[]).long(0, (MEMORY >> 10) + 2048);
    // The operation is SET_ALLOCATION, of one MiB.
    let tables = Body::of(&[(0, 31), (8, 2)]);
    let vcpus = Body::of(&[(0, 1)]);
    for (command, body) in [(MAX_MEMORY, kib), (MAX_VCPUS, vcpus), (SHADOW, tables)] {
        let _ = xen.domctl(command, number, body)?;
    }
    Ok(number)
}

/// Offsets in the record of a processor's state.
pub(super) mod record {
    pub(in crate::xen) const FPU: usize = 0;
    pub(in crate::xen) const RBX: usize = 520;
    pub(in crate::xen) const GENERAL: core::ops::Range<usize> = 512..640;
    pub(in crate::xen) const RIP: usize = 640;
    pub(in crate::xen) const RFLAGS: usize = 648;
    pub(in crate::xen) const CR0: usize = 656;
    pub(in crate::xen) const DR6: usize = 720;
    pub(in crate::xen) const DR7: usize = 728;
    /// Selectors of CS, DS, ES, FS, GS, SS, TR, LDTR; limits, IDTR's and GDTR's behind; bases; rights.
    pub(in crate::xen) const LIMITS: usize = 768;
    pub(in crate::xen) const RIGHTS: usize = 888;
    pub(in crate::xen) const LEN: usize = 1032;
}

/// The state that a toolstack gives to the first processor (xg_dom_x86.c, `vcpu_hvm`).
fn first_record() -> Vec<u8> {
    let mut bytes = vec![0; record::LEN];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    for (at, value) in [
        (record::RIP, CODE),
        (record::RFLAGS, 2),
        (record::CR0, 0x11),
        (record::DR6, 0xffff_0ff0),
        (record::DR7, 0x400),
    ] {
        put(at, &value.to_le_bytes());
    }
    let flat = [0, 1, 2, 5].map(|segment| (segment, u32::MAX, 0xc93));
    for (segment, limit, rights) in flat.into_iter().chain([(0, u32::MAX, 0xc9b), (6, 0x67, 0x8b)])
    {
        put(record::LIMITS + segment * 4, &limit.to_le_bytes());
        put(record::RIGHTS + segment * 4, &u32::to_le_bytes(rights));
    }
    bytes
}
