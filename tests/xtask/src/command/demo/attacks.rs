//! The scenes in which root on the host attacks a VM, without and with a ticket.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};

use super::Seen;
use super::sets::{self, Set};
use super::table::{Table, words};
use crate::machine::{self, End, Lines, Machine, Step, Watch};
use crate::suite::{Host, Kit, Script, Stack, Then, protected, qemu_attacks};

pub(super) const LINUX: &str = "Debian's own kernel is the host, with KVM and Debian's own QEMU, which \
    runs a Linux VM. A program in the VM holds a secret, in memory and in registers, and works: at each beat it \
    says whether anything of it was changed. Root on the host attacks the VM with the tools that root has. \
    Then the same VM is started again with a *ticket*, which tells the visor to keep its memory and \
    registers from the host, and attacked in the same ways. Without a ticket every attack must succeed, else it \
    would prove nothing. With one it must fail, or the visor stops the VM: not to run a VM is the host's \
    right, to run it wrongly is not.
    What this is not yet: the ticket is handed over in clear, which the visor accepts only with the word \
    `dev-tickets`; nothing is attested yet. DMA is not among the attacks: the emulator has no IOMMU, and its \
    processor is of 2013, so the visor also needs the words `insecure-no-iommu` and `insecure-processor`.
    Unpacking the host's kernel takes about a minute in the emulator before its first line appears.";

pub(super) const SMALL: &str =
    "The same with a small VM of this project's own VMM, which can do what QEMU \
    does not: some 150 attacks, at each kind of exit and before the VM's first instruction.
    The last attack searches all memory, in silence, for some time.";

/// The test of the VMM in the host that is shown.
const TEST: &str = "protected-attacks";

/// What is booted for a scene, and what must be seen of it.
struct Scene {
    machine: Machine,
    stack: Stack,
    expected: Vec<String>,
    set: Set,
    /// How many lines tell of progress.
    total: usize,
}

/// A Linux VM of QEMU's on the distribution's kernel.
pub(super) fn linux(kit: &Kit, dir: &Path) -> Result<Seen> {
    let mut machine = Machine::default();
    qemu_attacks::roomy(&mut machine);
    let host = Host::StockAttacked(qemu_attacks::words("unprotected,protected"));
    let expected = qemu_attacks::SEEN.map(str::to_owned).to_vec();
    let set = sets::linux();
    let total = 2 * set.wanted.len();
    let stack = protected::with_tickets(host);
    play(Scene { machine, stack, expected, set, total }, kit, dir)
}

/// A small VM of `vmm`.
pub(super) fn small(kit: &Kit, dir: &Path) -> Result<Seen> {
    let mut machine = Machine::default();
    protected::memory(&mut machine);
    let stack = protected::with_tickets(protected::host(TEST));
    let expected = vec![format!("*vmm: PASS {TEST}"), "*init: done".to_owned()];
    let set = sets::small();
    let total = set.wanted.len();
    play(Scene { machine, stack, expected, set, total }, kit, dir)
}

/// Boots the host, shows each attack when it is done, and then all of them in a table.
fn play(scene: Scene, kit: &Kit, dir: &Path) -> Result<Seen> {
    let Scene { machine, stack, expected, set, total } = scene;
    let payload = kit.payload(&stack, &machine)?;
    let forbidden = ["visor: [error] *", "*panicked at*"].map(str::to_owned);
    let mut progress = Progress::new(Script::new(&expected, &forbidden, Then::GoOn), total);
    let outcome = machine::boot(&machine, &payload, dir, &mut progress)?;
    let serial = fs::read(&outcome.serial).context("cannot read the serial log")?;
    let serial = String::from_utf8_lossy(&serial).replace('\r', "");
    let found = progress.script.found().iter();
    let table = Table::of(&found.fold(serial, |text, line| text + "\n" + line), &set)?;
    println!("\n{table}");
    let wrong = match progress.script.verdict() {
        Err(wrong) => Some(wrong),
        Ok(()) if outcome.end != End::PowerOff => Some(format!("the run ended: {}", outcome.end)),
        Ok(()) => None,
    };
    Ok(Seen {
        is_good: table.is_good() && wrong.is_none(),
        words: table.summary() + &wrong.map_or_else(String::new, |why| format!("; FAILED: {why}")),
        processor_seconds: outcome.cpu.as_secs(),
        serial: outcome.serial,
        attacks: table.json(),
    })
}

