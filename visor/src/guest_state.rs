//! State of a protected VM's processor that VMX does not switch.
//!
//! An unprotected VM has the host switch it. Of a protected VM the host may see none of it, so it is
//! exchanged for the host's whenever the one stops and the other runs. Exits that the visor answers alone
//! exchange nothing.
//!
//! On the way to the VM the processor forgets where branches led, if it has a command for that, and on the way back it
//! overwrites its buffers.
//!
//! What is not here, such as tile registers, bounds, shadow stacks and branch records, protected VMs do
//! not have: their CPUID must hide it. IA32_SPEC_CTRL stays the host's.
#![expect(unsafe_code, reason = "exchanges registers, by assembly")]

use ept::addr::Frame;
use nested_vmx::speculation::Speculation;
use nested_vmx::{cr, xstate};
use spin::Once;

use crate::cpu::register::{PERF_GLOBAL_CTRL, Register, TSC_AUX, XSS, structured};
use crate::cpu::{self, cpuid, low};
use crate::memory;
use crate::percpu::PerCpu;

/// What is exchanged besides vector registers and XCR0.
const REGISTERS: [Register; 15] = [
    // IA32_STAR, IA32_LSTAR, IA32_CSTAR, IA32_FMASK, IA32_KERNEL_GS_BASE.
    Register::Msr(0xc000_0081),
    Register::Msr(0xc000_0082),
    Register::Msr(0xc000_0083),
    Register::Msr(0xc000_0084),
    Register::Msr(0xc000_0102),
    Register::Msr(TSC_AUX),
    // Always 0 in the VM: supervisor components are not saved.
    Register::Msr(XSS),
    // Always 0 in the VM as well: the host's counters do not count what it does.
    Register::Msr(PERF_GLOBAL_CTRL),
    Register::Dr0,
    Register::Dr1,
    Register::Dr2,
    Register::Dr3,
    Register::Dr6,
    Register::Cr2,
    Register::Pkru,
];
const DR6_INITIAL: u64 = 0xffff_0ff0;

#[expect(clippy::as_conversions, reason = "the visor only runs where usize has 64 bits")]
const AREA: usize = xstate::AREA as usize;

/// Distance from the top of the exit stack down to XMM0 to XMM3, where `exit.s` has put them.
const SAVED: u64 = 15 * 8 + 72;

/// What processors have of it.
#[derive(Debug, PartialEq, Eq)]
struct Features {
    components: u64,
    registers: [bool; REGISTERS.len()],
    speculation: Speculation,
}

/// The bootstrap processor's.
static FEATURES: Once<Features> = Once::new();

impl Features {
    fn here() -> Self {
        Self {
            components: xstate::available(|subleaf| cpuid(0xd, subleaf)),
            registers: REGISTERS.map(Register::exists),
            speculation: Speculation::of(structured(), cpu::read_msr),
        }
    }

    fn of_all() -> &'static Self {
        FEATURES.call_once(Self::here)
    }
}

/// Checks that a protected VM can move to this processor, which is in VMX root mode.
pub(crate) fn join() {
    assert!(Features::here() == *Features::of_all(), "processors differ in registers");
}

/// Whether the processors keep a VM's memory from its host, as far as only they can.
pub(crate) fn is_tight() -> bool {
    Features::of_all().speculation.is_tight
}

/// What XCR0 may have in a protected VM.
pub(crate) fn components() -> u64 {
    Features::of_all().components
}

/// The state of one processor of a protected VM. May move with it to another of the machine's.
#[repr(C, align(4096))]
pub(crate) struct GuestState {
    /// The VM's, as XSAVE stores them (SDM vol. 1, 13.4).
    vectors: [u8; AREA],
    /// The VM's, or, while the VM has its own, the host's.
    others: [u64; REGISTERS.len()],
    /// The VM's XCR0.
    xcr0: u64,
    /// Components that it has had in its XCR0 at any time: their registers may hold something. PKRU is
    /// among [`REGISTERS`].
    used: u64,
    /// The host's XCR0, while the VM has its own.
    host_xcr0: u64,
    /// Whether the processor has the VM's.
    loaded: bool,
}

const _: () = assert!(size_of::<GuestState>() == 4096, "one frame");

impl core::fmt::Debug for GuestState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("GuestState").field("loaded", &self.loaded).finish_non_exhaustive()
    }
}

