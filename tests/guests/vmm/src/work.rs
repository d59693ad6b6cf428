//! Work for a kernel, to be compared with and without a visor below: `vmm: ticks WORK COUNT` and
//! `vmm: exits WORK COUNT`, the exits as the control port tells them.

use crate::meter::{Meter, clock};
use std::fs;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};

/// A byte goes to another process and comes back.
pub(crate) fn switches() -> Result<(), String> {
    const TURNS: usize = 3000;
    let mut other = other("echo")?;
    let (Some(mut to), Some(mut from)) = (other.stdin.take(), other.stdout.take()) else {
        return Err("no pipes".to_owned());
    };
    told("switches", || {
        let mut byte = [7];
        for _ in 0..TURNS {
            to.write_all(&byte).and_then(|()| from.read_exact(&mut byte))?;
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
    told("files", || {
        fs::create_dir("/work")?;
        for round in 0..3 {
            for name in 0..FILES {
                let (path, other) = (format!("/work/{name}"), format!("/work/{name}.{round}"));
                fs::write(&path, &content)?;
                fs::rename(&path, &other)?;
                assert!(fs::read(&other)? == content, "{other} changed");
            }
            fs::read_dir("/work")?.try_for_each(|file| fs::remove_file(file?.path()))?;
        }
        fs::remove_dir("/work")
    })
}

/// Processes start and end.
pub(crate) fn processes() -> Result<(), String> {
    told("processes", || (0..100).try_for_each(|_| Command::new("/vmm").status().map(drop)))
}

fn other(word: &str) -> Result<Child, String> {
    let mut command = Command::new("/vmm");
    command.arg(word).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(said)
}

fn said(why: io::Error) -> String {
    why.to_string()
}

/// Does `work` and prints what it took.
fn told(name: &str, work: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
    let mut meter = Meter::new()?;
    let mut exits = || meter.visor().map(|visor| visor.exits).ok_or("nobody counts exits");
    let (first, second) = (exits()?, exits()?);
    let began = clock();
    work().map_err(said)?;
    let ticks = clock() - began;
    // Reading exits, too.
    let exits = (exits()? - second).saturating_sub(second - first);
    println!("vmm: ticks {name} {ticks}");
    println!("vmm: exits {name} {exits}");
    Ok(())
}
