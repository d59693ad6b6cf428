//! A host that does what the build machine tells it, with its own kernel, TPM driver, tpm2-tools and `visorctl`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::programs::Programs;
use crate::packages;

/// Its scripts, by their names.
const SCRIPTS: [(&str, &str); 2] =
    [("init", include_str!("remote/init.sh")), ("visor-log", include_str!("remote/visor-log.sh"))];

/// By which tpm2-tools find the kernel's TPM: no program names it as a library that it needs.
const DEVICE: &str = "usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0";

/// Writes an initial RAM file system of such a host, with the program `visorctl`, to `out`.
pub(crate) fn host(visorctl: &Path, out: &Path) -> Result<PathBuf> {
    let mut programs = Programs::of(&packages::tpm_tools()?);
    programs.file("bin/busybox")?;
    programs.program("usr/bin/tpm2")?;
    programs.program(DEVICE)?;
    programs.add("visorctl", visorctl);
    for (name, text) in SCRIPTS {
        let script = out.with_extension(name);
        fs::write(&script, text).with_context(|| format!("cannot write {}", script.display()))?;
        programs.add(name, &script);
    }
    for (number, module) in packages::stock_modules(&packages::SHARING)?.iter().enumerate() {
        programs.add(&format!("module-{number:02}"), module);
    }
    let folders = ["bin", "dev", "proc", "share", "sys", "tmp"];
    fs::write(out, programs.archive(&folders)?)
        .with_context(|| format!("cannot write {}", out.display()))?;
    Ok(out.to_path_buf())
}
