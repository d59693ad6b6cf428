//! `protected/…`: VMs with tickets on KVM, driven by `vmm`, and the same VMs without.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::{Cpu, End, Machine, Messages, TripleFault};

/// What must become of an attack on a VM with a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// The VM goes on, undisturbed.
    Fails,
    /// The VM is stopped: its integrity is gone.
    Stops,
    /// Either of both, by what the attack happens to meet.
    Holds,
}

/// How the line of an attack begins.
pub(crate) const LINE: &str = "vmm: ATTACK ";

/// Attacks by name; those on registers are there once for each place in [`STOPS`].
const ATTACKS: &[(&str, Want)] = &[
    ("launch-elsewhere", Want::Stops),
    ("launch-other-code", Want::Stops),
    ("launch-other-reset-vector", Want::Stops),
    ("plant-page", Want::Fails),
    ("add-processor", Want::Holds),
    ("read-mapping", Want::Fails),
    ("scan-mapping", Want::Fails),
    ("scan-mapping-for-keys", Want::Fails),
    ("read-proc-mem", Want::Fails),
    ("write-to-pipe", Want::Fails),
    ("read-in-child", Want::Fails),
    ("read-by-second-vm", Want::Holds),
    ("set-rip", Want::Fails),
    ("set-rip-at-hlt", Want::Fails),
    ("set-rsp", Want::Fails),
    ("set-rax", Want::Fails),
    ("set-rbx", Want::Fails),
    ("set-r15", Want::Fails),
    ("set-trap-flag", Want::Fails),
    ("set-cr0", Want::Fails),
    ("set-cr2", Want::Fails),
    ("set-cr3", Want::Fails),
    ("set-cr4", Want::Fails),
    ("set-gdt", Want::Fails),
    ("set-idt", Want::Fails),
    ("set-fs-base", Want::Fails),
    ("set-efer", Want::Fails),
    ("set-lstar", Want::Fails),
    ("set-kernel-gs-base", Want::Fails),
    ("set-fpu", Want::Fails),
    ("set-xsave", Want::Fails),
    ("set-debugregs", Want::Fails),
    ("single-step", Want::Fails),
    ("breakpoint", Want::Fails),
    ("inject-divide-error", Want::Fails),
    ("inject-debug", Want::Fails),
    ("inject-undefined", Want::Fails),
    ("inject-protection", Want::Fails),
    ("inject-page-fault", Want::Fails),
    ("interrupt-by-vector-3", Want::Fails),
    ("interrupt-by-vector-13", Want::Fails),
    ("interrupt-by-vector-14", Want::Fails),
    ("interrupt-by-vector-128", Want::Fails),
    ("offer-paravirtual-features", Want::Fails),
    ("set-rip-at-store", Want::Fails),
    ("set-rbx-at-store", Want::Fails),
    ("set-rcx-at-load", Want::Fails),
    ("set-rsp-at-load", Want::Fails),
    ("inject-undefined-at-store", Want::Fails),
    ("inject-protection-at-store", Want::Fails),
    ("inject-page-fault-at-store", Want::Fails),
    ("memory-at-device", Want::Stops),
    ("see-store", Want::Fails),
    ("window-on-private-page", Want::Stops),
    ("window-on-other-vm", Want::Stops),
    ("window-with-other-code", Want::Fails),
    ("write-code", Want::Fails),
    ("write-data", Want::Fails),
    ("write-secret", Want::Fails),
    ("write-gate", Want::Stops),
    ("write-by-proc-mem", Want::Fails),
    ("write-by-devmem", Want::Fails),
    ("write-by-second-vm", Want::Holds),
    ("swap-pages", Want::Stops),
    ("other-page", Want::Stops),
    ("replay-page", Want::Fails),
    ("replay-page-elsewhere", Want::Stops),
    ("replay-all-memory", Want::Fails),
    ("move-page", Want::Stops),
    ("alias-page", Want::Stops),
    ("drop-page", Want::Stops),
    ("fresh-page", Want::Stops),
    ("lose-writes", Want::Fails),
    ("read-frames-by-devmem", Want::Fails),
    ("scan-all-memory-by-devmem", Want::Fails),
];

