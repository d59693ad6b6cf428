//! A VMCS of the host as the manual describes it, without any shortcut: all fields are always up to
//! date, and VMCS02 is made anew for each entry.

use std::collections::{BTreeMap, BTreeSet};

use nested_vmx::field::{self as f, Field, Vmcs, Width};
use nested_vmx::merge::{Environment, HostRegisters};
use nested_vmx::vmcs12::{Class, Launch, Vmcs12, class, encodings, read_part};

pub(crate) const ALL: &[Class] = &[
    Class::Control,
    Class::HotControl,
    Class::Host,
    Class::Guest,
    Class::HotGuest,
    Class::Information,
];

/// The event to inject.
pub(crate) const EVENT: [u32; 3] = [0x4016, 0x4018, 0x401a];
const VALID: u64 = 1 << 31;
/// CR4 bits that no VM may have: SMXE, KL, CET, FRED.
const CR4_HIDDEN: u64 = 1 << 14 | 1 << 19 | 1 << 23 | 1 << 32;

/// A VMCS of the processor: fields have their width, and what is written is noted.
#[derive(Debug)]
pub(crate) struct Hardware {
    fields: BTreeMap<u32, u64>,
    pub(crate) written: BTreeSet<u32>,
}

impl Hardware {
    /// A VMCS that was used for something else before.
    pub(crate) fn new(garbage: u64) -> Self {
        let value = |encoding| read_part(encoding, garbage.rotate_left(encoding % 61));
        let fields = encodings(ALL).map(|encoding| (encoding, value(encoding)));
        Self { fields: fields.collect(), written: BTreeSet::new() }
    }
}

impl Vmcs for Hardware {
    fn read_raw(&self, encoding: u32) -> u64 {
        self.fields[&encoding]
    }

    fn write_raw(&mut self, encoding: u32, value: u64) {
        let _ = self.fields.insert(encoding, read_part(encoding, value));
        let _ = self.written.insert(encoding);
    }
}

/// Fields of the VM's state that controls decide about, or that mean nothing to a VM.
const SPECIAL: [u32; 8] = [
    0x2800, // link pointer
    0x2802, // DEBUGCTL
    0x2804, // PAT
    0x2806, // EFER
    0x2808, // PERF_GLOBAL_CTRL
    0x4828, // SMBASE
    0x681a, // DR7
    0x482e, // preemption timer
];

/// What I/O instructions leave for SMM, and what no exit changes otherwise.
const UNDEFINED: [u32; 4] = [0x6402, 0x6404, 0x6406, 0x6408];
const INSTRUCTION_ERROR: u32 = 0x4400;
/// Exits of which the manual says that they leave [`DETAILS`] undefined.
pub(crate) fn is_plain(reason: u32, qualification: u64) -> bool {
    [1, 7, 8, 10, 12, 13, 16, 18, 31, 32, 40, 51, 52, 54].contains(&reason)
        // Port I/O that is no INS or OUTS.
        || reason == 30 && qualification & 1 << 4 == 0
}
pub(crate) const DETAILS: [u32; 4] = [0x2400, 0x4406, 0x440e, 0x640a];

/// The fields that every exit saves and every entry loads.
pub(crate) fn plain() -> impl Iterator<Item = u32> {
    encodings(&[Class::Guest, Class::HotGuest]).filter(|encoding| !SPECIAL.contains(encoding))
}

/// The fields of one VMCS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    fields: BTreeMap<u32, u64>,
    pub(crate) launched: bool,
}

impl Model {
    /// What a page says.
    pub(crate) fn of(page: &Vmcs12) -> Self {
        let value = |encoding| (encoding, read_part(encoding, page.read_raw(encoding)));
        let launched = page.launched() == Launch::Launched;
        let defined = encodings(ALL).filter(|encoding| !UNDEFINED.contains(encoding));
        Self { fields: defined.map(value).collect(), launched }
    }

    /// The same as a page.
    pub(crate) fn page(&self) -> Box<Vmcs12> {
        let mut page = Box::new(Vmcs12::EMPTY);
        self.fields.iter().for_each(|(encoding, value)| page.write_raw(*encoding, *value));
        page
    }

    pub(crate) fn is_defined(&self, encoding: u32) -> bool {
        self.fields.contains_key(&encoding)
    }

    pub(crate) fn get(&self, encoding: u32) -> u64 {
        self.fields[&encoding]
    }

