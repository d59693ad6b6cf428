//! The tests: each a boot, or several, with exact expectations on the serial line.

mod attest;
mod boot;
mod conformance;
mod expect;
mod guests;
pub(crate) mod iommu;
mod iommu_linux;
mod iommu_tables;
mod kit;
mod kvm;
mod launch;
mod life;
mod probes;
pub(crate) mod protected;
mod protected_smp;
mod protected_xen;
pub(crate) mod qemu_attacks;
mod rooted;
mod same;
mod schedule;
mod tickets;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::machine::{self, End, Machine, Outcome, Payload, Runner, Watch};
pub(crate) use expect::{Script, Then};
pub(crate) use kit::{Host, Kit, LINUX, Stack};
pub(crate) use schedule::{Images, Plan, run, select};

/// Lines that no test wants to see unless it expects them.
const FORBIDDEN: [&str; 6] = [
    "loader: [error] *",
    "visor: [error] *",
    "visor: halted",
    "*Kernel panic*",
    "*panicked at*",
    "probe: FAIL *",
];

/// The body of a test: what it does, with the folder and the kit that it gets.
type Body = Box<dyn Fn(&Rig<'_>) -> Result<()> + Send + Sync>;

/// A test under its name.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    /// Processor seconds that it takes, roughly: the dear ones start first.
    pub(crate) cost: u32,
    /// Whether only its own name selects it.
    pub(crate) on_demand: bool,
    body: Body,
}

impl fmt::Debug for Test {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Test").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Test {
    /// A test that is more than one boot: `body` boots what it likes on the rig.
    pub(crate) fn new(
        name: &'static str,
        cost: u32,
        body: impl Fn(&Rig<'_>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        let body = Box::new(body);
        Self { name, cost, on_demand: false, body }
    }

    /// As a test that runs only if it is asked for by its own name: too dear for what it adds.
    pub(crate) fn on_demand(mut self) -> Self {
        self.on_demand = true;
        self
    }
}

/// Every test there is, in the order in which they are listed.
pub(crate) fn tests() -> Vec<Test> {
    let mut tests = boot::tests();
    tests.extend(probes::tests());
    tests.extend(same::tests());
    tests.extend(kvm::tests());
    tests.extend(guests::tests());
    tests.extend(life::tests());
    tests.extend(rooted::tests());
    tests.extend(protected::tests());
    tests.extend(protected_smp::tests());
    tests.extend(protected_xen::tests());
    tests.extend(qemu_attacks::tests());
    tests.extend(tickets::tests());
    tests.extend(iommu::tests());
    tests.extend(iommu_linux::tests());
    tests.extend(iommu_tables::tests());
    tests.extend(attest::tests());
    tests.extend(launch::tests());
    tests.extend(conformance::tests());
    tests
}

/// One boot with what is expected of it. Made by [`Boot::of`] and refined by its methods.
#[derive(Clone, Debug)]
pub(crate) struct Boot(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    stack: Stack,
    machine: Machine,
    expected: Vec<String>,
    forbidden: Vec<String>,
    end: Option<End>,
}

impl Boot {
    /// A boot of `stack` on the default machine that must not end in an error.
    pub(crate) fn of(stack: Stack) -> Self {
        Self(Box::new(Parts {
            stack,
            machine: Machine::default(),
            expected: Vec::new(),
            forbidden: FORBIDDEN.map(str::to_owned).to_vec(),
            end: None,
        }))
    }

    /// A boot of `stack` in which an attack is expected to succeed: nothing is forbidden.
    pub(crate) fn attack(stack: Stack) -> Self {
        let mut boot = Self::of(stack);
        boot.0.forbidden.clear();
        boot
    }

    /// With this command line for the visor.
    pub(crate) fn visor_words(mut self, words: &str) -> Self {
        self.0.stack.visor = Some(words.to_owned());
        self
    }

    /// On another machine: `change` edits the default one.
    pub(crate) fn on(mut self, change: impl FnOnce(&mut Machine)) -> Self {
        change(&mut self.0.machine);
        self
    }

    /// These lines must come, in this order; `*` stands for any text.
    pub(crate) fn expect(mut self, lines: &[&str]) -> Self {
        let lines = lines.iter().map(|line| (*line).to_owned());
        self.0.expected.extend(lines);
        self
    }

