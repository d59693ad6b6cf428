//! `guest-boot`: a Linux VM of `vmm` from its making to its end, on the visor and without it, its
//! memory in small pages and in huge ones, with a ticket and without.

use anyhow::Result;

use super::workload::{self, Configs, ON_VISOR, PLAIN, TICKETED, Taken};
use super::{Figure, number};
use crate::machine::End;
use crate::suite::{Boot, Host, Rig, Stack};

const BENCH: &str = "guest-boot";
/// The VMs: what `init` does for each, and what `vmm` calls it.
const WORKS: [(&str, &str); 2] = [("guest", "linux"), ("guest-2m", "linux-2m")];

/// Boots both ways and compares.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let boot = |label, stack: fn(Host) -> Stack, endings: &[&str]| {
        let (mut words, mut lines) = ("init.do=kvm-load".to_owned(), Vec::new());
        for (action, work) in WORKS {
            for ending in endings {
                words += &format!(",{action}{ending}");
                lines.push(format!("vmm: PASS {work}{ending}"));
            }
        }
        lines.push("init: done".to_owned());
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let boot = Boot::of(stack(Host::KvmLinux(words))).on(|machine| machine.seconds = 400);
        rig.check(label, &boot.expect(&lines).never("*vmm: FAIL *").ends(End::PowerOff))
    };
    let bare = boot("bare", Stack::bare, PLAIN)?;
    let visor = boot("visor", workload::on_visor, ON_VISOR)?;
    figures(&bare, &visor, ON_VISOR)
}

/// The figures of boots; on the visor there were the VMs whose names end in `endings`.
fn figures(bare: &str, visor: &str, endings: &[&str]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (_, work) in WORKS {
        let line = |what| format!("vmm: boot {work} {what} ");
        let without = Taken::read(bare, &line("ticks"), &line("exits"))?;
        let with = |ending| {
            let line = |what| format!("vmm: boot {work}{ending} {what} ");
            Taken::read(visor, &line("ticks"), &line("visor.exits"))
        };
        let on_visor = with("")?;
        let protected = endings.contains(&TICKETED).then(|| with(TICKETED)).transpose()?;
        // The tenant makes the ticket, somewhere else and long before.
        let ticket = protected.map(|_| {
            let line = |what| format!("vmm: boot {work}{TICKETED} ticket.{what} ");
            Taken::read(visor, &line("ticks"), &line("visor.exits"))
        });
        let ticket = ticket.transpose()?;
        let protected = protected.zip(ticket).map(|(whole, ticket)| whole.without(ticket));
        let configs = Configs { bare: without, visor: on_visor, protected };
        figures.extend(configs.figures(BENCH, work)?);
        // The visor counts EPT violations of the VM and of its host alike; KVM handles the VM's.
        let violations = number(visor, &line("visor.violations"))?;
        let writes = violations.saturating_sub(number(visor, &line("faults"))?);
        figures.push(Figure::count(BENCH, format!("{work}.visor.ept_writes"), writes, "exits"));
        let ticks = number(visor, &line("visor.ticks"))?;
        let per_exit = format!("{work}.visor.instructions_per_exit");
        figures.push(Figure::ratio(BENCH, &per_exit, ticks, on_visor.exits, "instructions")?);
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of VMs whose names end in `ending`.
    fn log(ending: &str, counts: &[(&str, u64)]) -> String {
        let lines = |(_, work)| {
            let line =
                move |(what, count): &_| format!("vmm: boot {work}{ending} {what} {count}\n");
            counts.iter().map(line).collect::<String>()
        };
        WORKS.map(lines).concat()
    }

    fn lines(bare: &str, visor: &str, endings: &[&str]) -> Vec<String> {
        figures(bare, visor, endings).unwrap().iter().map(Figure::line).collect()
    }

    const THEIRS: [(&str, u64); 3] =
        [("visor.exits", 27), ("visor.violations", 9), ("visor.ticks", 54)];

    #[test]
    fn writes_to_tables_are_the_violations_that_are_not_the_vms() {
        let bare = log("", &[("ticks", 1000), ("exits", 10), ("faults", 4)]);
        let visor = log("", &[("ticks", 1100), ("exits", 10), ("faults", 4)]) + &log("", &THEIRS);
        let lines = lines(&bare, &visor, PLAIN);
        for line in [
            "guest-boot: linux.visor.ratio = 1.1 1",
            "guest-boot: linux.visor.extra_exits = 17 exits",
            "guest-boot: linux.visor.ept_writes = 5 exits",
            "guest-boot: linux-2m.visor.instructions_per_exit = 2.0 instructions",
        ] {
            assert!(lines.iter().any(|found| found == line), "no {line} in {lines:?}");
        }
    }

    #[test]
    fn a_vm_with_a_ticket_has_figures_of_its_own() {
        let bare = log("", &[("ticks", 1000), ("exits", 10)]);
        let visor = log("", &[("ticks", 1100), ("faults", 4)]) + &log("", &THEIRS);
        assert!(figures(&bare, &visor, &["", TICKETED]).is_err());
        let visor = visor + &log(TICKETED, &[("ticks", 1800), ("visor.exits", 140)]);
        assert!(figures(&bare, &visor, &["", TICKETED]).is_err());
        let visor = visor + &log(TICKETED, &[("ticket.ticks", 300), ("ticket.visor.exits", 100)]);
        let lines = lines(&bare, &visor, &["", TICKETED]);
        for line in [
            "guest-boot: linux.visor.ratio = 1.1 1",
            "guest-boot: linux.protected.ratio = 1.5 1",
            "guest-boot: linux-2m.protected.extra_exits = 30 exits",
        ] {
            assert!(lines.iter().any(|found| found == line), "no {line} in {lines:?}");
        }
    }
}
