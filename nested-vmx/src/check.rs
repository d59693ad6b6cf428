//! Checks of a VM entry on what the host has written (SDM vol. 3, 28.2 and 28.3).
//!
//! Here are those that the processor cannot make, because VMCS02 holds the visor's value instead:
//! controls, the host's state, and a few guest fields. All others the processor makes on VMCS02, and
//! the host is told what it says.

use crate::advertise::Advertised;
use crate::control::{EntryControls, ExitControls, Pin, Primary, Secondary};
use crate::cr::{CR4_OWNED, CR4_VMXE};
use crate::field::{self as f, Vmcs};
use crate::vmcs12::Vmcs12;

/// Which VM-instruction error the host gets (SDM vol. 3, table 32-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// 7: invalid control fields.
    Control,
    /// 8: invalid host state.
    Host,
}

impl Invalid {
    /// The error's number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Control => 7,
            Self::Host => 8,
        }
    }
}

/// What the checks depend on besides the VMCS.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What the host may use.
    pub advertised: &'a Advertised,
    /// Number of physical-address bits.
    pub width: u8,
    /// The host's IA32_EFER.LMA.
    pub long_mode: bool,
    /// Bits that a canonical address repeats begin here: 47 or 56.
    pub sign_bit: u8,
}

/// Whether all bits of `address` from `sign_bit` up are equal (SDM vol. 1, 3.3.7.1).
#[must_use]
pub const fn is_canonical(address: u64, sign_bit: u8) -> bool {
    let unused = 63 - sign_bit;
    ((address << unused).cast_signed() >> unused).cast_unsigned() == address
}

impl Context<'_> {
    const fn fits(&self, address: u64) -> bool {
        address >> self.width == 0
    }

    const fn is_page(&self, address: u64) -> bool {
        address & 0xfff == 0 && self.fits(address)
    }

    /// Whether all bits from the sign bit up are equal (SDM vol. 1, 3.3.7.1).
    #[must_use]
    pub const fn is_canonical(&self, address: u64) -> bool {
        is_canonical(address, self.sign_bit)
    }
}

/// The controls of a VMCS12, the secondary ones 0 where the primary do not activate them.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Pin-based.
    pub pin: Pin,
    /// Primary processor-based.
    pub primary: Primary,
    /// Secondary processor-based.
    pub secondary: Secondary,
    /// VM exit.
    pub exit: ExitControls,
    /// VM entry.
    pub entry: EntryControls,
}

impl Wanted {
    /// Reads them; bits without a name are kept.
    #[must_use]
    pub fn of(v12: &Vmcs12) -> Self {
        let primary = Primary::from_bits_retain(v12.read(f::PRIMARY_CONTROLS));
        let secondary =
            if primary.contains(Primary::SECONDARY) { v12.read(f::SECONDARY_CONTROLS) } else { 0 };
        Self {
            pin: Pin::from_bits_retain(v12.read(f::PIN_CONTROLS)),
            primary,
            secondary: Secondary::from_bits_retain(secondary),
            exit: ExitControls::from_bits_retain(v12.read(f::EXIT_CONTROLS)),
            entry: EntryControls::from_bits_retain(v12.read(f::ENTRY_CONTROLS)),
        }
    }
}

/// Whether `value` has all bits that must be 1 and none that must be 0.
fn permits(capability: u64, value: u32) -> bool {
    let value = u64::from(value);
    let (must, may) = (capability & 0xffff_ffff, capability >> 32);
    value & must == must && value & !may == 0
}

/// Checks the control fields (28.2.1).
///
/// # Errors
/// [`Invalid::Control`].
pub fn controls(v12: &Vmcs12, context: &Context<'_>) -> Result<(), Invalid> {
    let wanted = Wanted::of(v12);
    let caps = context.advertised.capabilities();
    let secondary = !wanted.primary.contains(Primary::SECONDARY)
        || permits(caps.secondary, wanted.secondary.bits());
    let allowed = permits(caps.pin, wanted.pin.bits())
        && permits(caps.primary, wanted.primary.bits())
        && secondary
        && permits(caps.exit, wanted.exit.bits())
        && permits(caps.entry, wanted.entry.bits());
    let holds = allowed
        && execution_controls(v12, &wanted, context)
        && translation(v12, &wanted, context)
        && msr_lists(v12, context);
    if holds { Ok(()) } else { Err(Invalid::Control) }
}

