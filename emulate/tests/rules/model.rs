//! The processor's translation, once more: written along the tables of SDM vol. 3, chapter 5, with
//! every level and every rule spelled out. The fuzz targets use this file too.

use emulate::context::{Access, Context};
use emulate::walk::{AddressSpace, Error};

use crate::fake::Fake;

/// What the processor does at a linear address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    /// The physical address, or why there is none.
    result: Result<u64, Error>,
    /// Entries that get flags: byte address and bits.
    marks: Vec<(u64, u64)>,
}

/// The paging mode (SDM vol. 3, 5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    Off,
    Bits32,
    Pae,
    Levels4,
    Levels5,
}

/// What an entry is, in the words of the manual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pml5e,
    Pml4e,
    PdpteTable,
    Page1G,
    PdeTable,
    Page2M,
    Page4M,
    Pte,
}

impl Kind {
    /// The number of offset bits of the page, if it maps one.
    const fn offset_bits(self) -> Option<u32> {
        match self {
            Self::Pml5e | Self::Pml4e | Self::PdpteTable | Self::PdeTable => None,
            Self::Page1G => Some(30),
            Self::Page2M => Some(21),
            Self::Page4M => Some(22),
            Self::Pte => Some(12),
        }
    }
}

/// Bits `high` to `low` of `value`.
const fn bits(value: u64, high: u32, low: u32) -> u64 {
    value << (63 - high) >> (63 - high + low)
}

const fn bit(value: u64, number: u32) -> bool {
    value >> number & 1 == 1
}

pub(crate) fn mode(context: &Context) -> Mode {
    let (pae, lma) = (bit(context.cr4, 5), bit(context.efer, 10));
    match (bit(context.cr0, 31), lma, pae, bit(context.cr4, 12)) {
        (false, _, _, _) => Mode::Off,
        (true, true, _, true) => Mode::Levels5,
        (true, true, _, false) => Mode::Levels4,
        (true, false, true, _) => Mode::Pae,
        (true, false, false, _) => Mode::Bits32,
    }
}

/// One access, with its answers to come.
struct Processor<'a> {
    context: &'a Context,
    /// Reads 8 aligned bytes.
    read: &'a dyn Fn(u64) -> Option<u64>,
    access: Access,
}

