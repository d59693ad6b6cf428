//! The registers that the visor's code uses.
//!
//! Its exit handler saves the general-purpose registers and XMM0 to XMM3 of whoever ran before. Code
//! that used more, such as a vectorized loop, would change a guest's registers. So would arithmetic: its
//! results and faults depend on MXCSR, which is the guest's; and instructions in VEX encoding clear the
//! upper halves.
//!
//! Sealing and hashing use all sixteen XMM registers for integers, inside `visor::vectors::with`, which
//! saves the others. Whether they run nowhere else is found out from the calls in the image: such code
//! must not be reachable but through the function that `with` has assembly call.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};

use anyhow::{Context, Result, ensure};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory,
    Mnemonic, OpKind, Register,
};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// What may be done with them anywhere: moves, and making zeros.
const MOVES: [Mnemonic; 9] = [
    Mnemonic::Movaps,
    Mnemonic::Movups,
    Mnemonic::Movdqa,
    Mnemonic::Movdqu,
    Mnemonic::Movd,
    Mnemonic::Movq,
    Mnemonic::Movsd,
    Mnemonic::Xorps,
    Mnemonic::Pxor,
];

/// Vector registers that `visor/src/exit.s` saves.
const SAVED: std::ops::Range<usize> = 0..4;

/// `visor/src/vectors.s`: it saves and loads what all others must not touch.
const TRUSTED: [&str; 3] = ["with_vectors", "save_vectors", "load_vectors"];

/// In the name of each function that `with_vectors` calls: `visor::vectors::run`, in either mangling.
const INSIDE: &str = "5visor7vectors3run";

/// Fails if any code of the program in `elf` uses a register that nothing saves.
///
/// # Errors
/// The first few instructions that do, each with its function and how that is reached.
pub(crate) fn check(elf: &[u8]) -> Result<()> {
    let file = object::File::parse(elf).context("the visor is no ELF file")?;
    let mut program = Program::default();
    for section in file.sections() {
        let bytes = section.data().context("a section lies outside the file")?;
        if section.kind() == SectionKind::Text {
            program.add_code(&labels(&file, &section), bytes, section.address());
        } else if section.address() != 0 {
            program
                .pointed
                .extend(bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)));
        }
    }
    program.pointed.push(file.entry());
    ensure!(!program.functions.is_empty(), "the visor has no code");
    let found = program.offences();
    let lines: String = found.iter().take(8).map(|line| format!("\n    {line}")).collect();
    ensure!(
        found.is_empty(),
        "the visor uses registers that its exit handler does not save, outside of \
         `vectors::with`:{lines}"
    );
    Ok(())
}

/// Where functions of `section` begin, and whether assembly says so.
fn labels<'d>(
    file: &object::File<'d>,
    section: &object::Section<'d, '_>,
) -> BTreeMap<u64, (&'d str, bool)> {
    let here = file.symbols().filter(|symbol| symbol.section_index() == Some(section.index()));
    let mut named: Vec<_> = here.filter(|symbol| symbol.kind() != SymbolKind::Section).collect();
    // Of several at one address, that of a compiled function counts.
    named.sort_by_key(|symbol| symbol.kind() == SymbolKind::Text);
    let entry = |symbol: &object::Symbol<'d, '_>| {
        let is_assembly = symbol.kind() != SymbolKind::Text;
        Some((symbol.address(), (symbol.name().ok()?, is_assembly)))
    };
    named.iter().filter_map(entry).collect()
}

/// What an instruction does with registers that not everybody saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    None,
    /// Integers in XMM registers, inside of `vectors::with`.
    Inside,
    /// What nothing saves.
    Never,
}

#[derive(Debug)]
struct Function {
    name: String,
    /// The first instruction with each use.
    inside: Option<(u64, Code)>,
    never: Option<(u64, Code)>,
    /// Functions that it calls or jumps into, by address.
    calls: Vec<u64>,
    /// What it may call, as it has the address: by address.
    takes: Vec<u64>,
}

