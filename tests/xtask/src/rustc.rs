//! `rustc`, as the visor's build calls it: what it makes does not depend on where the checkout lies.
//!
//! Paths are in messages of panics. Cargo also gives each crate a number that is made from where the crate lies,
//! if it is not below the workspace's root, and names of functions, by which they are ordered, from that.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Error, Result};

/// The variable by which this program knows that it is to be `rustc`: the checkout's root.
const ROOT: &str = "XTASK_RUSTC_ROOT";

/// Has `cargo`, which builds something of the checkout `root`, call `rustc` through this program.
pub(crate) fn wrap(cargo: &mut Command, root: &Path) -> Result<()> {
    let this = env::current_exe().context("this program has no path")?;
    // Cargo does not know what this program does, and would use what was built without it.
    let _ = cargo.args(["--config", "build.rustflags=['--cfg=same_everywhere']"]);
    let _ = cargo.env("RUSTC_WRAPPER", this).env(ROOT, root);
    Ok(())
}

/// Runs `rustc`, if that is what this program was called for.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    let root = PathBuf::from(env::var_os(ROOT)?);
    let error = run(&root).err()?;
    eprintln!("xtask: {error:#}");
    Some(ExitCode::FAILURE)
}

/// Comes back with an error only.
fn run(root: &Path) -> Result<()> {
    let mut words = env::args_os().skip(1);
    let rustc = words.next().context("cargo names no rustc")?;
    let of = |name: &str| env::var(name).unwrap_or_default();
    let source = PathBuf::from(of("CARGO_MANIFEST_DIR"));
    let name = format!("{}-{}", of("CARGO_PKG_NAME"), of("CARGO_PKG_VERSION"));
    let words = rewritten(words.collect(), root, (&source, &name));
    let failed = Command::new(rustc).args(words).env_remove(ROOT).exec();
    Err(Error::new(failed).context("rustc does not start"))
}

/// The words for `rustc`, for the package called `name` whose sources are in `source`.
fn rewritten(words: Vec<OsString>, root: &Path, (source, name): (&Path, &str)) -> Vec<OsString> {
    let is_ours = source.starts_with(root);
    let other = source.parent().filter(|_| !is_ours && !source.as_os_str().is_empty());
    let of = |word: OsString| {
        let is_number = word.to_str().is_some_and(|word| word.starts_with("metadata="));
        if is_ours && is_number { format!("metadata={name}").into() } else { word }
    };
    let mut words: Vec<OsString> = words.into_iter().map(of).collect();
    let prefixes = [Some((root, "=/visor")), other.map(|folder| (folder, "=/crates"))];
    for (folder, name) in prefixes.into_iter().flatten() {
        let mut prefix = folder.as_os_str().to_owned();
        prefix.push(name);
        words.extend(["--remap-path-prefix".into(), prefix]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(of: &str) -> Vec<OsString> {
        of.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_crate_of_the_checkout_has_a_number_and_paths_that_are_the_same_everywhere() {
        let asked = words("--crate-name ept -C metadata=77f0 -C extra-filename=-77f0");
        let of = |root: &str| {
            let source = Path::new(root).join("ept");
            rewritten(asked.clone(), Path::new(root), (&source, "ept-0.1.0"))
        };
        let expected = "--crate-name ept -C metadata=ept-0.1.0 -C extra-filename=-77f0 \
                        --remap-path-prefix /a/b=/visor";
        assert_eq!(of("/a/b"), words(expected));
    }

    #[test]
    fn a_crate_of_others_keeps_its_number() {
        let source = Path::new("/cargo/registry/src/index/spin-1.0");
        let found = rewritten(words("-C metadata=1"), Path::new("/a"), (source, "spin-1.0"));
        let expected = "-C metadata=1 --remap-path-prefix /a=/visor --remap-path-prefix \
                        /cargo/registry/src/index=/crates";
        assert_eq!(found, words(expected));
    }

    #[test]
    fn a_question_for_the_version_is_asked() {
        let found = rewritten(words("-vV"), Path::new("/a"), (Path::new(""), "-"));
        assert_eq!(found, words("-vV --remap-path-prefix /a=/visor"));
    }
}
