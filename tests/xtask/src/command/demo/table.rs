//! The attacks as a table: what became of each without and with a ticket.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Result;
use serde_json::{Value, json};

use super::sets::{AFTER, Group, Set};
use super::wrapped;
use crate::suite::protected::{self, Want};

/// The attacked VMs, as the lines of the machine call them.
const WITHOUT: &str = "unprotected";
const WITH: &str = "protected";

/// What stands for an outcome where there is none.
const NOTHING: &str = "nothing";

/// An attack and what became of it.
#[derive(Clone, Debug)]
struct Row {
    name: String,
    /// By its place among those of the set.
    group: usize,
    without: String,
    with: String,
    /// The number of the visor's cause, where the VM was stopped.
    cause: Option<String>,
    is_good: bool,
}

impl Row {
    /// The attack `name` of which the machine said `said`. One that nobody wants is not good.
    fn of(set: &Set, name: &str, said: &str) -> Self {
        let of = |subject| protected::outcome(said, subject).unwrap_or(NOTHING).to_owned();
        let cause = protected::outcome(said, "cause").map(str::to_owned);
        let want = set.wanted.get(name).copied();
        Self::new(set, name, [of(WITHOUT), of(WITH)], want).because(cause)
    }

    /// The search for secrets when the VMs have ended.
    fn after(set: &Set, log: &str) -> Self {
        let of = |subject| match protected::places_left(log, subject) {
            Ok(0) => "failed",
            Ok(_) => "succeeded",
            Err(_) => NOTHING,
        };
        Self::new(set, AFTER, [of(WITHOUT), of(WITH)].map(str::to_owned), Some(Want::Fails))
    }

    fn new(set: &Set, name: &str, [without, with]: [String; 2], want: Option<Want>) -> Self {
        let is_good = want.is_some_and(|want| {
            protected::accepted(WITHOUT, want).contains(&without.as_str())
                && protected::accepted(WITH, want).contains(&with.as_str())
        });
        let claims = |group: &Group| group.names.iter().any(|start| name.starts_with(start));
        let group = set.groups.iter().position(claims).unwrap_or_default();
        Self { name: name.to_owned(), group, without, with, cause: None, is_good }
    }

    fn because(mut self, cause: Option<String>) -> Self {
        self.cause = cause;
        self
    }

    /// What the name says beside the place in the guest at which it is done.
    fn stem(&self) -> &str {
        self.name.split_once("-at-").map_or(self.name.as_str(), |(stem, _)| stem)
    }

    /// Whether one line can stand for both: the same is done at several places with the same outcome.
    fn is_like(&self, other: &Self) -> bool {
        self.stem() == other.stem()
            && self.name.contains("-at-") == other.name.contains("-at-")
            && (&self.without, &self.with) == (&other.without, &other.with)
            && self.is_good == other.is_good
    }

    fn json(&self, groups: &[Group]) -> Value {
        json!({
            "name": self.name,
            "group": groups.get(self.group).map(|group| group.title),
            "without": self.without,
            "with": self.with,
            "cause": self.cause,
            "good": self.is_good,
        })
    }
}

/// An outcome for those who read the table.
pub(super) fn words(outcome: &str) -> &str {
    match outcome {
        "stopped" => "VM stopped",
        NOTHING => "not seen",
        other => other.trim_end_matches(':'),
    }
}

/// Every attack that there is, whether it was seen or not.
#[derive(Debug)]
pub(super) struct Table {
    groups: &'static [Group],
    rows: Vec<Row>,
}

impl Table {
    /// What `log` tells of the attacks of `set`.
    ///
    /// # Errors
    /// If it tells of one twice.
    pub(super) fn of(log: &str, set: &Set) -> Result<Self> {
        let found = protected::lines(log, set.line)?;
        let wanted_names = set.wanted.keys().map(String::as_str);
        let names: BTreeSet<&str> = wanted_names.chain(found.keys().copied()).collect();
        let row = |name| {
            let said = found.get(name).copied().unwrap_or_default();
            Row::of(set, name, said)
        };
        let mut rows: Vec<Row> = names.into_iter().map(row).collect();
        rows.push(Row::after(set, log));
        rows.sort_by_key(|row| row.group);
        Ok(Self { groups: set.groups, rows })
    }

