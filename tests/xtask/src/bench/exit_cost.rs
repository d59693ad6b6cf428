//! `exit-cost`: what exits cost a VM of KVM on the bare machine, on the visor without a ticket and with
//! one, and on KVM.
//!
//! `vmm cost` does each operation many times by the VM's own clock, which counts instructions; `vmm
//! cost-protected` does so in VMs with tickets. The hardware's exits are counted by the visor, or by
//! the lowest KVM.

use anyhow::{Context, Result};

use super::{Figure, number, text};
use crate::machine::{End, Machine};
use crate::suite::protected::with_tickets;
use crate::suite::{Boot, Host, Rig, Stack};

const BENCH: &str = "exit-cost";

/// What a VM does, and `vmm` knows by these names.
const OPERATIONS: [&str; 10] = [
    "cpuid",
    "pio_kernel",
    "pio_user",
    "msr_write",
    "hlt_irq",
    "ept_4k",
    "ept_2m",
    "vmcall",
    "mmio_kernel",
    "mmio_user",
];

/// What the host does: it takes the right to write from a page of the VM.
const EPT_WRITE: &str = "ept_write";

const MEASURE: &str = "kvm-load,run:/vmm+cost";

/// Boots the bare machine, for KVM and for KVM on it, and the visor.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let boot = |label, stack, line| {
        let boot = Boot::of(stack).on(|machine: &mut Machine| machine.seconds = 400);
        let boot = boot.expect(&[line, "init: done"]).never("*vmm: FAIL *");
        rig.check(label, &boot.ends(End::PowerOff))
    };
    let both = format!("init.do={MEASURE},guest init.next={MEASURE}");
    let bare = boot("bare", Stack::bare(Host::KvmLinux(both)), "guest: vmm: PASS cost")?;
    let alone = Host::Kvm(format!("init.do={MEASURE}+cost-protected"));
    let visor = boot("visor", with_tickets(alone), "vmm: PASS cost-protected")?;
    figures(&bare, &visor)
}

/// What one operation takes: instructions, and hundredths of exits.
#[derive(Clone, Copy)]
struct Cost {
    instructions: u64,
    exits: u64,
}

impl Cost {
    /// From the lines of `serial` that begin with `whose`.
    fn read(serial: &str, whose: &str, operation: &str) -> Result<Self> {
        let instructions = number(serial, &format!("{whose} cost {operation} "))?;
        // With two decimal places.
        let exits = text(serial, &format!("{whose} exits {operation} "))?;
        let exits = exits.replace('.', "").parse().with_context(|| format!("exits: {exits}"))?;
        Ok(Self { instructions, exits })
    }

    fn beyond(self, other: Self) -> Self {
        Self {
            instructions: self.instructions.saturating_sub(other.instructions),
            exits: self.exits.saturating_sub(other.exits),
        }
    }
}

#[expect(clippy::large_stack_frames, reason = "many figures at once, and nothing deeper")]
fn figures(bare: &str, visor: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for operation in OPERATIONS.into_iter().chain([EPT_WRITE]) {
        let alone = Cost::read(bare, "vmm:", operation)?;
        let on_visor = Cost::read(visor, "vmm:", operation)?;
        let on_kvm = Cost::read(bare, "guest: vmm:", operation)?;
        let protected = Cost::read(visor, "vmm: protected", operation)?;
        for (config, cost) in
            [("bare", alone), ("visor", on_visor), ("protected", protected), ("kvm_on_kvm", on_kvm)]
        {
            figures.extend(plain(&format!("{operation}.{config}"), cost)?);
        }
        figures.extend(relative(operation, protected, (alone, on_visor))?);
        let (extra, peer) = (on_visor.beyond(alone), on_kvm.beyond(alone));
        if operation == EPT_WRITE {
            // No exit without the visor. KVM lets its host store, and looks at a later INVEPT.
            figures.extend(per_exit(operation, extra, extra.exits)?);
        } else {
            figures.extend(per_exit(operation, extra, alone.exits)?);
            figures.extend(compared(operation, extra, (alone, peer))?);
        }
    }
    Ok(figures)
}

