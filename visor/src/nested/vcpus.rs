//! The vCPUs of protected VMs: what no VMCS of the host's holds.
#![expect(unsafe_code, reason = "frames of a vCPU are references for as long as it exists")]

use ept::addr::{Frame, PAGE};
use ept::ept01::TableMem;
use ept::frames::Vm;
use nested_vmx::guard::{Guarded, Secrets};
use nested_vmx::vmcs12::Vmcs12;
use spin::Mutex;

use super::guest_memory::Reached;
use crate::guest_state::{self, GuestState};
use crate::memory::{self, POOL};
use crate::shootdown;
use crate::vmcs;

/// A vCPU of a protected VM.
#[derive(Debug)]
pub(super) struct Protected {
    pub(super) guarded: Guarded<'static>,
    pub(super) state: &'static mut GuestState,
    /// The VM: its number, and its launch, which tells it from later ones with the same number.
    pub(super) vm: (Vm, u64),
    /// The VM's EPT pointer; asked for again after every call to the processor.
    pub(super) pointer: Option<u64>,
    pub(super) reached: Reached,
    /// The page that the host was told of as absent at the last exit.
    pub(super) missing: Option<u64>,
    token: u64,
    frames: [Frame; 3],
}

/// Most of them.
const VCPUS: usize = 256;

/// A place for one.
struct Place {
    /// How often it was given out.
    turn: u32,
    /// Whether a vCPU has it, here or in a slot.
    taken: bool,
    /// The vCPU, while no slot has it.
    vcpu: Option<Protected>,
}

static PLACES: Mutex<[Place; VCPUS]> =
    Mutex::new([const { Place { turn: 0, taken: false, vcpu: None } }; VCPUS]);

/// What a VMCS of the host's holds to say which vCPU it is: no secret, since whichever VMCS the host runs
/// a vCPU with makes no difference. Never 0.
const fn token(place: u32, turn: u32) -> u64 {
    #[expect(clippy::as_conversions, reason = "from smaller types, in a constant function")]
    let token = (turn as u64) << 32 | place as u64;
    token
}

/// Frees the vCPUs of VMs that are gone, as `is_gone` says, but for those that slots have.
pub(super) fn sweep(is_gone: impl Fn((Vm, u64)) -> bool) {
    for place in shootdown::lock(&PLACES).iter_mut() {
        if place.vcpu.as_ref().is_some_and(|vcpu| is_gone(vcpu.vm))
            && let Some(gone) = place.vcpu.take()
        {
            place.taken = false;
            gone.free();
        }
    }
}

/// A new vCPU of `vm`; `None` if there is no room.
pub(super) fn create(vm: (Vm, u64)) -> Option<Protected> {
    let mut places = shootdown::lock(&PLACES);
    let (number, place) = places.iter_mut().enumerate().find(|(_, place)| !place.taken)?;
    place.turn = place.turn.wrapping_add(1).max(1);
    let token = token(u32::try_from(number).ok()?, place.turn);
    let vcpu = Protected::new(vm, token)?;
    place.taken = true;
    Some(vcpu)
}

/// The vCPU that `token` names, if there is one and no other VMCS has it.
pub(super) fn attach(token: u64) -> Option<Protected> {
    let mut places = shootdown::lock(&PLACES);
    let number = usize::try_from(token & 0xffff_ffff).ok()?;
    let place = places.get_mut(number)?;
    let mut vcpu = place.vcpu.take_if(|vcpu| vcpu.token == token)?;
    vcpu.pointer = None;
    Some(vcpu)
}

/// Takes back a vCPU, of which VMCS02 holds nothing more.
pub(super) fn detach(vcpu: Protected) {
    let mut places = shootdown::lock(&PLACES);
    let number = usize::try_from(vcpu.token & 0xffff_ffff).unwrap_or(usize::MAX);
    if let Some(place) = places.get_mut(number) {
        place.vcpu = Some(vcpu);
    }
}

/// The memory of one; all or nothing.
fn frames() -> Option<[Frame; 3]> {
    let mut pool = shootdown::lock(&POOL);
    (pool.left() >= 3 * PAGE).then(|| Some([pool.frame()?, pool.frame()?, pool.frame()?]))?
}

impl Protected {
    fn new(vm: (Vm, u64), token: u64) -> Option<Self> {
        let frames = frames()?;
        let [fields, secrets, state] = frames;
        let mut fields = memory::pointer::<Vmcs12>(fields)?;
        // SAFETY: the frame is zeroed, this vCPU's alone, and all-zero bytes are a valid page.
        let fields = unsafe { fields.as_mut() };
        let mut place = memory::pointer::<core::mem::MaybeUninit<Secrets>>(secrets)?;
        const { assert!(size_of::<Secrets>() <= 4096, "one frame") };
        // SAFETY: the frame is this vCPU's alone; nothing is read before it is written.
        let place = unsafe { place.as_mut() };
        let supported = (guest_state::components(), vmcs::capabilities().cr4_fixed.1);
        let secrets = place.write(Secrets::new(0, supported));
        // SAFETY: the frame is zeroed and this vCPU's alone.
        let state = unsafe { GuestState::new(state) }?;
        let guarded = Guarded::new(fields, secrets);
        let reached = Reached::new();
        Some(Self { guarded, state, vm, pointer: None, reached, missing: None, token, frames })
    }

    /// What the VMCS must hold that is this vCPU's.
    pub(super) const fn token(&self) -> u64 {
        self.token
    }

    /// Gives back its memory, with nothing of the VM in it.
    fn free(self) {
        let Self { frames, .. } = self;
        let mut pool = shootdown::lock(&POOL);
        for frame in frames {
            // SAFETY: with `self` the references to it are gone.
            unsafe { memory::page_mut(frame) }.fill(0);
            pool.free(frame);
        }
    }
}