/// Ways to look at a guest's registers.
const READERS: [&str; 8] = [
    "get-regs",
    "get-sregs",
    "get-fpu",
    "get-xsave",
    "get-debugregs",
    "get-msrs",
    "get-rip-rsp",
    "get-tables",
];
/// Exits at which that is done.
const STOPS: [&str; 9] = ["in", "out", "hlt", "interrupt", "fault", "load", "store", "ins", "outs"];

/// Steps of a life, on one processor and on two.
const LIFE: [&str; 15] = [
    "halts",
    "interrupts",
    "interrupts-into-absent-pages",
    "cpuid",
    "devices",
    "storms",
    "memory-slots",
    "dirty-log",
    "host-reads",
    "copy-on-write",
    "compaction",
    "huge-page-collapse",
    "merge-advice",
    "page-out-advice",
    "versions",
];
const LIFE_ON_TWO: [&str; 5] =
    ["migrated-halts", "migrated-storms", "migrated-devices", "racing-reads", "racing-dirty-logs"];

/// Ways in which a VM uses its devices, and how many cases there are at least of each.
const DEVICE_MODES: [&str; 7] = ["16", "32", "32-paged", "64", "interrupts", "nmis", "moving"];
const DEVICE_CASES: u32 = 200;

/// Every attack with what must become of it.
pub(crate) fn attacks() -> BTreeMap<String, Want> {
    let named = ATTACKS.iter().map(|(name, want)| ((*name).to_owned(), *want));
    let read = STOPS.iter().flat_map(|stop| {
        READERS.iter().map(move |reader| (format!("{reader}-at-{stop}"), Want::Fails))
    });
    named.chain(read).collect()
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("protected/control", 49, control),
        Test::new("protected/control-2-cpus", 9, control_on_two),
        Test::new("protected/attacks", 110, on_both),
        Test::new("protected/left", 40, left).on_demand(),
        Test::new("protected/resets", 110, resets),
        Test::new("protected/life", 43, life),
        Test::new("protected/life-2-cpus", 17, life_on_two),
        Test::new("protected/refuses-others", 2, refuses_others),
        Test::new("protected/without-iommu", 2, without_iommu),
        Test::new("protected/leaky-processor", 2, leaky_processor),
        Test::new("protected/barriers", 40, barriers),
        Test::new("protected/sealed-ticket", 5, sealed),
        Test::new("protected/devices-control", 20, devices_control),
        Test::new("protected/devices", 40, devices),
        Test::new("protected/linux-control", 12, linux_control),
        Test::new("protected/linux", 40, linux_with_ticket),
    ]
}

/// A host that does `test` of `vmm`.
pub(crate) fn host(test: &str) -> Host {
    Host::Protected(format!("init.do=kvm-load,run:/vmm+{test},stats"))
}

/// A boot that does `test` of `vmm`, to the end.
fn boot(stack: fn(Host) -> Stack, test: &str) -> Boot {
    let boot = Boot::of(stack(host(test))).on(memory);
    let passed = format!("*vmm: PASS {test}");
    boot.expect(&[&passed, "*init: done"]).never("*vmm: FAIL *").ends(End::PowerOff)
}

/// All of it is searched for a secret, so there is no more than a host needs.
pub(crate) fn memory(machine: &mut Machine) {
    machine.memory_mib = 256;
    machine.seconds = 900;
}

/// The visor refuses VMs without tickets, if it is told so, and says as much.
fn refuses_others(rig: &Rig<'_>) -> Result<()> {
    let refusing = |host| Stack { visor: Some(format!("{TICKETS} unprotected-vms=refuse")), host };
    let boot = Boot::of(refusing(host("real-mode"))).on(memory);
    let refused = "*vmm: FAIL real-mode: exit Shutdown,*";
    let boot = boot.expect(&[refused, "*init: done"]).never("*vmm: PASS *").ends(End::PowerOff);
    rig.check("", &boot).map(drop)
}

