//! What a VM needs for its work, beside `init` and `vmm`: a compiler and a database.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::programs::Programs;
use crate::packages;

const PROGRAMS: [&str; 2] = ["usr/bin/sqlite3", "usr/bin/tcc"];

/// Folders that a compile reads in.
const FOLDERS: [&str; 5] = [
    "usr/include/stb",
    "usr/include/x86_64-linux-gnu/bits",
    "usr/include/x86_64-linux-gnu/gnu",
    "usr/include/x86_64-linux-gnu/sys",
    "usr/lib/x86_64-linux-gnu/tcc",
];

/// Headers of the C library.
const HEADERS: [&str; 15] = [
    "alloca.h",
    "assert.h",
    "endian.h",
    "features-time64.h",
    "features.h",
    "limits.h",
    "linux/limits.h",
    "math.h",
    "stdc-predef.h",
    "stdint.h",
    "stdio.h",
    "stdlib.h",
    "string.h",
    "strings.h",
    "wchar.h",
];

/// What is linked with a program.
const OBJECTS: [&str; 5] = ["crt1.o", "crti.o", "crtn.o", "libc.so", "libc_nonshared.a"];

/// Writes `base`, an initial RAM file system, with the programs added to `out`.
pub(crate) fn added(base: &Path, out: &Path) -> Result<PathBuf> {
    let mut programs = Programs::of(&packages::works()?);
    for name in PROGRAMS {
        programs.program(name)?;
    }
    for folder in FOLDERS {
        programs.folder(folder)?;
    }
    for name in HEADERS {
        programs.file(&format!("usr/include/{name}"))?;
    }
    for name in OBJECTS {
        programs.file(&format!("usr/lib/x86_64-linux-gnu/{name}"))?;
    }
    let mut bytes = fs::read(base).with_context(|| format!("no {}", base.display()))?;
    // Linux unpacks archives one after the other.
    bytes.extend(programs.archive(&[])?);
    fs::write(out, bytes).with_context(|| format!("cannot write {}", out.display()))?;
    Ok(out.to_path_buf())
}
