//! A console and files that the host shares by virtio.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use crate::{system, virtio};

const CONSOLE: &str = "/dev/hvc0";
/// What the host calls the folder that it shares, and where that is here.
const FOLDER: &str = "served";
const HERE: &str = "/served";

/// Says a line to the console, and sends each one that comes then back reversed, up to one that says `end`.
pub(crate) fn console() -> Result<(), String> {
    let fail = |why: std::io::Error| format!("{CONSOLE}: {why}");
    let mut console = OpenOptions::new().read(true).write(true).open(CONSOLE).map_err(fail)?;
    unechoed(&console)?;
    console.write_all(b"ready\n").map_err(fail)?;
    let lines = BufReader::new(console.try_clone().map_err(fail)?).lines();
    for (count, line) in lines.enumerate() {
        let line = line.map_err(fail)?;
        let back: String = line.chars().rev().chain(['\n']).collect();
        console.write_all(back.as_bytes()).map_err(fail)?;
        if line == "end" {
            println!("init: console: {count} lines");
            return Ok(());
        }
    }
    Err(format!("{CONSOLE}: ended"))
}

/// Bytes come and go through the terminal as they are.
fn unechoed(terminal: &File) -> Result<(), String> {
    let mut state = MaybeUninit::uninit();
    // SAFETY: an open file, and room for its state.
    let result = unsafe { libc::tcgetattr(terminal.as_raw_fd(), state.as_mut_ptr()) };
    let _ = system::checked(result.into())?;
    // SAFETY: the call has succeeded, and so filled it.
    let mut state = unsafe { state.assume_init() };
    // SAFETY: changes the structure and nothing else.
    unsafe { libc::cfmakeraw(&raw mut state) };
    // SAFETY: an open file, and a state that was its own.
    let result = unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const state) };
    system::checked(result.into()).map(drop)
}

/// Reads a file that the host shares by 9P, and writes another one there with all bits changed.
pub(crate) fn files() -> Result<(), String> {
    let fail = |why: std::io::Error| format!("{HERE}: {why}");
    fs::create_dir(HERE).map_err(fail)?;
    system::mount_from([FOLDER, HERE, "9p"], 0)?;
    let mut content = fs::read(format!("{HERE}/part")).map_err(fail)?;
    virtio::check_part(&content)?;
    content.iter_mut().for_each(|byte| *byte = !*byte);
    fs::write(format!("{HERE}/back"), &content).map_err(fail)?;
    println!("init: files are right");
    Ok(())
}