    /// A line of this shape must not come.
    pub(crate) fn never(mut self, line: &str) -> Self {
        self.0.forbidden.push(line.to_owned());
        self
    }

    /// The run must end this way by itself; without this it is stopped after the last expectation.
    pub(crate) fn ends(mut self, end: End) -> Self {
        self.0.end = Some(end);
        self
    }

    /// The visor must refuse with this cause, in one line, and halt: no second error, no host.
    pub(crate) fn refuses(self, cause: &str) -> Self {
        let line = format!("visor: [error] {cause}");
        self.expect(&[&line, "visor: halted"]).never("init: *").never("probe: *")
    }

    /// This boot as a test.
    pub(crate) fn test(self, name: &'static str, cost: u32) -> Test {
        Test::new(name, cost, move |rig| rig.check("", &self).map(drop))
    }
}

/// Where a test runs: its folder, the kit, and the processor time that it has taken.
#[derive(Debug)]
pub(crate) struct Rig<'a> {
    pub(crate) kit: &'a Kit,
    pub(crate) dir: PathBuf,
    spent_ms: Arc<AtomicU64>,
}

impl<'a> Rig<'a> {
    /// A rig whose runs are kept below `dir`.
    pub(crate) fn new(kit: &'a Kit, dir: &Path) -> Self {
        Self { kit, dir: dir.to_path_buf(), spent_ms: Arc::default() }
    }

    /// A rig in the folder `label` of this one's, whose runs count as this one's: for several boots of one test.
    pub(crate) fn part(&self, label: &str) -> Self {
        Self { kit: self.kit, dir: self.dir.join(label), spent_ms: Arc::clone(&self.spent_ms) }
    }

    /// Boots once and checks what is expected; `label` tells several boots of one test apart.
    /// What the machine sent to its serial line; then what was found in its memory, if it asked for that.
    pub(crate) fn check(&self, label: &str, boot: &Boot) -> Result<String> {
        let payload = self.kit.payload(&boot.0.stack, &boot.0.machine)?;
        let then = if boot.0.end.is_some() { Then::GoOn } else { Then::Stop };
        let mut script = Script::new(&boot.0.expected, &boot.0.forbidden, then);
        let outcome = self.boot(label, &boot.0.machine, &payload, &mut script)?;
        if outcome.end == End::WallClock {
            bail!("{}: nothing is known about the guest", outcome.end);
        }
        if let Err(wrong) = script.verdict() {
            bail!("{wrong} (the run ended: {})", outcome.end);
        }
        let wanted = boot.0.end.as_ref().unwrap_or(&End::Stopped);
        // A machine that ends by itself right after its last line may win against the harness.
        let raced = boot.0.end.is_none() && outcome.end == End::PowerOff;
        if outcome.end != *wanted && !raced {
            bail!("the run ended: {}, expected: {wanted}", outcome.end);
        }
        let bytes = fs::read(&outcome.serial).context("cannot read the serial log")?;
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        Ok(script.found().iter().fold(text, |text, line| text + "\n" + line))
    }

    /// Boots once, for `watch` to judge.
    pub(crate) fn boot(
        &self,
        label: &str,
        machine: &Machine,
        payload: &Payload,
        watch: &mut dyn Watch,
    ) -> Result<Outcome> {
        if machine.runner == Runner::QemuKvm && !machine::kvm_nests() {
            return Err(Skipped("no nested VMX here".to_owned()).into());
        }
        let outcome = machine::boot(machine, payload, &self.dir.join(label), watch)?;
        self.count(&outcome);
        Ok(outcome)
    }

    /// Adds what a run took.
    fn count(&self, outcome: &Outcome) {
        let spent = u64::try_from(outcome.cpu.as_millis()).unwrap_or(u64::MAX);
        let _ = self.spent_ms.fetch_add(spent, Ordering::Relaxed);
    }

    /// The processor time of all runs so far.
    pub(crate) fn spent(&self) -> Duration {
        Duration::from_millis(self.spent_ms.load(Ordering::Relaxed))
    }
}

/// The "error" of a test that this machine cannot run.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) String);

impl fmt::Display for Skipped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

#[cfg(test)]
mod tests {
    #[test]
    fn every_test_has_a_name_of_its_own_below_a_group() {
        let mut names: Vec<&str> = super::tests().iter().map(|test| test.name).collect();
        assert!(names.iter().all(|name| name.contains('/')));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