/// Shows one line for each attack that is done.
#[derive(Debug)]
struct Progress<'a> {
    script: Script<'a>,
    lines: Lines,
    done: usize,
    total: usize,
}

impl<'a> Progress<'a> {
    fn new(script: Script<'a>, total: usize) -> Self {
        Self { script, lines: Lines::default(), done: 0, total }
    }

    /// What there is to show of a line.
    fn shown(&mut self, line: &str) -> Option<String> {
        if line.contains("vmm: look for ") {
            return Some("Searching the machine's memory for what is left of a VM.".to_owned());
        }
        if line.contains(qemu_attacks::LINE) {
            return None;
        }
        if let Some((_, attack)) = line.split_once(qemu_attacks::STEP) {
            self.done += 1;
            let (name, outcome) = attack.split_once(": ").unwrap_or((attack, "nothing"));
            let outcome = words(outcome.split(' ').next().unwrap_or_default());
            return Some(format!("[{:>3}/{}] {name:<28} {outcome}", self.done, self.total));
        }
        let Some((_, attack)) = line.split_once(protected::LINE) else {
            let senders = ["visor: ", "loader: ", "init: ", "vmm: ", "root: "];
            return senders.iter().any(|name| line.starts_with(name)).then(|| line.to_owned());
        };
        self.done += 1;
        let (name, said) = attack.split_once(' ').unwrap_or((attack, ""));
        let of = |subject| words(protected::outcome(said, subject).unwrap_or("nothing"));
        let (without, with) = (of("unprotected"), of("protected"));
        let (done, total) = (self.done, self.total);
        Some(format!(
            "[{done:>3}/{total}] {name:<28} without a ticket: {without:<10}  with: {with}"
        ))
    }
}

impl Watch for Progress<'_> {
    fn started(&mut self, pid: u32) {
        self.script.started(pid);
    }

    fn bytes(&mut self, bytes: &[u8]) -> Step {
        let lines = self.lines.push(bytes);
        let shown: String =
            lines.iter().filter_map(|line| self.shown(line)).map(|line| line + "\n").collect();
        let mut out = io::stdout().lock();
        // Nobody may be reading any more: the run is then of no use to anyone.
        if out.write_all(shown.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Step::Stop;
        }
        self.script.bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attack_has_a_line_when_it_is_done_and_other_programs_chatter_has_none() {
        let mut progress = Progress::new(Script::new(&[], &[], Then::GoOn), 2);
        let line = "[  1.0] vmm: ATTACK set-rip unprotected=succeeded protected=stopped cause=1";
        let shown = progress.shown(line).unwrap();
        assert!(shown.starts_with("[  1/") && shown.contains("] set-rip "), "{shown}");
        assert!(shown.contains(": succeeded ") && shown.ends_with("with: VM stopped"), "{shown}");
        assert!(progress.shown("vmm: ATTACK set-rsp").unwrap().starts_with("[  2/"));
        let step = progress.shown("root: attack read-frame: stopped cause=1").unwrap();
        assert!(step.starts_with("[  3/2] read-frame ") && step.ends_with(" VM stopped"), "{step}");
        assert_eq!(progress.shown("root: ATTACK read-frame unprotected=succeeded"), None);
        assert!(progress.shown("root: a VM with a ticket").is_some());
        assert!(progress.shown("visor: [info] version").is_some());
        assert_eq!(progress.shown("[  0.4] Failed to access perfctr msr"), None);
    }
}