/// Where no IOMMU keeps devices from memory, the visor takes no ticket unless it is told to.
fn without_iommu(rig: &Rig<'_>) -> Result<()> {
    let strict = |host| Stack { visor: Some("dev-tickets".to_owned()), host };
    let boot = Boot::of(strict(host("protected-left"))).on(memory);
    let open =
        "visor: [warn] no IOMMU keeps devices from memory: the machine has no VT-d, or it is off";
    let refused =
        "*the ticket is refused: no IOMMU keeps devices from memory: see insecure-no-iommu*";
    let boot = boot.expect(&[open, refused, "*init: done"]).never("*vmm: PASS *");
    rig.check("", &boot.ends(End::PowerOff)).map(drop)
}

/// Where the processor does not say that it keeps VMs' memory from the host, the visor takes no ticket either.
fn leaky_processor(rig: &Rig<'_>) -> Result<()> {
    let strict = |host| Stack { visor: Some("dev-tickets insecure-no-iommu".to_owned()), host };
    let leaks = "visor: [warn] the processor does not say that it keeps VMs' memory from the host: L1TF, MDS, TAA";
    let refused = "*the ticket is refused: the processor does not keep a VM's memory from its host: see insecure-processor*";
    let boot = Boot::of(strict(host("protected-left"))).on(memory);
    let boot = boot.expect(&[leaks, refused, "*init: done"]).never("*vmm: PASS *");
    rig.check("", &boot.ends(End::PowerOff)).map(drop)
}

/// The visor gives the processor's commands against leaks, and VMs run, where it has them.
fn barriers(rig: &Rig<'_>) -> Result<()> {
    let words = "clearcpuid=fsrm init.do=kvm-load,run:/vmm+protected-left,stats".to_owned();
    let boot = Boot::of(with_tickets(Host::Protected(words))).on(|machine| {
        memory(machine);
        machine.cpu = Cpu::IceLake;
    });
    let boot = boot.expect(&["*vmm: PASS protected-left", "*init: done"]).never("*vmm: FAIL *");
    let log = rig.check("", &boot.ends(End::PowerOff))?;
    judge_memory(&log, &["unprotected", "protected"])
}

/// What becomes of each submission: the number of its refusal.
const SUBMISSIONS: [(&str, &str); 18] = [
    ("in-clear", "64"),
    ("another-version", "3"),
    ("for-another-visor", "70"),
    ("for-another-visor-renamed", "71"),
    ("with-another-key", "71"),
    ("changed", "71"),
    ("changed-at-its-end", "71"),
    ("cut", "71"),
    ("damaged-inside", "72"),
    ("signed-by-another-tenant", "73"),
    ("wants-a-measured-launch", "74"),
    ("wants-an-iommu", "75"),
    ("expired", "77"),
    ("sealed", "accepted"),
    ("with-the-same-name", "68"),
    ("replayed", "78"),
    ("older-than-another", "78"),
    ("receipt", "right"),
];

/// Where tickets in clear are off, sealed ones are taken, unless they are forged.
fn sealed(rig: &Rig<'_>) -> Result<()> {
    // What the visor says of refusals would stand in the middle of what is read here.
    const WORDS: &str = "insecure-no-iommu insecure-processor log=error";
    let strict = |host| Stack { visor: Some(WORDS.to_owned()), host };
    let log = rig.check("", &boot(strict, "protected-sealed"))?;
    let found = lines(&log, "vmm: SEALED ")?;
    ensure!(found == SUBMISSIONS.into(), "{found:?}");
    Ok(())
}

/// Without tickets every attack succeeds: else it would prove nothing.
fn control(rig: &Rig<'_>) -> Result<()> {
    let log = rig.check("", &boot(Stack::bare, "protected-control"))?;
    judge_attacks(&attacks(), &lines(&log, LINE)?, &["unprotected"])?;
    judge_memory(&log, &["unprotected"])?;
    judge_life(&log, &LIFE, &["unprotected"])
}

fn control_on_two(rig: &Rig<'_>) -> Result<()> {
    let boot = boot(Stack::bare, "protected-control-2-cpus").on(|machine| machine.cpus = 2);
    judge_life(&rig.check("", &boot)?, &LIFE_ON_TWO, &["unprotected"])
}

