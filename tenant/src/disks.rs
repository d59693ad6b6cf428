//! `image`: sealed disks, by the crate of that name.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

use evidence::Bytes;
use image::progress::{Progress, Quiet, Step};
use image::{Broken, Error, Found, How, Order, Resume};
use serde::Serialize;

use crate::cli::{ImageCommand, Long, Telling};
use crate::failure::{Exit, Failure};
use crate::reply::Answer;

/// What `image` answers of a disk.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Its name, which its data are bound to.
    pub id: Bytes,
    /// How many blocks of 4,096 bytes a VM sees.
    pub capacity_blocks: u64,
    /// How many blocks the file has, holes included.
    pub total_blocks: u64,
    /// How often it has changed: never less than at any time before.
    pub moment: u64,
    /// What stands for all that was written until then.
    pub tag: Bytes,
    /// How many blocks were ever written, where all was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written_blocks: Option<u64>,
    /// What is not what was written, where all was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<Vec<Place>>,
}

/// A part of a disk.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// 0 for a block of data; else the level of the node, from 1 on.
    pub level: u8,
    /// Its number in its level.
    pub index: u64,
}

/// What `image key` answers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct DiskKey {
    /// Its file.
    pub disk_key: String,
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, capacity_blocks, total_blocks, .. } = self;
        let seen = image::words(capacity_blocks.saturating_mul(4096));
        let sizes =
            format_args!("{capacity_blocks} blocks of 4K for the VM, {total_blocks} in all");
        writeln!(f, "disk {id}: {seen}, {sizes}")?;
        writeln!(f, "moment {}, tag {}", self.moment, self.tag)?;
        if let Some(written) = self.written_blocks {
            writeln!(f, "{written} blocks were written")?;
        }
        if self.broken.as_ref().is_some_and(Vec::is_empty) {
            writeln!(f, "nothing was changed since it was written")?;
        }
        for Place { level, index } in self.broken.iter().flatten() {
            match level {
                0 => writeln!(f, "BROKEN: block {index}")?,
                level => writeln!(f, "BROKEN: node {index} of level {level}, and all below")?,
            }
        }
        Ok(())
    }
}

impl From<Found> for Disk {
    fn from(found: Found) -> Self {
        let place = |Broken { level, index }| Place { level, index };
        Self {
            id: Bytes(found.id.to_vec()),
            capacity_blocks: found.capacity,
            total_blocks: found.total,
            moment: found.moment,
            tag: Bytes(found.tag.to_vec()),
            written_blocks: found.written,
            broken: found.broken.map(|broken| broken.into_iter().map(place).collect()),
        }
    }
}

/// Does what `command` says.
///
/// # Errors
/// [`Failure`].
pub fn run(command: &ImageCommand) -> Result<(Answer, Exit), Failure> {
    let found = match command {
        ImageCommand::Key { out } => {
            image::key::make(out)?;
            let key = DiskKey { disk_key: out.display().to_string() };
            return Ok((Answer::DiskKey(key), Exit::Trusted));
        }
        ImageCommand::Create { out, size, key } => image::create(out, &read(key)?, *size)?,
        ImageCommand::Seal { plain, out, key, size, long } => {
            let order = Order { plain, out, size: *size };
            image::seal(&order, &read(key)?, &mut how(*long))?
        }
        ImageCommand::Unseal { image, out, key, long } => {
            image::unseal(image, out, &read(key)?, &mut how(*long))?
        }
        ImageCommand::Verify { image, key, telling } => {
            image::verify(image, &read(key)?, &mut *progress(*telling))?
        }
        ImageCommand::Info { image, key } => image::info(image, &read(key)?)?,
        ImageCommand::Resize { image, size, key, long } => {
            let key = read(key)?;
            image::anew(image, [&key; 2], Some(*size), &mut how(*long))?
        }
        ImageCommand::Rekey { image, key, new_key, data, long } => {
            let (old, new) = (read(key)?, read(new_key)?);
            if *data {
                image::anew(image, [&old, &new], None, &mut how(*long))?
            } else {
                image::rekey(image, [&old, &new])?
            }
        }
    };
    let is_whole = found.broken.as_ref().is_none_or(Vec::is_empty);
    let exit = if is_whole { Exit::Trusted } else { Exit::NotTrusted };
    Ok((Answer::Disk(found.into()), exit))
}

fn read(key: &Path) -> Result<[u8; 32], Error> {
    image::key::read(key)
}

fn how(long: Long) -> How {
    let resume = if long.resume { Resume::Yes } else { Resume::No };
    How { resume, progress: progress(long.telling) }
}

/// Who is told how far a command is: a program, if that is asked for, or a person, if there is one.
fn progress(telling: Telling) -> Box<dyn Progress> {
    if telling.progress_json {
        Box::new(Lines)
    } else if io::stderr().is_terminal() {
        Box::new(Bar { percent: None })
    } else {
        Box::new(Quiet)
    }
}

/// Writes a line for each step.
struct Lines;

impl Progress for Lines {
    fn step(&mut self, step: Step) {
        // Where nobody reads how far the command is, it goes on all the same.
        if let Ok(line) = serde_json::to_string(&step) {
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
}

/// Draws a bar, each time that it is longer.
struct Bar {
    percent: Option<u64>,
}

impl Progress for Bar {
    fn step(&mut self, step: Step) {
        let Step { phase, done, total } = step;
        let percent = done.saturating_mul(100).checked_div(total).unwrap_or(100);
        if self.percent == Some(percent) {
            return;
        }
        self.percent = Some(percent);
        let full = usize::try_from(percent / 4).unwrap_or(25);
        let end = if percent == 100 { "\n" } else { "" };
        // As above.
        let _ = write!(
            io::stderr(),
            "\r{:7} [{:25}] {percent:3} %{end}",
            phase.word(),
            "#".repeat(full)
        );
    }
}
