//! What a host does to VMs without any malice: they must not notice, with a ticket or without.

use super::guest::{BULK, BULK_PAGES, Command, FIRST};
use super::launch::{self, Frames, Id, Visor};
use super::look;
use super::victim::{
    Kind, SAYS, SLOT_BULK, SLOT_FIRST, SLOT_LOW, SLOT_SECOND, SLOT_VERSIONED, Trouble, VECTOR,
    Victim, odd,
};
use crate::kvm::checked;
use crate::memory::{Backing, Memory, PAGE};
use crate::tests::alarm_in;
use crate::vm::{Exit, LOG_DIRTY, Vm};
use std::process::Command as Program;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use ticket::port::VmState;

const MADV_PAGEOUT: i32 = 21;
const MADV_COLLAPSE: i32 = 25;
const ALL: std::ops::Range<usize> = BULK..BULK + BULK_PAGES * PAGE;

/// Something that is done to a VM whose guest waits for a command; whether it could be done at all.
type Step = fn(&mut Victim) -> Result<Done, Trouble>;

/// How a step went.
pub(super) enum Done {
    Well,
    /// This host cannot do it, for this reason.
    Not(&'static str),
}

/// On one processor: each on the VM that the ones before have left.
pub(super) const STEPS: &[(&str, Step)] = &[
    ("halts", halts),
    ("interrupts", |victim| interrupted(victim, |_| Ok(()))),
    // The guest's gates and its stack have to come back for the interrupt.
    ("interrupts-into-absent-pages", |victim| {
        interrupted(victim, |victim| victim.remap(&SLOT_LOW, 0))
    }),
    ("cpuid", |victim| {
        let first = victim.command(Command::Cpuid)?;
        repeat(200, || same("EBX", victim.command(Command::Cpuid)?, first))
    }),
    ("devices", |victim| repeat(40, || use_devices(victim))),
    ("storms", |victim| repeat(3, || storm(victim))),
    ("memory-slots", |victim| {
        repeat(4, || {
            storm(victim)?;
            for slot in [SLOT_BULK, SLOT_FIRST, SLOT_SECOND, SLOT_VERSIONED] {
                victim.remap(&slot, slot.2.start)?;
            }
            recheck(victim)
        })
    }),
    ("dirty-log", dirty_log),
    ("host-reads", |victim| {
        repeat(3, || {
            let _ = read_all(&victim.memory);
            recheck(victim)
        })
    }),
    ("copy-on-write", copy_on_write),
    ("compaction", compaction),
    ("huge-page-collapse", collapse),
    ("merge-advice", |victim| advised(victim, libc::MADV_MERGEABLE)),
    ("page-out-advice", |victim| {
        if !std::path::Path::new("/proc/swaps").exists() {
            return Ok(Done::Not("the kernel has no swap"));
        }
        advised(victim, MADV_PAGEOUT)
    }),
    ("versions", |victim| {
        let first = victim.command(Command::Bump)?;
        let mut wanted = first;
        repeat(20, || {
            wanted += 1;
            let _ = victim.memory.word(FIRST + 2 * PAGE);
            same("changes", victim.command(Command::Bump)?, wanted)
        })
    }),
];

/// On two processors.
pub(super) const STEPS_ON_TWO: &[(&str, Step)] = &[
    ("migrated-halts", |victim| {
        let before = victim.command(Command::Halt)?;
        let mut round = 0;
        repeat(300, || {
            round += 1;
            launch::move_to(round as usize / 3 % 2)?;
            same("interrupts", victim.command(Command::Halt)?, before + round)
        })
    }),
    ("migrated-storms", |victim| {
        let mut round = 0;
        repeat(8, || {
            round += 1;
            launch::move_to(round % 2)?;
            if round % 3 == 0 { recheck(victim) } else { storm(victim) }
        })
    }),
    ("migrated-devices", |victim| {
        let mut round = 0;
        repeat(40, || {
            round += 1;
            launch::move_to(round % 2)?;
            use_devices(victim)
        })
    }),
    ("racing-reads", |victim| {
        storm(victim)?;
        racing(victim, |memory, _| {
            let _ = read_all(memory);
            Ok(())
        })
    }),
    ("racing-dirty-logs", |victim| {
        storm(victim)?;
        let (number, at, range) = SLOT_BULK;
        racing(victim, move |memory, vm| {
            vm.slot(number, LOG_DIRTY, at, memory.part(range.clone()))?;
            let _ = vm.dirty(number, BULK_PAGES)?;
            vm.slot(number, 0, at, memory.part(range.clone()))
        })
    }),
];

/// A VM of each kind, command by command; stops at the first that goes wrong.
pub(super) fn first(kinds: &[Kind]) -> Result<(), String> {
    const COMMANDS: [Command; 14] = [
        Command::Nothing,
        Command::Verify,
        Command::Cpuid,
        Command::Paravirtual,
        Command::Bump,
        Command::Load,
        Command::Store,
        Command::Ins,
        Command::Outs,
        Command::Touch,
        Command::Halt,
        Command::Spin,
        Command::Storm,
        Command::Verify,
    ];
    for kind in kinds {
        let mut victim = Victim::new(*kind)?;
        println!("vmm: first {kind:?}: made, {:?}", victim.state());
        let mut went = victim.start().map(|()| 0);
        println!("vmm: first {kind:?}: start {went:x?}, {:?}", victim.state());
        for command in COMMANDS {
            if went.is_err() {
                break;
            }
            went = victim.command(command);
            println!("vmm: first {kind:?}: {command:?} {went:x?}, {:?}", victim.state());
        }
        let regs = victim.vcpu.regs()?;
        println!("vmm: first {kind:?}: {regs:x?}");
        let _ = went.map_err(|trouble| format!("{kind:?}: {trouble:?}"))?;
        victim.end()?;
    }
    Ok(())
}

/// Does `steps` to one VM of each kind and tells of each; fails if one of them did not go well.
pub(super) fn run(steps: &[(&str, Step)], kinds: &[Kind]) -> Result<(), String> {
    let mut victims = Vec::new();
    for kind in kinds {
        let victim = Victim::started(*kind).map_err(|trouble| format!("{kind:?}: {trouble:?}"))?;
        victims.push(victim);
    }
    let mut wrong = 0;
    for (name, step) in steps {
        let mut line = format!("vmm: LIFE {name}");
        for victim in &mut victims {
            let label = if victim.is_ticketed() { "protected" } else { "unprotected" };
            let verified = step(victim).and_then(|done| match victim.command(Command::Verify)? {
                0 => Ok(done),
                bits => Err(Trouble::Odd(format!("not as it was left: {bits:#x}"))),
            });
            line += &match verified {
                Ok(Done::Well) => format!(" {label}=ok"),
                Ok(Done::Not(why)) => format!(" {label}=skipped ({why})"),
                Err(trouble) => {
                    wrong += 1;
                    format!(" {label}={trouble:?} {:?}", victim.state())
                }
            };
        }
        println!("{line}");
    }
    for victim in victims {
        victim.end()?;
    }
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} steps went wrong")) }
}

