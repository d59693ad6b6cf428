//! Strings: MOVS, STOS and LODS, INS and OUTS; and page faults in them and elsewhere.

use super::cases::{
    BEGIN, DOWN, END, INSIDE, MEMORY, MIDDLE, Maker, PORT, RBX, RCX, RDI, RDX, RSI, Touched,
    UNALIGNED,
};
use super::guest::{DEVICE_THEN_NONE, LINEAR, MEMORY_THEN_NONE, READ_ONLY};

impl Maker {
    /// MOVS, STOS and LODS.
    pub(super) fn strings(&mut self) {
        let mut sizes = vec![1];
        sizes.extend(self.sizes());
        for size in sizes {
            let half = usize::from(size).div_ceil(2);
            for places in [
                (Some(MEMORY), Some(INSIDE)),
                (Some(INSIDE), Some(MEMORY)),
                (Some(INSIDE), Some(INSIDE + 0x100)),
                (Some(MIDDLE - half), Some(BEGIN - half)),
                (Some(END - half), Some(MIDDLE - 0x20)),
                (None, Some(UNALIGNED)),
                (None, Some(BEGIN - 3 * usize::from(size))),
                (Some(END - half), None),
            ] {
                self.turn += 1;
                self.string(size, places, None);
                self.string(size, places, Some([5, 1, 3, 0][self.turn % 4]));
            }
        }
    }

    /// From RSI, or else RAX, to RDI, or else RAX; so many times with a prefix that says so.
    fn string(&mut self, size: u8, places: (Option<usize>, Option<usize>), count: Option<usize>) {
        let (from, to) = places;
        let (name, opcode) = match (from, to) {
            (Some(_), Some(_)) => ("movs", 0xa4),
            (None, _) => ("stos", 0xaa),
            (_, None) => ("lods", 0xac),
        };
        let opcode = if size == 1 { opcode } else { opcode + 1 };
        let fs = from.is_some() && self.turn.is_multiple_of(3);
        let is_down = self.is_down();
        let mut code = self.string_prefixes(count);
        if fs {
            code.push(0x64);
        }
        self.sized(&mut code, size, opcode);
        let times = count.unwrap_or(1);
        let length = times * usize::from(size);
        let first = |place: usize| {
            let begin = if is_down { place + length.saturating_sub(size.into()) } else { place };
            self.string_register(begin)
        };
        let mut sets = vec![(RCX, self.string_count(times))];
        let mut touched = Vec::new();
        if let Some(place) = from {
            let at = first(place);
            sets.push((RSI, if fs { at - 0x100 } else { at }));
            touched.push(Touched { bytes: place..place + length, read: true, written: false });
        }
        if let Some(place) = to {
            sets.push((RDI, first(place)));
            touched.push(Touched { bytes: place..place + length, read: false, written: true });
        }
        let name = format!("{name} {size} {from:x?} {to:x?} {count:?}");
        self.push(name, &sets, [code.clone(), code], touched);
        self.direct();
    }

    const fn is_down(&self) -> bool {
        self.turn.is_multiple_of(2)
    }

    /// The last case goes downwards in every second turn.
    fn direct(&mut self) {
        if let (true, Some(case)) = (self.is_down(), self.cases.last_mut()) {
            case.flags |= DOWN;
        }
    }

    fn beyond_kvm(&mut self) {
        if let Some(case) = self.cases.last_mut() {
            case.is_beyond_kvm = true;
        }
    }

    /// Whether addresses of strings have another width than is usual, now.
    fn is_other_width(&self) -> bool {
        self.bits != 32 && self.turn.is_multiple_of(5)
    }

    fn string_prefixes(&self, count: Option<usize>) -> Vec<u8> {
        let mut prefixes = Vec::new();
        if self.is_other_width() {
            prefixes.push(0x67);
        }
        if count.is_some() {
            prefixes.push(0xf3);
        }
        prefixes
    }

    /// The register that leads to `offset`; what of it does not count may be anything.
    fn string_register(&self, offset: usize) -> u64 {
        let at = self.origin() + offset as u64;
        if self.bits == 16 && !self.is_other_width() { 0xabcd_0000 | at } else { at }
    }

    fn string_count(&self, times: usize) -> u64 {
        let odd = if self.bits == 16 && !self.is_other_width() { 0xabcd_0000 } else { 0 };
        odd | times as u64
    }

    /// Adds an opcode with the prefix that it needs for `size`.
    fn sized(&self, code: &mut Vec<u8>, size: u8, opcode: u8) {
        match (size, self.bits) {
            (2, 32 | 64) | (4, 16) => code.push(0x66),
            (8, _) => code.push(0x48),
            _ => {}
        }
        code.push(opcode);
    }

