//! `cargo xtask reproduce`: whether the visor is the same when it is built somewhere else.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{build, paths, tool};

/// Builds the visor in the checkout, and once more in a copy of its tracked files, from nothing.
pub(crate) fn reproduce() -> Result<()> {
    let here = build::visor()?;
    let folder = paths::target("reproduce")?;
    paths::emptied(&folder)?;
    let copy = folder.join("another-folder/whose-path-has-another-length");
    copy_checkout(&paths::root(), &copy)?;
    let there = build::visor_of(&copy)?;
    let [first, second] = [fs::read(&here), fs::read(&there)];
    let [first, second] = [first.context("no visor.elf")?, second.context("no other visor.elf")?];
    let differing = first.iter().zip(&second).position(|(a, b)| a != b);
    ensure!(
        first == second,
        "the two are not the same: {} and {} bytes, the first difference at {differing:x?}: compare {} \
         and {}",
        first.len(),
        second.len(),
        here.display(),
        there.display()
    );
    println!("{}  visor.elf, twice", build::digest(&here)?);
    fs::remove_dir_all(&folder).context("cannot remove the copy")
}

/// Copies what git tracks, as it is in the checkout.
fn copy_checkout(from: &Path, to: &Path) -> Result<()> {
    let list = tool::output(Command::new("git").args(["ls-files", "-z"]).current_dir(from))?;
    for name in list.split('\0').filter(|name| from.join(name).is_file()) {
        let target = to.join(name);
        let folder = target.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let _ =
            fs::copy(from.join(name), &target).with_context(|| format!("cannot copy {name}"))?;
    }
    Ok(())
}
