//! Protected VMs: one virtual processor, with a host that is honest or not.

mod answers;
mod carried;
mod controls;
mod device;
mod events;
mod features;
mod hostile;
mod plans;
mod processors;
mod start;
mod told;
mod world;

use emulate::walk::Memory;
use ept::shadow::Access;
use nested_vmx::control::ExitControls;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{Cause, DECOY_RIP, Entered, Guarded, Registers, Secrets, Space, Verdict};
use nested_vmx::merge::{Environment, HostRegisters};
use nested_vmx::vcpu::Vcpu;
use nested_vmx::vmcs12::Vmcs12;

use crate::good;
use crate::model::Hardware;

/// The registers of the processor, of which nobody asks for RSP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gprs(pub(crate) [u64; 16]);

impl Registers for Gprs {
    fn get(&self, number: u8) -> u64 {
        assert_ne!(number, 4);
        self.0[usize::from(number)]
    }

    fn set(&mut self, number: u8, value: u64) {
        assert_ne!(number, 4);
        self.0[usize::from(number)] = value;
    }
}

/// The memory of a VM that has none.
struct Empty;

impl Memory for Empty {
    fn read(&self, _: u64) -> Option<u64> {
        None
    }

    fn compare_exchange(&self, _: u64, _: u64, _: u64) -> Option<bool> {
        None
    }
}

impl Space for Empty {
    fn is_device(&self, _: u64) -> bool {
        false
    }

    fn pkru(&self) -> u32 {
        0
    }

    fn physical_bits(&self) -> u32 {
        52
    }

    fn name(&self, _: u8, _: u32) -> u8 {
        panic!("it is the first processor")
    }

    fn restarts(&self, _: u8, _: u8) -> bool {
        false
    }

    fn stored(&self, _: (u64, u8), value: u64) -> Result<u64, (u64, Access)> {
        Ok(value)
    }

    fn loaded(&self, _: (u64, u8), value: u64) -> u64 {
        value
    }

    fn kick(&self) -> Option<(u64, u64)> {
        None
    }

    fn open(&self, _: u64, _: u8) -> Result<u64, (u64, Access)> {
        panic!("no instruction accesses two pages")
    }

    fn deliver(&self) -> Result<(), (u64, Access)> {
        Ok(())
    }
}

/// Registers of the host when it enters its VM.
pub(crate) const HOST: HostRegisters =
    HostRegisters { efer: 0xd01, pat: 0x0606_0606_0606_0606, dr7: 0x400, debugctl: 0 };
/// x87, SSE, AVX, and AMX.
pub(crate) const XCR0: u64 = 0x6_0007;

pub(crate) const IF: u64 = 1 << 9;
pub(crate) const VALID: u32 = 1 << 31;
pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;

/// A protected virtual processor, and the processor that runs it.
pub(crate) struct Vm {
    pub(crate) guarded: Guarded<'static>,
    pub(crate) shown: Vcpu<'static>,
    pub(crate) gprs: Gprs,
    pub(crate) v02: Hardware,
}

/// The state of a 64-bit VM, with the given CR0, CR4 and EFER; all else is 0.
pub(crate) fn set_up(shown: &mut Vmcs12) {
    let code = Segment::Cs.fields();
    for (encoding, value) in [
        (f::CR0_MASK.encoding(), !8),
        (f::CR0_SHADOW.encoding(), 0x8005_0033),
        (f::GUEST_CR0.encoding(), 0x8005_0033),
        (f::CR4_MASK.encoding(), !0),
        (f::CR4_SHADOW.encoding(), 0x6a0),
        (f::GUEST_CR4.encoding(), 0x26e0),
        (f::GUEST_EFER.encoding(), 0xd01),
        (f::GUEST_RIP.encoding(), 0xffff_ffff_8100_0000),
        (f::GUEST_RFLAGS.encoding(), 2),
        (f::GUEST_DEBUGCTL.encoding(), 0),
        (f::ENTRY_INTERRUPTION.encoding(), 0),
        (code.rights.encoding(), 0xa09b),
        (Segment::Ss.fields().rights.encoding(), 0xc093),
        (f::ENTRY_CONTROLS.encoding(), 0x93ff | 0b111 << 13),
    ] {
        shown.write_raw(encoding, value);
    }
}

/// No UMIP.
pub(crate) const CR4_SUPPORTED: u64 = !(1 << 11);

