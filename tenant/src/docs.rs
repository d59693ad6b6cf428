//! `completions` and `man`.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Failure;

/// The script that completes this program's words in `shell`.
#[must_use]
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tenant", &mut script);
    // All that clap writes is text.
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a manual page for each command to `folder`.
///
/// # Errors
/// [`Failure::File`].
pub fn man(folder: &Path) -> Result<(), Failure> {
    let wrong = |why| Failure::File(folder.into(), why);
    fs::create_dir_all(folder).map_err(wrong)?;
    // There is a command `help` of clap's own for each command, which is no use on paper.
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), folder).map_err(wrong)
}
