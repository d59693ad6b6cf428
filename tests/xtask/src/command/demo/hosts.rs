//! The scenes in which an unmodified host boots on the visor.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Seen;
use crate::command::run::Show;
use crate::machine::{self, End, Machine};
use crate::suite::{Host, Kit, Stack};

pub(super) const LINUX: &str = "The visor takes its memory out of every map, starts the kernel \
    without privilege, and only answers what the kernel may not do itself. Unpacking the kernel \
    takes about a minute in the emulator before its first line appears.";

pub(super) const XEN: &str =
    "Xen believes that it owns the machine. It does not: the visor is below it.";

pub(super) fn linux() -> Host {
    Host::Stock("init.do=stats".to_owned())
}

pub(super) fn xen() -> Host {
    Host::Xen { xen: String::new(), dom0: "init.do=stats".to_owned() }
}

/// Boots `host` live.
pub(super) fn play(host: Host, kit: &Kit, dir: &Path) -> Result<Seen> {
    let machine = Machine { seconds: 600, ..Machine::default() };
    let payload = kit.payload(&Stack::on_visor(host), &machine)?;
    let outcome = machine::boot(&machine, &payload, dir, &mut Show::new(None))?;
    let serial = fs::read(&outcome.serial).context("cannot read the serial log")?;
    let serial = String::from_utf8_lossy(&serial).into_owned();
    let is_good = serial.contains("init: userspace reached") && outcome.end == End::PowerOff;
    let words = if is_good { "reached userspace and powered off" } else { "FAILED" };
    Ok(Seen {
        is_good,
        words: format!("{words}; {}", exits(&serial)),
        processor_seconds: outcome.cpu.as_secs(),
        serial: outcome.serial,
        attacks: Value::Null,
    })
}

/// What the host read from the visor about its exits.
fn exits(serial: &str) -> String {
    let mut lines = serial.lines().filter_map(|line| line.split_once("stats: exits "));
    match lines.next_back() {
        Some((_, count)) => format!("{} exits to the visor", count.trim()),
        None => "number of exits unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_exits_is_what_the_host_read_last() {
        assert_eq!(exits("stats: exits.cpuid 4\r\nstats: exits 12\r\n"), "12 exits to the visor");
        assert_eq!(exits(""), "number of exits unknown");
    }
}
