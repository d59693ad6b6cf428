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

/// What the answer `json` says of the VM whose id is `id`.
fn about<'j>(json: &'j str, id: &str) -> Option<&'j str> {
    json.split('{').find(|object| object.contains(id))
}

/// Why the VM with this id was stopped, if it was.
pub(crate) fn stop_cause(id: &str) -> Result<Option<u32>, String> {
    let json = visorctl(&["vms", "--json"])?;
    let stopped = about(&json, id).filter(|vm| vm.contains("\"state\":\"stopped\""));
    Ok(stopped.and_then(|vm| number(vm, "cause")))
}

/// Ends the VM with this id, if there still is one.
pub(crate) fn forget(id: &str) -> Result<(), String> {
    let json = visorctl(&["vms", "--json"])?;
    match about(&json, id).and_then(|vm| number(vm, "vm")) {
        Some(vm) => visorctl(&["destroy", &vm.to_string()]).map(drop),
        None => Ok(()),
    }
}

/// The id in a ticket, as `visorctl` writes it.
pub(crate) fn id(ticket: &[u8]) -> String {
    let id = ticket.get(16..32).unwrap_or_default();
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_found_by_their_names() {
        let json = r#"{"answer":{"vms":[{"vm":12,"state":"stopped","cause":4}]}}"#;
        assert_eq!((super::number(json, "vm"), super::number(json, "cause")), (Some(12), Some(4)));
        assert_eq!(super::number(r#"{"vms":[]}"#, "vm"), None);
    }

    #[test]
    fn of_several_vms_the_right_one_is_found() {
        let json = r#"{"vms":[{"vm":0,"id":"aa","cause":null},{"vm":3,"id":"bb","cause":4}]}"#;
        let about = |id, name| super::about(json, id).and_then(|vm| super::number(vm, name));
        assert_eq!((about("aa", "vm"), about("aa", "cause")), (Some(0), None));
        assert_eq!((about("bb", "vm"), about("bb", "cause")), (Some(3), Some(4)));
        assert_eq!(about("cc", "vm"), None);
        let ticket: Vec<u8> = (0..40).collect();
        assert_eq!(super::id(&ticket), "101112131415161718191a1b1c1d1e1f");
    }
}