fn on_both(rig: &Rig<'_>) -> Result<()> {
    let log = rig.check("", &boot(with_tickets, "protected-attacks"))?;
    judge_attacks(&attacks(), &lines(&log, LINE)?, &["unprotected", "protected"])?;
    judge_memory(&log, &["unprotected", "protected"])
}

/// The last part of the attacks alone.
fn left(rig: &Rig<'_>) -> Result<()> {
    let log = rig.check("", &boot(with_tickets, "protected-left"))?;
    judge_memory(&log, &["unprotected", "protected"])
}

/// How `vmm` has the machine reset or sleep.
const WAYS: [&str; 8] = [
    "reset-control",
    "reset-control-in-a-word",
    "keyboard-pulse",
    "keyboard-output-port",
    "fast-reset",
    "sleep",
    "sleep-in-a-byte",
    "triple-fault",
];

/// Memory survives resets and sleep: what VMs without tickets had in it is there, that of others is not.
fn resets(rig: &Rig<'_>) -> Result<()> {
    let host = Host::Protected(
        "init.do=kvm-load,run:/vmm+protected-resets reboot=t hpet=disable".to_owned(),
    );
    let boot = Boot::of(with_tickets(host)).on(|machine| {
        memory(machine);
        machine.triple_fault = TripleFault::Resets;
        machine.messages = Messages::Serial;
    });
    let ends = WAYS.map(|way| format!("*vmm: ends by {way}"));
    let mut lines: Vec<&str> = Vec::new();
    for line in &ends {
        lines.extend([line, "visor: [info] scrubbed * pages of VMs, * ticks"]);
    }
    lines.extend(["*vmm: PASS protected-resets", "*init: done"]);
    let boot = boot.expect(&lines).never("*vmm: FAIL *").ends(End::PowerOff);
    let log = rig.check("", &boot)?;
    for way in WAYS {
        for (subject, stays) in [("unprotected", true), ("protected", false)] {
            let before = places_left(&log, &format!("{subject}, {way}"))?;
            let after = places_left(&log, &format!("{subject}, {way}, after the reset"))?;
            ensure!(before > 0, "{subject}, {way}: was not there");
            ensure!((after > 0) == stays, "{subject}, {way}: {after} places after the reset");
        }
    }
    Ok(())
}

fn life(rig: &Rig<'_>) -> Result<()> {
    let log = rig.check("", &boot(with_tickets, "protected-life"))?;
    judge_life(&log, &LIFE, &["unprotected", "protected"])
}

fn life_on_two(rig: &Rig<'_>) -> Result<()> {
    let boot = boot(with_tickets, "protected-life-2-cpus").on(|machine| machine.cpus = 2);
    let log = rig.check("", &boot)?;
    judge_life(&log, &LIFE_ON_TWO, &["unprotected", "protected"])
}

/// Without tickets: what the guest does with devices is right, and KVM is.
fn devices_control(rig: &Rig<'_>) -> Result<()> {
    let log = rig.check("", &boot(Stack::bare, "protected-devices-control"))?;
    judge_devices(&log, &["unprotected"])
}

fn devices(rig: &Rig<'_>) -> Result<()> {
    let log = rig.check("", &boot(with_tickets, "protected-devices"))?;
    judge_devices(&log, &["unprotected", "protected"])
}

fn linux_control(rig: &Rig<'_>) -> Result<()> {
    let log = rig.check("", &linux(Stack::bare, "reset"))?;
    judge_memory(&log, &["unprotected"])
}

fn linux_with_ticket(rig: &Rig<'_>) -> Result<()> {
    let log = rig.check("", &linux(with_tickets, "protected"))?;
    judge_memory(&log, &["protected"])
}

/// A Linux VM that begins at the reset vector, as it does with a ticket, and makes itself a secret.
fn linux(stack: fn(Host) -> Stack, kind: &str) -> Boot {
    let words = format!("init.do=kvm-load,guest-{kind} init.next=secret");
    let passed = format!("*vmm: PASS linux-{kind}");
    Boot::of(stack(Host::KvmLinux(words)))
        .on(|machine| machine.seconds = 400)
        .expect(&["*guest: init: userspace reached*", "*guest: init: done", &passed, "*init: done"])
        .never("*vmm: FAIL *")
        .ends(End::PowerOff)
}

