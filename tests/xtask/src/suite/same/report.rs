//! What a Linux says of the machine that it finds, as lines that can be compared.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// The sections that are compared; the report has others, which only count events.
pub(super) const SECTIONS: [&str; 7] =
    ["cpuinfo", "iomem", "online", "meminfo", "mtrr", "pci", "dmesg"];

/// What a Linux said of its machine: the lines of each section, without what differs at any boot.
#[derive(Debug)]
pub(super) struct Report(BTreeMap<&'static str, Vec<String>>);

impl Report {
    /// The report in what came over the serial line.
    pub(super) fn of(serial: &str) -> Result<Self> {
        let mut sections = BTreeMap::new();
        for name in SECTIONS {
            let lines = serial.lines().skip_while(|line| *line != format!("=== {name}"));
            let lines = lines.skip(1).take_while(|line| !line.starts_with("=== "));
            let lines = plain(name, lines);
            ensure!(!lines.is_empty(), "the report has no section {name}, or an empty one");
            let _ = sections.insert(name, lines);
        }
        Ok(Self(sections))
    }

    pub(super) fn section(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }
}

/// The lines of section `name` that are compared, in the form in which rules name them.
fn plain<'a>(name: &str, lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    match name {
        "cpuinfo" => processors(lines),
        "meminfo" => lines.filter(|line| line.starts_with("MemTotal:")).map(spaced).collect(),
        "dmesg" => lines.map(|line| unstamped(line).to_owned()).collect(),
        _ => lines.map(str::to_owned).collect(),
    }
}

/// `line` with single spaces.
fn spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// One line for each property, and for each word of the long ones, under its processor's number.
fn processors<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let (mut cpu, mut plain) = ("", Vec::new());
    for (key, value) in lines.filter_map(|line| line.split_once(':')) {
        let (key, value) = (key.trim(), value.trim());
        if key == "processor" {
            cpu = value;
        }
        if ["flags", "vmx flags", "bugs"].contains(&key) {
            let words = value.split(' ');
            plain.extend(words.map(|word| format!("cpu {cpu}: {key}: {word}")));
        } else {
            plain.push(format!("cpu {cpu}: {key}: {value}"));
        }
    }
    plain
}

/// A line of the kernel's log without its level and its time.
fn unstamped(line: &str) -> &str {
    let level = line.strip_prefix('<').and_then(|rest| rest.split_once(">["));
    let text = level.and_then(|(_, rest)| rest.split_once("] "));
    text.map_or(line, |(_, text)| text)
}

/// What the stars of `pattern` stand for in `line`, if it has that shape.
pub(super) fn captures<'a>(pattern: &str, line: &'a str) -> Option<Vec<&'a str>> {
    let mut parts = pattern.split('*').peekable();
    let mut rest = line.strip_prefix(parts.next()?)?;
    let mut found = Vec::new();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        let (text, after) =
            if last { (rest.strip_suffix(part)?, "") } else { rest.split_once(part)? };
        found.push(text);
        rest = after;
    }
    rest.is_empty().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(name: &str, text: &str) -> Vec<String> {
        plain(name, text.lines())
    }

    #[test]
    fn stars_give_the_text_that_they_stand_for() {
        assert_eq!(captures("a*b*", "a1b2"), Some(vec!["1", "2"]));
        assert_eq!(captures("*", ""), Some(vec![""]));
        assert_eq!(captures("a", "a"), Some(vec![]));
        assert_eq!((captures("a", "ab"), captures("a*b", "a1")), (None, None));
    }

    #[test]
    fn long_lines_of_a_processor_are_split_into_words() {
        let text = "processor\t: 1\ncpu MHz\t\t: 20.0\nflags\t\t: fpu vmx\n\n";
        let expected = ["cpu 1: processor: 1", "cpu 1: cpu MHz: 20.0"];
        let words = ["cpu 1: flags: fpu", "cpu 1: flags: vmx"];
        assert_eq!(lines("cpuinfo", text), [expected, words].concat());
    }

    #[test]
    fn a_log_line_loses_its_level_and_time_only() {
        let text = "<6>[    0.621155] [mem 0x2-0xf] available\n<7>[    1.0]   deep\nraw [1] line";
        let expected = ["[mem 0x2-0xf] available", "  deep", "raw [1] line"];
        assert_eq!(lines("dmesg", text), expected);
    }

    #[test]
    fn a_report_with_an_empty_section_is_none() {
        let text: String = SECTIONS.map(|name| format!("=== {name}\nMemTotal: 1 kB: 2\n")).concat();
        assert!(Report::of(&format!("{text}=== end\n")).is_ok());
        let error = Report::of(&text.replace("=== pci\nMemTotal: 1 kB: 2\n", "=== pci\n"));
        let line = "the report has no section pci, or an empty one";
        assert_eq!(error.unwrap_err().to_string(), line);
    }
}