    /// Whether every attack was seen and ended as it must, and no other was.
    pub(super) fn is_good(&self) -> bool {
        self.rows.iter().all(|row| row.is_good)
    }

    /// The counts in a line.
    pub(super) fn summary(&self) -> String {
        let wrong = self.rows.iter().filter(|row| !row.is_good).count();
        let counts = format!(
            "{} attacks; without a ticket {}; with a ticket {}",
            self.rows.len(),
            tally(&self.rows, |row| &row.without),
            tally(&self.rows, |row| &row.with)
        );
        if wrong == 0 { counts } else { format!("{counts}; FAILED: {wrong} not as they must be") }
    }

    /// One object for each attack.
    pub(super) fn json(&self) -> Value {
        self.rows.iter().map(|row| row.json(self.groups)).collect()
    }
}

/// How often each outcome is there.
fn tally(rows: &[Row], column: impl Fn(&Row) -> &String) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for row in rows {
        *counts.entry(words(column(row))).or_default() += 1;
    }
    // Not reversed, "VM stopped" would come before "failed".
    let counts: Vec<String> =
        counts.iter().rev().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    counts.join(", ")
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = || self.rows.chunk_by(|a, b| a.group == b.group);
        for rows in groups() {
            let Some(group) = rows.first().and_then(|row| self.groups.get(row.group)) else {
                continue;
            };
            writeln!(out, "{}:\n{}", group.title, wrapped(group.words))?;
            line(out, ["attack", "without ticket", "with ticket"])?;
            for same in rows.chunk_by(Row::is_like) {
                let Some(row) = same.first() else { continue };
                let name = match same.len() {
                    1 => row.name.clone(),
                    count => format!("{}, at {count} places", row.stem()),
                };
                let mark = if row.is_good { "" } else { "  <- WRONG" };
                let with = format!("{}{mark}", words(&row.with));
                line(out, [&name, words(&row.without), &with])?;
            }
            writeln!(out)?;
        }
        line(out, ["group", "without ticket", "with ticket"])?;
        for rows in groups().chain([self.rows.as_slice()]) {
            let group = rows.first().and_then(|row| self.groups.get(row.group));
            let is_all = rows.len() == self.rows.len();
            let title = group.filter(|_| !is_all).map_or("all", |group| group.title);
            let without = tally(rows, |row| &row.without);
            line(out, [title, &without, &tally(rows, |row| &row.with)])?;
        }
        Ok(())
    }
}

/// A line of three columns.
fn line(out: &mut fmt::Formatter<'_>, [name, without, with]: [&str; 3]) -> fmt::Result {
    writeln!(out, "    {name:<29} {without:<15} {with}")
}

#[cfg(test)]
mod tests {
    use super::super::sets::{linux, small};
    use super::*;

    const LEFT: &str = "harness: found 9 at [ 0x1000 ] of unprotected\n\
                        harness: found 0 at [ ] of protected\n";

    /// What the machine says if all is well, with each line changed.
    fn log(change: impl Fn(String) -> String) -> String {
        let line = |(name, want): (&String, &Want)| {
            let how = if *want == Want::Stops { "stopped cause=7" } else { "failed" };
            change(format!("[ 1.0] vmm: ATTACK {name} unprotected=succeeded protected={how}\n"))
        };
        protected::attacks().iter().map(line).collect::<String>() + LEFT
    }

    /// The table if the line of `set-rax` has `to` in place of `from`.
    fn changed(from: &str, to: &str) -> Table {
        let change = |line: String| {
            if line.contains("set-rax ") { line.replace(from, to) } else { line }
        };
        Table::of(&log(change), &small()).unwrap()
    }

