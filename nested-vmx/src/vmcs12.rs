//! The host's VMCS for a VM as the visor keeps it: what the host has written and may read.
//!
//! One page, 512 words of 8 bytes, one for each field that can exist. The same page is what a VMCS
//! region of the host holds while it is not in use, so the host decides all of its contents: nothing
//! in it is trusted.

use crate::field::{VMCS_LINK_POINTER, Vmcs};

/// Words in a page.
const WORDS: usize = 512;
/// Identifies this layout: what IA32_VMX_BASIC tells the host to put first in a region.
pub const REVISION: u32 = 0x5652_0001;
#[expect(clippy::as_conversions, reason = "from a smaller type, at compile time")]
const REVISION_WORD: u64 = REVISION as u64;

/// Who owns a field, and how often it is used.
///
/// With VMCS shadowing the host reaches `Hot…` fields and reads `Information` without exits; all
/// other accesses exit. So a change of a field that is seldom changed is seen when it happens, and
/// fields that are seldom read are fetched only then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// There is no such field.
    None,
    /// Controls that a host sets up once.
    Control,
    /// Controls that a host changes from entry to entry.
    HotControl,
    /// The host's own state.
    Host,
    /// The VM's state.
    Guest,
    /// The VM's state that a host looks at on most exits.
    HotGuest,
    /// What an exit says.
    Information,
}

/// First and last field of a run, by encoding, and their class (SDM vol. 3D, appendix B).
const RUNS: &[(u32, u32, Class)] = &[
    (0x0000, 0x0000, Class::Control),
    (0x0800, 0x080e, Class::Guest),
    (0x0c00, 0x0c0c, Class::Host),
    // I/O bitmaps, MSR bitmaps, MSR lists
    (0x2000, 0x200a, Class::Control),
    // executive-VMCS pointer
    (0x200c, 0x200c, Class::Control),
    // TSC offset, virtual-APIC page
    (0x2010, 0x2012, Class::Control),
    (0x201a, 0x201a, Class::Control),
    (0x202c, 0x202c, Class::Control),
    (0x2032, 0x2032, Class::Control),
    (0x2400, 0x2400, Class::Information),
    // link pointer to IA32_PERF_GLOBAL_CTRL, PDPTEs
    (0x2800, 0x2810, Class::Guest),
    (0x2c00, 0x2c04, Class::Host),
    (0x4000, 0x4000, Class::Control),
    (0x4002, 0x4002, Class::HotControl),
    (0x4004, 0x4014, Class::Control),
    // event injection, TPR threshold
    (0x4016, 0x401c, Class::HotControl),
    (0x401e, 0x4022, Class::Control),
    (0x4400, 0x440e, Class::Information),
    (0x4800, 0x4814, Class::Guest),
    // access rights of CS and SS
    (0x4816, 0x4818, Class::HotGuest),
    (0x481a, 0x4822, Class::Guest),
    // interruptibility
    (0x4824, 0x4824, Class::HotGuest),
    (0x4826, 0x482a, Class::Guest),
    // VMX-preemption timer
    (0x482e, 0x482e, Class::HotControl),
    (0x4c00, 0x4c00, Class::Host),
    (0x6000, 0x600e, Class::Control),
    (0x6400, 0x640a, Class::Information),
    // CR0, CR3, CR4
    (0x6800, 0x6804, Class::HotGuest),
    (0x6806, 0x681a, Class::Guest),
    // RSP, RIP, RFLAGS
    (0x681c, 0x6820, Class::HotGuest),
    (0x6822, 0x6826, Class::Guest),
    (0x6c00, 0x6c16, Class::Host),
];

/// The word of a field; bit 0 of the encoding, which asks for the high half, does not take part.
///
/// Width and type of a field and the low five bits of its index are the word's number (SDM vol. 3,
/// table 26-21). The order is changed so that the 32 words of read-only fields of 16 bits, of which
/// there are none, come first: they are the header.
#[inline(always)]
const fn word(encoding: u32) -> Option<usize> {
    let (width, kind, index) = (encoding >> 13 & 3, encoding >> 10 & 3, encoding >> 1 & 31);
    if encoding & !0x6c3f != 0 {
        return None;
    }
    let number = width << 7 | kind << 5 | index;
    let [low, high, ..] = (number ^ HEADER).to_le_bytes();
    #[expect(clippy::as_conversions, reason = "from a smaller type, in a constant function")]
    Some(u16::from_le_bytes([low, high]) as usize)
}
const HEADER: u32 = 1 << 5;

