//! A machine whose host does what it is told while it runs.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::super::Rig;
use super::super::iommu::powered_off;
use super::super::kit::LINUX;
use super::LIMIT;
use super::tenant::Operator;
use crate::machine::txt::{self, Chipset, Memory, Senter};
use crate::machine::{self, Image, Interface, Loader, Payload, Tpm};
use crate::paths;

/// How often the host's answer is looked for.
const PERIOD: Duration = Duration::from_millis(20);

/// A machine with a TPM and an IOMMU, which lets a folder be shared.
const MACHINE: &str = "\
    -m 1024 -vga std -device intel-iommu,intremap=on \
    -fsdev local,id=share,path=share,security_model=none \
    -device virtio-9p-pci,fsdev=share,mount_tag=share,disable-legacy=on,iommu_platform=on";

/// What its visor says.
const MEASURED: &[&str] = &["visor: [info] TPM: PCR 19 holds *", "*init: ready"];

/// How the visor is started.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    By(Loader),
    /// By GRUB, which does as much of a measured launch before, in a machine whose chipset tells of a whole one.
    After(Senter),
}

/// A boot.
pub(super) struct Boot<'a> {
    pub(super) start: Start,
    /// The folder with the TPM's state.
    pub(super) tpm: &'a Path,
    /// The visor's words.
    pub(super) visor: &'a str,
}

/// A host that runs; what it is told is done in a folder that it shares.
pub(super) struct Host<'a> {
    share: PathBuf,
    /// Whether the machine has ended.
    ended: &'a dyn Fn() -> bool,
    told: Cell<u32>,
}

impl Operator for Host<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.share.join(name)
    }

    fn does(&self, words: &str) -> Result<String> {
        let (status, said) = self.tries(words)?;
        ensure!(status == "0", "the host's `{words}` failed, {status}: {}", said.trim());
        Ok(said)
    }
}

impl Host<'_> {
    /// Has the host run the script `words`: its status, and what it printed.
    pub(super) fn tries(&self, words: &str) -> Result<(String, String)> {
        let number = self.tell(words)?;
        let done = self.file(&format!("{number}.done"));
        while !done.exists() {
            ensure!(!(self.ended)(), "the machine has ended before it did: {words}");
            thread::sleep(PERIOD);
        }
        let read = |path: &Path| fs::read_to_string(path).context("the host's answer is missing");
        let status = read(&done)?.trim().to_owned();
        Ok((status, read(&self.file(&format!("{number}.out")))?))
    }

    /// Writes the next script; its number.
    fn tell(&self, words: &str) -> Result<u32> {
        let number = self.told.replace(self.told.get() + 1);
        let script = self.file(&format!("{number}.sh"));
        // It appears when it is whole.
        let part = script.with_extension("part");
        fs::write(&part, words).context("cannot write a script for the host")?;
        fs::rename(&part, &script).context("cannot write a script for the host")?;
        Ok(number)
    }
}

/// Boots, has `conversation` with the host, and switches the machine off: by the host, so that its kernel tells the
/// TPM.
pub(super) fn talk(
    rig: &Rig<'_>,
    boot: &Boot<'_>,
    conversation: impl FnOnce(&Host<'_>) -> Result<()>,
) -> Result<()> {
    let dir = rig.dir.join("");
    paths::emptied(&dir)?;
    let share = dir.join("share");
    fs::create_dir(&share).context("cannot make a folder")?;
    let kernel = Image::new(rig.kit.stock()?, format!("{LINUX} iomem=relaxed"));
    let modules = vec![kernel, Image::new(rig.kit.remote()?, "")];
    let kernel = Image::new(rig.kit.without_vmx()?, boot.visor);
    let payload = Payload::Multiboot { kernel, modules };
    // They run for as long as the machine does.
    let (_tpm, _chipset, loading, arguments) = match boot.start {
        Start::By(loader) => {
            let loading = machine::loading(loader, &payload, &dir)?;
            (Some(Tpm::of(boot.tpm, &dir)?), None, loading, Tpm::arguments(Interface::Fifo))
        }
        Start::After(senter) => {
            let chipset = Chipset::of(boot.tpm, &dir, &Memory::launched())?;
            let loading = machine::loading_after(&txt::commands(senter), &payload, &dir)?;
            (None, Some(chipset), loading, Chipset::arguments())
        }
    };
    let machine = format!("{MACHINE} {arguments}");
    thread::scope(|scope| {
        let running =
            scope.spawn(|| powered_off(rig, (&machine, &loading), LIMIT, (MEASURED, &[])));
        let ended = || running.is_finished();
        let host = Host { share, ended: &ended, told: Cell::new(0) };
        let talked = conversation(&host);
        let _ = host.tell("poweroff -f")?;
        // Why a conversation failed may be that the machine did: that is told first.
        let ran = running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let _ = ran?;
        talked
    })
}
