//! Running other programs: what they say is shown only when they fail.

use std::process::{Command, ExitStatus, Output};

use anyhow::{Context, Result, ensure};

/// Runs `command` silently and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = name(command);
    let Output { status, stdout, stderr } = command.output().with_context(|| missing(&name))?;
    let said = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{name} failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Runs `command` silently.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs `command` with its output shown.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let name = name(command);
    let status: ExitStatus = command.status().with_context(|| missing(&name))?;
    ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn missing(name: &str) -> String {
    format!("cannot start {name}: `cargo xtask setup` installs it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_fails_is_named_with_its_words() {
        let error = run(Command::new("sh").args(["-c", "echo why >&2; exit 1"])).unwrap_err();
        assert_eq!(error.to_string(), "sh failed: why");
    }

    #[test]
    fn a_tool_that_is_missing_is_named_with_the_remedy() {
        let error = output(&mut Command::new("no-such-tool")).unwrap_err();
        assert!(error.to_string().starts_with("cannot start no-such-tool: `cargo xtask setup`"));
    }
}