/// Each of `subjects` must have done all cases in each mode.
fn judge_devices(log: &str, subjects: &[&str]) -> Result<()> {
    for subject in subjects {
        let found = lines(log, &format!("vmm: DEVICES {subject} "))?;
        for mode in DEVICE_MODES {
            let line = found.get(format!("{mode}:").as_str());
            let count = line.and_then(|line| line.split(' ').next()?.parse::<u32>().ok());
            let is_good = count.is_some_and(|count| count >= DEVICE_CASES);
            ensure!(is_good, "{subject}, {mode}: {line:?}");
        }
    }
    Ok(())
}

/// Has the visor take tickets in clear, and in emulators that have VMX, no IOMMU, and an old processor.
const TICKETS: &str = "dev-tickets insecure-no-iommu insecure-processor";

/// The visor takes tickets in clear.
pub(crate) fn with_tickets(host: Host) -> Stack {
    Stack { visor: Some(TICKETS.to_owned()), host }
}

/// What the lines of `kind` say of each name: the rest of the line.
pub(crate) fn lines<'l>(log: &'l str, kind: &str) -> Result<BTreeMap<&'l str, &'l str>> {
    let mut found = BTreeMap::new();
    for line in log.lines() {
        let Some((_, rest)) = line.split_once(kind) else { continue };
        let (name, said) = rest.split_once(' ').unwrap_or((rest, ""));
        ensure!(found.insert(name, said.trim()).is_none(), "{name} is there twice");
    }
    Ok(found)
}

/// What `line` says of `subject`, if anything.
pub(crate) fn outcome<'l>(line: &'l str, subject: &str) -> Option<&'l str> {
    let words = line.split(' ').filter_map(|word| word.split_once('='));
    words.filter(|(name, _)| *name == subject).map(|(_, what)| what).next()
}

/// The ways in which an attack may end for `subject`.
pub(crate) fn accepted(subject: &str, want: Want) -> &'static [&'static str] {
    match (subject, want) {
        ("unprotected", _) => &["succeeded"],
        (_, Want::Fails) => &["failed"],
        (_, Want::Stops) => &["stopped"],
        (_, Want::Holds) => &["failed", "stopped"],
    }
}

/// Every attack, and no other, must have ended as it must for each of `subjects`.
pub(super) fn judge_attacks(
    wanted: &BTreeMap<String, Want>,
    found: &BTreeMap<&str, &str>,
    subjects: &[&str],
) -> Result<()> {
    if let Some(name) = found.keys().find(|name| !wanted.contains_key(**name)) {
        bail!("an attack that nobody knows: {name}");
    }
    for (name, want) in wanted {
        let line = found.get(name.as_str());
        let Some(line) = line else { bail!("no line of the attack {name}") };
        for subject in subjects {
            let how = outcome(line, subject).unwrap_or("nothing");
            let good = accepted(subject, *want);
            ensure!(good.contains(&how), "{name}: {subject}={how}, expected {good:?}");
        }
    }
    Ok(())
}

/// Nothing of a VM with a ticket may be left in the machine when it is gone. Of one without, some is: if
/// not, the search would prove nothing.
pub(super) fn judge_memory(log: &str, subjects: &[&str]) -> Result<()> {
    for subject in subjects {
        let is_good = (places_left(log, subject)? > 0) == (*subject == "unprotected");
        let line = log.lines().rfind(|line| line.ends_with(&format!(" of {subject}")));
        ensure!(is_good, "the secret of {subject}: {}", line.unwrap_or_default());
    }
    Ok(())
}

/// How often the secret of `subject` was found in the machine's memory when its VM was gone.
pub(crate) fn places_left(log: &str, subject: &str) -> Result<usize> {
    let ending = format!(" of {subject}");
    let line = log
        .lines()
        .filter(|line| line.starts_with("harness: "))
        .find(|line| line.ends_with(&ending) || line.contains(&format!(" {subject}: ")));
    let Some(line) = line else { bail!("nobody looked for {subject}") };
    let count = line.strip_prefix("harness: found ").and_then(|rest| rest.split(' ').next());
    match count.and_then(|count| count.parse().ok()) {
        Some(count) => Ok(count),
        None => bail!("{line}"),
    }
}

