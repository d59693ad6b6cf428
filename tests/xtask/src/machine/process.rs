//! An emulator as a child process: followed, timed, and never left behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::serial::{Step, Tail, Watch};

/// How often a run is looked at. The serial log is a file, so there is nothing to wait on.
const PERIOD: Duration = Duration::from_millis(20);

/// `/proc/<pid>/stat` counts in `USER_HZ`, which Linux fixes at 100 on x86.
const TICK: Duration = Duration::from_millis(10);

/// When the harness loses patience.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Processor time of the emulator.
    pub(crate) cpu: Duration,
    /// Real time: only a safety net, since it depends on what else the machine does.
    pub(crate) wall: Duration,
}

/// Why following a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The process ended by itself, with this status (`None` for a signal).
    Exited(Option<i32>),
    /// The watcher had seen enough.
    Stopped,
    /// The processor time was used up.
    Cpu,
    /// The real time was used up.
    Wall,
}

/// A command for `program` that the kernel kills when the thread that started it ends, so that no
/// emulator outlives a harness that was killed.
pub(crate) fn bound_to_this(program: &OsStr) -> Command {
    let mut command = Command::new("setpriv");
    let _ = command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// The process is killed when this is dropped, whatever the reason.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // Both fail only when the process has ended already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What goes into an emulator and what comes out of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels<'a> {
    /// Its standard input, which stays open behind this.
    pub(crate) input: &'static str,
    /// The file for its standard output and error.
    pub(crate) log: &'a Path,
    /// The file in which its serial line grows.
    pub(crate) serial: &'a Path,
}

/// Runs `command` until it ends, `watch` stops it or patience ends. The processor time that it
/// took comes with the reason.
pub(crate) fn follow(
    command: &mut Command,
    channels: Channels<'_>,
    patience: Patience,
    watch: &mut dyn Watch,
) -> Result<(Finish, Duration)> {
    let output = File::create(channels.log).context("cannot make the emulator's log")?;
    let name = command.get_program().to_string_lossy().into_owned();
    let _ = command
        .stdin(Stdio::piped())
        .stderr(output.try_clone().context("cannot share the log")?)
        .stdout(output);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {name}: `cargo xtask setup` installs it"))?;
    let mut child = Guarded(child);
    watch.started(child.0.id());
    let start = Instant::now();
    if let Some(input) = &mut child.0.stdin {
        // An emulator that has ended already says why in its log.
        let _ = input.write_all(channels.input.as_bytes());
    }
    let mut tail = Tail::new(channels.serial);
    let mut cpu = Duration::ZERO;
    loop {
        cpu = cpu_time(child.0.id()).unwrap_or(cpu);
        let status = child.0.try_wait().context("cannot wait for the emulator")?;
        // Read after the check, so that nothing written before the end is missed.
        let step = watch.bytes(&tail.read()?);
        if let Some(status) = status {
            return Ok((Finish::Exited(status.code()), cpu));
        }
        if step == Step::Stop {
            return Ok((Finish::Stopped, cpu));
        }
        if cpu > patience.cpu {
            return Ok((Finish::Cpu, cpu));
        }
        if start.elapsed() > patience.wall {
            return Ok((Finish::Wall, cpu));
        }
        thread::sleep(PERIOD);
    }
}

/// The processor time that a process has taken so far.
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_cpu_time(&stat)
}

/// The sum of `utime` and `stime`, the 14th and 15th fields of proc(5) stat. The second field is
/// the program's name in parentheses and may hold spaces, so fields are counted after it.
fn parse_cpu_time(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    TICK.checked_mul(user.checked_add(system)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Until(&'static [u8]);

    impl Watch for Until {
        fn bytes(&mut self, bytes: &[u8]) -> Step {
            if bytes == self.0 { Step::Stop } else { Step::Continue }
        }
    }

    fn shell(script: &str, patience: Patience) -> Finish {
        let name = script.replace(|c: char| !c.is_ascii_alphanumeric(), "");
        let dir = std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut command = Command::new("sh");
        let _ = command.args(["-c", script]).current_dir(&dir);
        let serial = dir.join("serial");
        let mut watch = Until(b"enough");
        let log = dir.join("log");
        let channels = Channels { input: "word\n", log: &log, serial: &serial };
        let done = follow(&mut command, channels, patience, &mut watch);
        std::fs::remove_dir_all(&dir).unwrap();
        done.unwrap().0
    }

    const LONG: Patience = Patience { cpu: Duration::from_secs(60), wall: Duration::from_secs(60) };

    #[test]
    fn a_process_that_ends_gives_its_status() {
        assert_eq!(shell("exit 3", LONG), Finish::Exited(Some(3)));
    }

    #[test]
    fn a_watcher_that_is_satisfied_ends_the_process() {
        assert_eq!(shell("printf enough > serial; exec sleep 60", LONG), Finish::Stopped);
    }

    #[test]
    fn a_process_reads_its_input_and_finds_no_end_of_it() {
        assert_eq!(shell("read w && test $w = word && exit 4", LONG), Finish::Exited(Some(4)));
        let wall = Patience { wall: Duration::from_millis(100), ..LONG };
        assert_eq!(shell("read w; read x", wall), Finish::Wall);
    }

    #[test]
    fn real_time_and_processor_time_run_out_separately() {
        let short = Duration::from_millis(100);
        let wall = Patience { wall: short, ..LONG };
        assert_eq!(shell("exec sleep 60", wall), Finish::Wall);
        let cpu = Patience { cpu: short, ..LONG };
        assert_eq!(shell("while :; do :; done", cpu), Finish::Cpu);
    }

    #[test]
    fn processor_time_is_found_behind_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 120 30 0 0 20";
        assert_eq!(parse_cpu_time(stat), Some(Duration::from_millis(1500)));
        assert_eq!(parse_cpu_time("7 (x) S 1"), None);
    }
}