fn repeat(times: u32, mut work: impl FnMut() -> Result<(), Trouble>) -> Result<Done, Trouble> {
    (0..times).try_for_each(|_| work()).map(|()| Done::Well)
}

fn same(what: &str, found: u32, wanted: u32) -> Result<(), Trouble> {
    Ok(crate::tests::same(what, found, wanted)?)
}

/// Interrupts while the guest runs, which it must count; `before` each something is done.
fn interrupted(
    victim: &mut Victim,
    before: fn(&Victim) -> Result<(), String>,
) -> Result<Done, Trouble> {
    let mut count = victim.command(Command::Halt)?;
    repeat(5, || {
        victim.order(Command::Spin);
        alarm_in(Duration::from_millis(20))?;
        let exit = victim.vcpu.run();
        alarm_in(Duration::ZERO)?;
        match exit? {
            Exit::Interrupted => {}
            other => return Err(odd(&other)),
        }
        before(victim)?;
        victim.vcpu.interrupt(VECTOR)?;
        count += 1;
        same("interrupts", victim.finish()?, count)
    })
}

/// Each kind of access once.
fn use_devices(victim: &mut Victim) -> Result<(), Trouble> {
    let wanted = u32::from_le_bytes([SAYS; 4]);
    same("the device", victim.command(Command::Load)?, wanted)?;
    let _ = victim.command(Command::Store)?;
    same("the stream", victim.command(Command::Ins)?, wanted)?;
    victim.command(Command::Outs).map(drop)
}

const PAGES: u32 = BULK_PAGES as u32;

fn storm(victim: &mut Victim) -> Result<(), Trouble> {
    same("pages", victim.command(Command::Storm)?, PAGES)
}

fn recheck(victim: &mut Victim) -> Result<(), Trouble> {
    same("pages that are as they were", victim.command(Command::Recheck)?, PAGES)
}

/// A thousand times HLT, ended by an interrupt.
fn halts(victim: &mut Victim) -> Result<Done, Trouble> {
    let mut count = 0;
    repeat(1000, || {
        count += 1;
        same("interrupts", victim.command(Command::Halt)?, count)
    })
}