impl Function {
    fn is_inside(&self) -> bool {
        self.name.contains(INSIDE)
    }
}

/// The program as far as registers and calls go.
#[derive(Debug, Default)]
struct Program {
    /// By address.
    functions: BTreeMap<u64, Function>,
    /// Values of data, some of which are addresses of functions.
    pointed: Vec<u64>,
}

impl Program {
    /// Adds the functions that begin at `labels` in `code`, which runs at `address`.
    fn add_code(&mut self, labels: &BTreeMap<u64, (&str, bool)>, code: &[u8], address: u64) {
        let mut starts = labels.clone();
        let _ = starts.entry(address).or_insert(("code without a name", true));
        let ends = starts.keys().skip(1).copied().chain([address + length(code)]);
        for ((start, (name, is_assembly)), end) in starts.iter().zip(ends) {
            let [from, to] = [*start, end].map(|at| usize::try_from(at - address).unwrap_or(0));
            let code = code.get(from..to).unwrap_or_default();
            let mut function = read(name, code, *start);
            if *is_assembly && falls_through(code, *start) {
                function.calls.push(end);
            }
            let _ = self.functions.insert(*start, function);
        }
    }

    /// The function that `address` lies in.
    fn containing(&self, address: u64) -> Option<u64> {
        self.functions.range(..=address).next_back().map(|(start, _)| *start)
    }

    /// One line for each function that uses what is not saved where it runs.
    fn offences(&self) -> Vec<String> {
        let reached = self.reached();
        let mut lines = Vec::new();
        for (start, function) in &self.functions {
            if TRUSTED.contains(&function.name.as_str()) {
                continue;
            }
            if let Some((at, code)) = function.never {
                lines.push(format!("{at:#x} {code:?} in {}, which nothing saves", function.name));
            }
            if let (Some((at, code)), true) = (function.inside, reached.contains_key(start)) {
                let way = self.way(&reached, *start);
                lines.push(format!("{at:#x} {code:?} in {}{way}", function.name));
            }
        }
        lines
    }

    /// What the function at `from` leads to: not what it only has an address of for `with_vectors`.
    fn next(&self, from: u64) -> Vec<u64> {
        let Some(function) = self.functions.get(&from) else {
            return Vec::new();
        };
        let runs_inside = |to: &u64| self.functions.get(to).is_some_and(Function::is_inside);
        let taken = function.takes.iter().copied().filter(|to| !runs_inside(to));
        let called = function.calls.iter().filter_map(|to| self.containing(*to));
        let known = called.chain(taken).filter(|to| self.functions.contains_key(to));
        known.filter(|to| *to != from).collect()
    }

    /// Every function that can run outside of `vectors::with`, each with one that leads there.
    fn reached(&self) -> BTreeMap<u64, Option<u64>> {
        let used: BTreeSet<u64> = self.functions.keys().flat_map(|from| self.next(*from)).collect();
        let pointed: BTreeSet<u64> = self.pointed.iter().copied().collect();
        let is_root = |(start, function): &(&u64, &Function)| {
            pointed.contains(start) || !used.contains(start) && !function.is_inside()
        };
        let mut reached: BTreeMap<u64, Option<u64>> =
            self.functions.iter().filter(is_root).map(|(start, _)| (*start, None)).collect();
        let mut waiting: Vec<u64> = reached.keys().copied().collect();
        while let Some(from) = waiting.pop() {
            for to in self.next(from) {
                if let Entry::Vacant(place) = reached.entry(to) {
                    let _ = place.insert(Some(from));
                    waiting.push(to);
                }
            }
        }
        reached
    }

