//! The VM under attack: QEMU, and what the VM says on its serial line.

use crate::debugger::Debugger;
use crate::host;
use crate::look::Needle;
use crate::memory::Memory;
use crate::monitor::Monitor;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Folders of VMs: that of the one under attack, and of another one.
pub(crate) const FOLDER: &str = "/vm";
pub(crate) const OTHER: &str = "/vm-other";
/// In the emulated clock: for a boot, and for a beat.
const BOOT: Duration = Duration::from_secs(200);
const BEAT: Duration = Duration::from_secs(20);
/// From the line of a beat into the next, and what is added each time: not to meet the VM at its clock's
/// ticks always.
const INTO_BEAT: Duration = Duration::from_millis(40);
const LATER: Duration = Duration::from_micros(3_700);
const LATEST: u32 = 16;
/// The first may have begun before the attack, the second ends after it.
const BEATS: usize = 3;

/// Whether a VM has a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unprotected,
    Protected,
}

impl Kind {
    pub(crate) fn named(word: &str) -> Option<Self> {
        [Self::Unprotected, Self::Protected].into_iter().find(|kind| kind.word() == word)
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Unprotected => "unprotected",
            Self::Protected => "protected",
        }
    }

    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Unprotected => "without a ticket",
            Self::Protected => "with a ticket",
        }
    }
}

/// How a VM is, by its own word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Fine,
    /// It has found that something was changed.
    Harmed(String),
    /// It has ended, or its kernel has panicked.
    Gone,
    /// It says nothing any more.
    Silent,
}

/// Where something is: for the VM's programs, and in its memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    pub(crate) linear: u64,
    pub(crate) physical: u64,
}

/// A VM that beats.
pub(crate) struct Vm {
    pub(crate) kind: Kind,
    folder: &'static str,
    pub(crate) needle: Needle,
    places: BTreeMap<String, Place>,
    /// Changes at each look.
    looks: u32,
    qemu: Child,
    lines: Receiver<String>,
    monitor: Monitor,
}

impl Vm {
    /// Starts it, and waits until it beats.
    pub(crate) fn start(kind: Kind, folder: &'static str) -> Result<Self, String> {
        if kind == Kind::Protected {
            let _ = host::visorctl(&["submit", &format!("{folder}/ticket")])?;
        }
        // The image is the same for all.
        let _ = symlink(format!("{FOLDER}/image.bin"), format!("{folder}/image.bin"));
        for name in ["monitor", "debugger"] {
            let _ = fs::remove_file(socket(folder, name));
        }
        let mut qemu = qemu(folder)?;
        let out = qemu.stdout.take().ok_or("QEMU has no output")?;
        let (sender, lines) = channel();
        let _ = std::thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let monitor = Monitor::open(&socket(folder, "monitor"))?;
        let (needle, places) = ([0; 2], BTreeMap::new());
        let mut vm = Self { kind, folder, needle, places, looks: 0, qemu, lines, monitor };
        vm.learn()?;
        Ok(vm)
    }

    /// What the VM tells before its first beat.
    fn learn(&mut self) -> Result<(), String> {
        loop {
            let line = self.lines.recv_timeout(BOOT).map_err(|_| "the VM does not boot")?;
            let Some(words) = line.split_once("init: ").map(|(_, rest)| rest) else {
                println!("guest: {line}");
                continue;
            };
            let words: Vec<&str> = words.split(' ').collect();
            let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
            match words[..] {
                ["secret", first, second] => self.needle = [number(first), number(second)],
                ["place", name, linear, physical] => {
                    let place = Place { linear: number(linear), physical: number(physical) };
                    let _ = self.places.insert(name.to_owned(), place);
                }
                ["beat", ..] => return Ok(()),
                ["done"] => return Err("the VM has no heart".to_owned()),
                _ => println!("guest: {line}"),
            }
        }
    }

