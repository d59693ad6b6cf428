//! The commands as they are called, against a fake visor.

mod answers;
mod checker;
mod failures;
mod schema;
mod tickets;

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use clap::Parser;
use serde_json::Value;
use ticket::Class;
use ticket::build::Ticket;

use crate::cli::Cli;
use crate::failure::{Exit, Failure};
use crate::fake::{Access, Fake};
use crate::run;

/// A folder of a test's own, gone afterwards.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let folder = env::temp_dir().join(format!("visorctl-{}-{name}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a command left behind.
struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

/// Runs `visorctl` with these words.
fn visorctl<'w>(fake: &Fake, words: impl IntoIterator<Item = &'w str>) -> Ran {
    with_open(words, |_| Ok(fake.clone()))
}

fn with_open<'w>(
    words: impl IntoIterator<Item = &'w str>,
    open: impl FnOnce(&Path) -> Result<Fake, Failure>,
) -> Ran {
    let cli = Cli::try_parse_from(["visorctl"].into_iter().chain(words)).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let exit = run::run(&cli, open, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { exit, out: text(out), err: text(err) }
}

/// The same with `--json`: what is on standard output is valid, and all there is.
pub(crate) fn json<'w>(fake: &Fake, words: impl IntoIterator<Item = &'w str>) -> Value {
    let ran = visorctl(fake, ["--json"].into_iter().chain(words));
    assert_eq!(ran.err, "");
    assert_eq!(ran.out.lines().count(), 1, "{}", ran.out);
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    schema::check(&value);
    assert_eq!(value["exit"], ran.exit.code());
    value
}

/// A ticket with `pages` pages for the VM with 16 times this byte as its id.
fn ticket(id: u8, pages: u64) -> Ticket {
    let mut ticket = Ticket::new([id; 16], [9; 32]).range(0, 1 << 32, Class::Private);
    ticket.pages = (0..pages).map(|page| (page << 12, [7; 32])).collect();
    ticket
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Submits a ticket.
fn submit(fake: &Fake, folder: &Folder, ticket: &Ticket) -> Value {
    let path = folder.write("submitted", &ticket.bytes_unchecked());
    json(fake, ["submit", text(&path)])
}

/// All values written to `index`.
fn written(fake: &Fake, index: u32) -> Vec<u32> {
    let of = |access: &Access| match *access {
        Access::Write(at, value) if at == index => Some(value),
        Access::Write(..) | Access::Select(_) | Access::Read(_) => None,
    };
    fake.0.borrow().history.iter().filter_map(of).collect()
}
