//! `protected/qemu-…`: what hosts do every day with the memory of VMs that the distribution's QEMU runs, to a
//! VM without a ticket and to one with. It goes on, with its memory as it was; with a ticket, nobody sees that.

use anyhow::{Context, Result, ensure};

use super::guests::roomy;
use super::protected::with_tickets;
use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::End;

/// What a host does to a VM, by steps of `image/vmms/life.sh`.
#[derive(Clone, Copy, Debug)]
struct Day {
    host: fn(String) -> Host,
    vm: &'static str,
    steps: &'static str,
}

const SAVE: Day = Day {
    host: Host::Made,
    vm: "vm-beats",
    steps: "disk_for_snapshots,beating,save,live,snapshot",
};
const SWAP: Day = Day { host: Host::Life, vm: "vm-beats", steps: "group,beating,swap,merge" };
const BALLOON: Day = Day { host: Host::Life, vm: "vm-balloon", steps: "balloon" };
const MOVES: Day =
    Day { host: Host::Life, vm: "vm-beats", steps: "group,beating,huge,compact,nodes" };

impl Day {
    /// The boot in which a VM lives through this, with more steps before and `after`.
    fn boot(self, stack: Stack, actions: &str) -> Boot {
        let mut lines: Vec<String> =
            actions.split(',').map(|action| format!("*init: PASS {action},*")).collect();
        lines.push("*init: done".to_owned());
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let boot = Boot::of(stack).on(roomy).expect(&lines).ends(End::PowerOff);
        boot.never("*init: FAIL *").never("*guest: init: beats: *")
    }

    /// The host that does `actions`, with two nodes if its kernel knows what that is.
    fn host(self, actions: &str) -> Host {
        (self.host)(format!("numa=fake=2 init.vm={} init.do={actions}", self.vm))
    }

    /// What is said where the VM has no ticket, and there is no visor.
    fn without(self, rig: &Rig<'_>, after: &str) -> Result<String> {
        let actions = format!("modules,{},{after}", self.steps);
        rig.check("", &self.boot(Stack::bare(self.host(&actions)), &actions))
    }

    /// What is said where the VM has a ticket.
    fn with(self, rig: &Rig<'_>, after: &str) -> Result<String> {
        let actions = format!("modules,submit,{},running,{after}", self.steps);
        rig.check("", &self.boot(with_tickets(self.host(&actions)), &actions))
    }
}

/// A number that the host tells of after these words, and what it is without a ticket and with one.
struct Told {
    words: &'static str,
    without: fn(u32) -> bool,
    with: fn(u32) -> bool,
}

const SAVED: [Told; 5] = [
    Told::lines("/run/pmemsave: "),
    Told::lines("/run/dump: "),
    Told::lines("/run/saved: "),
    Told::lines("/run/live: "),
    Told::lines("/data/snapshots: "),
];
const SWAPPED: [Told; 2] = [
    Told::lines("/dev/zram0: "),
    Told { words: "init: merged ", without: |pages| pages > 400, with: |pages| pages < 50 },
];

impl Told {
    /// In how many lines of a file the VM's pattern is.
    const fn lines(words: &'static str) -> Self {
        Self { words, without: |count| count > 1000, with: |count| count == 0 }
    }

    /// Whether the number in `log` is good.
    fn judge(&self, log: &str, is_good: fn(u32) -> bool) -> Result<()> {
        let name = self.words;
        let rest = log.lines().find_map(|line| line.split_once(name)).context(name)?.1;
        let number = rest.split(' ').next().and_then(|number| number.parse().ok());
        ensure!(is_good(number.context(name)?), "{name}{rest}");
        Ok(())
    }
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    // What needs a kernel of its own, 12 minutes of a processor to build, is on demand.
    vec![
        Test::new("protected/qemu-save-control", 40, |rig| {
            let log = SAVE.without(rig, "set_back,restore,slay")?;
            SAVED.iter().try_for_each(|told| told.judge(&log, told.without))
        }),
        Test::new("protected/qemu-save", 60, |rig| {
            let log = SAVE.with(rig, "not_set_back,lost,unload")?;
            SAVED.iter().try_for_each(|told| told.judge(&log, told.with))
        }),
        Test::new("protected/qemu-swap-control", 50, |rig| {
            let log = SWAP.without(rig, "slay")?;
            SWAPPED.iter().try_for_each(|told| told.judge(&log, told.without))
        })
        .on_demand(),
        Test::new("protected/qemu-swap", 135, |rig| {
            let log = SWAP.with(rig, "slay")?;
            SWAPPED.iter().try_for_each(|told| told.judge(&log, told.with))
        })
        .on_demand(),
        Test::new("protected/qemu-balloon-control", 40, |rig| {
            BALLOON.without(rig, "slay").map(drop)
        })
        .on_demand(),
        Test::new("protected/qemu-balloon", 280, |rig| BALLOON.with(rig, "slay").map(drop))
            .on_demand(),
        Test::new("protected/qemu-moves-control", 50, |rig| MOVES.without(rig, "slay").map(drop))
            .on_demand(),
        Test::new("protected/qemu-moves", 120, |rig| MOVES.with(rig, "slay").map(drop)).on_demand(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_judged_where_it_is_told() {
        let told = Told::lines("/run/dump: ");
        let judge = |log: &str, good| told.judge(log, good).map_err(|error| error.to_string());
        assert_eq!(judge("init: x\n/run/dump: 0 lines in clear", told.with), Ok(()));
        assert_eq!(judge("/run/dump: 2000 lines in clear", told.without), Ok(()));
        assert!(judge("/run/dump: 1 lines in clear", told.with).is_err());
        assert!(judge("/run/dump: 1 lines in clear", told.without).is_err());
        assert!(judge("/run/saved: 0 lines in clear", told.with).is_err());
        assert!(judge("/run/dump:  lines in clear", told.with).is_err());
    }
}
