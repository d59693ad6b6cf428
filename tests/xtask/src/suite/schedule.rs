//! Running tests side by side and reporting on them.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail};

use super::{Kit, Rig, Skipped, Test};
use crate::paths;

/// How many serial lines of a failed test are shown.
const SHOWN: usize = 15;

/// What to run and how.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Names of tests or of groups; none stand for all.
    pub(crate) names: Vec<String>,
    /// How many tests run at once.
    pub(crate) jobs: usize,
    /// Whether boot images stay beside the logs.
    pub(crate) images: Images,
}

/// What becomes of the images of tests that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Images {
    /// They stay.
    Kept,
    /// They go: they are large, and are made again in no time.
    Removed,
}

/// How a test went.
enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

/// What came of all tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Tally {
    /// Whether no test failed.
    pub(crate) const fn good(self) -> bool {
        self.failed == 0
    }

    fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Failed(_) => self.failed += 1,
            Verdict::Skipped(_) => self.skipped += 1,
        }
    }

    /// The closing line, in the form that other programs read.
    fn line(self) -> String {
        let line = format!("{} passed, {} failed", self.passed, self.failed);
        match self.skipped {
            0 => line,
            skipped => format!("{line}, {skipped} skipped"),
        }
    }
}

/// The tests that `names` ask for, the dearest first; those on demand only by their own names.
pub(crate) fn select(tests: Vec<Test>, names: &[String]) -> Result<Vec<Test>> {
    for name in names {
        if !tests.iter().any(|test| is_asked(test.name, name)) {
            bail!("no test and no group is called {name}: see `cargo xtask test --list`");
        }
    }
    let asked = |test: &Test| {
        names.iter().any(|name| test.name == name)
            || !test.on_demand
                && (names.is_empty() || names.iter().any(|name| is_asked(test.name, name)))
    };
    let mut tests: Vec<Test> = tests.into_iter().filter(asked).collect();
    tests.sort_by_key(|test| std::cmp::Reverse(test.cost));
    Ok(tests)
}

/// Whether `asked` is the test `name` or a group that it is in.
fn is_asked(name: &str, asked: &str) -> bool {
    let rest = name.strip_prefix(asked.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Runs what `plan` asks for and prints a line for each test and one for all.
pub(crate) fn run(tests: Vec<Test>, plan: &Plan) -> Result<Tally> {
    let queue = Mutex::new(VecDeque::from(select(tests, &plan.names)?));
    let tally = Mutex::new(Tally::default());
    let (kit, logs) = (Kit::new(), paths::target("tests")?);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    thread::scope(|scope| {
        for _ in 0..plan.jobs.max(1) {
            let _ = scope.spawn(|| {
                while let Some(test) = next() {
                    let rig = Rig::new(&kit, &logs.join(test.name));
                    let verdict = verdict(&test, &rig);
                    if plan.images == Images::Removed && matches!(verdict, Verdict::Passed) {
                        remove_images(&rig.dir);
                    }
                    // The lock also keeps the lines of one report together.
                    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                    tally.count(&verdict);
                    report(&test, &rig, &verdict);
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{}", tally.line());
    Ok(tally)
}

fn verdict(test: &Test, rig: &Rig<'_>) -> Verdict {
    let done = paths::emptied(&rig.dir).and_then(|()| (test.body)(rig));
    match done {
        Ok(()) => Verdict::Passed,
        Err(error) => match error.downcast::<Skipped>() {
            Ok(skipped) => Verdict::Skipped(skipped.0),
            Err(error) => Verdict::Failed(format!("{error:#}")),
        },
    }
}

fn report(test: &Test, rig: &Rig<'_>, verdict: &Verdict) {
    let (name, ms) = (test.name, rig.spent().as_millis());
    match verdict {
        Verdict::Passed => println!("ok      {name} ({ms} ms)"),
        Verdict::Skipped(why) => println!("skipped {name}: {why}"),
        Verdict::Failed(why) => {
            println!("FAILED  {name} ({ms} ms): {why}");
            for log in serial_logs(&rig.dir) {
                let text = fs::read(&log).unwrap_or_default();
                for line in last_lines(&String::from_utf8_lossy(&text)) {
                    println!("        | {line}");
                }
                println!("        log: {}", log.display());
            }
        }
    }
}

fn last_lines(text: &str) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().collect();
    lines.into_iter().rev().take(SHOWN).rev().collect()
}

/// The serial logs of a test: in its folder, or one folder below for each of several boots.
fn serial_logs(dir: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let dirs = std::iter::once(dir.to_path_buf()).chain(below);
    let logs = dirs.map(|dir| dir.join("serial.log"));
    logs.filter(|log| log.exists()).collect()
}

/// Removes the boot images below `dir`; one that stays is only a waste of space.
fn remove_images(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            remove_images(&path);
        } else if path.extension().is_some_and(|kind| kind == "iso" || kind == "fd") {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &'static str, cost: u32) -> Test {
        Test::new(name, cost, |_| Ok(()))
    }

    fn selected(names: &[&str]) -> Vec<&'static str> {
        let dear = test("boot/dear", 99).on_demand();
        let tests = vec![test("boot/a", 1), test("boot/b", 9), test("bootless/a", 5), dear];
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        select(tests, &names).unwrap().iter().map(|test| test.name).collect()
    }

    #[test]
    fn a_group_name_selects_the_group_and_no_longer_name() {
        assert_eq!(selected(&["boot"]), ["boot/b", "boot/a"]);
        assert_eq!(selected(&["boot/"]), ["boot/b", "boot/a"]);
        assert_eq!(selected(&["boot/a"]), ["boot/a"]);
    }

    #[test]
    fn no_name_selects_everything_dearest_first() {
        assert_eq!(selected(&[]), ["boot/b", "bootless/a", "boot/a"]);
    }

    #[test]
    fn a_test_on_demand_runs_only_by_its_own_name() {
        assert_eq!(selected(&["boot/dear", "boot/a"]), ["boot/dear", "boot/a"]);
        assert_eq!(selected(&["boot", "boot/dear"]), ["boot/dear", "boot/b", "boot/a"]);
    }

    #[test]
    fn an_unknown_name_is_an_error_that_says_so() {
        let error = select(vec![test("boot/a", 1)], &["boat".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("called boat"));
    }

    #[test]
    fn the_closing_line_names_skipped_tests_only_if_there_are_any() {
        let mut tally = Tally::default();
        tally.count(&Verdict::Passed);
        tally.count(&Verdict::Failed(String::new()));
        assert_eq!(tally.line(), "1 passed, 1 failed");
        tally.count(&Verdict::Skipped(String::new()));
        assert_eq!(tally.line(), "1 passed, 1 failed, 1 skipped");
        assert!(!tally.good());
    }

    #[test]
    fn the_report_of_a_failure_shows_the_last_lines_in_their_order() {
        let text: String = (0..40).map(|n| format!("{n}\n")).collect();
        let lines = last_lines(&text);
        assert_eq!((lines.len(), lines[0], lines[14]), (15, "25", "39"));
    }

    #[test]
    fn a_skipped_test_is_not_a_failed_one() {
        let kit = Kit::new();
        let dir = std::env::temp_dir().join(format!("xtask-skip-{}", std::process::id()));
        let rig = Rig::new(&kit, &dir);
        let skips = Test::new("a/b", 1, |_| Err(Skipped("why".to_owned()).into()));
        assert!(matches!(verdict(&skips, &rig), Verdict::Skipped(why) if why == "why"));
        let fails = Test::new("a/b", 1, |_| bail!("no"));
        assert!(matches!(verdict(&fails, &rig), Verdict::Failed(why) if why == "no"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
