//! The VMCSs of the host that a processor has at hand: a cache. One that falls out goes back to the
//! host's region, as a processor may write it back at any time.
#![expect(unsafe_code, reason = "the pages of a slot are references for as long as the visor runs")]

use ept::addr::Frame;
use nested_vmx::vcpu::Vcpu;
use nested_vmx::vmcs12::Vmcs12;

use crate::cpu::vmx::{self, Current};
use crate::host_memory::{self, Known};
use crate::machine::Machine;
use crate::memory;
use crate::percpu::PerCpu;
use crate::vmcs;

use super::vcpus::{self, Protected};

/// How many VMCSs of the host a processor has at hand.
pub(crate) const SLOTS: usize = 8;

/// The memory of one slot.
#[repr(C, align(4096))]
pub(crate) struct SlotPages {
    fields: [u8; 4096],
    guest: [u8; 4096],
    decoy: [u8; 4096],
}

/// A VMCS of the host at hand.
#[derive(Debug)]
pub(super) struct Slot {
    /// The host's region, if the slot is in use.
    pub(super) region: Option<Frame>,
    pub(super) vcpu: Vcpu<'static>,
    /// VMCS02.
    pub(super) guest: Frame,
    /// The shadow VMCS, where the processor has VMCS shadowing.
    pub(super) decoy: Frame,
    /// Whether VMCS02 has been entered since it was last cleared.
    pub(super) entered: bool,
    /// How the processor translates for the VM.
    pub(super) tables: TablesInUse,
    /// What is hidden from the host of a protected VM's vCPU; then `vcpu` is only what it may see.
    pub(super) protected: Option<Protected>,
    /// The host's MSR bitmaps and virtual-APIC page.
    pub(super) bitmap: Known,
    pub(super) apic: Known,
    /// The hardware's regions are in order.
    prepared: bool,
    used: u64,
}

/// How the processor translates for a VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct TablesInUse {
    /// The host's EPT pointer.
    pub(super) pointer: u64,
    /// The generation for which its tables were found fit; `None` if they were not.
    pub(super) generation: Option<u64>,
    /// Entries until they are tried again.
    pub(super) patience: u32,
}

impl TablesInUse {
    const NONE: Self = Self { pointer: 0, generation: None, patience: 0 };
}

#[derive(Debug)]
pub(super) struct Slots {
    slots: [Slot; SLOTS],
    current: usize,
    clock: u64,
}

impl Slots {
    #[expect(clippy::large_stack_frames, reason = "runs once, on a stack that is empty")]
    pub(super) fn new(cpu: &PerCpu) -> Option<Self> {
        let slot = |index| -> Option<Slot> {
            let [fields, guest, decoy] = cpu.slot_frames(index);
            let mut fields = memory::pointer::<Vmcs12>(fields)?;
            // SAFETY: the page is this processor's, zeroed, and this is the only reference to it.
            let fields = unsafe { fields.as_mut() };
            Some(Slot {
                region: None,
                vcpu: Vcpu::new(fields),
                guest,
                decoy,
                entered: false,
                protected: None,
                bitmap: Known::NOTHING,
                apic: Known::NOTHING,
                tables: TablesInUse::NONE,
                prepared: false,
                used: 0,
            })
        };
        let slots =
            [slot(0)?, slot(1)?, slot(2)?, slot(3)?, slot(4)?, slot(5)?, slot(6)?, slot(7)?];
        Some(Self { slots, current: 0, clock: 0 })
    }

    /// The slot of the current VMCS, which the caller knows to exist.
    pub(super) fn current(&mut self) -> &mut Slot {
        // Only `load` sets it, to the index of a slot; so this costs no comparison.
        let index = self.current % SLOTS;
        #[expect(clippy::indexing_slicing, reason = "it is less than their number")]
        &mut self.slots[index]
    }

    /// Makes the VMCS in the host's `region` the current one, from the slot that has it or from the
    /// region. VMCS01 is current before and after.
    pub(super) fn load(&mut self, cpu: &PerCpu, machine: &Machine, region: Frame) {
        self.clock += 1;
        let found = self.slots.iter().position(|slot| slot.region == Some(region));
        let oldest = || (0..SLOTS).min_by_key(|at| self.slots.get(*at).map(|slot| slot.used));
        self.current = found.or_else(oldest).unwrap_or(0);
        let clock = self.clock;
        let slot = self.current();
        slot.used = clock;
        if found.is_none() {
            slot.spill(machine);
            slot.prepare(cpu, machine);
            slot.fill(machine, region);
        }
    }