impl Processor<'_> {
    fn access(&self, linear: u64) -> Outcome {
        let mode = mode(self.context);
        let long = matches!(mode, Mode::Levels4 | Mode::Levels5) || bit(self.context.efer, 10);
        let linear = if long { linear } else { bits(linear, 31, 0) };
        let mut marks = Vec::new();
        let result = match mode {
            Mode::Off => Ok(linear),
            Mode::Bits32 | Mode::Pae | Mode::Levels4 | Mode::Levels5 => {
                self.levels(mode, linear, &mut marks)
            }
        };
        if result.is_err() {
            marks.clear();
        }
        Outcome { result, marks }
    }

    fn levels(&self, mode: Mode, linear: u64, marks: &mut Vec<(u64, u64)>) -> Result<u64, Error> {
        // High and low bit of each index.
        let indexes: &[(u32, u32)] = match mode {
            Mode::Levels5 => &[(56, 48), (47, 39), (38, 30), (29, 21), (20, 12)],
            Mode::Levels4 => &[(47, 39), (38, 30), (29, 21), (20, 12)],
            Mode::Pae => &[(29, 21), (20, 12)],
            Mode::Bits32 => &[(31, 22), (21, 12)],
            Mode::Off => &[],
        };
        let mut table = match mode {
            Mode::Levels5 | Mode::Levels4 => bits(self.context.cr3, 51, 12) << 12,
            Mode::Bits32 => bits(self.context.cr3, 31, 12) << 12,
            Mode::Pae | Mode::Off => {
                let entry = self.context.pdptes[usize::try_from(bits(linear, 31, 30)).unwrap()];
                if !bit(entry, 0) {
                    return Err(self.fault(linear, 0));
                }
                bits(entry, 51, 12) << 12
            }
        };
        let (mut writable, mut user, mut no_execute) = (true, true, false);
        for (high, low) in indexes {
            let index = bits(linear, *high, *low);
            let address = table + index * if mode == Mode::Bits32 { 4 } else { 8 };
            let entry = self.entry(mode, address)?;
            if !bit(entry, 0) {
                return Err(self.fault(linear, 0));
            }
            let kind = self.kind(mode, *low, entry);
            if self.is_reserved_set(mode, kind, entry) {
                return Err(self.fault(linear, 0b1001));
            }
            (writable, user) = (writable && bit(entry, 1), user && bit(entry, 2));
            no_execute = no_execute || mode != Mode::Bits32 && bit(entry, 63);
            marks.push((address, 1 << 5));
            if let Some(offset_bits) = kind.offset_bits() {
                self.rights(linear, (writable, user, no_execute), bits(entry, 62, 59))?;
                if self.access == Access::Write {
                    marks.push((address, 1 << 6));
                }
                return Ok(page(mode, kind, entry) + bits(linear, offset_bits - 1, 0));
            }
            table = bits(entry, 51, 12) << 12;
        }
        unreachable!("the last level maps pages")
    }

    fn entry(&self, mode: Mode, address: u64) -> Result<u64, Error> {
        let aligned = address / 8 * 8;
        let word = (self.read)(aligned).ok_or(Error::Unreachable(aligned))?;
        Ok(match (mode, address % 8) {
            (Mode::Bits32, 0) => bits(word, 31, 0),
            (Mode::Bits32, _) => bits(word, 63, 32),
            _ => word,
        })
    }

    fn kind(&self, mode: Mode, low: u32, entry: u64) -> Kind {
        match (low, bit(entry, 7)) {
            (48, _) => Kind::Pml5e,
            (39, _) => Kind::Pml4e,
            (30, true) if self.context.huge_pages => Kind::Page1G,
            (30, _) => Kind::PdpteTable,
            (22, true) if bit(self.context.cr4, 4) => Kind::Page4M,
            (21, true) if mode != Mode::Bits32 => Kind::Page2M,
            (21 | 22, _) => Kind::PdeTable,
            _ => Kind::Pte,
        }
    }

    /// The tables of entry formats: 5-5, 5-6 (32-bit), 5-9 to 5-11 (PAE), 5-14 to 5-20 (4 and 5
    /// levels).
    fn is_reserved_set(&self, mode: Mode, kind: Kind, entry: u64) -> bool {
        let width = self.context.physical_bits;
        let mut ranges = Vec::new();
        if mode == Mode::Bits32 {
            let width = if width > 40 { 40 } else { width };
            if kind == Kind::Page4M {
                ranges.push(if width <= 32 { (21, 13) } else { (21, width - 19) });
            }
        } else {
            let top = if mode == Mode::Pae { 62 } else { 51 };
            if width <= top {
                ranges.push((top, width));
            }
            if !bit(self.context.efer, 11) {
                ranges.push((63, 63));
            }
        }
        match kind {
            Kind::Pml5e | Kind::Pml4e | Kind::PdpteTable => ranges.push((7, 7)),
            Kind::Page1G => ranges.push((29, 13)),
            Kind::Page2M => ranges.push((20, 13)),
            Kind::Page4M | Kind::PdeTable | Kind::Pte => {}
        }
        ranges.into_iter().any(|(high, low)| high >= low && bits(entry, high, low) != 0)
    }

    /// 5.6.1: who may do what. Rights are writable, user, no-execute.
    fn rights(&self, linear: u64, rights: (bool, bool, bool), key: u64) -> Result<(), Error> {
        let (writable, user_page, no_execute) = rights;
        let context = self.context;
        let long = bit(context.efer, 10);
        let (wp, ac) = (bit(context.cr0, 16), bit(context.rflags, 18));
        let (smep, smap) = (bit(context.cr4, 20), bit(context.cr4, 21));
        let (pke, pks) = (bit(context.cr4, 22), bit(context.cr4, 24));
        let register = match user_page {
            true if long && pke => context.pkru,
            false if long && pks => context.pkrs,
            _ => 0,
        };
        let access_disable = bit(register.into(), u32::try_from(2 * key).unwrap());
        let write_disable = bit(register.into(), u32::try_from(2 * key + 1).unwrap());
        let key_allows_read = !access_disable;
        let user_mode = context.cpl == 3;
        let key_allows_write = !access_disable && !(write_disable && (user_mode || wp));
        let page_allows = match (user_mode, user_page, self.access) {
            (true, false, _) => false,
            (true, true, Access::Read) | (false, false, Access::Read) => true,
            (true, true, Access::Write) => writable,
            (false, false, Access::Write) => writable || !wp,
            (true, true, Access::Fetch) | (false, false, Access::Fetch) => !no_execute,
            (false, true, Access::Read) => !smap || ac,
            (false, true, Access::Write) => (!smap || ac) && (writable || !wp),
            (false, true, Access::Fetch) => !smep && !no_execute,
        };
        let key_allows = match self.access {
            Access::Read => key_allows_read,
            Access::Write => key_allows_write,
            Access::Fetch => true,
        };
        match (page_allows, key_allows) {
            (true, true) => Ok(()),
            (false, true) => Err(self.fault(linear, 1)),
            (_, false) => Err(self.fault(linear, 1 | 1 << 5)),
        }
    }

    /// 5.7: W/R, U/S and I/D are added to `code`.
    fn fault(&self, linear: u64, mut code: u32) -> Error {
        let context = self.context;
        if self.access == Access::Write {
            code += 1 << 1;
        }
        if context.cpl == 3 {
            code += 1 << 2;
        }
        let no_execute = bit(context.cr4, 5) && bit(context.efer, 11);
        if self.access == Access::Fetch && (bit(context.cr4, 20) || no_execute) {
            code += 1 << 4;
        }
        Error::Fault { linear, code }
    }
}

/// The page's address.
fn page(mode: Mode, kind: Kind, entry: u64) -> u64 {
    match (mode, kind) {
        (Mode::Bits32, Kind::Page4M) => (bits(entry, 20, 13) << 32) + (bits(entry, 31, 22) << 22),
        (_, Kind::Page1G) => bits(entry, 51, 30) << 30,
        (_, Kind::Page2M) => bits(entry, 51, 21) << 21,
        _ => bits(entry, 51, 12) << 12,
    }
}

/// Translates `linear` in a memory of `words`. Panics where the model differs, or a store does more
/// than to set a flag.
pub(crate) fn compare(
    context: &Context,
    words: &[u64],
    linear: u64,
    access: Access,
) -> Result<u64, Error> {
    let memory = Fake::new(words);
    let read = |address: u64| words.get(usize::try_from(address / 8).ok()?).copied();
    let expected = Processor { context, read: &read, access }.access(linear);
    let found = AddressSpace { context, memory: &memory }.translate(linear, access);
    assert_eq!(found, expected.result, "linear {linear:#x}");
    let mut marked = words.to_vec();
    for (address, bits) in expected.marks {
        marked[usize::try_from(address / 8).unwrap()] |= bits << (8 * (address % 8));
    }
    assert_eq!(memory.contents(), marked, "accessed and dirty flags");
    for (address, old, new) in memory.stores.borrow().iter() {
        let flags = 0x60 | 0x60 << 32;
        assert!(old & !new == 0 && (old ^ new) & !flags == 0, "store to {address:#x}");
        assert_ne!(old, new, "a store that changes nothing");
    }
    found
}