    /// How the function at `start` is reached, as text.
    fn way(&self, reached: &BTreeMap<u64, Option<u64>>, start: u64) -> String {
        let mut text = String::new();
        let mut at = start;
        while let Some(Some(from)) = reached.get(&at) {
            let name = self.functions.get(from).map_or("", |function| &function.name);
            text.push_str(", reached from ");
            text.push_str(name);
            at = *from;
        }
        text
    }
}

fn length(code: &[u8]) -> u64 {
    u64::try_from(code.len()).unwrap_or(0)
}

fn instructions(code: &[u8], address: u64) -> impl Iterator<Item = Instruction> {
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    decoder.into_iter().filter(|instruction| instruction.code() != Code::INVALID)
}

/// Whether what follows `code` runs after it.
fn falls_through(code: &[u8], address: u64) -> bool {
    let is_padding = |instruction: &Instruction| instruction.mnemonic() == Mnemonic::Nop;
    let last = instructions(code, address).filter(|instruction| !is_padding(instruction)).last();
    last.is_some_and(|last| {
        use FlowControl::{Call, ConditionalBranch, IndirectCall, Next};
        matches!(last.flow_control(), Next | Call | IndirectCall | ConditionalBranch)
    })
}

/// What the function of this name, whose `code` runs at `address`, does.
fn read(name: &str, code: &[u8], address: u64) -> Function {
    let mut info = InstructionInfoFactory::new();
    let mut function =
        Function { name: name.into(), inside: None, never: None, calls: vec![], takes: vec![] };
    for instruction in instructions(code, address) {
        let place = (instruction.ip(), instruction.code());
        match class(&mut info, &instruction) {
            Use::None => {}
            Use::Inside => function.inside = function.inside.or(Some(place)),
            Use::Never => function.never = function.never.or(Some(place)),
        }
        for operand in 0..instruction.op_count() {
            let kind = instruction.op_kind(operand);
            if kind == OpKind::NearBranch64 {
                function.calls.push(instruction.near_branch_target());
            } else if matches!(kind, OpKind::Immediate32to64 | OpKind::Immediate64) {
                function.takes.push(instruction.immediate(operand));
            } else if kind == OpKind::Memory {
                function.takes.push(instruction.memory_displacement64());
            }
        }
    }
    function
}

fn class(info: &mut InstructionInfoFactory, instruction: &Instruction) -> Use {
    let used: Vec<Register> =
        info.info(instruction).used_registers().iter().map(|used| used.register()).collect();
    let is_fpu = instruction.cpuid_features().contains(&CpuidFeature::FPU);
    let is_wide = |register: &Register| {
        register.is_ymm() || register.is_zmm() || register.is_k() || register.is_mm()
    };
    if STATE.contains(&instruction.mnemonic()) || is_fpu || used.iter().any(is_wide) {
        return Use::Never;
    }
    let mut vectors = used.into_iter().filter(|register| register.is_xmm()).peekable();
    if vectors.peek().is_none() {
        return Use::None;
    }
    if !is_integer(instruction.mnemonic()) {
        return Use::Never;
    }
    let is_saved = vectors.all(|register| SAVED.contains(&register.number()));
    if is_saved && MOVES.contains(&instruction.mnemonic()) { Use::None } else { Use::Inside }
}

/// Instructions that change such registers, or MXCSR, without naming them.
const STATE: [Mnemonic; 9] = [
    Mnemonic::Ldmxcsr,
    Mnemonic::Vldmxcsr,
    Mnemonic::Fxrstor,
    Mnemonic::Fxrstor64,
    Mnemonic::Xrstor,
    Mnemonic::Xrstor64,
    Mnemonic::Xrstors,
    Mnemonic::Xrstors64,
    Mnemonic::Emms,
];