const CLASSES: [Class; WORDS] = {
    let mut classes = [Class::None; WORDS];
    let mut rest = RUNS;
    while let [(first, last, class), after @ ..] = rest {
        let mut encoding = *first;
        while encoding <= *last {
            #[expect(clippy::indexing_slicing, reason = "checked at compile time")]
            if let Some(place) = word(encoding) {
                classes[place] = *class;
            }
            encoding += 2;
        }
        rest = after;
    }
    classes
};

/// The class of the field with this encoding.
#[must_use]
pub fn class(encoding: u32) -> Class {
    let found = word(encoding).and_then(|place| CLASSES.get(place)).copied();
    // Only 64-bit fields have a high half to ask for.
    let is_half_of_other = encoding & 1 != 0 && encoding >> 13 & 3 != 1;
    found.filter(|_| !is_half_of_other).unwrap_or(Class::None)
}

/// The encodings of all fields of `wanted` classes, in ascending order.
pub fn encodings(wanted: &'static [Class]) -> impl Iterator<Item = u32> {
    RUNS.iter()
        .filter(|(_, _, class)| wanted.contains(class))
        .flat_map(|(first, last, _)| (*first..=*last).step_by(2))
}

/// Whether fields of `class` are in [`HOT`] (`Kind::Hot`), in [`INFORMATION`] or in [`COLD`].
const fn is_of(class: Class, kind: Kind) -> bool {
    match kind {
        Kind::Hot => matches!(class, Class::HotGuest | Class::HotControl),
        Kind::Information => matches!(class, Class::Information),
        Kind::Cold => matches!(class, Class::Guest),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Hot,
    Information,
    Cold,
}

const fn count(kind: Kind) -> usize {
    let (mut sum, mut rest) = (0, RUNS);
    while let [(first, last, class), after @ ..] = rest {
        if is_of(*class, kind) {
            #[expect(clippy::as_conversions, reason = "from a smaller type, at compile time")]
            let fields = ((*last - *first) / 2 + 1) as usize;
            sum += fields;
        }
        rest = after;
    }
    sum
}

const fn list<const N: usize>(kind: Kind) -> [u32; N] {
    let (mut fields, mut length, mut rest) = ([0; N], 0, RUNS);
    while let [(first, last, class), after @ ..] = rest {
        let mut encoding = *first;
        while is_of(*class, kind) && encoding <= *last {
            #[expect(clippy::indexing_slicing, reason = "checked at compile time")]
            {
                fields[length] = encoding;
            }
            length += 1;
            encoding += 2;
        }
        rest = after;
    }
    fields
}

/// The hot fields, which the host reads, and most of which it writes, without exits where VMCSs can
/// be shadowed.
pub const HOT: [u32; count(Kind::Hot)] = list(Kind::Hot);
/// Those of [`HOT`] of which only reads do not exit: access rights of CS and SS, control registers. A
/// host looks at them often, but writes them only when its VM has.
pub const SELDOM_WRITTEN: [u32; 5] = [0x4816, 0x4818, 0x6800, 0x6802, 0x6804];
/// The information fields, which it reads without exits.
pub const INFORMATION: [u32; count(Kind::Information)] = list(Kind::Information);

/// The fields of the VM's state that are not hot.
pub(crate) const COLD: [u32; count(Kind::Cold)] = list(Kind::Cold);

/// Fills the VMREAD and VMWRITE bitmaps, in which a set bit means an exit (SDM vol. 3, 26.6.15).
pub fn fill_bitmaps(read: &mut [u8; 4096], write: &mut [u8; 4096]) {
    read.fill(0xff);
    write.fill(0xff);
    let open = |bitmap: &mut [u8; 4096], encoding: u32| {
        let byte = usize::try_from(encoding / 8).ok().and_then(|at| bitmap.get_mut(at));
        if let Some(byte) = byte {
            *byte &= !(1 << (encoding % 8));
        }
    };
    for encoding in HOT {
        open(read, encoding);
        if !SELDOM_WRITTEN.contains(&encoding) {
            open(write, encoding);
        }
    }
    for encoding in INFORMATION {
        open(read, encoding);
    }
}

/// What VMREAD of the field gives, if `value` is what the field holds.
#[must_use]
pub const fn read_part(encoding: u32, value: u64) -> u64 {
    match (encoding >> 13 & 3, encoding & 1) {
        (0, _) => value & 0xffff,
        (1, 1) => value >> 32,
        (2, _) => value & 0xffff_ffff,
        _ => value,
    }
}

/// What the field holds after VMWRITE of `value`, if it has held `old`.
#[must_use]
pub const fn write_part(encoding: u32, old: u64, value: u64) -> u64 {
    match (encoding >> 13 & 3, encoding & 1) {
        (0, _) => value & 0xffff,
        (1, 1) => old & 0xffff_ffff | value << 32,
        (2, _) => value & 0xffff_ffff,
        _ => value,
    }
}

/// Where fields are in the page, so that nobody has to compute it from their encodings.
pub(crate) const fn places<const N: usize>(encodings: [u32; N]) -> [(u32, usize); N] {
    let (mut places, mut at) = ([(0, 0); N], 0);
    while at < N {
        #[expect(clippy::indexing_slicing, reason = "checked at compile time")]
        if let Some(place) = word(encodings[at]) {
            places[at] = (encodings[at], place);
        }
        at += 1;
    }
    places
}

/// Where fields are in [`HOT`] or [`INFORMATION`], by their places.
static POSITIONS: [u8; WORDS] = number(&HOT, number(&INFORMATION, [u8::MAX; WORDS]));

const fn number(mut fields: &[u32], mut positions: [u8; WORDS]) -> [u8; WORDS] {
    let mut position = 0;
    while let [encoding, rest @ ..] = fields {
        #[expect(clippy::indexing_slicing, reason = "checked at compile time")]
        if let Some(place) = word(*encoding) {
            positions[place] = position;
        }
        (fields, position) = (rest, position + 1);
    }
    positions
}

/// The position of a field, of which bit 0 does not count, in [`HOT`] or [`INFORMATION`].
#[inline(always)]
pub(crate) fn position(encoding: u32) -> Option<usize> {
    let position = POSITIONS.get(word(encoding)?)?;
    (*position != u8::MAX).then(|| usize::from(*position))
}

/// The page. All-zero bytes are a valid one.
#[repr(C, align(4096))]
pub struct Vmcs12 {
    words: [u64; WORDS],
}

impl core::fmt::Debug for Vmcs12 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Vmcs12({:?})", self.launched())
    }
}

