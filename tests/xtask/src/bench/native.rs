//! Parts of the visor as programs of this machine.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{paths, tool};

/// What the visor needs besides its own flags: the processor's AES instructions.
const FLAGS: &str = "build.rustflags=[\"-Ctarget-feature=+aes\"]";

/// The release profile of `visor/Cargo.toml`, as far as it has a say in code.
const PROFILE: [&str; 5] =
    ["lto=\"fat\"", "codegen-units=1", "opt-level=2", "overflow-checks=true", "panic=\"abort\""];

/// Builds the example called `name` of `package` with the flags of the visor; the path of it.
pub(super) fn example(package: &str, name: &str) -> Result<PathBuf> {
    let (root, out) = (paths::root(), paths::target("native")?);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let words = ["build", "--quiet", "--release", "-p", package, "--example", name];
    let _ = command.args(words).arg("--target-dir").arg(&out).current_dir(&root);
    let _ = command.arg("--config").arg(root.join("visor/.cargo/config.toml"));
    let _ = command.args(["--config", FLAGS]).env_remove("RUSTFLAGS");
    for setting in PROFILE {
        let _ = command.arg("--config").arg(format!("profile.release.{setting}"));
    }
    tool::show(&mut command).with_context(|| format!("cannot build {name} of {package}"))?;
    Ok(out.join("x86_64-unknown-linux-gnu/release/examples").join(name))
}