/// Checks the control fields, all of which have passed before, once more for the controls that open
/// interrupt and NMI windows.
///
/// # Errors
/// [`Invalid::Control`].
pub fn windows(v12: &Vmcs12, context: &Context<'_>) -> Result<(), Invalid> {
    let Wanted { pin, primary, .. } = Wanted::of(v12);
    let holds = permits(context.advertised.capabilities().primary, primary.bits())
        && (pin.contains(Pin::VIRTUAL_NMIS) || !primary.contains(Primary::NMI_WINDOW));
    if holds { Ok(()) } else { Err(Invalid::Control) }
}

fn execution_controls(v12: &Vmcs12, wanted: &Wanted, context: &Context<'_>) -> bool {
    let (pin, primary) = (wanted.pin, wanted.primary);
    let targets = context.advertised.capabilities().misc >> 16 & 0x1ff;
    let io = [f::IO_BITMAP_A, f::IO_BITMAP_B].map(|field| context.is_page(v12.read(field)));
    u64::from(v12.read(f::CR3_TARGET_COUNT)) <= targets
        && (!primary.contains(Primary::IO_BITMAPS) || io == [true, true])
        && (!primary.contains(Primary::MSR_BITMAPS) || context.is_page(v12.read(f::MSR_BITMAP)))
        && (!primary.contains(Primary::TPR_SHADOW) || context.is_page(v12.read(f::VIRTUAL_APIC)))
        && (pin.contains(Pin::NMI_EXITING) || !pin.contains(Pin::VIRTUAL_NMIS))
        && (pin.contains(Pin::VIRTUAL_NMIS) || !primary.contains(Primary::NMI_WINDOW))
        && (pin.contains(Pin::PREEMPTION_TIMER)
            || !wanted.exit.contains(ExitControls::SAVE_PREEMPTION_TIMER))
}

fn translation(v12: &Vmcs12, wanted: &Wanted, context: &Context<'_>) -> bool {
    let secondary = wanted.secondary;
    let ept = secondary.contains(Secondary::EPT);
    (!secondary.contains(Secondary::VPID) || v12.read(f::VPID) != 0)
        && (!ept || is_ept_pointer(v12.read(f::EPT_POINTER), context))
        && (ept || !secondary.contains(Secondary::UNRESTRICTED_GUEST))
}

/// Whether `pointer` can be an EPT pointer (SDM vol. 3, 26.6.11 and 28.2.1.1).
#[must_use]
pub const fn is_ept_pointer(pointer: u64, context: &Context<'_>) -> bool {
    const FOUR_STEPS: u64 = 3;
    const ACCESSED_DIRTY: u64 = 1 << 6;
    const RESERVED: u64 = 0xf80;
    let memory_type = match pointer & 7 {
        6 => true,
        0 => context.advertised.has_uncacheable_ept(),
        _ => false,
    };
    memory_type
        && pointer >> 3 & 7 == FOUR_STEPS
        && (pointer & ACCESSED_DIRTY == 0 || context.advertised.has_accessed_dirty())
        && pointer & RESERVED == 0
        && context.fits(pointer)
}

/// Bytes of one entry of an MSR list.
pub const MSR_ENTRY: u64 = 16;

fn msr_lists(v12: &Vmcs12, context: &Context<'_>) -> bool {
    [
        (f::EXIT_MSR_STORE, f::EXIT_MSR_STORE_COUNT),
        (f::EXIT_MSR_LOAD, f::EXIT_MSR_LOAD_COUNT),
        (f::ENTRY_MSR_LOAD, f::ENTRY_MSR_LOAD_COUNT),
    ]
    .into_iter()
    .all(|(address, count)| {
        let (address, count) = (v12.read(address), u64::from(v12.read(count)));
        let last = address.checked_add((count * MSR_ENTRY).saturating_sub(1));
        count == 0 || (address % MSR_ENTRY == 0 && last.is_some_and(|last| context.fits(last)))
    })
}

/// Checks the host's state (28.2.2 to 28.2.4).
///
/// # Errors
/// [`Invalid::Host`],
pub fn host_state(v12: &Vmcs12, context: &Context<'_>) -> Result<(), Invalid> {
    let wanted = Wanted::of(v12);
    let holds = host_registers(v12, &wanted, context)
        && host_segments(v12, &wanted)
        && host_mode(v12, &wanted, context);
    if holds { Ok(()) } else { Err(Invalid::Host) }
}

