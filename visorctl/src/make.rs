//! `ticket make`.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use evidence::Readers;
use measure::random;
use serde::{Deserialize, Serialize};
use ticket::build::Ticket;
use ticket::{Class, State};

use crate::failure::Failure;
use crate::hex;

/// What a description's file says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Description {
    /// The VM's id, 32 digits.
    vm: String,
    /// The tenant's secret, 64 digits; random if it is left out.
    secret: Option<String>,
    /// "reset", or the 64 digits of a hash.
    state: String,
    /// How many processors the VM may have.
    #[serde(default = "one")]
    processors: u32,
    /// How often the VM may be started anew.
    #[serde(default)]
    restarts: u32,
    range: Vec<RangeLine>,
    #[serde(default)]
    image: Vec<Image>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeLine {
    start: u64,
    length: u64,
    class: ClassName,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ClassName {
    Private,
    Shared,
    Window,
    Virtio,
    VirtioPci,
}

/// A file whose pages must be at `address`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    /// Relative to the description.
    file: PathBuf,
    address: u64,
}

const fn one() -> u32 {
    1
}

/// A ticket that was made.
#[derive(Debug, Serialize)]
pub(crate) struct Made {
    id: String,
    ranges: usize,
    pages: usize,
    bytes: usize,
}

/// Makes the ticket that the file `description` tells of, as the new file `output`.
///
/// # Errors
/// [`Failure::Description`] and [`Failure::File`].
pub(crate) fn make(description: &Path, output: &Path) -> Result<Made, Failure> {
    let wrong = |why| Failure::Description(description.into(), why);
    let text = fs::read_to_string(description).map_err(|why| file(description, why))?;
    let told: Description = toml::from_str(&text).map_err(|why| wrong(one_line(&why)))?;
    let mut ticket = told.ticket().map_err(wrong)?;
    let folder = description.parent().unwrap_or(Path::new(""));
    for image in &told.image {
        let path = folder.join(&image.file);
        let bytes = fs::read(&path).map_err(|why| file(&path, why))?;
        ticket.image(image.address, &bytes).map_err(|why| wrong(why.to_string()))?;
    }
    let bytes = ticket.bytes().map_err(|why| wrong(why.to_string()))?;
    evidence::create(output, &bytes, Readers::Owner).map_err(|why| file(output, why))?;
    Ok(Made::of(&ticket, bytes.len()))
}

impl Made {
    /// What is told of `ticket`, which has so many bytes.
    pub(crate) fn of(ticket: &Ticket, bytes: usize) -> Self {
        let (ranges, pages) = (ticket.ranges.len(), ticket.pages.len());
        Self { id: hex::encode(&ticket.vm), ranges, pages, bytes }
    }
}

impl Description {
    /// All but the images.
    fn ticket(&self) -> Result<Ticket, String> {
        let vm = hex::decode(&self.vm).map_err(|why| format!("vm: {why}"))?;
        let secret = match &self.secret {
            Some(digits) => hex::decode(digits).map_err(|why| format!("secret: {why}"))?,
            None => random().map_err(|why| format!("secret: {why}"))?,
        };
        let mut ticket = Ticket::new(vm, secret);
        (ticket.processors, ticket.restarts) = (self.processors, self.restarts);
        if self.state != "reset" {
            let hash = hex::decode(&self.state);
            ticket.state =
                State::Hashed(hash.map_err(|why| format!("state: \"reset\", or {why}"))?);
        }
        for range in &self.range {
            let class = match range.class {
                ClassName::Private => Class::Private,
                ClassName::Shared => Class::Shared,
                ClassName::Window => Class::Window,
                ClassName::Virtio => Class::Virtio,
                ClassName::VirtioPci => Class::VirtioPci,
            };
            ticket = ticket.range(range.start, range.length, class);
        }
        ticket.ranges.sort_by_key(|range| range.start);
        Ok(ticket)
    }
}

/// What is wrong and in which line, without the excerpt that would follow.
fn one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines();
    let place = lines.next().unwrap_or_default();
    match lines.next_back() {
        Some(cause) => format!("{place}: {cause}"),
        None => place.into(),
    }
}

fn file(path: &Path, why: io::Error) -> Failure {
    Failure::File(path.into(), why)
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, ranges, pages, bytes } = self;
        writeln!(f, "ticket of VM {id}: {ranges} ranges, {pages} pages, {bytes} bytes, in CLEAR")
    }
}
