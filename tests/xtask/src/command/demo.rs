//! `cargo xtask demo`: an unmodified Linux and an unmodified Xen on the visor, live.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::run::Show;
use crate::machine::{self, End, Machine};
use crate::packages::{self, Need};
use crate::paths;
use crate::suite::{Host, Kit, Stack};

/// A thing to watch: its title, what to look for, and the host.
struct Scene {
    name: &'static str,
    title: &'static str,
    words: &'static str,
    host: Host,
}

fn scenes() -> [Scene; 2] {
    [
        Scene {
            name: "linux",
            title: "the distribution's unmodified Linux kernel on the visor",
            words: "The visor takes its memory out of every map, starts the kernel without \
                    privilege, and only answers what the kernel may not do itself. Unpacking the \
                    kernel takes about a minute in the emulator before its first line appears.",
            host: Host::Stock("init.do=stats".to_owned()),
        },
        Scene {
            name: "xen",
            title: "the distribution's unmodified Xen with a Linux dom0 on the visor",
            words: "Xen believes that it owns the machine. It finds no VMX: that is the visor's.",
            host: Host::Xen { xen: String::new(), dom0: "init.do=stats".to_owned() },
        },
    ]
}

/// Builds everything, boots both hosts and says what was seen.
pub(crate) fn demo() -> Result<ExitCode> {
    packages::install(&[Need::Build, Need::Image, Need::Bochs])?;
    let kit = Kit::new();
    let mut seen = Vec::new();
    for scene in scenes() {
        seen.push(play(scene, &kit)?);
    }
    println!("\n=== seen");
    for (_, line) in &seen {
        println!("{line}");
    }
    let good = seen.iter().all(|(verdict, _)| *verdict == Verdict::Up);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What became of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Up,
    Failed,
}

/// Boots the host of `scene` live; the verdict and a line about what was seen.
fn play(scene: Scene, kit: &Kit) -> Result<(Verdict, String)> {
    println!("\n=== {}\n    {}\n", scene.title, scene.words);
    let machine = Machine { seconds: 600, ..Machine::default() };
    let payload = kit.payload(&Stack::on_visor(scene.host), &machine)?;
    let dir = paths::target("demo")?.join(scene.name);
    let outcome = machine::boot(&machine, &payload, &dir, &mut Show::new(None))?;
    let serial = fs::read(&outcome.serial).context("cannot read the serial log")?;
    let serial = String::from_utf8_lossy(&serial).into_owned();
    let up = serial.contains("init: userspace reached") && outcome.end == End::PowerOff;
    let (verdict, words) = if up {
        (Verdict::Up, "reached userspace and powered off")
    } else {
        (Verdict::Failed, "FAILED")
    };
    let line = format!(
        "{}: {words}; {}; {} s of processor time; log: {}",
        scene.title,
        exits(&serial),
        outcome.cpu.as_secs(),
        outcome.serial.display()
    );
    Ok((verdict, line))
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
