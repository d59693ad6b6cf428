//! Where things lie: the checkout, what is built in it, and the cache that checkouts share.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.ancestors().nth(2).unwrap_or(manifest);
    root.to_path_buf()
}

/// A folder below `target/`, made if it is missing.
pub(crate) fn target(name: &str) -> Result<PathBuf> {
    made(root().join("target").join(name))
}

/// A folder below the cache of kernels and hypervisors, made if it is missing.
pub(crate) fn cache(name: &str) -> Result<PathBuf> {
    let base = match (env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) => PathBuf::from(home).join(".cache"),
        (_, None) => env::temp_dir(),
    };
    made(base.join("visor-testbed").join(name))
}

/// `path` as a folder that holds nothing.
pub(crate) fn emptied(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    made(path.to_path_buf()).map(drop)
}

fn made(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
