//! `nested/conformance…`: VMX as the host sees it is the processor's.
//!
//! The program `vmx` boots twice and prints a line for each of its cases. Lines of the same case
//! that differ must be explained by a rule of [`rules::RULES`], and a rule that explains nothing
//! fails the test as well: nothing passes because the visor was not there.
//!
//! `VISOR_CONFORMANCE="ept edit"` in the environment leaves only these groups of cases.

mod rules;

use std::collections::BTreeMap;
use std::env;
use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::expect::matches;
use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::{End, Machine};
use rules::{RULES, Rule};

/// What every line of the program begins with.
const PREFIX: &str = "vmx: ";

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("nested/bare-conformance", 15, repeats),
        Test::new("nested/tables-in-place", 3, in_place),
        Test::new("nested/conformance", 45, |rig| {
            let groups = env::var("VISOR_CONFORMANCE").unwrap_or_default();
            conforms(rig, (&groups, Stack::on_visor), |machine| machine.seconds = 300)
        }),
        Test::new("nested/conformance-without-shadowing", 50, |rig| {
            conforms(rig, ("", Stack::without_shadowing), |machine| machine.seconds = 300)
        }),
        Test::new("nested/conformance-2-cpus", 6, |rig| {
            conforms(rig, ("smp", Stack::on_visor), |machine| {
                machine.cpus = 2;
                machine.seconds = 120;
            })
        }),
    ]
}

/// The program in `stack`, to its end.
fn boot(stack: Stack, change: impl FnOnce(&mut Machine)) -> Boot {
    Boot::of(stack)
        .on(change)
        .never("vmx: FAIL *")
        .expect(&["vmx: done * cases"])
        .ends(End::PowerOff)
}

/// The bare machine gives the same log again: what differs on the visor is the visor's doing.
fn repeats(rig: &Rig<'_>) -> Result<()> {
    let log = |label| {
        let stack = Stack::bare(Host::Vmx(String::new()));
        rig.check(label, &boot(stack, |machine| machine.seconds = 100))
    };
    let comparison = Comparison::of(&log("first")?, &log("second")?, &[]);
    match comparison.wrong.first() {
        Some(difference) => bail!("the bare machine differs from itself: {difference}"),
        None => Ok(()),
    }
}

/// Stores to the tables of a VM reach the visor: it uses these tables as they stand, so the cases
/// of `edit` are about that and not about a shadow.
fn in_place(rig: &Rig<'_>) -> Result<()> {
    let words = "edit case=edit.leaf stats".to_owned();
    let log = rig.check("", &boot(Stack::on_visor(Host::Vmx(words)), |_| {}))?;
    let cases = Log::of(&log).names.len();
    let count = log.lines().find_map(|line| line.strip_prefix("vmx: stats exits.ept-violation "));
    let trapped: usize = count.context("no store was trapped")?.parse().context("no number")?;
    ensure!(cases > 0 && trapped >= 2 * cases, "{trapped} stores trapped in {cases} cases");
    Ok(())
}

/// The cases of `groups`, or all, come out alike on the bare machine and in `stack`. `differences.txt`
/// in the folder says what does not and why.
fn conforms(
    rig: &Rig<'_>,
    (groups, stack): (&str, fn(Host) -> Stack),
    change: fn(&mut Machine),
) -> Result<()> {
    let log = |label, stack: fn(Host) -> Stack| {
        rig.check(label, &boot(stack(Host::Vmx(groups.to_owned())), change))
    };
    let bare = log("bare", Stack::bare)?;
    let visor = log("visor", stack)?;
    let comparison = Comparison::of(&bare, &visor, RULES);
    let file = rig.dir.join("differences.txt");
    fs::write(&file, comparison.text()).context("cannot write differences.txt")?;
    let wrong = comparison.wrong;
    if let Some(shown) = wrong.get(..wrong.len().min(SHOWN)).filter(|shown| !shown.is_empty()) {
        let (text, count, file) = (shown.join("\n    "), wrong.len(), file.display());
        bail!("VMX is not the processor's, {count} times:\n    {text}\n    all of it: {file}");
    }
    Ok(())
}

/// So many differences are shown; the file has all.
const SHOWN: usize = 12;

/// The cases of a log by their names, in the order in which they came.
struct Log<'a> {
    names: Vec<&'a str>,
    results: BTreeMap<&'a str, &'a str>,
}

impl<'a> Log<'a> {
    fn of(text: &'a str) -> Self {
        let lines = text.lines().filter_map(|line| line.strip_prefix(PREFIX));
        // A case's name has no space in it, which its closing line has.
        let cases =
            lines.filter_map(|line| line.split_once(": ")).filter(|(name, _)| !name.contains(' '));
        let (mut names, mut results) = (Vec::new(), BTreeMap::new());
        for (name, result) in cases {
            names.push(name);
            let _ = results.insert(name, result);
        }
        Self { names, results }
    }

    /// Whether some case of `group` came.
    fn has_group(&self, group: &str) -> bool {
        self.names.iter().any(|name| group_of(name) == group)
    }
}

/// The part of a case's name, or of a pattern for names, up to the first dot.
fn group_of(name: &str) -> &str {
    name.split_once('.').map_or(name, |(group, _)| group)
}