/// Whether it has nothing to do with MXCSR: moves, shuffles, logic, integers, AES, SHA. Names of VEX
/// and EVEX encodings begin with V.
fn is_integer(mnemonic: Mnemonic) -> bool {
    const OTHERS: [&str; 12] = [
        "Andps", "Andpd", "Andnps", "Andnpd", "Orps", "Orpd", "Xorps", "Xorpd", "Shufps", "Shufpd",
        "Blendps", "Blendpd",
    ];
    let name = format!("{mnemonic:?}");
    OTHERS.contains(&name.as_str())
        || ["P", "Mov", "Unpck", "Aes", "Sha1", "Sha256"]
            .iter()
            .any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RET: &[u8] = &[0xc3];
    /// aesenc xmm4, xmm5; ret
    const SEALS: &[u8] = &[0x66, 0x0f, 0x38, 0xdc, 0xe5, 0xc3];
    const RUN: &str = "_ZN5visor7vectors3run17h0123456789abcdefE";

    fn class_of(code: &[u8]) -> Use {
        let instruction = instructions(code, 0).next().unwrap();
        class(&mut InstructionInfoFactory::new(), &instruction)
    }

    /// call `to`; ret, at `at`
    fn calls(at: u64, to: u64) -> Vec<u8> {
        let distance = i32::try_from(to.cast_signed() - at.cast_signed() - 5).unwrap();
        [&[0xe8][..], &distance.to_le_bytes(), RET].concat()
    }

    /// lea rdi, [`to`]; ret, at `at`
    fn takes(at: u64, to: u64) -> Vec<u8> {
        let distance = i32::try_from(to.cast_signed() - at.cast_signed() - 7).unwrap();
        [&[0x48, 0x8d, 0x3d][..], &distance.to_le_bytes(), RET].concat()
    }

    /// The offences of functions (name, code), 0x100 bytes each from 0x1000 on.
    fn offences(functions: &[(&str, &[u8])], pointed: &[u64]) -> Vec<String> {
        let mut program = Program { pointed: pointed.to_vec(), ..Program::default() };
        for (index, (name, code)) in (1_u64..).zip(functions) {
            let at = 0xf00 + index * 0x100;
            program.add_code(&BTreeMap::from([(at, (*name, false))]), code, at);
        }
        program.offences()
    }

    #[test]
    fn vector_registers_that_the_exit_handler_saves_may_be_moved_anywhere() {
        // movaps xmm3, xmm0; mov rax, rbx
        assert_eq!(class_of(&[0x0f, 0x28, 0xd8]), Use::None);
        assert_eq!(class_of(&[0x48, 0x89, 0xd8]), Use::None);
    }

    #[test]
    fn integers_in_vector_registers_are_for_the_inside() {
        let codes: [(&str, &[u8]); 7] = [
            ("movaps xmm4, xmm0", &[0x0f, 0x28, 0xe0]),
            ("movaps xmm0, xmm15", &[0x41, 0x0f, 0x28, 0xc7]),
            ("paddd xmm0, xmm1", &[0x66, 0x0f, 0xfe, 0xc1]),
            ("aesenc xmm0, xmm1", &[0x66, 0x0f, 0x38, 0xdc, 0xc1]),
            ("sha256rnds2 xmm1, xmm2, xmm0", &[0x0f, 0x38, 0xcb, 0xca]),
            ("andps xmm0, xmm1", &[0x0f, 0x54, 0xc1]),
            ("shufps xmm0, xmm1, 0", &[0x0f, 0xc6, 0xc1, 0x00]),
        ];
        for (name, code) in codes {
            assert_eq!(class_of(code), Use::Inside, "{name}");
        }
    }

    #[test]
    fn arithmetic_wide_registers_and_their_encoding_are_for_nobody() {
        let codes: [(&str, &[u8]); 10] = [
            ("vptest xmm0, xmm1", &[0xc4, 0xe2, 0x79, 0x17, 0xc1]),
            ("addsd xmm0, xmm1", &[0xf2, 0x0f, 0x58, 0xc1]),
            ("cvtsi2sd xmm0, rax", &[0xf2, 0x48, 0x0f, 0x2a, 0xc0]),
            ("vmovaps xmm0, xmm1", &[0xc5, 0xf8, 0x28, 0xc1]),
            ("vaesenc xmm0, xmm1, xmm2", &[0xc4, 0xe2, 0x71, 0xdc, 0xc2]),
            ("vxorps ymm0, ymm0, ymm0", &[0xc5, 0xfc, 0x57, 0xc0]),
            ("ldmxcsr [rax]", &[0x0f, 0xae, 0x10]),
            ("xrstor [rdi]", &[0x0f, 0xae, 0x2f]),
            ("fld1", &[0xd9, 0xe8]),
            ("movd mm0, eax", &[0x0f, 0x6e, 0xc0]),
        ];
        for (name, code) in codes {
            assert_eq!(class_of(code), Use::Never, "{name}");
            let program = [("outside", code), ("with_vectors", code), (RUN, code)];
            assert_eq!(offences(&program, &[]).len(), 2, "{name}");
        }
    }

    #[test]
    fn what_only_the_inside_calls_may_use_all_registers() {
        let program = [
            ("exit", &takes(0x1000, 0x1100)[..]),
            (RUN, &calls(0x1100, 0x1200)),
            ("hash", &calls(0x1200, 0x1300)),
            ("seal", SEALS),
        ];
        assert_eq!(offences(&program, &[]), [""; 0]);
    }

    #[test]
    fn what_anybody_else_calls_may_not_and_the_way_there_is_named() {
        let program = [
            ("exit", &[&calls(0x1000, 0x1100)[..5], &takes(0x1005, 0x1200)].concat()[..]),
            ("audit", &calls(0x1100, 0x1300)),
            (RUN, &calls(0x1200, 0x1300)),
            ("seal", SEALS),
        ];
        let found = offences(&program, &[]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("0x1300 Aesenc"), "{}", found[0]);
        assert!(
            found[0].ends_with("in seal, reached from audit, reached from exit"),
            "{}",
            found[0]
        );
    }

    #[test]
    fn whoever_jumps_into_it_or_has_its_address_may_call_it() {
        // jmp 0x1201; mov rdi, 0x1200; call of the inside itself
        let jump = [&[0xe9][..], &0x1fc_i32.to_le_bytes()].concat();
        let immediate = [&[0x48, 0xc7, 0xc7][..], &0x1200_i32.to_le_bytes(), RET].concat();
        let ways = [jump, immediate, takes(0x1000, 0x1200), calls(0x1000, 0x1100)];
        for outside in ways {
            let inside = calls(0x1100, 0x1200);
            let found = offences(&[("exit", &outside), (RUN, &inside), ("seal", SEALS)], &[]);
            assert_eq!(found.len(), 1, "{outside:x?}");
        }
    }

    #[test]
    fn what_data_points_to_may_be_called_by_anybody() {
        let program =
            [("exit", &takes(0x1000, 0x1100)[..]), (RUN, &calls(0x1100, 0x1200)), ("seal", SEALS)];
        assert_eq!(offences(&program, &[0x1201, 0x5000]), [""; 0]);
        assert_eq!(offences(&program, &[0x1200]).len(), 1);
        assert_eq!(offences(&program, &[0x1100]).len(), 1);
    }

    #[test]
    fn assembly_falls_through_its_labels() {
        let code = [&[0x90][..], SEALS].concat();
        let mut program = Program::default();
        let nop = BTreeMap::from([(0x1000, ("exit", true)), (0x1001, ("resume", true))]);
        program.add_code(&nop, &code, 0x1000);
        // A nop alone may be padding.
        assert!(program.functions[&0x1000].calls.is_empty());
        let code = [&[0x31, 0xc0][..], SEALS].concat();
        let labels = BTreeMap::from([(0x1000, ("exit", true)), (0x1002, ("resume", true))]);
        program.add_code(&labels, &code, 0x1000);
        assert_eq!(program.functions[&0x1000].calls, [0x1002]);
    }
}
