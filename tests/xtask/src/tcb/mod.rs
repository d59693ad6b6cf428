//! The size of the trusted computing base, and the rules that keep it what it is.

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{paths, tool};

/// Crates that share a budget, and the budget in code lines. Why `visor` and `boot` have more than the
/// design began with: `docs/architecture.md`. The parts may not all use up theirs: see [`TOTAL`].
const BUDGETS: [(&[&str], usize); 10] = [
    (&["ept"], 2_400),
    (&["emulate"], 1_150),
    (&["nested-vmx"], 5_400),
    (&["seal"], 350),
    (&["membrane", "ticket"], 3_150),
    (&["virtio"], 1_700),
    (&["iommu"], 1_900),
    (&["disk"], 1_900),
    (&["attest"], 1_500),
    (&["visor", "boot"], 9_100),
];

/// The budget of all of them together.
const TOTAL: usize = 28_350;

/// The only crate that may say `unsafe`.
const HARDWARE: &str = "visor";

/// What one crate amounts to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    code: usize,
    unsafe_code: usize,
}

/// The trusted computing base as it is.
#[derive(Debug, Default)]
pub(crate) struct Tcb {
    crates: BTreeMap<&'static str, Size>,
    third_party: BTreeSet<String>,
    violations: Vec<String>,
}

impl Tcb {
    /// Measures the checkout.
    pub(crate) fn measure() -> Result<Self> {
        let root = paths::root();
        let mut tcb = Self::default();
        for name in BUDGETS.iter().flat_map(|(names, _)| *names) {
            if root.join(name).join("Cargo.toml").exists() {
                let size = size(&root.join(name).join("src"))?;
                let _ = tcb.crates.insert(name, size);
            }
        }
        tcb.third_party = third_party(&root.join(HARDWARE))?;
        let metadata = ["metadata", "--no-deps", "--format-version", "1"];
        let metadata = tool::output(Command::new("cargo").args(metadata).current_dir(&root))?;
        let metadata = serde_json::from_str(&metadata).context("cargo's metadata is no JSON")?;
        tcb.violations = wrong_arrows(&metadata);
        let found = tcb.size_violations();
        tcb.violations.extend(found);
        Ok(tcb)
    }

    /// What breaks a rule, one line each.
    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The figures under fixed names.
    pub(crate) fn json(&self) -> Value {
        let crates: BTreeMap<_, _> =
            self.crates.iter().map(|(name, size)| (name, size.code)).collect();
        json!({
            "total": self.total(),
            "crates": crates,
            "unsafe_lines": self.unsafe_lines(),
            "third_party": self.third_party,
        })
    }

    /// The figures for people.
    pub(crate) fn table(&self) -> String {
        let mut lines = Vec::new();
        for (names, budget) in BUDGETS {
            let present = names.iter().filter_map(|name| self.crates.get_key_value(name));
            let parts: Vec<String> =
                present.map(|(name, size)| format!("{name} {}", size.code)).collect();
            if !parts.is_empty() {
                lines.push(format!("{:<24} of {budget:>6}", parts.join(" + ")));
            }
        }
        lines.push(format!("{:<24} of {TOTAL:>6}", format!("total {}", self.total())));
        lines.push(format!("unsafe lines {}", self.unsafe_lines()));
        let crates: Vec<&str> = self.third_party.iter().map(String::as_str).collect();
        lines.push(format!("third-party crates in the image: {}", crates.join(", ")));
        lines.join("\n")
    }

    fn total(&self) -> usize {
        self.crates.values().map(|size| size.code).sum()
    }

    fn unsafe_lines(&self) -> usize {
        self.crates.values().map(|size| size.unsafe_code).sum()
    }

    fn size_violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (names, budget) in BUDGETS {
            let sizes = names.iter().filter_map(|name| self.crates.get(name));
            let code: usize = sizes.map(|size| size.code).sum();
            if code > budget {
                found.push(format!("{}: {code} code lines, budget {budget}", names.join(" + ")));
            }
        }
        if self.total() > TOTAL {
            found.push(format!("total: {} code lines, budget {TOTAL}", self.total()));
        }
        let logic = self.crates.iter().filter(|(name, _)| **name != HARDWARE);
        for (name, _) in logic.filter(|(_, size)| size.unsafe_code > 0) {
            found.push(format!("{name}: holds `unsafe`, which only {HARDWARE} may"));
        }
        found
    }
}

/// The size of all sources below `dir`.
fn size(dir: &Path) -> Result<Size> {
    let mut files = Vec::new();
    list(dir, &mut files)?;
    let mut size = Size::default();
    let mut tests: Vec<PathBuf> = Vec::new();
    let mut counted = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("no {}", file.display()))?;
        if file.extension().is_some_and(|kind| kind == "s") {
            size.code += source::count_assembly(&text);
            continue;
        }
        let count = source::count(&text);
        tests.extend(count.test_modules.iter().map(|name| module_path(&file, name)));
        counted.push((file, count));
    }
    // A test module may be a file or a folder.
    let is_test = |file: &Path| tests.iter().any(|test| file.with_extension("").starts_with(test));
    for (_, count) in counted.iter().filter(|(file, _)| !is_test(file)) {
        size.code += count.code;
        size.unsafe_code += count.unsafe_code;
    }
    Ok(size)
}