    pub(crate) fn set(&mut self, encoding: u32, value: u64) {
        let _ = self.fields.insert(encoding, read_part(encoding, value));
    }

    fn read<T: Width>(&self, field: Field<T>) -> u64 {
        self.get(field.encoding())
    }

    fn bit<T: Width>(&self, field: Field<T>, number: u32) -> bool {
        self.read(field) >> number & 1 == 1
    }

    fn primary(&self, number: u32) -> bool {
        self.bit(f::PRIMARY_CONTROLS, number)
    }

    fn secondary(&self, number: u32) -> bool {
        self.primary(31) && self.bit(f::SECONDARY_CONTROLS, number)
    }

    /// All fields of VMCS02 that matter for an entry, but for the EPT pointer and for an event that
    /// is not there.
    pub(crate) fn vmcs02(&self, env: &Environment<'_>, host: &HostRegisters) -> BTreeMap<u32, u64> {
        let mut v02 = BTreeMap::new();
        let mut set = |encoding: u32, value: u64| {
            let _ = v02.insert(encoding, read_part(encoding, value));
        };
        self.execution(env, &mut set);
        self.masks(&mut set);
        self.optional(env, &mut set);
        for encoding in plain() {
            set(encoding, self.get(encoding));
        }
        self.switched(host, &mut set);
        if self.read(f::ENTRY_INTERRUPTION) & VALID != 0 {
            EVENT.into_iter().for_each(|encoding| set(encoding, self.get(encoding)));
        }
        v02
    }

    fn execution(&self, env: &Environment<'_>, set: &mut impl FnMut(u32, u64)) {
        let ports = if self.primary(24) || self.primary(25) { 1 << 24 } else { 1 << 25 };
        let primary = self.read(f::PRIMARY_CONTROLS) & !(0b11 << 24) | ports | 1 << 31;
        let tagged = self.secondary(5) && self.read(f::VPID) != 0xffff;
        let secondary = if self.primary(31) { self.read(f::SECONDARY_CONTROLS) } else { 0 };
        let secondary = secondary & !(1 << 5) | 1 << 1 | u64::from(tagged) << 5;
        let passed = 1 << 12 | 1 << 15 | 1 << 22;
        let timer = if self.bit(f::PIN_CONTROLS, 6) { env.save_timer.bits() } else { 0 };
        let exit = u64::from(env.host.exit | timer) | self.read(f::EXIT_CONTROLS) & passed;
        // Every NMI exits; one that the host leaves to its VM is blocked as its VM sees it.
        let nmis = if self.bit(f::PIN_CONTROLS, 3) { 0 } else { 1 << 3 | 1 << 5 };
        set(0x4000, self.read(f::PIN_CONTROLS) | nmis);
        set(0x4002, primary);
        set(0x401e, secondary);
        set(0x400c, exit);
        set(0x4012, self.read(f::ENTRY_CONTROLS) | 1 << 2 | 1 << 14 | 1 << 15);
        if tagged {
            set(0x0000, self.read(f::VPID));
        }
        set(0x2000, env.io_bitmaps.0);
        set(0x2002, env.io_bitmaps.1);
        set(0x2004, env.msr_bitmap);
        set(0x2800, u64::MAX);
        [0x400e, 0x4010, 0x4014].into_iter().for_each(|count| set(count, 0));
    }

    fn masks(&self, set: &mut impl FnMut(u32, u64)) {
        let same = [0x4004, 0x4006, 0x4008, 0x400a, 0x6000, 0x6004, 0x6008, 0x600a, 0x600c, 0x600e];
        same.into_iter().for_each(|encoding| set(encoding, self.get(encoding)));
        let (mask, shadow) = (self.read(f::CR4_MASK), self.read(f::CR4_SHADOW));
        set(0x6002, mask | CR4_HIDDEN);
        // The VM sees a hidden bit as its host wants it, or not at all.
        set(0x6006, shadow & !CR4_HIDDEN | shadow & mask & CR4_HIDDEN);
    }

    fn optional(&self, env: &Environment<'_>, set: &mut impl FnMut(u32, u64)) {
        let used = [
            (self.primary(3), 0x2010),
            (self.primary(21), 0x401c),
            (self.secondary(20), 0x202c),
            (self.secondary(25), 0x2032),
            (self.secondary(10), 0x4020),
            (self.secondary(10), 0x4022),
            (self.bit(f::PIN_CONTROLS, 6), 0x482e),
            (self.bit(f::EXIT_CONTROLS, 12), 0x2c04),
            (self.bit(f::ENTRY_CONTROLS, 13), 0x2808),
        ];
        for (_, encoding) in used.into_iter().filter(|(used, _)| *used) {
            set(encoding, self.get(encoding));
        }
        if self.primary(21) {
            set(0x2012, env.virtual_apic);
        }
    }

