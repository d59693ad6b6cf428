//! `guest-work`: pieces of work in a Linux VM, on the visor and without it, with a ticket and without,
//! the VM's memory in huge pages and, under names that end in `-4k`, in small ones.

use std::env;

use anyhow::{Context, Result, bail};

use super::Figure;
use super::workload::{self, Configs, ON_VISOR, PLAIN, TICKETED, Taken};
use crate::machine::End;
use crate::suite::{Boot, Host, Rig, Stack};

const BENCH: &str = "guest-work";

/// What `vmm` can do in a VM, by its names.
const WORKS: [&str; 5] = ["compile", "database", "files", "switches", "processes"];

/// The environment variable that leaves only some of them.
const CHOICE: &str = "VISOR_WORK";

/// The VMs in which they are done, in this order: what `init` does for each, what `vmm` calls it, and
/// what its figures' names end in. Huge pages come second: they stay with the host's pool.
const VMS: [(&str, &str, &str); 2] = [("guest", "linux", "-4k"), ("guest-2m", "linux-2m", "")];

/// Millions of instructions in an emulated second: about what processors do. With fewer, ticks of
/// the kernels' clocks, each of them several exits, come too often: with the usual 20 they are nearly
/// all exits that there are.
const MIPS: u64 = 1000;

/// Boots both ways and compares.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let works = chosen(&env::var(CHOICE).unwrap_or_default())?;
    let next: String = works.iter().map(|work| format!("+{work}")).collect();
    let boot = |label, stack: fn(Host) -> Stack, endings: &[&str]| {
        let (mut words, mut lines) = ("init.do=kvm-load".to_owned(), Vec::new());
        for (action, vm, _) in VMS {
            for ending in endings {
                words += &format!(",{action}{ending}");
                lines.extend(works.iter().map(|work| format!("guest: vmm: PASS {work}")));
                lines.push(format!("vmm: PASS {vm}{ending}"));
            }
        }
        words += &format!(" init.next=run:/vmm{next}");
        lines.push("init: done".to_owned());
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let boot = Boot::of(stack(Host::KvmWorks(words)))
            .on(|machine| (machine.mips, machine.seconds) = (MIPS, 20));
        rig.check(label, &boot.expect(&lines).never("*vmm: FAIL *").ends(End::PowerOff))
    };
    let bare = boot("bare", Stack::bare, PLAIN)?;
    let visor = boot("visor", workload::on_visor, ON_VISOR)?;
    figures(&works, &bare, &visor, ON_VISOR)
}

/// The works that `words` name, or all.
fn chosen(words: &str) -> Result<Vec<&'static str>> {
    if let Some(word) = words.split_whitespace().find(|word| !WORKS.contains(word)) {
        bail!("{CHOICE} names {word}: there are {}", WORKS.join(", "));
    }
    let named = |work: &&str| words.split_whitespace().any(|word| word == *work);
    let chosen: Vec<&str> = WORKS.into_iter().filter(named).collect();
    Ok(if chosen.is_empty() { WORKS.to_vec() } else { chosen })
}

/// The figures of boots; on the visor there were the VMs whose names end in `endings`.
fn figures(works: &[&str], bare: &str, visor: &str, endings: &[&str]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    // Huge pages first.
    for (_, vm, suffix) in VMS.into_iter().rev() {
        let (bare, plain) = (part(bare, vm)?, part(visor, vm)?);
        let ticketed = format!("{vm}{TICKETED}");
        let ticketed = endings.contains(&TICKETED).then(|| part(visor, &ticketed)).transpose()?;
        for work in works {
            let taken = |serial| {
                let line = |what| format!("guest: vmm: {what} {work} ");
                Taken::read(serial, &line("ticks"), &line("exits"))
            };
            let (bare, visor) = (taken(bare)?, taken(plain)?);
            let configs = Configs { bare, visor, protected: ticketed.map(taken).transpose()? };
            figures.extend(configs.figures(BENCH, &format!("{work}{suffix}"))?);
        }
    }
    Ok(figures)
}

/// What was said in the VM that `vmm` calls `vm`: between the end of the one before and its own.
fn part<'s>(serial: &'s str, vm: &str) -> Result<&'s str> {
    const END: &str = "\nvmm: PASS linux";
    let (before, _) = serial
        .split_once(&format!("\nvmm: PASS {vm}\n"))
        .with_context(|| format!("{vm} has no end"))?;
    Ok(before.rsplit_once(END).map_or(before, |(_, own)| own))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a boot says of VMs whose names end in `ending`, in which each of `works` takes `ticks` in the
    /// VM of that index.
    fn log(works: &[&str], ending: &str, ticks: [u64; 2]) -> String {
        let mut log = String::new();
        for ((_, vm, _), ticks) in VMS.iter().zip(ticks) {
            for work in works {
                log += &format!("guest: vmm: ticks {work} {ticks}\nguest: vmm: exits {work} 2\n");
            }
            log += &format!("vmm: PASS {vm}{ending}\n");
        }
        log
    }

    #[test]
    fn a_work_that_did_not_run_gives_no_figures() {
        let all = log(&WORKS, "", [10, 10]);
        assert_eq!(figures(&WORKS, &all, &all, PLAIN).unwrap().len(), 2 * 7 * WORKS.len());
        assert!(figures(&WORKS, &all, &log(&WORKS[1..], "", [10, 10]), PLAIN).is_err());
        assert!(figures(&WORKS, &all, all.trim_end(), PLAIN).is_err());
        assert!(figures(&WORKS, &all, &all, &["", TICKETED]).is_err());
    }

    #[test]
    fn each_vm_has_its_own_figures() {
        let (bare, visor) = (log(&["files"], "", [100, 10]), log(&["files"], "", [130, 12]));
        let visor = visor + &log(&["files"], TICKETED, [150, 14]);
        let figures = figures(&["files"], &bare, &visor, &["", TICKETED]).unwrap();
        let lines: Vec<String> = figures.iter().map(Figure::line).collect();
        for line in [
            "files.visor.ratio = 1.2 1",
            "files-4k.visor.ratio = 1.3 1",
            "files.protected.ratio = 1.4 1",
            "files-4k.protected.ratio = 1.5 1",
        ] {
            let line = format!("guest-work: {line}");
            assert!(lines.contains(&line), "no {line} in {lines:?}");
        }
    }

    #[test]
    fn works_are_chosen_by_their_names() {
        assert_eq!(chosen("").unwrap(), WORKS);
        assert_eq!(chosen(" processes compile").unwrap(), ["compile", "processes"]);
        assert!(chosen("compile sleep").unwrap_err().to_string().contains("names sleep"));
    }
}
