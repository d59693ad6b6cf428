//! Work for a kernel, to be compared with and without a visor below: `vmm: ticks WORK COUNT` and
//! `vmm: exits WORK COUNT`, the exits as the control port tells them.

mod compile;
mod database;
mod program;

use crate::meter::{Meter, clock};
pub(crate) use compile::compile;
pub(crate) use database::database;
use std::fs;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};

/// A byte goes to another process and comes back.
pub(crate) fn switches() -> Result<(), String> {
    const TURNS: usize = 10_000;
    let mut other = other("echo")?;
    let (Some(mut to), Some(mut from)) = (other.stdin.take(), other.stdout.take()) else {
        return Err("no pipes".to_owned());
    };
    told("switches", || {
        for turn in 0..TURNS {
            let (sent, mut back) = ([turn as u8], [0]);
            to.write_all(&sent).and_then(|()| from.read_exact(&mut back)).map_err(said)?;
            assert!(back == sent, "{back:?} came back of {sent:?}");
        }
        Ok(())
    })?;
    drop(to);
    other.wait().map(drop).map_err(said)
}

/// The other process of [`switches`].
pub(crate) fn echo() -> Result<(), String> {
    let (mut from, mut to, mut byte) = (io::stdin().lock(), io::stdout().lock(), [0]);
    while from.read(&mut byte).map_err(said)? == 1 {
        to.write_all(&byte).and_then(|()| to.flush()).map_err(said)?;
    }
    Ok(())
}

/// Files are written, read, renamed and removed.
pub(crate) fn files() -> Result<(), String> {
    const FILES: u8 = 200;
    let content = vec![0x5a; 16 << 10];
    let round = |round| {
        for name in 0..FILES {
            let (path, other) = (format!("/work/{name}"), format!("/work/{name}.{round}"));
            fs::write(&path, &content)?;
            fs::rename(&path, &other)?;
            assert!(fs::read(&other)? == content, "{other} changed");
        }
        fs::read_dir("/work")?.try_for_each(|file| fs::remove_file(file?.path()))
    };
    told("files", || {
        fs::create_dir("/work").map_err(said)?;
        (0..6).try_for_each(round).map_err(said)?;
        fs::remove_dir("/work").map_err(said)
    })
}

/// Processes start and end.
pub(crate) fn processes() -> Result<(), String> {
    let process = |_| {
        let status = Command::new("/vmm").status().map_err(said)?;
        if status.success() { Ok(()) } else { Err(status.to_string()) }
    };
    told("processes", || (0..100).try_for_each(process))
}

fn other(word: &str) -> Result<Child, String> {
    let mut command = Command::new("/vmm");
    command.arg(word).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(said)
}

fn said(why: io::Error) -> String {
    why.to_string()
}

/// Does `work` and prints what it took.
fn told(name: &str, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let mut meter = Meter::new()?;
    let mut exits = || meter.visor().map(|visor| visor.exits).ok_or("nobody counts exits");
    let (first, second) = (exits()?, exits()?);
    let began = clock();
    work()?;
    let ticks = clock() - began;
    // Reading exits, too.
    let exits = (exits()? - second).saturating_sub(second - first);
    println!("vmm: ticks {name} {ticks}");
    println!("vmm: exits {name} {exits}");
    Ok(())
}
