//! The registers that the visor's code uses.
//!
//! Its exit handler saves the general-purpose registers and XMM0 to XMM3 of whoever ran before. Code
//! that used more, such as a vectorized loop, would change a guest's registers. So would arithmetic: its
//! results and faults depend on MXCSR, which is the guest's; and instructions in VEX encoding clear the
//! upper halves.

use anyhow::{Context, Result, ensure};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic,
    Register,
};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

/// What may be done with them: moves, and making zeros.
const MOVES: [Mnemonic; 8] = [
    Mnemonic::Movaps,
    Mnemonic::Movups,
    Mnemonic::Movdqa,
    Mnemonic::Movdqu,
    Mnemonic::Movd,
    Mnemonic::Movq,
    Mnemonic::Xorps,
    Mnemonic::Pxor,
];

/// Vector registers that `visor/src/exit.s` saves.
const SAVED: std::ops::Range<usize> = 0..4;

/// Fails if any code of the program in `elf` uses a register that nothing saves.
///
/// # Errors
/// The first few instructions that do, each with its function.
pub(crate) fn check(elf: &[u8]) -> Result<()> {
    let file = object::File::parse(elf).context("the visor is no ELF file")?;
    let (mut found, mut decoded) = (Vec::new(), 0);
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let code = section.data().context("a section lies outside the file")?;
        found.extend(unsaved(code, section.address()));
        decoded += code.len();
    }
    ensure!(decoded > 0, "the visor has no code");
    let lines = found.iter().take(8).map(|(address, instruction)| {
        let name = function(&file, *address).unwrap_or_default();
        format!("\n    {address:#x} {:?} in {name}", instruction.code())
    });
    let lines: String = lines.collect();
    ensure!(
        found.is_empty(),
        "the visor uses registers that its exit handler does not save:{lines}"
    );
    Ok(())
}

/// The instructions of `code`, which runs at `address`, that use vector registers beyond [`SAVED`],
/// x87 or MMX registers.
fn unsaved(code: &[u8], address: u64) -> Vec<(u64, Instruction)> {
    let mut info = InstructionInfoFactory::new();
    let mut uses = |instruction: &Instruction| {
        let used = info.info(instruction).used_registers();
        let is_vector = |register: Register| register.is_vector_register() || register.is_mm();
        let is_move = MOVES.contains(&instruction.mnemonic());
        STATE.contains(&instruction.mnemonic())
            || instruction.cpuid_features().contains(&CpuidFeature::FPU)
            || used.iter().any(|used| is_unsaved(used.register()))
            || !is_move && used.iter().any(|used| is_vector(used.register()))
    };
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    decoder
        .into_iter()
        .filter(|instruction| instruction.code() != Code::INVALID)
        .filter(|instruction| uses(instruction))
        .map(|instruction| (instruction.ip(), instruction))
        .collect()
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

fn is_unsaved(register: Register) -> bool {
    let is_vector = register.is_xmm() || register.is_ymm() || register.is_zmm();
    let is_saved = register.is_xmm() && SAVED.contains(&register.number());
    register.is_mm() || register.is_k() || is_vector && !is_saved
}

fn function<'d>(file: &object::File<'d>, address: u64) -> Option<&'d str> {
    let before = file.symbols().filter(|symbol| symbol.address() <= address);
    before.max_by_key(ObjectSymbol::address)?.name().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_registers_that_the_exit_handler_saves_may_be_used() {
        // movaps xmm3, xmm0; mov rax, rbx
        assert!(unsaved(&[0x0f, 0x28, 0xd8, 0x48, 0x89, 0xd8], 0).is_empty());
    }

    #[test]
    fn all_others_may_not() {
        let codes: [(&str, &[u8]); 8] = [
            ("addsd xmm0, xmm1", &[0xf2, 0x0f, 0x58, 0xc1]),
            ("vmovaps xmm0, xmm1", &[0xc5, 0xf8, 0x28, 0xc1]),
            ("ldmxcsr [rax]", &[0x0f, 0xae, 0x10]),
            ("movaps xmm4, xmm0", &[0x0f, 0x28, 0xe0]),
            ("movaps xmm0, xmm15", &[0x41, 0x0f, 0x28, 0xc7]),
            ("vxorps ymm0, ymm0, ymm0", &[0xc5, 0xfc, 0x57, 0xc0]),
            ("fld1", &[0xd9, 0xe8]),
            ("movd mm0, eax", &[0x0f, 0x6e, 0xc0]),
        ];
        for (name, code) in codes {
            let found = unsaved(&[&[0x90], code].concat(), 0x1000);
            let addresses: Vec<u64> = found.iter().map(|(address, _)| *address).collect();
            assert_eq!(addresses, [0x1001], "{name}");
        }
    }
}