/// The instructions with a ticket against those without, on the bare machine and on the visor.
fn relative(operation: &str, protected: Cost, (bare, visor): (Cost, Cost)) -> Result<[Figure; 2]> {
    let ratio = |to, peer: Cost| {
        let metric = format!("{operation}.protected.to_{to}");
        Figure::ratio(BENCH, &metric, protected.instructions, peer.instructions, "1")
    };
    Ok([ratio("bare", bare)?, ratio("visor", visor)?])
}

fn plain(whose: &str, cost: Cost) -> Result<[Figure; 2]> {
    let instructions = format!("{whose}.instructions");
    Ok([
        Figure::count(BENCH, instructions, cost.instructions, "instructions"),
        Figure::ratio(BENCH, &format!("{whose}.hw_exits"), cost.exits, 100, "exits")?,
    ])
}

/// What each of the hundredths `exits` takes more on the visor.
fn per_exit(operation: &str, extra: Cost, exits: u64) -> Result<[Figure; 1]> {
    let metric = format!("{operation}.visor.extra_per_exit");
    let hundredfold = extra.instructions.saturating_mul(100);
    Ok([Figure::ratio(BENCH, &metric, hundredfold, exits, "instructions")?])
}

/// The visor's extra cost against the bare machine's exits and KVM's extra cost.
fn compared(operation: &str, extra: Cost, (bare, kvm): (Cost, Cost)) -> Result<[Figure; 2]> {
    let metric = |what| format!("{operation}.visor.{what}");
    let (exits, to_kvm) = (metric("extra_exits_per_exit"), metric("extra_to_kvm"));
    Ok([
        Figure::ratio(BENCH, &exits, extra.exits, bare.exits, "exits")?,
        Figure::ratio(BENCH, &to_kvm, extra.instructions, kvm.instructions, "1")?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of `vmm cost` when every operation takes this.
    fn log(whose: &str, instructions: u64, exits: &str) -> String {
        let lines = |operation: &&str| {
            format!("{whose} cost {operation} {instructions}\n{whose} exits {operation} {exits}\n")
        };
        OPERATIONS.iter().chain(&[EPT_WRITE]).map(lines).collect()
    }

    #[test]
    fn the_extra_costs_are_those_beyond_the_bare_machine() {
        let bare = log("vmm:", 1_000, "2.00") + &log("guest: vmm:", 21_000, "30.00");
        let visor = log("vmm:", 3_000, "4.00") + &log("vmm: protected", 6_000, "5.50");
        let figures = figures(&bare, &visor).unwrap();
        let lines: Vec<String> = figures.iter().map(Figure::line).collect();
        let of = |metric: &str| {
            let prefix = format!("exit-cost: {metric} = ");
            lines.iter().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
        };
        assert_eq!(of("cpuid.bare.instructions").unwrap(), "1000 instructions");
        assert_eq!(of("cpuid.kvm_on_kvm.hw_exits").unwrap(), "30.0 exits");
        assert_eq!(of("cpuid.visor.extra_exits_per_exit").unwrap(), "1.0 exits");
        assert_eq!(of("cpuid.visor.extra_per_exit").unwrap(), "1000.0 instructions");
        assert_eq!(of("cpuid.visor.extra_to_kvm").unwrap(), "0.1 1");
        assert_eq!(of("ept_write.visor.extra_per_exit").unwrap(), "1000.0 instructions");
        assert_eq!(of("cpuid.protected.hw_exits").unwrap(), "5.5 exits");
        assert_eq!(of("cpuid.protected.to_bare").unwrap(), "6.0 1");
        assert_eq!(of("ept_write.protected.to_visor").unwrap(), "2.0 1");
    }

    #[test]
    fn an_operation_that_was_not_measured_gives_no_figures() {
        let bare = log("vmm:", 1_000, "2.00") + &log("guest: vmm:", 21_000, "30.00");
        let visor = log("vmm:", 3_000, "4.00");
        assert!(figures(&bare, &visor).is_err());
        let whole = visor + &log("vmm: protected", 6_000, "5.50");
        assert!(figures(&bare, &whole).is_ok());
        assert!(figures(&log("vmm:", 1_000, "2.00"), &whole).is_err());
    }
}
