//! `protected/qemu-sealed-life`, `protected/qemu-sealed-cut`: VMs whose root file system is on a sealed disk. The host has
//! the disk; what is on it in the end its tenant looks at, who has the key.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::guests::roomy;
use super::protected::with_tickets;
use super::{Boot, Host, Rig, Test};
use crate::image::vmms::rooted::Disk;
use crate::machine::{CYLINDER, End, Machine};
use crate::{build, tool};

/// What a VM says of a transfer that is there to stay.
const TRANSFER: &str = "guest: bank: transfer ";
/// What it says when it has looked at all of them.
const BANK: &str = "guest: init: bank: ";
const GOOD: &str = " transfers, 0 missing, 0 unexplained, ok";

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("protected/qemu-sealed-life", 90, life),
        Test::new("protected/qemu-sealed-cut", 120, cut),
    ]
}

/// A VM uses its file system, a database, and the disk behind the file system. Then the tenant finds on the disk what the
/// VM says to have left, in order, and of all that nothing in what the host has.
fn life(rig: &Rig<'_>) -> Result<()> {
    let disk = Lent::new(rig)?;
    let boot = disk.boot("init.vm=vm init.do=modules,submit,rooted,boot,running,slay");
    let boot = boot.expect(&[
        "*guest: init: on the disk",
        "*guest: init: did copies",
        "*guest: init: did patterns",
        "*guest: init: did trims",
        "*guest: init: did random",
        "*guest: init: did bank",
        "*guest: init: did audit",
        "*guest: init: did leave",
        "*init: PASS boot*",
        "*init: PASS running*",
        "*init: PASS slay*",
        "*init: done",
    ]);
    let log = rig.check("machine", &boot.ends(End::PowerOff))?;
    ensure!(audits(&log)? == [40], "not all transfers are there");
    let plain = disk.unsealed()?;
    in_order(&plain)?;
    disk.has_copies(&plain)?;
    let (found, left) = (read(&disk.of.plain)?, read(&plain)?);
    has_rest(&log, "found", &found)?;
    has_rest(&log, "left", &left)?;
    let sealed = read(&disk.file)?;
    is_hidden(&found, &sealed)?;
    is_hidden(&left, &sealed)
}

/// While a VM's bank works its VMM is killed, and while the next one's does, which goes on, the machine loses its power.
/// Every transfer that a VM has told of is there for the next.
fn cut(rig: &Rig<'_>) -> Result<()> {
    let disk = Lent::new(rig)?;
    let boot = disk.boot("init.vm=vm-bank init.do=modules,submit,rooted,killed,next");
    let boot = boot.expect(&[
        "*init: PASS killed*",
        "*guest: init: did replayed",
        "*guest: init: did audit",
        "*guest: bank: transfer 50",
    ]);
    let first = rig.check("cut", &boot)?;
    let boot = disk.boot("init.vm=vm-last init.do=modules,submit,rooted,boot,slay");
    let boot = boot.expect(&["*guest: init: did replayed", "*init: PASS boot*", "*init: done"]);
    let second = rig.check("machine", &boot.ends(End::PowerOff))?;
    kept(&(first + "\n" + &second))?;
    in_order(&disk.unsealed()?)
}

/// The disk of a host.
struct Lent {
    of: Disk,
    file: PathBuf,
    /// Bytes of the sealed disk.
    bytes: u64,
}

impl Lent {
    /// As the tenant has given it away.
    fn new(rig: &Rig<'_>) -> Result<Self> {
        let of = Disk::of(&rig.kit.rooted()?);
        fs::create_dir_all(&rig.dir).context("no folder for the disk")?;
        let file = rig.dir.join("disk");
        let bytes = fs::copy(&of.sealed, &file).context("cannot copy the disk")?;
        let lent = Self { of, file, bytes };
        lent.resize(bytes.next_multiple_of(CYLINDER))?;
        Ok(lent)
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        let file = File::options().write(true).open(&self.file).context("no disk")?;
        file.set_len(bytes).context("cannot resize the disk")
    }

    /// A machine with the disk, whose host is told `words`.
    fn boot(&self, words: &str) -> Boot {
        // Left behind by Bochs when it was stopped.
        let _ = fs::remove_file(self.file.with_extension("lock"));
        // This replaces the word by which other hosts have no disk.
        let host = Host::Rooted(format!("libata.force=noncq {words}"));
        let with_disk = |machine: &mut Machine| {
            roomy(machine);
            machine.disk = Some(self.file.clone());
        };
        Boot::of(with_tickets(host)).on(with_disk).never("*init: FAIL *")
    }

    /// The plain disk: a file of its own, which the tenant has unsealed.
    fn unsealed(&self) -> Result<PathBuf> {
        self.resize(self.bytes)?;
        let plain = self.file.with_extension("plain");
        let _ = fs::remove_file(&plain);
        let mut unseal = Command::new(build::tenant()?);
        let _ = unseal.args(["image", "unseal", "--key"]).args([&self.of.key, &self.file, &plain]);
        tool::run(&mut unseal)?;
        Ok(plain)
    }

