//! What a test expects on the serial line.

use anyhow::Context;

use crate::machine::{Lines, Step, Watch, outside};

/// Whether `line` has the shape of `pattern`, in which `*` stands for any text, or none.
pub(crate) fn matches(pattern: &str, line: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == line;
    };
    let Some(mut line) = line.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        // The earliest place leaves the most for what follows.
        match line.split_once(part) {
            Some((_, after)) => line = after,
            None => return false,
        }
    }
    line.ends_with(last)
}

/// What happens once every expected line was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The run ends: the verdict is known.
    Stop,
    /// The machine goes on to its own end.
    GoOn,
}

/// What isolinux says first, where it is heard: whatever was looked for since the last boot is looked for once
/// more, before much of the machine's memory is used again.
const AGAIN: &str = "ISOLINUX ";

/// Expected lines, in order, and lines that must not come.
#[derive(Debug)]
pub(crate) struct Script<'a> {
    expected: &'a [String],
    forbidden: &'a [String],
    then: Then,
    lines: Lines,
    offence: Option<String>,
    emulator: Option<u32>,
    found: Vec<String>,
    /// What was looked for since the last boot.
    sought: Vec<(outside::Needle, String)>,
}

impl<'a> Script<'a> {
    /// A script at its start.
    pub(crate) fn new(expected: &'a [String], forbidden: &'a [String], then: Then) -> Self {
        Self {
            expected,
            forbidden,
            then,
            lines: Lines::default(),
            offence: None,
            emulator: None,
            found: Vec::new(),
            sought: Vec::new(),
        }
    }

    /// What is wrong once the run is over, if anything.
    pub(crate) fn verdict(&mut self) -> Result<(), String> {
        // A machine that powers off may leave its last line without an end.
        let rest = self.lines.take();
        self.line(&rest);
        match (&self.offence, self.expected.first()) {
            (Some(line), _) => Err(format!("forbidden line: {line}")),
            (None, Some(missing)) => Err(format!("missing line: {missing}")),
            (None, None) => Ok(()),
        }
    }

    /// What was found in the machine's memory, for each time the machine asked to look: `harness:
    /// found COUNT at [SOME PLACES] of NAME`.
    pub(crate) fn found(&self) -> &[String] {
        &self.found
    }

    /// Searches the machine's memory if `line` asks for that.
    fn look(&mut self, line: &str) {
        if line.starts_with(AGAIN) {
            for (needle, name) in std::mem::take(&mut self.sought) {
                self.search(needle, &format!("{name}, after the reset"));
            }
        } else if let Some((needle, name)) = wanted(line) {
            self.search(needle, name);
            self.sought.push((needle, name.to_owned()));
        }
    }

    fn search(&mut self, needle: outside::Needle, name: &str) {
        let places = self.emulator.context("nothing runs");
        let line = match places.and_then(|pid| outside::places(pid, needle)) {
            Ok(places) => {
                let some: String = places.iter().take(16).map(|at| format!(" {at:#x}")).collect();
                format!("harness: found {} at [{some} ] of {name}", places.len())
            }
            Err(error) => format!("harness: cannot look for {name}: {error:#}"),
        };
        self.found.push(line);
    }

    fn line(&mut self, line: &str) {
        self.look(line);
        if let Some((next, later)) = self.expected.split_first()
            && matches(next, line)
        {
            self.expected = later;
        } else if self.forbidden.iter().any(|pattern| matches(pattern, line)) {
            self.offence = self.offence.take().or_else(|| Some(line.to_owned()));
        }
    }
}

/// The two disguised words that a line asks to be searched for, and what they are.
fn wanted(line: &str) -> Option<(outside::Needle, &str)> {
    let (_, rest) = line.split_once("vmm: look for ")?;
    let mut words = rest.splitn(3, ' ');
    let mut word = || u64::from_str_radix(words.next()?, 16).ok();
    let needle = [word()?, word()?];
    Some((needle, words.next()?))
}

impl Watch for Script<'_> {
    fn started(&mut self, pid: u32) {
        self.emulator = Some(pid);
    }

    fn bytes(&mut self, bytes: &[u8]) -> Step {
        for line in self.lines.push(bytes) {
            self.line(&line);
        }
        let complete = self.expected.is_empty() && self.then == Then::Stop;
        if complete || self.offence.is_some() { Step::Stop } else { Step::Continue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    fn verdict(expected: &[&str], serial: &str) -> Result<(), String> {
        let (expected, forbidden) = (owned(expected), owned(&["*panic*"]));
        let mut script = Script::new(&expected, &forbidden, Then::GoOn);
        let _ = script.bytes(serial.as_bytes());
        script.verdict()
    }

    #[test]
    fn a_star_stands_for_any_text_and_nothing_else_does() {
        assert!(matches("a*c", "abc") && matches("a*c", "ac"));
        assert!(matches("*b*", "abc") && matches("*", ""));
        assert!(matches("a*b*c", "a-b-b-c"));
        assert!(!matches("a*c", "acd") && !matches("abc", "abcd") && !matches("", "a"));
        assert!(!matches("ab*b", "ab"));
    }

    #[test]
    fn a_line_names_what_to_look_for() {
        let line = "[ 1.0] vmm: look for 000000000000002a ffffffffffffffff the secret";
        assert_eq!(wanted(line), Some(([42, u64::MAX], "the secret")));
        assert_eq!(wanted("vmm: look for 2a"), None);
        assert_eq!(wanted("vmm: look at me"), None);
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_empty() {
        let mut script = Script::new(&[], &[], Then::GoOn);
        let _ = script.bytes(b"vmm: look for 1 2 secret\n");
        assert!(script.found()[0].starts_with("harness: cannot look for secret"));
        let _ = script.bytes(b"\r\nISOLINUX 6.04\r\nISOLINUX 6.04\r\n");
        let again = "harness: cannot look for secret, after the reset: ";
        assert!(script.found().len() == 2 && script.found()[1].starts_with(again));
    }

    #[test]
    fn expected_lines_must_come_in_order() {
        assert_eq!(verdict(&["one", "two"], "one\nnoise\ntwo\n"), Ok(()));
        let missing = Err("missing line: two".to_owned());
        assert_eq!(verdict(&["one", "two"], "two\none\n"), missing);
    }

    #[test]
    fn the_last_line_needs_no_line_end() {
        assert_eq!(verdict(&["one"], "one"), Ok(()));
    }

    #[test]
    fn a_forbidden_line_fails_even_when_everything_expected_came() {
        let offence = Err("forbidden line: Kernel panic!".to_owned());
        assert_eq!(verdict(&["one"], "one\nKernel panic!\nmore panic\n"), offence);
    }

    #[test]
    fn an_expected_line_is_not_forbidden() {
        assert_eq!(verdict(&["a panic"], "a panic\n"), Ok(()));
    }

    #[test]
    fn a_complete_script_stops_the_run_only_if_asked_to() {
        let expected = owned(&["one"]);
        let mut script = Script::new(&expected, &[], Then::Stop);
        assert_eq!(script.bytes(b"on"), Step::Continue);
        assert_eq!(script.bytes(b"e\n"), Step::Stop);
        let mut script = Script::new(&expected, &[], Then::GoOn);
        assert_eq!(script.bytes(b"one\n"), Step::Continue);
    }
}