    fn switched(&self, host: &HostRegisters, set: &mut impl FnMut(u32, u64)) {
        let own = |number, encoding, inherited| {
            if self.bit(f::ENTRY_CONTROLS, number) { self.get(encoding) } else { inherited }
        };
        // 28.3.2.1: LMA follows the control, LME too if there is paging.
        let ia32e = self.bit(f::ENTRY_CONTROLS, 9);
        let decided = 1 << 10 | if ia32e || self.bit(f::GUEST_CR0, 31) { 1 << 8 } else { 0 };
        let efer = host.efer & !decided | if ia32e { decided } else { 0 };
        set(0x681a, own(2, 0x681a, host.dr7));
        set(0x2802, own(2, 0x2802, host.debugctl));
        set(0x2804, own(14, 0x2804, host.pat));
        set(0x2806, own(15, 0x2806, efer));
    }

    /// The VM has left, with this in VMCS02 (29.2 and 29.3).
    pub(crate) fn exit(&mut self, v02: &Hardware) {
        for encoding in plain() {
            self.set(encoding, v02.read_raw(encoding));
        }
        let saved = [(2, 0x681a), (2, 0x2802), (18, 0x2804), (20, 0x2806), (22, 0x482e)];
        for (number, encoding) in saved {
            if self.bit(f::EXIT_CONTROLS, number) {
                self.set(encoding, v02.read_raw(encoding));
            }
        }
        let tells_all = !is_plain(v02.read(f::EXIT_REASON), v02.read(f::EXIT_QUALIFICATION));
        let told = |e: &u32| *e != INSTRUCTION_ERROR && (tells_all || !DETAILS.contains(e));
        for encoding in encodings(&[Class::Information]).filter(told) {
            if self.fields.contains_key(&encoding) {
                self.set(encoding, v02.read_raw(encoding));
            }
        }
        self.set(0x4016, self.get(0x4016) & !VALID);
        let ia32e = v02.read_raw(0x4012) & 1 << 9;
        self.set(0x4012, self.get(0x4012) & !(1 << 9) | ia32e);
        self.launched = true;
    }
}

/// Whether the processor refuses VMCS02 for a control that the host may change at any entry.
pub(crate) fn refuses(v02: &Hardware) -> bool {
    v02.read_raw(0x4002) >> 21 & 1 == 1 && v02.read_raw(0x401c) >> 4 != 0
}

/// Whether the processor loads those registers that the host inherits from its VM.
pub(crate) fn loads(v02: &Hardware) -> bool {
    let pat = v02.read_raw(0x2804).to_le_bytes();
    v02.read_raw(0x2806) & !0xd01 == 0 && pat.iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// What a VM, or the processor for it, may make of its VMCS02 until it leaves: `changes` name
/// fields of its state and of the information.
pub(crate) fn guest(v02: &mut Hardware, changes: &[(u8, u64)]) {
    let all: Vec<u32> = encodings(ALL)
        .filter(|e| matches!(class(*e), Class::Guest | Class::HotGuest | Class::Information))
        .filter(|encoding| ![0x2800, 0x2808, 0x4828].contains(encoding))
        .filter(|e| *e != INSTRUCTION_ERROR && !UNDEFINED.contains(e))
        .collect();
    for (number, value) in changes {
        let encoding = all[usize::from(*number) % all.len()];
        let possible = match encoding {
            0x2804 => 0x0404_0404_0404_0404,
            0x2806 => 0xd01,
            0x4826 => 1,
            0x6804 => !CR4_HIDDEN,
            _ => u64::MAX,
        };
        v02.write_raw(encoding, value & possible);
    }
    let (_, last) = changes.last().copied().unwrap_or_default();
    let entry = v02.read_raw(0x4012);
    v02.write_raw(0x4012, entry & !(1 << 9) | last << 8 & 1 << 9);
    if v02.read_raw(0x400c) >> 22 & 1 == 1 {
        v02.write_raw(0x482e, last >> 3);
    }
    let event = v02.read_raw(0x4016);
    v02.write_raw(0x4016, event & !VALID);
}
