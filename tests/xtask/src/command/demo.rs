//! `cargo xtask demo`: unmodified hosts on the visor, and what a ticket changes for a VM, live.

mod attacks;
mod hosts;
mod sets;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::packages::{self, Need};
use crate::paths;
use crate::suite::Kit;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Play this scene only; several may be named
    #[arg(long, value_enum, value_name = "SCENE")]
    only: Vec<Scene>,
    /// Play all scenes: also an unmodified Linux and an unmodified Xen that boot on the visor
    #[arg(long, conflicts_with = "only")]
    all: bool,
    /// Write what was seen to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Columns of a terminal that every newcomer has.
const WIDTH: usize = 80;

/// A thing to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scene {
    /// The distribution's unmodified Linux kernel
    Linux,
    /// The distribution's unmodified Xen with a Linux dom0
    Xen,
    /// Attacks of root on a Linux VM in QEMU, without and with a ticket
    Attacks,
    /// Some 150 attacks on a small VM, without and with a ticket
    MoreAttacks,
}

impl Scene {
    const fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Xen => "xen",
            Self::Attacks => "attacks",
            Self::MoreAttacks => "more-attacks",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Linux => "the distribution's unmodified Linux kernel on the visor",
            Self::Xen => "the distribution's unmodified Xen with a Linux dom0 on the visor",
            Self::Attacks => "root against a Linux VM in QEMU, without and with a ticket",
            Self::MoreAttacks => "root against a small VM, without and with a ticket",
        }
    }

    /// What to know before it starts.
    const fn words(self) -> &'static str {
        match self {
            Self::Linux => hosts::LINUX,
            Self::Xen => hosts::XEN,
            Self::Attacks => attacks::LINUX,
            Self::MoreAttacks => attacks::SMALL,
        }
    }

    /// Those of `only`, or else those with attacks, in the order of the play.
    fn chosen(only: &[Self]) -> Vec<Self> {
        let only = if only.is_empty() { &[Self::Attacks, Self::MoreAttacks] } else { only };
        Self::value_variants().iter().copied().filter(|scene| only.contains(scene)).collect()
    }
}

/// What came of a scene.
#[derive(Debug)]
struct Seen {
    is_good: bool,
    /// For the end of the demo.
    words: String,
    processor_seconds: u64,
    serial: PathBuf,
    /// The attacks, where there are any.
    attacks: Value,
}

/// Builds everything, plays the scenes and says what was seen. Fails unless all of it is as it must be.
pub(crate) fn demo(options: &Options) -> Result<ExitCode> {
    packages::install(&[Need::Build, Need::Image, Need::Bochs])?;
    let kit = Kit::new();
    let mut seen = Vec::new();
    let only = if options.all { Scene::value_variants() } else { &options.only };
    for scene in Scene::chosen(only) {
        println!("\n=== {}\n{}", scene.title(), wrapped(scene.words()));
        let dir = paths::target("demo")?.join(scene.name());
        let what = match scene {
            Scene::Linux => hosts::play(hosts::linux(), &kit, &dir)?,
            Scene::Xen => hosts::play(hosts::xen(), &kit, &dir)?,
            Scene::Attacks => attacks::linux(&kit, &dir)?,
            Scene::MoreAttacks => attacks::small(&kit, &dir)?,
        };
        seen.push((scene, what));
    }
    tell(&seen);
    if let Some(file) = &options.json {
        fs::write(file, format!("{:#}\n", json(&seen)))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let is_good = seen.iter().all(|(_, what)| what.is_good);
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what was seen, a line for each scene.
fn tell(seen: &[(Scene, Seen)]) {
    println!("\n=== seen");
    for (scene, what) in seen {
        println!(
            "{}: {}; {} s of processor time; log: {}",
            scene.title(),
            what.words,
            what.processor_seconds,
            what.serial.display()
        );
    }
}

/// Paragraphs as indented lines that fit a terminal.
fn wrapped(words: &str) -> String {
    let mut text = String::new();
    for paragraph in words.lines() {
        let mut line = "   ".to_owned();
        for word in paragraph.split_whitespace() {
            if line.len() + 1 + word.len() > WIDTH {
                text += &std::mem::replace(&mut line, "   ".to_owned());
                text.push('\n');
            }
            line.push(' ');
            line += word;
        }
        text += &line;
        text.push('\n');
    }
    text
}

/// One object for each scene.
fn json(seen: &[(Scene, Seen)]) -> Value {
    let object = |(scene, what): &(Scene, Seen)| {
        json!({
            "scene": scene.name(),
            "good": what.is_good,
            "words": what.words,
            "processor_seconds": what.processor_seconds,
            "log": what.serial.display().to_string(),
            "attacks": what.attacks,
        })
    };
    seen.iter().map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attacks_are_played_unless_scenes_are_named() {
        assert_eq!(Scene::chosen(&[]), [Scene::Attacks, Scene::MoreAttacks]);
        assert_eq!(Scene::chosen(&[Scene::Attacks, Scene::Linux]), [Scene::Linux, Scene::Attacks]);
    }

    #[test]
    fn words_are_wrapped_within_the_width_and_none_is_lost() {
        for scene in Scene::value_variants() {
            let text = wrapped(scene.words());
            assert!(text.lines().all(|line| line.len() <= WIDTH && line.starts_with("    ")));
            assert!(text.split_whitespace().eq(scene.words().split_whitespace()));
        }
    }

    #[test]
    fn a_scene_is_called_as_it_is_named_on_the_command_line() {
        for scene in Scene::value_variants() {
            assert_eq!(Scene::from_str(scene.name(), false), Ok(*scene));
        }
    }
}
