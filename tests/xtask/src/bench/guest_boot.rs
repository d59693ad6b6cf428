//! `guest-boot`: a Linux VM of `vmm` from its making to its end, on the visor and without it, its
//! memory in small pages and in huge ones.

use anyhow::Result;

use super::workload::{self, Taken};
use super::{Figure, number};
use crate::machine::End;
use crate::suite::{Boot, Host, Rig, Stack};

const BENCH: &str = "guest-boot";
/// The VMs, as `vmm` calls them.
const WORKS: [&str; 2] = ["linux", "linux-2m"];

/// Boots both ways and compares.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let host = Host::KvmLinux("init.do=kvm-load,guest,guest-2m".to_owned());
    let boot = |label, stack| {
        let boot = Boot::of(stack).on(|machine| machine.seconds = 200);
        let lines = ["vmm: PASS linux", "vmm: PASS linux-2m", "init: done"];
        rig.check(label, &boot.expect(&lines).ends(End::PowerOff))
    };
    let bare = boot("bare", Stack::bare(host.clone()))?;
    let visor = boot("visor", Stack::on_visor(host))?;
    figures(&bare, &visor)
}

fn figures(bare: &str, visor: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for work in WORKS {
        let line = |what| format!("vmm: boot {work} {what} ");
        let without = Taken::read(bare, &line("ticks"), &line("exits"))?;
        let with = Taken::read(visor, &line("ticks"), &line("visor.exits"))?;
        figures.extend(workload::figures(BENCH, work, without, with)?);
        // The visor counts EPT violations of the VM and of its host alike; KVM handles the VM's.
        let violations = number(visor, &line("visor.violations"))?;
        let writes = violations.saturating_sub(number(visor, &line("faults"))?);
        figures.push(Figure::count(BENCH, format!("{work}.visor.ept_writes"), writes, "exits"));
        let ticks = number(visor, &line("visor.ticks"))?;
        let per_exit = format!("{work}.visor.instructions_per_exit");
        figures.push(Figure::ratio(BENCH, &per_exit, ticks, with.exits, "instructions")?);
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_to_tables_are_the_violations_that_are_not_the_vms() {
        let log = |counts: &[(&str, u64)]| -> String {
            let lines = |work| counts.iter().map(move |(what, count)| (work, what, count));
            let lines = WORKS.into_iter().flat_map(lines);
            lines.map(|(work, what, count)| format!("vmm: boot {work} {what} {count}\n")).collect()
        };
        let bare = log(&[("ticks", 1000), ("exits", 10), ("faults", 4)]);
        let theirs = [("visor.exits", 27), ("visor.violations", 9), ("visor.ticks", 54)];
        let visor = log(&[("ticks", 1100), ("exits", 10), ("faults", 4)]) + &log(&theirs);
        let lines: Vec<String> = figures(&bare, &visor).unwrap().iter().map(Figure::line).collect();
        for line in [
            "guest-boot: linux.visor.ratio = 1.1 1",
            "guest-boot: linux.visor.extra_exits = 17 exits",
            "guest-boot: linux.visor.ept_writes = 5 exits",
            "guest-boot: linux-2m.visor.instructions_per_exit = 2.0 instructions",
        ] {
            assert!(lines.iter().any(|found| found == line), "no {line} in {lines:?}");
        }
    }
}