    fn all_good() -> Table {
        Table::of(&log(|line| line), &small()).unwrap()
    }

    #[test]
    fn attacks_that_succeed_without_a_ticket_only_are_good() {
        let table = all_good();
        assert!(table.is_good());
        assert_eq!(table.rows.len(), protected::attacks().len() + 1);
        assert!(!table.summary().contains("FAILED"));
        assert!(!table.to_string().contains("WRONG"));
    }

    #[test]
    fn an_attack_that_succeeds_with_a_ticket_is_wrong() {
        let table = changed("protected=failed", "protected=succeeded");
        assert!(!table.is_good());
        assert!(table.summary().ends_with("FAILED: 1 not as they must be"));
        let text = table.to_string();
        let wrong: Vec<&str> = text.lines().filter(|line| line.contains("WRONG")).collect();
        assert!(wrong[0].contains("set-rax") && wrong.len() == 1, "{wrong:?}");
    }

    #[test]
    fn an_attack_that_fails_without_a_ticket_is_wrong() {
        assert!(!changed("=succeeded", "=failed").is_good());
    }

    #[test]
    fn an_attack_that_must_stop_the_vm_may_not_just_fail() {
        let table =
            Table::of(&log(|line| line.replace("stopped cause=7", "failed")), &small()).unwrap();
        assert!(!table.is_good());
    }

    #[test]
    fn an_attack_that_was_not_seen_is_wrong_and_has_its_row() {
        let table = changed("ATTACK", "nothing of the kind");
        assert!(!table.is_good());
        assert!(table.to_string().contains("set-rax                       not seen"));
        assert!(!changed(" protected=failed", "").is_good());
        assert!(!Table::of("", &small()).unwrap().is_good());
    }

    #[test]
    fn an_attack_that_nobody_knows_is_wrong() {
        let table = Table::of(
            &(log(|line| line) + "vmm: ATTACK odd unprotected=succeeded protected=failed"),
            &small(),
        );
        assert!(!table.unwrap().is_good());
    }

    #[test]
    fn an_attack_that_is_told_of_twice_is_an_error() {
        assert!(Table::of(&log(|line| line.repeat(2)), &small()).is_err());
    }

    #[test]
    fn a_secret_that_is_left_or_not_looked_for_is_wrong() {
        let with = |left: &str| Table::of(&log(|line| line).replace(LEFT, left), &small()).unwrap();
        assert!(with(LEFT).is_good());
        assert!(!with("").is_good());
        assert!(!with(&LEFT.replace("found 0", "found 1")).is_good());
        assert!(!with(&LEFT.replace("found 9", "found 0")).is_good());
    }

    #[test]
    fn every_attack_has_a_group_and_every_group_an_attack() {
        for set in [small(), linux()] {
            let rows = Table::of("", &set).unwrap().rows;
            let found: BTreeSet<usize> = rows.iter().map(|row| row.group).collect();
            assert!(found.into_iter().eq(0..set.groups.len() - 1));
        }
    }

    #[test]
    fn one_line_stands_for_the_same_at_several_places_only_if_all_ended_alike() {
        assert!(all_good().to_string().contains("    get-msrs, at 9 places"));
        let change = |line: String| {
            if line.contains("-msrs-at-hlt ") { line.replace("=failed", "=hung") } else { line }
        };
        let text = Table::of(&log(change), &small()).unwrap().to_string();
        assert!(text.contains("    get-msrs-at-hlt ") && text.contains("hung  <- WRONG"));
    }

    #[test]
    fn the_number_of_the_cause_is_in_the_json_of_a_vm_that_was_stopped() {
        let json = all_good().json();
        let rows = json.as_array().unwrap();
        let of = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap();
        assert_eq!(
            (&of("swap-pages")["with"], &of("swap-pages")["cause"]),
            (&json!("stopped"), &json!("7"))
        );
        assert_eq!(of("set-rax")["cause"], Value::Null);
        assert_eq!(of(AFTER)["group"], "after the end");
    }
}