    /// Looks at its next beats.
    pub(crate) fn health(&mut self) -> Health {
        let mut beats = 0;
        while beats < BEATS {
            let line = match self.lines.recv_timeout(BEAT) {
                Ok(line) => line,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => return Health::Silent,
                Err(_) => return Health::Gone,
            };
            match line.split_once("init: beat ").and_then(|(_, rest)| rest.split_once(' ')) {
                Some((_, "ok")) => beats += 1,
                Some((_, harm)) => {
                    let harm = harm.to_owned();
                    // What was changed may show in one beat more.
                    let _ = self.lines.recv_timeout(BEAT);
                    return Health::Harmed(harm);
                }
                None => {}
            }
            if line.contains("Kernel panic") || line.contains("init: done") {
                return Health::Gone;
            }
        }
        Health::Fine
    }

    /// Waits until it is in the middle of its next beat.
    pub(crate) fn beat(&mut self) -> Result<(), String> {
        while self.lines.try_recv().is_ok() {}
        let line = self.lines.recv_timeout(BEAT);
        self.looks = (self.looks + 1) % LATEST;
        std::thread::sleep(INTO_BEAT + LATER * self.looks);
        line.map(drop).map_err(|_| "the VM does not beat".to_owned())
    }

    /// Why the visor has stopped it, if it has.
    pub(crate) fn stop_cause(&self) -> Result<Option<u32>, String> {
        match self.kind {
            Kind::Unprotected => Ok(None),
            Kind::Protected => host::stop_cause(&self.id()?),
        }
    }

    /// Ends QEMU; the visor must forget the VM.
    pub(crate) fn end(mut self) -> Result<(), String> {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait().map_err(|why| why.to_string())?;
        if self.kind == Kind::Protected { host::forget(&self.id()?) } else { Ok(()) }
    }

    /// The id in its ticket.
    fn id(&self) -> Result<String, String> {
        let ticket = fs::read(format!("{}/ticket", self.folder));
        ticket.map(|ticket| host::id(&ticket)).map_err(|why| format!("ticket: {why}"))
    }

    /// Where `name` is, which the VM has told.
    pub(crate) fn place(&self, name: &str) -> Result<Place, String> {
        self.places.get(name).copied().ok_or_else(|| format!("the VM tells of no {name}"))
    }

    /// QEMU's process.
    pub(crate) fn process(&self) -> u32 {
        self.qemu.id()
    }

    /// What QEMU's monitor answers to `command`.
    pub(crate) fn monitor(&mut self, command: &str) -> Result<String, String> {
        self.monitor.ask(command)
    }

    /// A debugger's session; the VM stands still meanwhile.
    pub(crate) fn debugger(&self) -> Result<Debugger, String> {
        Debugger::open(&socket(self.folder, "debugger"))
    }

    /// The VM's memory, in QEMU's.
    pub(crate) fn memory(&mut self) -> Result<Memory, String> {
        let answer = self.monitor("gpa2hva 0")?;
        let base = answer.split_whitespace().filter_map(|word| word.strip_prefix("0x"));
        let base = base.filter_map(|word| u64::from_str_radix(word, 16).ok()).next_back();
        Memory::of(self.process(), base.filter(|base| *base != 0).ok_or(answer)?)
    }

    /// The thread that runs the virtual processor.
    pub(crate) fn thread(&mut self) -> Result<i32, String> {
        let answer = self.monitor("info cpus")?;
        let number = answer.split_once("thread_id=").and_then(|(_, rest)| {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            rest.get(..end)?.parse().ok()
        });
        number.ok_or_else(|| format!("no thread in: {answer}"))
    }
}

/// Where the VM in this folder has its `name`.
fn socket(folder: &str, name: &str) -> String {
    format!("/run{folder}.{name}")
}

fn qemu(folder: &str) -> Result<Child, String> {
    let arguments = fs::read_to_string(format!("{folder}/qemu.args"));
    let arguments = arguments.map_err(|why| why.to_string())?;
    let device = |name| {
        let path = socket(folder, name);
        format!("socket,path={path},server=on,wait=off,id={name}")
    };
    Command::new("/usr/bin/qemu-system-x86_64")
        .current_dir(folder)
        .args(arguments.lines())
        .args(["-chardev", &device("monitor"), "-mon", "chardev=monitor"])
        .args(["-chardev", &device("debugger"), "-gdb", "chardev:debugger"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|why| format!("QEMU: {why}"))
}