    /// Writes the VMCS of `region`, if a slot has it, back to the region; the slot is free then.
    pub(super) fn clear(&mut self, machine: &Machine, region: Frame) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.region == Some(region)) {
            slot.spill(machine);
            slot.used = 0;
        }
    }

    /// Forgets all without writing anything back: the host has left VMX operation. VMCS01 is current
    /// before and after.
    pub(super) fn forget(&mut self) {
        for slot in &mut self.slots {
            slot.region = None;
            slot.used = 0;
            slot.detach();
        }
    }
}

impl Slot {
    /// Makes the hardware's regions usable. VMCS01 is current before and after.
    fn prepare(&mut self, cpu: &PerCpu, machine: &Machine) {
        /// Bit 31 of the revision: a shadow VMCS.
        const SHADOW: u64 = 1 << 31;
        if self.prepared {
            return;
        }
        let revision = u64::from(machine.capabilities.revision());
        memory::write_entry(self.guest, 0, revision);
        // SAFETY: the region is this slot's own, zeroed and with the revision.
        unsafe { vmx::load_fresh(self.guest) }.unwrap_or_else(|e| panic!("VMCS02: {e:?}"));
        vmcs::root_state(cpu);
        if machine.decoys.is_some() {
            memory::write_entry(self.decoy, 0, revision | SHADOW);
            // SAFETY: likewise.
            unsafe { vmx::load_fresh(self.decoy) }.unwrap_or_else(|e| panic!("decoy: {e:?}"));
        }
        vmx::select(&cpu.vmcs_region());
        self.prepared = true;
    }

    /// Takes over what the host's region holds. VMCS01 is current before and after.
    fn fill(&mut self, machine: &Machine, region: Frame) {
        self.region = Some(region);
        let page = host_memory::page(machine, region);
        let word = |index| page.as_ref().map_or(0, |page| page.read(index));
        self.vcpu.load(word);
        self.tables = TablesInUse::NONE;
        self.protected = vcpus::attach(self.vcpu.fields().token());
        if let Some(vcpu) = &mut self.protected {
            vcpu.guarded.effective_mut().renew();
        }
    }

    /// Takes what is hidden out of VMCS02, which begins anew: some fields only exits write, and what they
    /// say of a protected VM is nobody's business. VMCS01 is current before and after.
    fn detach(&mut self) {
        if let Some(mut vcpu) = self.protected.take() {
            vmx::select(&self.guest);
            vcpu.guarded.synchronize(&Current);
            vmx::select(&PerCpu::current().vmcs_region());
            // SAFETY: the region is this slot's own, and `prepare` loads it as a fresh one.
            unsafe { vmx::unload(self.guest) };
            // SAFETY: the processor holds nothing of it any more, and no reference to it exists.
            unsafe { memory::page_mut(self.guest) }.fill(0);
            self.prepared = false;
            self.entered = false;
            vcpus::detach(vcpu);
        }
    }

    /// Takes the VMCS as one that has never run: what it was a processor of has begun anew. VMCS01 is current
    /// before and after.
    pub(super) fn renew(&mut self, cpu: &PerCpu, machine: &Machine) {
        self.detach();
        self.prepare(cpu, machine);
        self.vcpu.renew();
    }

    /// Whether the VM runs on the host's tables as they stand.
    pub(super) fn is_direct(&self) -> bool {
        self.tables.generation.is_some()
    }

    /// Writes the VMCS back to the host's region; the slot is free then. VMCS01 is current before and
    /// after.
    pub(super) fn spill(&mut self, machine: &Machine) {
        let Some(region) = self.region.take() else {
            return;
        };
        self.synchronize(machine);
        self.detach();
        if let Some(page) = host_memory::page(machine, region) {
            self.vcpu.fields().store(|index, word| page.write(index, word));
        }
    }

    /// Brings the fields up to date with what the host has written to its shadow VMCS and what the VM
    /// has left in VMCS02. VMCS01 is current before and after.
    fn synchronize(&mut self, machine: &Machine) {
        if machine.decoys.is_some() {
            self.with_decoy(|vcpu, decoy| vcpu.pull(decoy));
        }
        if self.vcpu.has_stale() {
            self.with_guest(|vcpu, guest| vcpu.fetch(guest));
        }
    }

    /// Does something with the shadow VMCS. VMCS01 is current before and after.
    pub(super) fn with_decoy(&mut self, work: impl FnOnce(&mut Vcpu<'static>, &mut Current)) {
        vmx::select(&self.decoy);
        work(&mut self.vcpu, &mut Current);
        vmx::select(&PerCpu::current().vmcs_region());
    }

    /// Does something with VMCS02. VMCS01 is current before and after.
    pub(super) fn with_guest(&mut self, work: impl FnOnce(&mut Vcpu<'static>, &mut Current)) {
        vmx::select(&self.guest);
        work(&mut self.vcpu, &mut Current);
        vmx::select(&PerCpu::current().vmcs_region());
    }
}
