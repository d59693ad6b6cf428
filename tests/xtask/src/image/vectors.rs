//! The registers that the visor's code uses.
//!
//! Its exit handler saves the general-purpose registers and XMM0 to XMM3 of whoever ran before. Code
//! that used more, such as a vectorized loop, would change a guest's registers.

use anyhow::{Context, Result, ensure};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Register,
};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

/// Vector registers that `visor/src/exit.s` saves.
const SAVED: std::ops::Range<usize> = 0..4;

/// Fails if any code of the program in `elf` uses a register that nothing saves.
///
/// # Errors
/// The first few instructions that do, each with its function.
pub(crate) fn check(elf: &[u8]) -> Result<()> {
    let file = object::File::parse(elf).context("the visor is no ELF file")?;
    let mut found = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let code = section.data().context("a section lies outside the file")?;
        found.extend(unsaved(code, section.address()));
    }
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
        instruction.cpuid_features().contains(&CpuidFeature::FPU)
            || used.iter().any(|used| is_unsaved(used.register()))
    };
    let decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    decoder
        .into_iter()
        .filter(|instruction| instruction.code() != Code::INVALID)
        .filter(|instruction| uses(instruction))
        .map(|instruction| (instruction.ip(), instruction))
        .collect()
}

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
        let codes: [(&str, &[u8]); 5] = [
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
