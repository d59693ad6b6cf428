//! Writes `docs/disclosure.md`, which is the disclosure table, to standard output.

use nested_vmx::disclosure::{Answer, Exception, Part, ROWS, Register, Told, Width};

const HEAD: &str = "\
# What the host of a protected VM sees

At every exit of a protected VM to its host the registers that the host finds are decoys: all
general-purpose registers are 0, RIP is 0x1000, segments are flat, tables are at 0, and the privilege
level is 0. This table, which is made from the code that the visor runs (`nested-vmx/src/disclosure.rs`),
says what is real, and what the host may change by its answer. What it writes beyond that has no
effect. An exit without a row stops the VM.

These are always real, because hosts remember what they have seen of them: CR0, CR4, EFER, CS.L and
CS.D, RFLAGS.IF, the interruptibility and activity states, and the reason of the exit. While an
instruction is done of which the host has seen a part, RFLAGS.IF is 0.

An instruction counts as completed when the host has moved RIP on by its length; otherwise it is
executed again. Events are a matter of their own: the host may inject interrupts with vectors from 32
(in real mode from 8) but not 0x80, and NMIs, when the VM can take them; of exceptions only those in
the last column. An event of the VM's own whose delivery an exit cuts short the visor delivers again
without telling. A halted VM may be woken at any time.

What the host answers to CPUID is remembered, for up to 64 leaves and subleaves of a virtual processor, and
given again without asking: it cannot change its mind about what the processor has. CR4.OSXSAVE and
CR4.PKE are always as they are.

An instruction that accesses device memory the visor does itself, but for its accesses to the device. Each
of those, in parts of 1, 2, 4 or 8 bytes that cross no page, is an EPT violation at a `mov` in the VM's
window page: RIP and CR3 are that page's, and RBX has the address or, with paging, a linear address that
the window page leads to it. So the host learns neither which instruction it was, nor its operands in registers and
memory, nor any linear address. INS and OUTS are an IN or OUT for each element.

| exit | the host is told | it sees | it may change | answer |
|---|---|---|---|---|
";

fn part(part: &Part) -> String {
    let (byte, word, half, full) = match part.register {
        Register::A => ("AL", "AX", "EAX", "RAX"),
        Register::C => ("CL", "CX", "ECX", "RCX"),
        Register::D => ("DL", "DX", "EDX", "RDX"),
        Register::B => ("BL", "BX", "EBX", "RBX"),
        Register::Operand => ("", "", "operand (31:0)", "operand (as RAX)"),
    };
    match part.width {
        Width::Access => format!("{byte}, {word}, {half} or {full}, by size"),
        Width::Four => format!("{full}, bits 3:0"),
        Width::Half => half.to_owned(),
        Width::Full => full.to_owned(),
    }
}

fn told(told: &Told) -> &'static str {
    match told {
        Told::Length => "length of the instruction",
        Told::Event => "the event",
        Told::Delivery => "its own event that was cut short",
        Told::Port => "port, direction, size",
        Told::Device => "address, direction, size",
        Told::Control => "which register and instruction",
        Told::Source => "the four bits to load",
        Told::Page => "page address, as a write (a fetch if it is mapped)",
    }
}

fn answer(answer: Answer) -> &'static str {
    match answer {
        Answer::Visor => "the visor's; the host is not told",
        Answer::Resumes => "none",
        Answer::Completes => "completes it",
        Answer::CompletesOrRaises(Exception::InvalidOpcode) => "completes it, or raises #UD",
        Answer::CompletesOrRaises(Exception::GeneralProtection) => "completes it, or raises #GP(0)",
        Answer::Ends => "none: the VM does not run again",
    }
}

fn list<T>(items: &[T], name: impl Fn(&T) -> String) -> String {
    let names: Vec<String> = items.iter().map(name).collect();
    if names.is_empty() { "–".to_owned() } else { names.join("; ") }
}

/// The whole document.
pub(crate) fn document() -> String {
    let rows = ROWS.iter().map(|row| {
        let (told, sees) = (list(row.told, |item| told(item).to_owned()), list(row.sees, part));
        let (changes, answer) = (list(row.changes, part), answer(row.answer));
        format!("| {} | {told} | {sees} | {changes} | {answer} |\n", row.name)
    });
    HEAD.chars().chain(rows.collect::<String>().chars()).collect()
}

#[expect(clippy::print_stdout, reason = "the document is its output")]
fn main() {
    print!("{}", document());
}