const CR4_PAE: u64 = 1 << 5;
const CR4_PCIDE: u64 = 1 << 17;

const fn fixed(value: u64, (must, may): (u64, u64)) -> bool {
    value & must == must && value & !may == 0
}

fn host_registers(v12: &Vmcs12, wanted: &Wanted, context: &Context<'_>) -> bool {
    let caps = context.advertised.capabilities();
    let addresses = [
        f::HOST_SYSENTER_ESP,
        f::HOST_SYSENTER_EIP,
        f::HOST_FS_BASE,
        f::HOST_GS_BASE,
        f::HOST_GDTR_BASE,
        f::HOST_IDTR_BASE,
        f::HOST_TR_BASE,
    ];
    let pat = v12.read(f::HOST_PAT).to_le_bytes();
    fixed(v12.read(f::HOST_CR0), caps.cr0_fixed)
        && fixed(v12.read(f::HOST_CR4), caps.cr4_fixed)
        && context.fits(v12.read(f::HOST_CR3))
        && addresses.into_iter().all(|field| context.is_canonical(v12.read(field)))
        && (!wanted.exit.contains(ExitControls::LOAD_PAT)
            || pat.into_iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)))
        && (!wanted.exit.contains(ExitControls::LOAD_EFER)
            || is_host_efer(v12.read(f::HOST_EFER), wanted))
}

/// EFER.SCE, LME, LMA, NXE.
const EFER_DEFINED: u64 = 0xd01;
/// EFER.LME and EFER.LMA.
pub(crate) const EFER_LONG: u64 = 0x500;

fn is_host_efer(efer: u64, wanted: &Wanted) -> bool {
    let long = wanted.exit.contains(ExitControls::HOST_64_BIT);
    let mode = if long { EFER_LONG } else { 0 };
    efer & !EFER_DEFINED == 0 && efer & EFER_LONG == mode
}

fn host_segments(v12: &Vmcs12, wanted: &Wanted) -> bool {
    const RPL_AND_TI: u16 = 7;
    let selectors = [
        f::HOST_ES_SELECTOR,
        f::HOST_CS_SELECTOR,
        f::HOST_SS_SELECTOR,
        f::HOST_DS_SELECTOR,
        f::HOST_FS_SELECTOR,
        f::HOST_GS_SELECTOR,
        f::HOST_TR_SELECTOR,
    ];
    selectors.into_iter().all(|field| v12.read(field) & RPL_AND_TI == 0)
        && v12.read(f::HOST_CS_SELECTOR) != 0
        && v12.read(f::HOST_TR_SELECTOR) != 0
        && (wanted.exit.contains(ExitControls::HOST_64_BIT) || v12.read(f::HOST_SS_SELECTOR) != 0)
}

fn host_mode(v12: &Vmcs12, wanted: &Wanted, context: &Context<'_>) -> bool {
    let long = wanted.exit.contains(ExitControls::HOST_64_BIT);
    let guest_long = wanted.entry.contains(EntryControls::IA32E_GUEST);
    let (cr4, rip) = (v12.read(f::HOST_CR4), v12.read(f::HOST_RIP));
    long == context.long_mode
        && if long {
            cr4 & CR4_PAE != 0 && context.is_canonical(rip)
        } else {
            !guest_long && cr4 & CR4_PCIDE == 0 && rip >> 32 == 0
        }
}

/// CR4 bits that a VM may not have, because the visor hides what they switch on.
pub const CR4_HIDDEN: u64 = CR4_OWNED & !CR4_VMXE;

/// Checks the guest fields that VMCS02 cannot take over (28.3.1), but for the link pointer, which
/// depends on what is in memory.
///
/// # Errors
/// The exit qualification of the VM-entry failure.
pub fn guest_state(v12: &Vmcs12, context: &Context<'_>) -> Result<(), u64> {
    const HIGHEST_ACTIVITY: u32 = 2;
    let activities = context.advertised.capabilities().misc >> 5 & 0b110;
    let activity = v12.read(f::GUEST_ACTIVITY);
    let is_known = activity <= HIGHEST_ACTIVITY && (activities | 1) >> activity & 1 != 0;
    if is_known && v12.read(f::GUEST_CR4) & CR4_HIDDEN == 0 { Ok(()) } else { Err(0) }
}
