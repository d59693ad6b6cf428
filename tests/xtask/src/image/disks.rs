//! A large sealed disk that nobody has written to, of which machines get what is no hole.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::programs::Programs;
use crate::{build, tool};

/// What the VM sees of it.
const SIZE: &str = "1G";
/// What is at its end: two anchors and two headers (`docs/disk-format.md`).
const END: u64 = 4 * 4096;

/// The disk, as a tenant makes it, in the folder `parts`: its key and its image.
pub(super) fn empty(parts: &Path) -> Result<[PathBuf; 2]> {
    let [key, image] = ["empty.key", "empty"].map(|name| parts.join(name));
    if !image.exists() {
        let tenant = build::tenant()?;
        tool::run(Command::new(&tenant).args(["image", "key"]).arg(&key))?;
        let mut create = Command::new(&tenant);
        let _ = create.args(["image", "create", "--size", SIZE, "--key"]).args([&key, &image]);
        tool::run(&mut create)?;
    }
    Ok([key, image])
}

/// Adds what a host makes the image again from: `io.holes` says how many bytes are holes, and `io.end` follows
/// them.
pub(super) fn add_empty(programs: &mut Programs, parts: &Path) -> Result<()> {
    let [_, image] = empty(parts)?;
    let mut file = File::open(&image).context("no empty disk")?;
    let bytes = file.metadata().context("no empty disk")?.len();
    let holes = bytes.checked_sub(END).context("an empty disk without an end")?;
    let mut end = Vec::new();
    let _ = file.seek(SeekFrom::Start(holes)).context("cannot read an empty disk")?;
    let _ = file.read_to_end(&mut end).context("cannot read an empty disk")?;
    for (name, content) in [("io.holes", holes.to_string().into_bytes()), ("io.end", end)] {
        let path = parts.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        programs.add(&format!("data/{name}"), &path);
    }
    Ok(())
}