impl GuestState {
    /// Makes of `frame` the state after reset, but that x87 is as FNINIT leaves it.
    ///
    /// # Safety
    /// The frame is zeroed, mapped, and only for this.
    pub(crate) unsafe fn new(frame: Frame) -> Option<&'static mut Self> {
        let mut state = memory::pointer::<Self>(frame)?;
        // SAFETY: the caller vouches for the frame; all-zero bytes are a valid state.
        let state = unsafe { state.as_mut() };
        // The header says that all components are initial. But MXCSR is loaded nevertheless.
        if let Some(mxcsr) = state.vectors.get_mut(24..28) {
            mxcsr.copy_from_slice(&0x1f80_u32.to_le_bytes());
        }
        for (register, value) in REGISTERS.iter().zip(&mut state.others) {
            *value = if matches!(register, Register::Dr6) { DR6_INITIAL } else { 0 };
        }
        state.xcr0 = 1;
        state.used = xstate::LEGACY;
        Some(state)
    }

    /// The VM's XCR0.
    pub(crate) const fn xcr0(&self) -> u64 {
        self.xcr0
    }

    /// Sets the VM's XCR0, while the host runs; `false` for what XSETBV refuses.
    pub(crate) fn set_xcr0(&mut self, value: u64) -> bool {
        let is_valid = !self.loaded && cr::xsetbv_is_valid(0, value, components());
        if is_valid {
            self.xcr0 = value;
            self.used |= value & !xstate::PKRU;
        }
        is_valid
    }

    /// From the host to the VM. Nothing if the processor has the VM's state already.
    ///
    /// The host's vector registers are lost: at this point they hold what it believes to be the VM's.
    pub(crate) fn enter(&mut self) {
        unsafe extern "C" {
            fn load_vectors(area: *const u8, saved: u64, components: u32);
        }
        if self.loaded {
            return;
        }
        self.loaded = true;
        self.host_xcr0 = cpu::xcr0();
        let open = self.open(self.host_xcr0);
        let area = self.vectors.as_ptr();
        // SAFETY: the area is aligned and was zeroed or written by XSAVE, with these components or
        // fewer; XCR0 has them all; and this is called while an exit is handled.
        unsafe { load_vectors(area, saved(), low(self.used)) }
        change_xcr0(open, self.xcr0);
        self.exchange();
        if Features::of_all().speculation.has_barrier {
            cpu::forget_branches();
        }
    }

    /// From the VM to the host: vector registers are left initial. Nothing if the processor has the
    /// host's state already.
    pub(crate) fn leave(&mut self) {
        unsafe extern "C" {
            fn save_vectors(area: *mut u8, saved: u64, components: u32);
        }
        if !self.loaded {
            return;
        }
        self.loaded = false;
        self.exchange();
        let open = self.open(self.xcr0);
        let area = self.vectors.as_mut_ptr();
        // SAFETY: the area is aligned and holds these components, as `xstate` has checked;
        // XCR0 has them all; and this is called while an exit is handled.
        unsafe { save_vectors(area, saved(), low(self.used)) }
        change_xcr0(open, self.host_xcr0);
        cpu::clear_buffers();
    }

    /// Makes XCR0, which is `now`, cover everything that the VM has used; what it is then.
    fn open(&self, now: u64) -> u64 {
        let wanted = xstate::covering(now, self.used);
        change_xcr0(now, wanted);
        wanted
    }

    /// Has the processor and `others` change places. With constants for the registers that takes
    /// fewer instructions than a loop.
    fn exchange(&mut self) {
        let exists = &Features::of_all().registers;
        macro_rules! each {
            ($($number:literal)*) => {
                const { assert!([$($number),*].len() == REGISTERS.len(), "each of them") };
                $(self.exchange_one::<$number>(exists);)*
            };
        }
        each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }

    #[inline(always)]
    fn exchange_one<const NUMBER: usize>(&mut self, exists: &[bool; REGISTERS.len()]) {
        if let (Some(register), Some(other), Some(true)) =
            (REGISTERS.get(NUMBER), self.others.get_mut(NUMBER), exists.get(NUMBER))
        {
            let now = register.read();
            if now != *other {
                // SAFETY: what was read from a register, or is its initial value, can be written.
                unsafe { register.write(*other) }
                *other = now;
            }
        }
    }
}

fn change_xcr0(now: u64, wanted: u64) {
    if now != wanted {
        // SAFETY: the value was the host's, or passed `set_xcr0`, or is the union of some that did.
        // Only processors with XSAVE run the visor.
        unsafe { cpu::write_xcr0(wanted) }
    }
}

/// Where the exit handler keeps XMM0 to XMM3 of whoever has left and will enter.
fn saved() -> u64 {
    PerCpu::current().exit_stack_top() - SAVED
}
