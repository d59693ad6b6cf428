//! Initial RAM file systems made of a distribution's programs with the libraries that they need.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use crate::tool;

/// Where the distribution keeps libraries, below its root.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
/// Where programs look for the loader of their libraries.
const LOADER: &str = "lib64/ld-linux-x86-64.so.2";

/// Files under their names, out of the unpacked packages below a root and from elsewhere.
#[derive(Debug)]
pub(crate) struct Programs {
    root: PathBuf,
    files: BTreeMap<String, PathBuf>,
}

impl Programs {
    /// Nothing yet; packages lie below `root`.
    pub(crate) fn of(root: &Path) -> Self {
        Self { root: root.to_path_buf(), files: BTreeMap::new() }
    }

    /// Adds the dynamically linked program at `name` and the libraries that it needs.
    pub(crate) fn program(&mut self, name: &str) -> Result<()> {
        self.file(name)?;
        self.file(LOADER)?;
        let mut todo = vec![self.root.join(name)];
        while let Some(path) = todo.pop() {
            for library in needed(&path)? {
                let name = format!("{}/{library}", LIBRARIES[0]);
                if !self.files.contains_key(&name) {
                    let path = self.library(&library)?;
                    todo.push(path.clone());
                    let _ = self.files.insert(name, path);
                }
            }
        }
        Ok(())
    }

    /// Adds the file at `name` of the packages.
    pub(crate) fn file(&mut self, name: &str) -> Result<()> {
        let path = self.root.join(name);
        // An absolute link leads out of the root: look below the root for what it names.
        let path = match fs::read_link(&path) {
            Ok(target) if target.is_absolute() => self.root.join(target.strip_prefix("/")?),
            Ok(_) | Err(_) => path,
        };
        self.add(name, &path);
        Ok(())
    }

    /// Adds every file below the folder `name` of the packages.
    pub(crate) fn folder(&mut self, name: &str) -> Result<()> {
        let path = self.root.join(name);
        let entries = fs::read_dir(&path).with_context(|| format!("no {}", path.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
            let file = entry.file_name();
            let name = format!("{name}/{}", file.to_str().context("a name that is no text")?);
            if entry.path().is_dir() { self.folder(&name)? } else { self.file(&name)? }
        }
        Ok(())
    }

    /// Adds `source` as `name`.
    pub(crate) fn add(&mut self, name: &str, source: &Path) {
        let _ = self.files.insert(name.to_owned(), source.to_path_buf());
    }

    fn library(&self, name: &str) -> Result<PathBuf> {
        let mut paths = LIBRARIES.iter().map(|dir| self.root.join(dir).join(name));
        let found = paths.find(|path| path.exists());
        found.with_context(|| format!("no package has the library {name}"))
    }

    /// The archive of all that was added, with the folders above it and `folders`.
    pub(crate) fn archive(&self, folders: &[&str]) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for folder in self.folders(folders) {
            let _ = archive.directory(&folder)?;
        }
        let _ = archive.device("dev/console", (5, 1))?;
        for (name, source) in &self.files {
            let data = fs::read(source).with_context(|| format!("no {}", source.display()))?;
            let _ = archive.program(name, &data)?;
        }
        archive.finish()
    }

    /// Copies all that was added into the folder `root`, with `folders`.
    pub(crate) fn copy(&self, root: &Path, folders: &[&str]) -> Result<()> {
        for folder in self.folders(folders) {
            fs::create_dir_all(root.join(&folder))
                .with_context(|| format!("cannot make {folder}"))?;
        }
        for (name, source) in &self.files {
            let to = root.join(name);
            let _ = fs::copy(source, &to).with_context(|| format!("cannot copy {name}"))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot open up {name}"))?;
        }
        Ok(())
    }

    /// Every folder that is needed, each after the one that it is in.
    fn folders(&self, more: &[&str]) -> Vec<String> {
        let above = |name: &str| {
            let ends = name.match_indices('/').map(|(at, _)| name.get(..at).unwrap_or_default());
            ends.map(str::to_owned).collect::<Vec<_>>()
        };
        let more = more.iter().map(|folder| format!("{folder}/"));
        let names = self.files.keys().cloned().chain(more);
        let mut folders: Vec<String> = names.flat_map(|name| above(&name)).collect();
        folders.sort_unstable();
        folders.dedup();
        folders
    }
}

/// The libraries that the ELF file `path` names.
fn needed(path: &Path) -> Result<Vec<String>> {
    let text = tool::output(Command::new("readelf").arg("-dW").arg(path))?;
    Ok(names(&text))
}

fn names(dynamic: &str) -> Vec<String> {
    let lines = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let names = lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0));
    names.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_are_read_from_readelf() {
        let text = " 0x1 (NEEDED)  Shared library: [libc.so.6]\n 0xe (SONAME) name: [libz.so.1]\n";
        assert_eq!(names(text), ["libc.so.6"]);
    }

    #[test]
    fn a_folder_comes_after_the_one_that_it_is_in_and_once() {
        let mut programs = Programs::of(Path::new("/"));
        programs.add("usr/lib/a", Path::new("a"));
        programs.add("usr/lib-b/b", Path::new("b"));
        programs.add("init", Path::new("i"));
        assert_eq!(programs.folders(&["dev", "usr"]), ["dev", "usr", "usr/lib", "usr/lib-b"]);
    }

    #[test]
    fn a_folder_is_added_with_all_that_is_below_it() {
        let root = std::env::temp_dir().join(format!("xtask-folder-{}", std::process::id()));
        fs::create_dir_all(root.join("lib/bits")).unwrap();
        for name in ["lib/a.h", "lib/bits/b.h", "c.h"] {
            fs::write(root.join(name), name).unwrap();
        }
        let mut programs = Programs::of(&root);
        programs.folder("lib").unwrap();
        assert!(programs.folder("missing").is_err());
        fs::remove_dir_all(&root).unwrap();
        let names: Vec<&str> = programs.files.keys().map(String::as_str).collect();
        assert_eq!(names, ["lib/a.h", "lib/bits/b.h"]);
    }
}