impl Vmcs12 {
    /// All fields 0, and clear.
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// Takes over what a region holds; `read` gives its words.
    pub fn load(&mut self, mut read: impl FnMut(usize) -> u64) {
        for (index, word) in self.words.iter_mut().enumerate() {
            *word = read(index);
        }
    }

    /// Gives back what a region is to hold.
    pub fn store(&self, mut write: impl FnMut(usize, u64)) {
        for (index, word) in self.words.iter().enumerate() {
            write(index, *word);
        }
    }

    /// The field at one of [`places`].
    #[inline(always)]
    pub(crate) fn at(&self, place: usize) -> u64 {
        self.words.get(place).copied().unwrap_or(0)
    }

    /// Sets the field at one of [`places`].
    #[inline(always)]
    pub(crate) fn set_at(&mut self, place: usize, value: u64) {
        if let Some(word) = self.words.get_mut(place) {
            *word = value;
        }
    }

    /// Whether VMLAUNCH has succeeded since VMCLEAR.
    #[must_use]
    pub fn launched(&self) -> Launch {
        let [_, launch, ..] = self.words;
        if launch == LAUNCHED { Launch::Launched } else { Launch::Clear }
    }

    /// Sets the launch state.
    pub const fn set_launched(&mut self, launch: Launch) {
        let [header, state, ..] = &mut self.words;
        *header = *header & !0xffff_ffff | REVISION_WORD;
        *state = match launch {
            Launch::Clear => 0,
            Launch::Launched => LAUNCHED,
        };
    }

    /// What the region says of the protected VM's vCPU that it stands for; 0 if it does for none.
    #[must_use]
    pub fn token(&self) -> u64 {
        let [_, _, token, ..] = self.words;
        token
    }

    /// Sets it.
    pub const fn set_token(&mut self, token: u64) {
        let [_, _, place, ..] = &mut self.words;
        *place = token;
    }

    /// Whether the link pointer names no VMCS.
    #[must_use]
    pub fn is_unlinked(&self) -> bool {
        self.read(VMCS_LINK_POINTER) == u64::MAX
    }
}

const LAUNCHED: u64 = 1;
/// Where VMCLEAR puts the launch state in a region that is not loaded.
pub const LAUNCH_WORD: usize = 1;

/// The launch state of a VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// VMLAUNCH is due.
    Clear,
    /// VMRESUME is due.
    Launched,
}

// Most encodings are constants, and so is then where they are.
impl Vmcs for Vmcs12 {
    #[inline(always)]
    fn read_raw(&self, encoding: u32) -> u64 {
        word(encoding).and_then(|place| self.words.get(place)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn write_raw(&mut self, encoding: u32, value: u64) {
        if let Some(place) = word(encoding).and_then(|place| self.words.get_mut(place)) {
            *place = value;
        }
    }
}