/// Every page that is written is in the log.
fn dirty_log(victim: &mut Victim) -> Result<Done, Trouble> {
    let (number, at, range) = SLOT_BULK;
    let part = victim.memory.part(range);
    victim.vm.slot(number, LOG_DIRTY, at, part)?;
    for _ in 0..2 {
        storm(victim)?;
        let logged = victim.vm.dirty(number, BULK_PAGES)?;
        // A VM with a ticket asks for pages as if it wrote them all.
        same("written pages", u32::try_from(logged.len()).unwrap_or(0), PAGES)?;
    }
    recheck(victim)?;
    victim.vm.slot(number, 0, at, part)?;
    recheck(victim)?;
    Ok(Done::Well)
}

/// The first word of every page.
fn read_all(memory: &Memory) -> u64 {
    (0..memory.size() / PAGE).fold(0, |sum, page| sum ^ memory.word(page * PAGE))
}

/// A child process shares the memory, so what the guest then writes is copied first.
fn copy_on_write(victim: &mut Victim) -> Result<Done, Trouble> {
    let before = look::frame(&victim.memory, BULK)?;
    // SAFETY: this process has one thread, and the child only waits to be killed.
    let child = checked(unsafe { libc::fork() })?;
    if child == 0 {
        loop {
            thread::sleep(Duration::from_secs(1));
        }
    }
    let done = recheck(victim).and_then(|()| storm(victim));
    let after = look::frame(&victim.memory, BULK);
    kill(child)?;
    done?;
    if before == after? {
        return Err(Trouble::Odd("nothing was copied".to_owned()));
    }
    recheck(victim).map(|()| Done::Well)
}

fn kill(child: libc::pid_t) -> Result<(), String> {
    let mut status = 0;
    // SAFETY: the child is this process's own and has not been waited for.
    let _ = checked(unsafe { libc::kill(child, libc::SIGKILL) })?;
    // SAFETY: as above.
    checked(unsafe { libc::waitpid(child, &raw mut status, 0) }).map(drop)
}

/// The host moves the VM's memory about.
fn compaction(victim: &mut Victim) -> Result<Done, Trouble> {
    let frames = |victim: &Victim| {
        let pages = ALL.step_by(PAGE).map(|at| look::frame(&victim.memory, at));
        pages.collect::<Result<Vec<_>, _>>()
    };
    let before = frames(victim)?;
    if std::fs::write("/proc/sys/vm/compact_memory", "1").is_err() {
        return Ok(Done::Not("the kernel does not compact"));
    }
    let moved =
        frames(victim)?.iter().zip(&before).filter(|(after, before)| after != before).count();
    println!("vmm: compaction moved {moved} of {BULK_PAGES} pages");
    recheck(victim)?;
    Ok(Done::Well)
}

/// The host makes a large page of small ones, then takes writes to it one by one.
fn collapse(victim: &mut Victim) -> Result<Done, Trouble> {
    let is_split = |victim: &Victim| -> Result<bool, String> {
        let [first, last] = [ALL.start, ALL.end - PAGE].map(|at| look::frame(&victim.memory, at));
        let span = (BULK_PAGES - 1) as u64 * PAGE as u64;
        Ok(first?.zip(last?).is_none_or(|(first, last)| first.checked_add(span) != Some(last)))
    };
    victim.memory.advise(ALL, libc::MADV_HUGEPAGE)?;
    // Pages that the kernel is just busy with make it give up.
    let mut tries = 0;
    while victim.memory.advise(ALL, MADV_COLLAPSE).is_err() {
        tries += 1;
        if tries == 20 {
            return Ok(Done::Not("the kernel does not collapse"));
        }
        let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
        thread::sleep(Duration::from_millis(20));
    }
    if is_split(victim)? {
        return Err(Trouble::Odd("no large page".to_owned()));
    }
    recheck(victim)?;
    storm(victim)?;
    println!("vmm: large pages of KVM's: {}", victim.vm.statistic("pages_2m")?);
    dirty_log(victim)
}

fn advised(victim: &mut Victim, advice: i32) -> Result<Done, Trouble> {
    if victim.memory.advise(ALL, advice).is_err() {
        return Ok(Done::Not("the kernel takes no such advice"));
    }
    recheck(victim)?;
    storm(victim).map(|()| Done::Well)
}

