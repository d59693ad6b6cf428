//! A compile: tcc makes a program of two libraries from their sources, and the program runs.

use super::program::{self, expected};
use super::{said, told};
use std::fs;
use std::process::Command;

/// The sources: name, text. What they include is the distribution's.
const SOURCES: [(&str, &str); 3] = [
    ("picture", include_str!("picture.c")),
    ("png", include_str!("png.c")),
    ("main", include_str!("main.c")),
];
const PLACE: &str = "/compile";

/// What the program says, and says when gcc has compiled it.
const SAYS: &str = "815 bytes, 2bbf3b81\n";

/// Compiles each source, links, runs.
pub(crate) fn compile() -> Result<(), String> {
    fs::create_dir(PLACE).map_err(said)?;
    for (name, text) in SOURCES {
        fs::write(format!("{PLACE}/{name}.c"), text).map_err(said)?;
    }
    told("compile", || {
        for (name, _) in SOURCES {
            let _ = tcc(&["-c", &format!("{name}.c"), "-o", &format!("{name}.o")])?;
        }
        let objects = SOURCES.map(|(name, _)| format!("{name}.o"));
        let _ = tcc(&["-o", "main", &objects[0], &objects[1], &objects[2]])?;
        expected(&program::output(&mut Command::new(format!("{PLACE}/main")))?, SAYS)
    })
}

fn tcc(words: &[&str]) -> Result<String, String> {
    program::output(Command::new("/usr/bin/tcc").args(words).current_dir(PLACE))
}
