//! Programs of the distribution, and what they say.

use std::process::Command;

/// What `command` writes to its standard output; it must succeed and complain of nothing.
pub(super) fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|why| format!("{name}: {why}"))?;
    if !output.status.success() || !output.stderr.is_empty() {
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{name}: {}: {}", output.status, complaint.trim()));
    }
    String::from_utf8(output.stdout).map_err(|why| format!("{name}: {why}"))
}

/// Fails unless a program said what it must.
pub(super) fn expected(found: &str, wanted: &str) -> Result<(), String> {
    if found == wanted {
        return Ok(());
    }
    Err(format!("said {found:?}, not {wanted:?}"))
}