impl Vm {
    /// Not entered yet.
    pub(crate) fn new(prepare: impl FnOnce(&mut Vmcs12)) -> Self {
        let page = || Box::leak(Box::new(Vmcs12::EMPTY));
        let (effective, shown) = (page(), Box::leak(good::vmcs12()));
        set_up(shown);
        prepare(shown);
        let secrets = Box::leak(Box::new(Secrets::new(0, (XCR0, CR4_SUPPORTED))));
        Self {
            guarded: Guarded::new(effective, secrets),
            shown: Vcpu::new(shown),
            gprs: Gprs([0; 16]),
            v02: Hardware::new(0),
        }
    }

    /// In 64-bit mode, entered.
    pub(crate) fn running() -> Self {
        let mut vm = Self::new(|_| {});
        vm.guarded.first_entry(&mut vm.shown, &HOST, &vm.gprs).unwrap();
        vm.enter().unwrap();
        vm
    }

    /// In real mode, entered.
    pub(crate) fn in_real_mode() -> Self {
        let mut vm = Self::new(start::reset);
        vm.guarded.first_entry(&mut vm.shown, &HOST, &vm.gprs).unwrap();
        vm.enter().unwrap();
        vm
    }

    /// The host enters it.
    pub(crate) fn enter(&mut self) -> Result<(), Cause> {
        assert_eq!(self.enter_with(&Empty)?, Entered::Run);
        Ok(())
    }

    /// The host enters it, and it has this memory.
    pub(crate) fn enter_with(&mut self, space: &impl Space) -> Result<Entered, Cause> {
        let entered = self.guarded.enter(&mut self.shown, &mut self.gprs, space)?;
        if entered == Entered::Run {
            self.merge();
        }
        Ok(entered)
    }

    /// The processor enters it.
    pub(crate) fn merge(&mut self) {
        let host = good::host_controls();
        let environment = Environment {
            host: &host,
            save_timer: ExitControls::SAVE_PREEMPTION_TIMER,
            msr_bitmap: 0x5000,
            io_bitmaps: (0x6000, 0x7000),
            virtual_apic: 0x8000,
        };
        self.guarded.effective_mut().merge(&environment, &HOST, &mut self.v02);
    }

    /// It exits for this reason, by an instruction of 2 bytes.
    pub(crate) fn exit(&mut self, reason: u32, qualification: u64) -> Verdict {
        // The processor takes the event that an entry injects.
        let event = self.v02.read(f::ENTRY_INTERRUPTION) & !VALID;
        self.v02.write(f::ENTRY_INTERRUPTION, event);
        self.v02.write(f::EXIT_REASON, reason);
        self.v02.write(f::EXIT_QUALIFICATION, qualification);
        self.v02.write(f::EXIT_INSTRUCTION_LENGTH, 2);
        self.guarded.leave(&mut self.shown, &mut self.gprs, &mut self.v02)
    }

    /// Likewise, and the host is told.
    pub(crate) fn exit_to_host(&mut self, reason: u32, qualification: u64) {
        assert_eq!(self.exit(reason, qualification), Verdict::Host);
    }

    /// It touches a page that is absent; the host is told.
    pub(crate) fn exit_by_page(&mut self) {
        let fault = self.exit(48, 0x184);
        assert!(matches!(fault, Verdict::Fault { access: Access::FETCH, .. }));
        let Self { guarded, shown, gprs, v02 } = self;
        assert_eq!(guarded.tell_page(shown, gprs, v02, (0x1234_5678, Access::NONE)), Verdict::Host);
    }

    /// The host counts the instruction as completed, and enters.
    pub(crate) fn complete(&mut self) -> Result<(), Cause> {
        self.shown.write(f::GUEST_RIP.encoding(), DECOY_RIP + 2);
        self.enter()
    }

    /// The host has this event injected at the entry.
    pub(crate) fn inject(&mut self, information: u32) {
        self.shown.write(f::ENTRY_INTERRUPTION.encoding(), information.into());
        self.shown.write(f::ENTRY_ERROR_CODE.encoding(), 0x55);
    }

    /// What VMCS02 injects.
    pub(crate) fn injected(&self) -> Option<u32> {
        let information = self.v02.read(f::ENTRY_INTERRUPTION);
        (information & VALID != 0).then_some(information & !VALID)
    }

    /// What the host reads.
    pub(crate) fn reads(&self, encoding: u32) -> u64 {
        self.shown.fields().read_raw(encoding)
    }
}
