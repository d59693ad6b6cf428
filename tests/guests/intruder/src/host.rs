//! The host's own tool for the visor.

use std::process::Command;

/// What `/visorctl` answers. That a VM ran without a ticket, its exit code 3, is no failure here.
pub(crate) fn visorctl(words: &[&str]) -> Result<String, String> {
    let output = Command::new("/visorctl").args(words).output();
    let output = output.map_err(|why| format!("visorctl: {why}"))?;
    if matches!(output.status.code(), Some(0 | 3)) {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = [output.stdout, output.stderr].concat();
    Err(format!("visorctl {}: {}", words.join(" "), String::from_utf8_lossy(&why).trim()))
}

/// The number behind `name` in a line of JSON.
fn number(json: &str, name: &str) -> Option<u32> {
    let (_, rest) = json.split_once(&format!("\"{name}\":"))?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

/// Why the only VM that has a ticket was stopped, if it was.
pub(crate) fn stop_cause() -> Result<Option<u32>, String> {
    let json = visorctl(&["vms", "--json"])?;
    Ok(if json.contains("\"state\":\"stopped\"") { number(&json, "cause") } else { None })
}

/// Ends the VM that has a ticket, if there still is one.
pub(crate) fn forget() -> Result<(), String> {
    let json = visorctl(&["vms", "--json"])?;
    match number(&json, "vm") {
        Some(vm) => visorctl(&["destroy", &vm.to_string()]).map(drop),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_found_by_their_names() {
        let json = r#"{"answer":{"vms":[{"vm":12,"state":"stopped","cause":4}]}}"#;
        assert_eq!((super::number(json, "vm"), super::number(json, "cause")), (Some(12), Some(4)));
        assert_eq!(super::number(r#"{"vms":[]}"#, "vm"), None);
    }
}
