//! `guest-work`: pieces of work in a Linux VM in huge pages, on the visor and without it.

use anyhow::Result;

use super::Figure;
use super::workload::{self, Taken};
use crate::machine::End;
use crate::suite::{Boot, Host, Rig, Stack};

const BENCH: &str = "guest-work";

/// What `vmm` can do in a VM, by its names.
const WORKS: [&str; 3] = ["switches", "files", "processes"];

/// Boots both ways and compares.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let words: String = WORKS.iter().map(|work| format!("+{work}")).collect();
    let host = Host::KvmLinux(format!("init.do=kvm-load,guest-2m init.next=run:/vmm{words}"));
    let boot = |label, stack| {
        let boot = Boot::of(stack).on(|machine| machine.seconds = 200);
        let lines = WORKS.map(|work| format!("guest: vmm: PASS {work}"));
        let lines: Vec<&str> = lines.iter().map(String::as_str).chain(["init: done"]).collect();
        rig.check(label, &boot.expect(&lines).never("*vmm: FAIL *").ends(End::PowerOff))
    };
    let bare = boot("bare", Stack::bare(host.clone()))?;
    let visor = boot("visor", Stack::on_visor(host))?;
    figures(&bare, &visor)
}

fn figures(bare: &str, visor: &str) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for work in WORKS {
        let taken = |serial| {
            let line = |what| format!("guest: vmm: {what} {work} ");
            Taken::read(serial, &line("ticks"), &line("exits"))
        };
        figures.extend(workload::figures(BENCH, work, taken(bare)?, taken(visor)?)?);
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_that_did_not_run_gives_no_figures() {
        let lines =
            |work: &str| format!("guest: vmm: ticks {work} 10\nguest: vmm: exits {work} 2\n");
        let all: String = WORKS.into_iter().map(lines).collect();
        assert_eq!(figures(&all, &all).unwrap().len(), 7 * WORKS.len());
        let some: String = WORKS.into_iter().skip(1).map(lines).collect();
        assert!(figures(&all, &some).is_err());
    }
}