/// Where the module `name` that `file` declares lies, without extension.
fn module_path(file: &Path, name: &str) -> PathBuf {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    match stem {
        "lib" | "main" | "mod" => file.with_file_name(name),
        _ => file.with_extension("").join(name),
    }
}

/// All Rust and assembly files below `dir`.
fn list(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry.context("cannot list a folder")?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|kind| kind == "rs" || kind == "s") {
            files.push(path);
        }
    }
    Ok(())
}

/// The crates of others that are linked into the image of `workspace`.
fn third_party(workspace: &Path) -> Result<BTreeSet<String>> {
    if !workspace.join("Cargo.toml").exists() {
        return Ok(BTreeSet::new());
    }
    let words =
        ["tree", "--package", HARDWARE, "--edges", "normal,no-proc-macro", "--prefix", "none"];
    let tree = tool::output(Command::new("cargo").args(words).current_dir(workspace))?;
    Ok(linked(&tree))
}

/// The crates in the output of `cargo tree` that come from a registry and end up in the image.
fn linked(tree: &str) -> BTreeSet<String> {
    let foreign = |line: &&str| !line.contains("(/") && !line.contains("(proc-macro)");
    let lines = tree.lines().map(|line| line.trim_end_matches(" (*)")).filter(foreign);
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Dependencies of logic crates on the hardware, in the metadata of the root workspace.
fn wrong_arrows(metadata: &Value) -> Vec<String> {
    let list = |value: &Value, key: &str| {
        value.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let name =
        |value: &Value| value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let logic: Vec<&str> = BUDGETS.iter().flat_map(|(names, _)| *names).copied().collect();
    let mut wrong = Vec::new();
    for package in list(metadata, "packages") {
        let from = name(&package);
        if !logic.contains(&from.as_str()) {
            continue;
        }
        for to in list(&package, "dependencies").iter().map(name) {
            if [HARDWARE, "loader", "xtask"].contains(&to.as_str()) {
                wrong.push(format!("{from}: depends on {to}, against the arrows"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcb(sizes: &[(&'static str, usize, usize)]) -> Tcb {
        let sized = |(name, code, unsafe_code): &(&'static str, usize, usize)| {
            (*name, Size { code: *code, unsafe_code: *unsafe_code })
        };
        Tcb { crates: sizes.iter().map(sized).collect(), ..Tcb::default() }
    }

    /// The budget that `name` has, or shares with others.
    fn budget(name: &str) -> usize {
        let found = BUDGETS.iter().find(|(names, _)| names.contains(&name));
        found.expect("a crate with a budget").1
    }

    #[test]
    fn a_crate_above_its_budget_is_a_violation() {
        let budget = budget("ept");
        assert!(tcb(&[("ept", budget, 0)]).size_violations().is_empty());
        let found = tcb(&[("ept", budget + 1, 0)]).size_violations();
        assert_eq!(found, [format!("ept: {} code lines, budget {budget}", budget + 1)]);
    }

    #[test]
    fn crates_that_share_a_budget_are_added_up() {
        let budget = budget("visor");
        assert!(
            tcb(&[("visor", 1_000, 9), ("boot", budget - 1_000, 0)]).size_violations().is_empty()
        );
        let found = tcb(&[("visor", 1_000, 9), ("boot", budget - 999, 0)]).size_violations();
        assert_eq!(found, [format!("visor + boot: {} code lines, budget {budget}", budget + 1)]);
    }

    #[test]
    fn unsafe_outside_the_visor_is_a_violation() {
        let found = tcb(&[("visor", 9, 9), ("boot", 9, 1)]).size_violations();
        assert_eq!(found, ["boot: holds `unsafe`, which only visor may"]);
    }

    #[test]
    fn a_logic_crate_that_depends_on_the_visor_is_a_violation() {
        let metadata = json!({"packages": [
            {"name": "ept", "dependencies": [{"name": "visor"}, {"name": "bitflags"}]},
            {"name": "xtask", "dependencies": [{"name": "visor"}]},
        ]});
        assert_eq!(wrong_arrows(&metadata), ["ept: depends on visor, against the arrows"]);
    }

    #[test]
    fn only_registry_crates_that_are_linked_are_third_party() {
        let tree = "visor v0.1.0 (/x/visor)\nlog v0.4.35\nspin v0.12.3\nlog v0.4.35 (*)\nderive v1.0.0 (proc-macro)\n";
        let found: Vec<String> = linked(tree).into_iter().collect();
        assert_eq!(found, ["log v0.4.35", "spin v0.12.3"]);
    }

    #[test]
    fn a_test_module_is_found_beside_or_below_the_file_that_declares_it() {
        assert_eq!(module_path(Path::new("s/lib.rs"), "t"), Path::new("s/t"));
        assert_eq!(module_path(Path::new("s/a.rs"), "t"), Path::new("s/a/t"));
    }
}
