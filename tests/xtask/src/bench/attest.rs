//! `attest`: what the visor's keys, its TPM and sealed tickets cost, in Bochs, which counts instructions and has no TPM:
//! that is at the end of a serial line, for which nothing is counted.

use anyhow::{Context, Result, bail};

use super::{Figure, number};
use crate::machine::{Authority, End, Image, Line, Shared};
use crate::paths;
use crate::suite::{Boot, Host, LINUX, Rig, Stack, protected};

const BENCH: &str = "attest";

/// Tickets of `vmm`'s, by the names that it has for them: taken; refused by their last byte, and by their first part.
const TICKETS: [&str; 3] = ["sealed", "changed-at-its-end", "for-another-visor"];

/// Boots with keys and with a TPM, and submits tickets.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let on_visor = |words: &str, host| Stack { visor: Some(words.to_owned()), host };
    let host = Host::Small("init.do=".to_owned());
    let keys = Boot::of(on_visor("log=debug", host)).expect(&["*init: done"]).ends(End::PowerOff);
    let keys = rig.check("keys", &keys)?;
    let host = protected::host("protected-sealed");
    let tickets = Boot::of(on_visor("insecure-no-iommu insecure-processor log=error", host))
        .on(protected::memory)
        .expect(&["*vmm: PASS protected-sealed", "*init: done"])
        .ends(End::PowerOff);
    let mut figures = figures(&keys, &rig.check("tickets", &tickets)?)?;
    figures.extend(boot_figures(&with_tpm(rig)?)?);
    Ok(figures)
}

/// What a boot with a TPM says, which has two banks of PCRs.
fn with_tpm(rig: &Rig<'_>) -> Result<String> {
    let state = rig.dir.join("state");
    paths::emptied(&state)?;
    Authority::new(&rig.dir.join("authority"))?.certify(&state)?;
    let mut tpm = Shared::of(&state);
    tpm.restart()?;
    let line = Line::with(&tpm.socket())?;
    let port = line.port()?;
    let files = vec![
        Image::new(rig.kit.serial_tpm()?, "log=debug"),
        Image::new(rig.kit.small()?, format!("{LINUX} init.do=")),
        Image::new(rig.kit.guests()?.initrd, ""),
    ];
    let boot = Boot::of(Stack::bare(Host::Files(files)))
        .on(|machine| machine.com2 = Some(port))
        .expect(&["*init: done"])
        .ends(End::PowerOff);
    let served = line.serve(())?;
    let log = rig.check("tpm", &boot);
    served.finish()?;
    log
}

/// What measuring took, keys included.
fn boot_figures(serial: &str) -> Result<[Figure; 3]> {
    let serial = serial.replace([',', '\r'], "");
    let line = super::text(&serial, "visor: [debug] COM2: ")?;
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [commands, bytes, waited] = numbers[..] else {
        bail!("no three numbers: {line}");
    };
    let ticks = number(&serial.replace(" ticks", ""), "visor: [debug] TPM: ")?;
    let instructions = ticks.checked_sub(waited).context("the line took longer than all")?;
    Ok([
        Figure::count(BENCH, "boot.tpm.commands", commands, "commands"),
        Figure::count(BENCH, "boot.tpm.bytes", bytes, "bytes"),
        Figure::count(BENCH, "boot.tpm.instructions", instructions, "instructions"),
    ])
}

fn figures(keys: &str, tickets: &str) -> Result<Vec<Figure>> {
    let keys = keys.replace(" ticks", "");
    let keys = number(&keys, "visor: [debug] TPM: ")?;
    let mut figures = vec![Figure::count(BENCH, "keys", keys, "instructions")];
    for name in TICKETS {
        let cost = super::text(tickets, &format!("vmm: COST {name} "))?;
        let cost: Option<Vec<u64>> = cost.split(' ').map(|number| number.parse().ok()).collect();
        let [instructions, exits, bytes] =
            cost.and_then(|cost| cost.try_into().ok()).context("a cost is three numbers")?;
        for (what, value, unit) in [
            ("instructions", instructions, "instructions"),
            ("exits", exits, "exits"),
            ("bytes", bytes, "bytes"),
        ] {
            figures.push(Figure::count(BENCH, format!("{name}.{what}"), value, unit));
        }
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_come_from_the_two_serial_logs() {
        let costs = TICKETS.map(|name| format!("vmm: COST {name} 70 3 88\n")).concat();
        let lines = figures("visor: [debug] TPM: 90 ticks\n", &costs).unwrap();
        let lines: Vec<String> = lines.iter().map(Figure::line).collect();
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[0], "attest: keys = 90 instructions");
        assert_eq!(lines[1], "attest: sealed.instructions = 70 instructions");
        assert!(figures("visor: [debug] TPM: 90 ticks\n", "").is_err());
    }

    #[test]
    fn the_line_s_ticks_do_not_count() {
        let line = |ticks: u32| {
            format!(
                "visor: [debug] COM2: 6 commands, 900 bytes, {ticks} ticks\nvisor: [debug] TPM: 90 ticks\n"
            )
        };
        let lines = boot_figures(&line(60)).unwrap().map(|figure| figure.line());
        assert_eq!(lines[0], "attest: boot.tpm.commands = 6 commands");
        assert_eq!(lines[1], "attest: boot.tpm.bytes = 900 bytes");
        assert_eq!(lines[2], "attest: boot.tpm.instructions = 30 instructions");
        assert!(boot_figures(&line(91)).is_err());
        assert!(boot_figures("visor: [debug] TPM: 90 ticks\n").is_err());
    }
}
