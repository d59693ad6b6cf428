//! MSR lists of VM entries and exits (SDM vol. 3, 26.7.2, 26.8.2, 28.4, 29.4 and 29.6).
//!
//! The visor goes through them itself: each register is one that the host could write or read by its
//! own instructions, by the same rules.

use ept::addr::{Frame, PAGE};
use nested_vmx::check::is_canonical;
use nested_vmx::field::GUEST_SYSENTER_CS;
use nested_vmx::field::{
    Field, GUEST_DEBUGCTL, GUEST_EFER, GUEST_PAT, GUEST_SYSENTER_EIP, GUEST_SYSENTER_ESP, Natural,
    Segment, Vmcs,
};

use crate::cpu::vmx::Current;
use crate::cpu::{high, low, size};
use crate::host;
use crate::host_memory;
use crate::machine::Machine;
use crate::percpu::PerCpu;

/// Address and number of entries of a list.
type List = (u64, u32);

/// Entries of a list that are looked at: more is undefined (SDM vol. 3D, A.6).
const LONGEST: u32 = 512;

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;
const DEBUGCTL: u32 = 0x1d9;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const SYSENTER: [u32; 3] = [0x174, 0x175, 0x176];

fn entry_address((address, _): List, number: u32) -> u64 {
    address.wrapping_add(u64::from(number) * 16)
}

/// Loads the registers of `list` for whoever the current VMCS is about to enter.
///
/// # Errors
/// The number of the entry, from 1, that cannot be loaded.
pub(super) fn load(machine: &Machine, list: List) -> Result<(), u64> {
    for number in 0..list.1 {
        let address = entry_address(list, number);
        let entry = (number < LONGEST).then(|| {
            let index = machine.tables.read_host(address)?;
            Some((index, machine.tables.read_host(address.checked_add(8)?)?))
        });
        let loaded = match entry.flatten() {
            // The upper half is reserved.
            Some((index, value)) if high(index) == 0 => load_one(low(index), value),
            _ => false,
        };
        if !loaded {
            return Err(u64::from(number) + 1);
        }
    }
    Ok(())
}

fn load_one(index: u32, value: u64) -> bool {
    const LME: u64 = 1 << 8;
    const LMA: u64 = 1 << 10;
    const EFER_DEFINED: u64 = 0xd01;
    let v = &mut Current;
    let [cs, esp, eip] = SYSENTER;
    match index {
        FS_BASE | GS_BASE => false,
        // Those of the local APIC in x2APIC mode.
        0x800..=0x8ff => false,
        EFER => {
            let old = v.read(GUEST_EFER);
            let valid = value & !EFER_DEFINED == 0 && (value ^ old) & LME == 0;
            if valid {
                v.write(GUEST_EFER, value & !LMA | old & LMA);
            }
            valid
        }
        PAT => {
            let valid = value.to_le_bytes().into_iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
            if valid {
                v.write(GUEST_PAT, value);
            }
            valid
        }
        DEBUGCTL => {
            // Last branch records and branch stepping: what every processor has.
            let valid = value & !0b11 == 0;
            if valid {
                v.write(GUEST_DEBUGCTL, value);
            }
            valid
        }
        _ if index == cs => {
            v.write(GUEST_SYSENTER_CS, low(value));
            true
        }
        _ if index == esp || index == eip => {
            let valid = is_canonical(value, host::sign_bit());
            if valid {
                v.write(sysenter(index == esp), value);
            }
            valid
        }
        _ => host::set_msr(PerCpu::current(), index, value),
    }
}

#[expect(clippy::fn_params_excessive_bools, reason = "which of two fields")]
const fn sysenter(esp: bool) -> Field<Natural> {
    if esp { GUEST_SYSENTER_ESP } else { GUEST_SYSENTER_EIP }
}

/// Stores the VM's registers that `list` names. VMCS02 is current.
///
/// # Errors
/// `Err` if one cannot be stored: the exit is aborted.
pub(super) fn store(machine: &Machine, list: List) -> Result<(), ()> {
    for number in 0..list.1.min(LONGEST) {
        let address = entry_address(list, number);
        let index = machine.tables.read_host(address).filter(|index| high(*index) == 0);
        let value = index.and_then(|index| value_of(low(index))).ok_or(())?;
        let at = address.checked_add(8).ok_or(())?;
        let page = host_memory::page(machine, Frame::containing(at)).ok_or(())?;
        page.write(size(at % PAGE / 8), value);
    }
    Ok(())
}

fn value_of(index: u32) -> Option<u64> {
    let v = &Current;
    let [cs, esp, eip] = SYSENTER;
    match index {
        0x800..=0x8ff => None,
        EFER => Some(v.read(GUEST_EFER)),
        PAT => Some(v.read(GUEST_PAT)),
        DEBUGCTL => Some(v.read(GUEST_DEBUGCTL)),
        FS_BASE => Some(v.read(Segment::Fs.fields().base)),
        GS_BASE => Some(v.read(Segment::Gs.fields().base)),
        _ if index == cs => Some(v.read(GUEST_SYSENTER_CS).into()),
        _ if index == esp || index == eip => Some(v.read(sysenter(index == esp))),
        _ => host::msr_value(index),
    }
}