    /// What the VM has copied is in the file system of `plain` as the tenant has it.
    fn has_copies(&self, plain: &Path) -> Result<()> {
        let out = plain.with_extension("copies");
        crate::paths::emptied(&out)?;
        let words = format!("rdump /copy {}", out.display());
        tool::run(Command::new("/sbin/debugfs").args(["-R", &words]).arg(plain))?;
        tool::run(Command::new("diff").arg("-r").args([self.of.tree.join("usr"), out.join("copy")]))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("no {}", path.display()))
}

/// The file system of `plain` needs no repair, not even by its journal.
fn in_order(plain: &Path) -> Result<()> {
    let said = tool::output(Command::new("/sbin/e2fsck").arg("-fn").arg(plain))?;
    ensure!(!said.contains("journal"), "the file system was not left: {said}");
    Ok(())
}

/// How many transfers there were each time when a VM has looked at its bank, and found it in order.
fn audits(log: &str) -> Result<Vec<u32>> {
    let lines = log.lines().filter_map(|line| Some(line.split_once(BANK)?.1));
    let count = |line: &str| {
        let count = line.strip_suffix(GOOD).and_then(|count| count.parse().ok());
        count.with_context(|| format!("the bank has {line}"))
    };
    lines.map(count).collect()
}

/// At each look at the bank all transfers are there that were told of before.
fn kept(log: &str) -> Result<()> {
    let mut told = 0;
    for line in log.lines() {
        if let Some((_, number)) = line.split_once(TRANSFER) {
            told = number.parse().with_context(|| line.to_owned())?;
        }
        for count in audits(line)? {
            ensure!(count >= told, "of {told} transfers {count} are there");
        }
    }
    if told < 50 || audits(log)?.len() != 2 {
        bail!("{told} transfers were told of, and not looked for twice");
    }
    Ok(())
}

/// What was behind the file system when the VM has `found` or `left` it is there on the `plain` disk.
fn has_rest(log: &str, when: &str, plain: &[u8]) -> Result<()> {
    let line = format!("random-io: {when} {:016x}", sum(Disk::rest(plain)));
    ensure!(log.contains(&line), "the VM does not say \"{line}\"");
    Ok(())
}

/// Nothing of a plain disk is on the sealed one, though the same search finds it in itself.
fn is_hidden(plain: &[u8], sealed: &[u8]) -> Result<()> {
    ensure!(in_common(plain, plain) > 100_000, "there is nothing to be found");
    let found = in_common(plain, sealed);
    ensure!(found == 0, "{found} pieces of the plain disk are in the sealed one");
    Ok(())
}

/// FNV-1a, 64 bits, as `random-io` has it.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// How many pieces of `disk`, 16 bytes each, are in `plain`, too. Those of few different bytes, as there are anywhere, do
/// not count.
fn in_common(plain: &[u8], disk: &[u8]) -> usize {
    let plain: HashSet<&[u8; 16]> =
        plain.as_chunks().0.iter().filter(|piece| is_telling(**piece)).collect();
    disk.as_chunks().0.iter().filter(|piece| plain.contains(piece)).count()
}

/// Whether at least half of the bytes differ.
fn is_telling(mut piece: [u8; 16]) -> bool {
    piece.sort_unstable();
    piece.chunk_by(|one, next| one == next).count() >= piece.len() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOKED: &str = "guest: init: bank: 52 transfers, 0 missing, 0 unexplained, ok\n";

    #[test]
    fn what_was_told_of_must_be_there() {
        let judge = |log: &str| kept(log).map_err(|why| why.to_string());
        let log = |first: &str| format!("{first}guest: bank: transfer 51\n{LOOKED}");
        assert_eq!(judge(&log(LOOKED)), Ok(()));
        assert!(judge(&log("")).is_err());
        assert!(judge(LOOKED).is_err());
        let lost = log(LOOKED).replace("transfer 51", "transfer 53");
        assert_eq!(judge(&lost), Err("of 53 transfers 52 are there".to_owned()));
        assert!(judge(&log(LOOKED).replace("0 missing", "1 missing")).is_err());
        assert!(judge(&log(LOOKED).replace(", ok", ", row 3 missing")).is_err());
    }

    #[test]
    fn telling_pieces_are_found_where_they_are_aligned() {
        let piece = *b"0123456789abcdef";
        let disk = [[0; 16], piece, *b"0000000011111111", piece].concat();
        assert_eq!(in_common(&piece, &disk), 2);
        assert_eq!(in_common(&disk, &disk), 2);
        assert_eq!(in_common(&piece, &disk[8..]), 0);
        assert_eq!(in_common(&[0; 64], &disk), 0);
    }
}