/// Every step must have gone well for each of `subjects`, or be impossible on this host; with a ticket only
/// what is so without.
fn judge_life(log: &str, steps: &[&str], subjects: &[&str]) -> Result<()> {
    let found = lines(log, "vmm: LIFE ")?;
    for name in steps {
        let Some(line) = found.get(name) else { bail!("no line of the step {name}") };
        let how = subjects.iter().map(|subject| outcome(line, subject).unwrap_or("nothing"));
        let how: Vec<&str> = how.collect();
        let is_good = !matches!(how[..], ["ok", "skipped"])
            && how.iter().all(|how| ["ok", "skipped"].contains(how));
        ensure!(is_good, "{name}: {line}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBJECTS: &[&str] = &["unprotected", "protected"];

    fn log(change: impl Fn(&str) -> Option<String>) -> String {
        let line = |(name, want): (&String, &Want)| {
            let how = if *want == Want::Stops { "stopped cause=7" } else { "failed" };
            let line =
                format!("[  1.0] vmm: ATTACK {name} unprotected=succeeded protected={how}\n");
            if name == "set-rip" { change(&line) } else { Some(line) }
        };
        attacks().iter().filter_map(line).collect()
    }

    fn judge(log: &str) -> Result<()> {
        judge_attacks(&attacks(), &lines(log, LINE)?, SUBJECTS)
    }

    fn wrong(log: &str) -> String {
        judge(log).unwrap_err().to_string()
    }

    #[test]
    fn every_attack_has_a_line_with_the_outcome_that_it_must_have() {
        assert!(attacks().len() >= 40);
        judge(&log(|line| Some(line.to_owned()))).unwrap();
        assert!(wrong(&log(|_| None)).contains("no line of the attack set-rip"));
        let replaced = |from: &str, to: &str| wrong(&log(|line| Some(line.replace(from, to))));
        assert!(replaced("=failed", "=succeeded").contains("protected=succeeded"));
        assert!(replaced("=failed", "=hung").contains("protected=hung"));
        assert!(replaced("=succeeded", "=failed").contains("unprotected=failed"));
        assert!(replaced(" protected=failed", "").contains("protected=nothing"));
        assert!(replaced("set-rip", "set-nothing").contains("nobody knows: set-nothing"));
    }

    #[test]
    fn an_attack_that_must_stop_the_vm_may_not_just_fail() {
        let log = log(|line| Some(line.to_owned())).replace("stopped cause=7", "failed");
        assert!(wrong(&log).contains("expected [\"stopped\"]"));
    }

    #[test]
    fn a_secret_is_left_of_a_vm_without_a_ticket_only() {
        let judge = |lines: &str| judge_memory(lines, SUBJECTS).map_err(|error| error.to_string());
        let without = "harness: found 9 of unprotected\n";
        assert_eq!(judge(&format!("{without}harness: found 0 of protected")), Ok(()));
        assert!(judge(&format!("{without}harness: found 1 of protected")).is_err());
        assert!(judge("harness: found 0 of unprotected\nharness: found 0 of protected").is_err());
        assert_eq!(judge(without), Err("nobody looked for protected".to_owned()));
        let cannot = format!("{without}harness: cannot look for protected: why");
        assert!(judge(&cannot).unwrap_err().contains("cannot look"));
    }

    #[test]
    fn a_step_of_a_life_goes_well_or_is_impossible_without_a_ticket_too() {
        let judge =
            |line: &str| judge_life(&format!("vmm: LIFE halts {line}\n"), &["halts"], SUBJECTS);
        assert!(judge("unprotected=ok protected=ok").is_ok());
        assert!(judge("unprotected=skipped (no) protected=skipped (no)").is_ok());
        assert!(judge("unprotected=ok protected=skipped (no)").is_err());
        assert!(judge("unprotected=skipped (no) protected=ok").is_ok());
        assert!(judge("unprotected=ok").is_err());
        assert!(judge("unprotected=ok protected=Hung").is_err());
        assert!(judge_life("", &["halts"], SUBJECTS).is_err());
    }
}
