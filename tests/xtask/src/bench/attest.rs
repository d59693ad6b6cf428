//! `attest`: what the visor's keys and sealed tickets cost, in Bochs, which counts instructions and has no TPM.

use anyhow::{Context, Result};

use super::{Figure, number};
use crate::machine::End;
use crate::suite::{Boot, Host, Rig, Stack, protected};

const BENCH: &str = "attest";

/// Tickets of `vmm`'s, by the names that it has for them: taken; refused by their last byte, and by their first part.
const TICKETS: [&str; 3] = ["sealed", "changed-at-its-end", "for-another-visor"];

/// Boots with keys, and submits tickets.
pub(super) fn measure(rig: &Rig<'_>) -> Result<Vec<Figure>> {
    let on_visor = |words: &str, host| Stack { visor: Some(words.to_owned()), host };
    let host = Host::Small("init.do=".to_owned());
    let keys = Boot::of(on_visor("log=debug", host)).expect(&["*init: done"]).ends(End::PowerOff);
    let keys = rig.check("keys", &keys)?;
    let host = protected::host("protected-sealed");
    let tickets = Boot::of(on_visor("insecure-no-iommu log=error", host))
        .on(protected::memory)
        .expect(&["*vmm: PASS protected-sealed", "*init: done"])
        .ends(End::PowerOff);
    figures(&keys, &rig.check("tickets", &tickets)?)
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
}