/// What two logs have in common and what not.
#[derive(Default)]
struct Comparison {
    /// A rule's number and the difference that it explains.
    explained: Vec<(usize, String)>,
    /// What fails the test.
    wrong: Vec<String>,
}

impl Comparison {
    fn of(bare: &str, visor: &str, rules: &[Rule]) -> Self {
        let (bare, visor) = (Log::of(bare), Log::of(visor));
        let mut comparison = Self::default();
        if bare.names.is_empty() {
            comparison.wrong.push("there are no cases".to_owned());
        }
        if bare.names != visor.names {
            let same = bare.names.iter().zip(&visor.names).take_while(|(a, b)| a == b).count();
            let after = same.checked_sub(1).and_then(|last| bare.names.get(last));
            let after = after.copied().unwrap_or("the start");
            comparison.wrong.push(format!("other cases come after {after}"));
        }
        for name in &bare.names {
            if let (Some(bare), Some(visor)) = (bare.results.get(name), visor.results.get(name)) {
                comparison.case(name, bare, visor, rules);
            }
        }
        comparison.required(&bare, rules);
        comparison
    }

    /// Compares one case.
    fn case(&mut self, name: &str, bare: &str, visor: &str, rules: &[Rule]) {
        if bare == visor {
            return;
        }
        let difference = format!("{name}: {bare} -> {visor}");
        match rules.iter().position(|rule| rule.explains(name, bare, visor)) {
            Some(number) => self.explained.push((number, difference)),
            None => self.wrong.push(difference),
        }
    }

    /// Checks that every rule about a group that ran explained something.
    fn required(&mut self, bare: &Log<'_>, rules: &[Rule]) {
        for (number, rule) in rules.iter().enumerate() {
            let used = self.explained.iter().any(|(explains, _)| *explains == number);
            let ran = rule.names.iter().any(|names| bare.has_group(group_of(names)));
            if ran && !used {
                let names = rule.names.join(", ");
                self.wrong.push(format!("missing difference: {names}: {}", rule.why));
            }
        }
    }

    /// The report for people: each difference under its reason.
    fn text(&self) -> String {
        let mut text = String::from("case: the bare machine -> the visor\n");
        for (number, rule) in RULES.iter().enumerate() {
            let lines = self.explained.iter().filter(|(explains, _)| *explains == number);
            let lines: String = lines.map(|(_, line)| format!("  {line}\n")).collect();
            if !lines.is_empty() {
                text += &format!("\n{}:\n{lines}", rule.why);
            }
        }
        if !self.wrong.is_empty() {
            text += &format!("\n== wrong\n{}\n", self.wrong.join("\n"));
        }
        text
    }
}

impl Rule {
    /// Whether the case is one of the rule's, and both results are of its shapes.
    fn explains(&self, name: &str, bare: &str, visor: &str) -> bool {
        self.names.iter().any(|pattern| matches(pattern, name))
            && matches(self.bare, bare)
            && matches(self.visor, visor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST_RULES: &[Rule] =
        &[Rule { names: &["a.*"], bare: "exit *", visor: "unsupported", why: "hidden" }];

    fn wrong(bare: &str, visor: &str) -> Vec<String> {
        Comparison::of(bare, visor, TEST_RULES).wrong
    }

    #[test]
    fn the_same_log_differs_in_nothing() {
        let log = "vmx: b.one: exit 1\nvmx: done 1 cases\n";
        assert_eq!(wrong(log, log), Vec::<String>::new());
    }

    #[test]
    fn a_difference_without_a_rule_is_wrong() {
        let [bare, visor] = ["vmx: b.one: exit 1\n", "vmx: b.one: exit 2\n"];
        assert_eq!(wrong(bare, visor), ["b.one: exit 1 -> exit 2"]);
    }

    #[test]
    fn a_rule_explains_only_what_has_its_shapes() {
        assert_eq!(wrong("vmx: a.x: exit 1\n", "vmx: a.x: unsupported\n"), Vec::<String>::new());
        let refused = wrong("vmx: a.x: VMfail 7\n", "vmx: a.x: unsupported\n");
        assert_eq!(refused, ["a.x: VMfail 7 -> unsupported", "missing difference: a.*: hidden"]);
    }

    #[test]
    fn a_rule_that_explains_nothing_is_wrong_if_its_group_ran() {
        assert_eq!(wrong("vmx: a.x: exit 1\n", "vmx: a.x: exit 1\n").len(), 1);
        assert_eq!(wrong("vmx: b.x: exit 1\n", "vmx: b.x: exit 1\n").len(), 0);
    }

    #[test]
    fn a_case_that_is_missing_or_new_is_wrong() {
        let log = "vmx: b.one: exit 1\nvmx: b.two: exit 1\n";
        let one = "vmx: b.one: exit 1\n";
        assert_eq!(wrong(log, one), ["other cases come after b.one"]);
        assert_eq!(wrong(one, log), ["other cases come after b.one"]);
        assert_eq!(wrong("", "").len(), 1);
    }

    #[test]
    fn every_rule_names_cases_of_some_group_and_says_why() {
        for rule in RULES {
            assert!(!rule.names.is_empty() && !rule.why.is_empty(), "{rule:?}");
            assert!(rule.names.iter().all(|names| names.contains('.')), "{rule:?}");
            assert!(rule.bare != rule.visor || rule.bare.contains('*'), "{rule:?}");
        }
    }
}
