//! Root on a host with KVM attacks a Linux VM that the distribution's QEMU runs.
//!
//! The VM is what `visorctl ticket linux` has made in `/vm`, of a kernel and of `init`, which beats
//! (`init.do=heart`), and a second one in `/vm-other`: it says at each beat whether anything of it was changed. Each attack is done to it without a
//! ticket and with one, if the words `unprotected` and `protected` ask for that, and has a line
//!
//! ```text
//! root: ATTACK NAME unprotected=OUTCOME protected=OUTCOME
//! ```
//!
//! An outcome is `succeeded`; `failed`, when the VM beats on and all is well; `stopped cause=N`, when the visor
//! says so; or what else happened, in words with hyphens, which nobody wants. Without a ticket every attack must
//! succeed, or it proves nothing.
//!
//! `find FILE WORD WORD` says whether the two words, which are given in disguise, lie in a file, and does nothing
//! else.

mod attacks;
mod debugger;
mod host;
mod kvm;
mod look;
mod memory;
mod monitor;
mod vm;

use attacks::ATTACKS;
use look::Needle;
use std::fs::File;
use std::process::ExitCode;
use vm::{FOLDER, Health, Kind, Vm};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match &*words {
        [find, file, first, second] if find == "find" => find_in(file, [first, second]),
        _ => run(&words),
    };
    match &result {
        Ok(()) => println!("root: done"),
        Err(why) => println!("root: FAIL {why}"),
    }
    // The console is slow, and nobody waits for it before the machine is switched off.
    // SAFETY: a system call about the standard output.
    let _ = unsafe { libc::tcdrain(1) };
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All attacks on each kind of VM, or those that are named after the kinds.
fn run(words: &[String]) -> Result<(), String> {
    let (kinds, names): (Vec<_>, Vec<_>) =
        words.iter().partition(|word| Kind::named(word).is_some());
    let kinds = kinds.into_iter().filter_map(|word| Kind::named(word));
    let chosen = |name: &str| names.is_empty() || names.iter().any(|word| *word == name);
    let mut outcomes = vec![Vec::new(); ATTACKS.len()];
    for kind in kinds {
        println!("root: a VM {} is started and attacked", kind.words());
        let mut subject = None;
        for ((name, attack), outcomes) in ATTACKS.iter().zip(&mut outcomes) {
            if !chosen(name) {
                continue;
            }
            let outcome = outcome(kind, &mut subject, *attack)?;
            println!("root: attack {name}: {outcome}");
            outcomes.push(format!("{}={outcome}", kind.word()));
        }
        let vm = alive(kind, &mut subject)?;
        let needle = vm.needle;
        if let Some(vm) = subject {
            vm.end()?;
        }
        ask_outside(needle, kind.word());
    }
    for ((name, _), outcomes) in ATTACKS.iter().zip(&outcomes) {
        if !outcomes.is_empty() {
            println!("root: ATTACK {name} {}", outcomes.join(" "));
        }
    }
    Ok(())
}

/// Whether the words lie in the file, at a multiple of 8 from its beginning.
fn find_in(file: &str, words: [&String; 2]) -> Result<(), String> {
    let failed = |why: std::io::Error| format!("{file}: {why}");
    let needle = words.map(|word| u64::from_str_radix(word, 16));
    let [Ok(first), Ok(second)] = needle else { return Err("these are no words".to_owned()) };
    let opened = File::open(file).map_err(failed)?;
    let length = opened.metadata().map_err(failed)?.len();
    let found = match look::is_in_stream(opened, [first, second])? {
        true => "found",
        false => "not found",
    };
    println!("root: FIND in {file}, {length} bytes: {found}");
    Ok(())
}

/// The VM, which beats and is well; started if there is none.
fn alive(kind: Kind, subject: &mut Option<Vm>) -> Result<&mut Vm, String> {
    if subject.is_none() {
        let mut vm = Vm::start(kind, FOLDER)?;
        let health = vm.health();
        if health != Health::Fine {
            return Err(format!("{kind:?}, without any attack: {health:?}"));
        }
        *subject = Some(vm);
    }
    subject.as_mut().ok_or_else(|| "there is no VM".to_owned())
}

/// Does one attack, and sees what became of the VM. One that is not well afterwards is ended.
fn outcome(
    kind: Kind,
    subject: &mut Option<Vm>,
    attack: attacks::Attack,
) -> Result<String, String> {
    let vm = alive(kind, subject)?;
    let result = vm.beat().and_then(|()| attack(vm));
    let health = vm.health();
    let is_gone = matches!(health, Health::Gone | Health::Silent);
    let stopped = if is_gone { vm.stop_cause()? } else { None };
    if is_gone && let Some(vm) = subject.take() {
        vm.end()?;
    }
    if let Some(cause) = stopped {
        return Ok(format!("stopped cause={cause}"));
    }
    Ok(match (result, health) {
        (Err(why), _) => format!("error:{}", why.replace(' ', "-")),
        (Ok(true), _) => "succeeded".to_owned(),
        (Ok(false), Health::Harmed(how)) => {
            println!("root: the VM says: {how}");
            "succeeded".to_owned()
        }
        (Ok(false), Health::Gone) if kind == Kind::Unprotected => "succeeded".to_owned(),
        (Ok(false), Health::Gone) => "gone".to_owned(),
        (Ok(false), Health::Silent) => "hung".to_owned(),
        (Ok(false), Health::Fine) => "failed".to_owned(),
    })
}

/// Has the test harness look for a secret in the machine's memory.
fn ask_outside([first, second]: Needle, name: &str) {
    println!("vmm: look for {first:016x} {second:016x} {name}");
}
