//! `guest-work`: pieces of work in a Linux VM, on the visor and without it, the VM's memory in huge
//! pages and, under names that end in `-4k`, in small ones.

use std::env;

use anyhow::{Context, Result, bail};

use super::Figure;
use super::workload::{self, Taken};
use crate::machine::End;
use crate::suite::{Boot, Host, Rig, Stack};

const BENCH: &str = "guest-work";

/// What `vmm` can do in a VM, by its names.
const WORKS: [&str; 5] = ["compile", "database", "files", "switches", "processes"];

/// The environment variable that leaves only some of them.
const CHOICE: &str = "VISOR_WORK";

/// The VMs in which they are done, in this order: as `vmm` calls each, what its figures' names end
/// in. Huge pages come second: they stay with the host's pool.
const VMS: [(&str, &str); 2] = [("linux", "-4k"), ("linux-2m", "")];

/// Millions of instructions in an emulated second: about what processors do. With fewer, ticks of
/// the kernels' clocks, each of them several exits, come too often: with the usual 20 they are nearly
/// all exits that there are.
const MIPS: u64 = 1000;

/// Boots both ways and compares.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let works = chosen(&env::var(CHOICE).unwrap_or_default())?;
    let words: String = works.iter().map(|work| format!("+{work}")).collect();
    let words = format!("init.do=kvm-load,guest,guest-2m init.next=run:/vmm{words}");
    let host = Host::KvmWorks(words);
    let mut lines = Vec::new();
    for (vm, _) in VMS {
        lines.extend(works.iter().map(|work| format!("guest: vmm: PASS {work}")));
        lines.push(format!("vmm: PASS {vm}"));
    }
    lines.push("init: done".to_owned());
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let boot = |label, stack| {
        let boot = Boot::of(stack).on(|machine| (machine.mips, machine.seconds) = (MIPS, 20));
        rig.check(label, &boot.expect(&lines).never("*vmm: FAIL *").ends(End::PowerOff))
    };
    let bare = boot("bare", Stack::bare(host.clone()))?;
    let visor = boot("visor", Stack::on_visor(host))?;
    figures(&works, &bare, &visor)
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

fn figures(works: &[&str], bare: &str, visor: &str) -> Result<Vec<Figure>> {
    let (bare, visor) = (parts(bare)?, parts(visor)?);
    let mut figures = Vec::new();
    // Huge pages first.
    for (((_, suffix), bare), visor) in VMS.iter().zip(bare).zip(visor).rev() {
        for work in works {
            let taken = |serial| {
                let line = |what| format!("guest: vmm: {what} {work} ");
                Taken::read(serial, &line("ticks"), &line("exits"))
            };
            let name = format!("{work}{suffix}");
            figures.extend(workload::figures(BENCH, &name, taken(bare)?, taken(visor)?)?);
        }
    }
    Ok(figures)
}

/// What was said in each of the VMs.
fn parts(mut serial: &str) -> Result<[&str; VMS.len()]> {
    let mut parts = [""; VMS.len()];
    for ((vm, _), part) in VMS.iter().zip(&mut parts) {
        let end = format!("vmm: PASS {vm}\n");
        (*part, serial) = serial.split_once(&end).with_context(|| format!("{vm} has no end"))?;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a boot says in which each of `works` takes `ticks` in the VM of that index.
    fn log(works: &[&str], ticks: [u64; 2]) -> String {
        let mut log = String::new();
        for ((vm, _), ticks) in VMS.iter().zip(ticks) {
            for work in works {
                log += &format!("guest: vmm: ticks {work} {ticks}\nguest: vmm: exits {work} 2\n");
            }
            log += &format!("vmm: PASS {vm}\n");
        }
        log
    }

    #[test]
    fn a_work_that_did_not_run_gives_no_figures() {
        let all = log(&WORKS, [10, 10]);
        assert_eq!(figures(&WORKS, &all, &all).unwrap().len(), 2 * 7 * WORKS.len());
        assert!(figures(&WORKS, &all, &log(&WORKS[1..], [10, 10])).is_err());
        assert!(figures(&WORKS, &all, all.trim_end()).is_err());
    }

    #[test]
    fn each_vm_has_its_own_figures() {
        let (bare, visor) = (log(&["files"], [100, 10]), log(&["files"], [130, 12]));
        let figures = figures(&["files"], &bare, &visor).unwrap();
        let lines: Vec<String> = figures.iter().map(Figure::line).collect();
        for line in ["files.visor.ratio = 1.2 1", "files-4k.visor.ratio = 1.3 1"] {
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