    /// INS and OUTS; with memory, what does the same by a loop.
    pub(super) fn ports(&mut self) {
        for size in [1_u8, 2, 4] {
            let half = usize::from(size).div_ceil(2);
            for place in [MEMORY, 0x4000 - half, 0x4000 - 2 * usize::from(size)] {
                self.turn += 1;
                for count in [None, Some([7, 0, 3][self.turn % 3])] {
                    self.port(size, place, count, 0);
                    self.port(size, place, count, 2);
                }
            }
        }
    }

    /// `direction` is 0 for INS and 2 for OUTS.
    fn port(&mut self, size: u8, place: usize, count: Option<usize>, direction: u8) {
        let is_down = self.is_down();
        let is_wide = u8::from(size != 1);
        let fs = direction == 2 && self.turn.is_multiple_of(3);
        let mut code = self.string_prefixes(count);
        if fs {
            code.push(0x64);
        }
        let mut by_loop = Vec::new();
        self.sized(&mut code, size, 0x6c | direction | is_wide);
        // push eax; (in; stos) or (lods; out); loop; pop eax
        let width = if self.is_other_width() { vec![0x67] } else { Vec::new() };
        let mut turn = Vec::new();
        if direction == 0 {
            self.sized(&mut turn, size, 0xec | is_wide);
            turn.extend(&width);
            self.sized(&mut turn, size, 0xaa | is_wide);
        } else {
            turn.extend(&width);
            if fs {
                turn.push(0x64);
            }
            self.sized(&mut turn, size, 0xac | is_wide);
            self.sized(&mut turn, size, 0xee | is_wide);
        }
        let wide = if self.bits == 16 { vec![0x66] } else { Vec::new() };
        if count != Some(0) {
            by_loop.extend(&wide);
            by_loop.push(0x50);
            by_loop.extend(&turn);
            if count.is_some() {
                by_loop.extend(&width);
                let back = turn.len() + width.len() + 2;
                by_loop.extend([0xe2, 0_u8.wrapping_sub(back as u8)]);
            }
            by_loop.extend(&wide);
            by_loop.push(0x58);
        }
        let times = count.unwrap_or(1);
        let behind = times.saturating_sub(1) * usize::from(size);
        let at = self.string_register(if is_down { place + behind } else { place });
        let index = if direction == 0 { RDI } else { RSI };
        let sets = [
            (RCX, self.string_count(times)),
            (RDX, u64::from(PORT)),
            (index, if fs { at - 0x100 } else { at }),
        ];
        let name = if direction == 0 { "ins" } else { "outs" };
        let name = format!("{name} {size} {place:#x} {count:?}");
        self.push(name, &sets, [by_loop, code], Vec::new());
        self.direct();
    }

    /// Page faults: the device may not have noticed anything.
    pub(super) fn faults(&mut self) {
        let none = DEVICE_THEN_NONE + 0xffc;
        for (name, opcode) in [("store", 0x89), ("load", 0x8b), ("add", 0x01)] {
            let code = vec![0x48, opcode, 0x03];
            self.push(format!("fault {name}"), &[(RBX, none)], [code.clone(), code], Vec::new());
        }
        let device = LINEAR + INSIDE as u64;
        for (name, to) in [("read-only", READ_ONLY + 16), ("absent", MEMORY_THEN_NONE + 0xffe)] {
            let sets = [(RSI, device), (RDI, to)];
            let code = vec![0xa5];
            self.push(format!("fault movs {name}"), &sets, [code.clone(), code], Vec::new());
            self.beyond_kvm();
        }
        // In the middle of a series.
        let sets = [(RCX, 5), (RSI, device), (RDI, MEMORY_THEN_NONE + 0xff8)];
        let code = vec![0xf3, 0xa5];
        let touched = Touched { bytes: INSIDE..INSIDE + 8, read: true, written: false };
        self.push("fault rep movs".to_owned(), &sets, [code.clone(), code], vec![touched]);
        self.beyond_kvm();
        let at = MEMORY_THEN_NONE + 0xffd;
        let sets = [(RCX, 8), (RDX, u64::from(PORT)), (RDI, at)];
        // Three turns, then the count and a store for the fault.
        let last = [0x58, 0xb9, 5, 0, 0, 0];
        let mut by_loop = vec![0x50, 0xb9, 3, 0, 0, 0, 0xec, 0xaa, 0xe2, 0xfc];
        by_loop.extend(last);
        by_loop.extend([0x88, 0x07]);
        self.push("fault ins".to_owned(), &sets, [by_loop, vec![0xf3, 0x6c]], Vec::new());
        self.beyond_kvm();
        let sets = [(RCX, 8), (RDX, u64::from(PORT)), (RSI, at)];
        let mut by_loop = vec![0x50, 0xb9, 3, 0, 0, 0, 0xac, 0xee, 0xe2, 0xfc];
        by_loop.extend(last);
        by_loop.extend([0x8a, 0x06]);
        self.push("fault outs".to_owned(), &sets, [by_loop, vec![0xf3, 0x6e]], Vec::new());
    }
}
