//! Two reports side by side: what differs, and which rule says why.

use super::Holes;
use super::report::{Report, SECTIONS, captures};
use super::rules::{Need, RULES, Rule};

/// What two reports have in common and what not.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    explained: Vec<Explained>,
    /// What fails the test, a line each.
    pub(super) wrong: Vec<String>,
}

/// A rule that applied, and the lines that it applied to.
#[derive(Debug)]
struct Explained {
    rule: &'static Rule,
    gone: Option<String>,
    new: Vec<String>,
}

impl Comparison {
    /// Compares all sections.
    pub(super) fn of(bare: &Report, visor: &Report, holes: &Holes) -> Self {
        let mut comparison = Self::default();
        for name in SECTIONS {
            comparison.section(name, bare.section(name), visor.section(name), holes);
        }
        comparison.required(visor);
        comparison
    }

    /// Compares one section.
    fn section(&mut self, name: &str, bare: &[String], visor: &[String], holes: &Holes) {
        let (mut gone, mut new) = (without(bare, visor), without(visor, bare));
        // The kernel's log follows the time at which parallel work gets done.
        if name != "dmesg" && without(bare, &gone) != without(visor, &new) {
            self.wrong.push(format!("{name}: the same lines come in another order"));
        }
        for rule in RULES.iter().filter(|rule| rule.section == name) {
            while let Some(explained) = apply(rule, &mut gone, &mut new, holes) {
                self.explained.push(explained);
            }
        }
        let lines = |sign, lines: Vec<String>| {
            let line = move |line: String| format!("{name}: no rule explains: {sign} {line}");
            lines.into_iter().map(line)
        };
        self.wrong.extend(lines('-', gone));
        self.wrong.extend(lines('+', new));
    }

    /// Checks that what must differ does, and that what must be gone is gone for every processor.
    fn required(&mut self, visor: &Report) {
        for rule in RULES.iter().filter(|rule| rule.need == Need::Must) {
            let mut explained = self.explained.iter();
            let seen = explained.any(|one| std::ptr::eq(one.rule, rule));
            let is_bare = |line: &String| captures(rule.bare, line).is_some();
            let stays = rule.visor.is_empty() && visor.section(rule.section).iter().any(is_bare);
            if !seen || stays {
                let (section, why) = (rule.section, rule.why);
                let new = rule.visor.iter().map(|line| format!(" + {line}"));
                let lines = format!("- {}{}", rule.bare, new.collect::<String>());
                self.wrong.push(format!("{section}: missing difference: {lines}: {why}"));
            }
        }
    }

    /// The report for people: each difference under its reason.
    pub(super) fn text(&self) -> String {
        let mut text = String::from("- the bare machine, + the machine on the visor\n");
        let mut heading = ("", "");
        for Explained { rule, gone, new } in &self.explained {
            if heading.0 != rule.section {
                text += &format!("\n== {}\n", rule.section);
            }
            if heading != (rule.section, rule.why) {
                heading = (rule.section, rule.why);
                text += &format!("{}:\n", rule.why);
            }
            let gone = gone.iter().map(|line| format!("  - {line}\n"));
            let new = new.iter().map(|line| format!("  + {line}\n"));
            text.extend(gone.chain(new));
        }
        if !self.wrong.is_empty() {
            text += &format!("\n== wrong\n{}\n", self.wrong.join("\n"));
        }
        text
    }
}

/// `lines` less one of them for each equal line of `others`.
fn without(lines: &[String], others: &[String]) -> Vec<String> {
    let mut others: Vec<&String> = others.iter().collect();
    let is_left = |line: &&String| match others.iter().position(|other| other == line) {
        Some(at) => {
            let _ = others.swap_remove(at);
            false
        }
        None => true,
    };
    lines.iter().filter(is_left).cloned().collect()
}

/// Takes the lines of one difference that `rule` explains out of `gone` and `new`.
fn apply(
    rule: &'static Rule,
    gone: &mut Vec<String>,
    new: &mut Vec<String>,
    holes: &Holes,
) -> Option<Explained> {
    if rule.bare.is_empty() {
        let new = take(rule, &[], new, holes)?;
        return Some(Explained { rule, gone: None, new });
    }
    let (at, found) = gone.iter().enumerate().find_map(|(at, line)| {
        let texts = captures(rule.bare, line)?;
        Some((at, take(rule, &texts, new, holes)?))
    })?;
    let gone = Some(gone.remove(at));
    Some(Explained { rule, gone, new: found })
}

/// Takes all lines that `rule` wants out of `new`, or none of them.
fn take(rule: &Rule, texts: &[&str], new: &mut Vec<String>, holes: &Holes) -> Option<Vec<String>> {
    let mut left = new.clone();
    let mut found = Vec::new();
    for pattern in rule.visor {
        let pattern = holes.fill(pattern, texts);
        let at = left.iter().position(|line| captures(&pattern, line).is_some())?;
        found.push(left.remove(at));
    }
    *new = left;
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::same::Kept;

    const HOLES: Holes = Holes {
        low: Kept { first: 0x7000, length: 0x3000 },
        top: Kept { first: 0x20_0000, length: 0x20_0000 },
    };

    fn owned(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    fn wrong(section: &str, bare: &[&str], visor: &[&str]) -> Vec<String> {
        let mut comparison = Comparison::default();
        comparison.section(section, &owned(bare), &owned(visor), &HOLES);
        comparison.wrong
    }

    #[test]
    fn lines_in_another_order_fail_except_in_the_log() {
        let order = "pci: the same lines come in another order";
        assert_eq!(wrong("pci", &["a", "b"], &["b", "a"]), [order]);
        assert_eq!(wrong("pci", &["a", "b"], &["a", "b"]), owned(&[]));
        assert_eq!(wrong("dmesg", &["a", "b"], &["b", "a"]), owned(&[]));
    }

    #[test]
    fn a_line_that_comes_once_more_fails() {
        let line = "dmesg: no rule explains: + a";
        assert_eq!(wrong("dmesg", &["a"], &["a", "a"]), [line]);
    }

    #[test]
    fn a_rule_takes_all_of_its_lines_or_none() {
        let bare = ["00100000-003fdfff : System RAM"];
        let two = ["00100000-001fffff : System RAM", "00200000-003fffff : Reserved"];
        assert_eq!(wrong("iomem", &bare, &two).len(), 3);
    }

    #[test]
    fn a_rule_leaves_free_only_what_it_says() {
        let found = |name, at| format!("input: {name} as /devices/{at}");
        let bare = found("Keyboard", "serio0/input/input1");
        let other = found("Keyboard", "serio0/input/input0");
        assert_eq!(wrong("dmesg", &[&bare], &[&other]), owned(&[]));
        let moved = found("Keyboard", "serio1/input/input0");
        assert_eq!(wrong("dmesg", &[&bare], &[&moved]).len(), 2);
    }

    #[test]
    fn a_rule_of_another_section_explains_nothing() {
        let line = "pci: no rule explains: - cpu 0: flags: vmx";
        assert_eq!(wrong("pci", &["cpu 0: flags: vmx"], &[]), [line]);
    }

    #[test]
    fn every_rule_is_about_some_line_of_a_known_section() {
        for rule in RULES {
            assert!(SECTIONS.contains(&rule.section), "{rule:?}");
            assert!(!(rule.bare.is_empty() && rule.visor.is_empty()), "{rule:?}");
            assert!(rule.need == Need::May || !rule.bare.is_empty(), "{rule:?}");
            assert!(!rule.why.is_empty(), "{rule:?}");
        }
    }
}