/// The guest works on the first processor while `work` is done again and again on the second.
fn racing(
    victim: &mut Victim,
    work: impl Fn(&Memory, &Vm) -> Result<(), String> + Send,
) -> Result<Done, Trouble> {
    let is_over = AtomicBool::new(false);
    let (vm, memory) = (Arc::clone(&victim.vm), Arc::clone(&victim.memory));
    thread::scope(|scope| {
        let over = &is_over;
        let other = scope.spawn(move || {
            launch::move_to(1)?;
            while !over.load(Ordering::Relaxed) {
                work(&memory, &vm)?;
            }
            Ok::<(), String>(())
        });
        let done = launch::move_to(0)
            .map_err(Trouble::from)
            .and_then(|()| repeat(6, || recheck(victim).and_then(|()| storm(victim))));
        is_over.store(true, Ordering::Relaxed);
        other.join().unwrap_or_else(|_| Err("a thread ended early".to_owned()))?;
        done
    })
}

/// VMs that come and go, one of them by `kill -9`: the visor has all its memory back then.
pub(super) fn ends() -> Result<(), String> {
    let mut visor = Visor::find()?;
    let before = visor.frames()?;
    for _ in 0..20 {
        once()?.end()?;
    }
    same_frames("VMs one after the other", &mut visor, before)?;
    let all = (0..8).map(|_| once()).collect::<Result<Vec<_>, _>>()?;
    for victim in all {
        victim.end()?;
    }
    same_frames("eight VMs at once", &mut visor, before)?;
    killed(&mut visor)?;
    same_frames("a VM whose VMM was killed", &mut visor, before)?;
    same_tickets(&mut visor)
}

fn same_tickets(visor: &mut Visor) -> Result<(), String> {
    crate::tests::same("tickets that wait", visor.waiting()?, 0)
}

fn same_frames(what: &str, visor: &mut Visor, before: Frames) -> Result<(), String> {
    let after = visor.frames()?;
    println!("vmm: after {what}: {} tables, {} free frames", after.tables, after.free);
    if after == before { Ok(()) } else { Err(format!("after {what}: {after:?}, not {before:?}")) }
}

/// A VM with a ticket that has worked a bit.
fn once() -> Result<Victim, String> {
    let worked = Victim::started(Kind::Ticketed).and_then(|mut victim| {
        storm(&mut victim)?;
        same("what changed", victim.command(Command::Verify)?, 0)?;
        Ok(victim)
    });
    worked.map_err(|trouble| format!("{trouble:?}"))
}

/// The VMM of a running VM is killed. The visor keeps the VM, until it is told to destroy it.
fn killed(visor: &mut Visor) -> Result<(), String> {
    let shared = Memory::new(PAGE, Backing::Shared)?;
    // SAFETY: this process has one thread, and the child never returns from here.
    let child = checked(unsafe { libc::fork() })?;
    if child == 0 {
        let ended = spin(&shared);
        println!("vmm: a child ended: {ended:?}");
        std::process::exit(1);
    }
    for _ in 0..2000 {
        if shared.word(0) != 0 {
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mut id = [0; 16];
    id.copy_from_slice(&shared.read(8, 16));
    let listed = visorctl(id);
    kill(child)?;
    listed?;
    let (state, cause) = visor.state(id)?;
    if state != VmState::Running {
        return Err(format!("the VM of a killed VMM: {state:?}, cause {cause}"));
    }
    let (resident, sealed) = visor.pages(id)?;
    println!("vmm: killed: {resident} pages in memory, {sealed} sealed");
    if !visor.destroy(id)? || visor.state(id)?.0 != VmState::None {
        return Err("the VM is not destroyed".to_owned());
    }
    Ok(())
}

/// Runs a VM for ever, and says in `shared` which.
fn spin(shared: &Memory) -> Result<(), String> {
    let mut victim = once()?;
    shared.write(8, &victim.id);
    shared.set_word(0, 1);
    loop {
        let _ = victim.command(Command::Spin).map_err(|trouble| format!("{trouble:?}"))?;
    }
}

/// The administrator's tool, where the initramfs has it: it lists the VM called `id`, and says that others
/// have no ticket; what it says of the audit log holds.
fn visorctl(id: Id) -> Result<(), String> {
    const TOOL: &str = "/visorctl";
    if !std::path::Path::new(TOOL).exists() {
        println!("vmm: no {TOOL}");
        return Ok(());
    }
    let name: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let unprotected_ran = 3;
    for (word, code, wanted) in
        [("status", 0, "UNPROTECTED"), ("vms", unprotected_ran, name.as_str()), ("audit", 0, "")]
    {
        let output = Program::new(TOOL).arg(word).output().map_err(|why| why.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(12)) {
            println!("visorctl {word}: {line}");
        }
        if output.status.code() != Some(code) || !text.contains(wanted) {
            return Err(format!("visorctl {word}: {}, without {wanted}", output.status));
        }
    }
    Ok(())
}
