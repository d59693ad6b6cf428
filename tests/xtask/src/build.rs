//! Building what the tests boot: the visor with its loader, and the guests.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::image::cpio::Archive;
use crate::image::{elf32, vectors};
use crate::packages::{self, Need};
use crate::{paths, rustc, tool};

/// Where a freestanding workspace leaves its programs, below its own folder.
const RELEASE: &str = "target/x86_64-unknown-linux-gnu/release";

/// A build of the visor for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForTests {
    /// Sets up all but VMX, and then lets the host run natively.
    WithoutVmx,
    /// Has its TPM at the end of COM2.
    SerialTpm,
}

impl ForTests {
    const ALL: [Self; 2] = [Self::WithoutVmx, Self::SerialTpm];

    /// The feature of cargo's that makes it, which is its name, too.
    const fn feature(self) -> &'static str {
        match self {
            Self::WithoutVmx => "without-vmx",
            Self::SerialTpm => "serial-tpm",
        }
    }

    /// What only it says.
    const fn says(self) -> &'static [u8] {
        match self {
            Self::WithoutVmx => b"TEST BUILD WITHOUT VMX",
            Self::SerialTpm => b"TEST BUILD WITH A TPM ON COM2",
        }
    }

    fn is(self, linked: &[u8]) -> bool {
        let says = self.says();
        linked.windows(says.len()).any(|bytes| bytes == says)
    }
}

/// Builds `visor.elf`; the path of it.
pub(crate) fn visor() -> Result<PathBuf> {
    visor_of(&paths::root())
}

/// Builds `visor.elf` of the checkout at `root`; the path of it.
pub(crate) fn visor_of(root: &Path) -> Result<PathBuf> {
    let built = root.join("visor").join(RELEASE);
    let linked = linked_visor(root, &built, &[])?;
    ensure!(!ForTests::ALL.iter().any(|kind| kind.is(&linked)), "this is a visor for tests");
    vectors::check(&linked)?;
    image(root, "visor.elf", &linked)
}

/// The SHA-256 of a file, in digits.
pub(crate) fn digest(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("no {}", path.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Builds the visor for tests of this `kind`; the path of it. It has a folder of its own, so that it is never taken
/// for the other one.
pub(crate) fn visor_for_tests(kind: ForTests) -> Result<PathBuf> {
    let feature = kind.feature();
    let folder = paths::target(feature)?;
    let target = folder.to_str().context("the target folder has no plain path")?;
    let words = ["--features", feature, "--target-dir", target];
    let built = folder.join("x86_64-unknown-linux-gnu/release");
    let root = paths::root();
    let linked = linked_visor(&root, &built, &words)?;
    ensure!(kind.is(&linked), "this is no visor for tests");
    image(&root, &format!("visor-{feature}.elf"), &linked)
}

/// Builds the visor of the checkout at `root`, with `words` for cargo, and its loader; what that leaves in the
/// folder `built`.
fn linked_visor(root: &Path, built: &Path, words: &[&str]) -> Result<Vec<u8>> {
    packages::install(&[Need::Build])?;
    let workspace = root.join("visor");
    let out = out_of(root)?;
    let same_everywhere = |words: &[&str]| {
        let mut command = cargo(&workspace, words);
        rustc::wrap(&mut command, root).map(|()| command)
    };
    tool::show(&mut same_everywhere(&["--locked", "-p", "loader"])?)
        .context("cannot build the loader")?;
    let fresh = out.join("loader.bin.new");
    objcopy(&["-O", "binary"], &workspace.join(RELEASE).join("loader"), &fresh)?;
    let blob = out.join("loader.bin");
    keep_if_same(&fresh, &blob)?;
    let mut command = same_everywhere(&["--locked", "-p", "visor"])?;
    tool::show(command.args(words).env("VISOR_LOADER", &blob)).context("cannot build the visor")?;
    fs::read(built.join("visor")).context("the build left no visor")
}

/// Writes what was `linked` as a multiboot image called `name`.
fn image(root: &Path, name: &str, linked: &[u8]) -> Result<PathBuf> {
    let image = out_of(root)?.join(name);
    fs::write(&image, elf32::convert(linked)?).with_context(|| format!("cannot write {name}"))?;
    Ok(image)
}

/// Where visors of the checkout at `root` go.
fn out_of(root: &Path) -> Result<PathBuf> {
    let out = root.join("target/visor");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    Ok(out)
}

/// The programs that run on the visor in tests.
#[derive(Clone, Debug)]
pub(crate) struct Guests {
    /// The bare-metal probe, a multiboot ELF32.
    pub(crate) probe: PathBuf,
    /// The bare-metal user of VMX, a multiboot ELF32.
    pub(crate) vmx: PathBuf,
    /// The bare-metal driver of an IOMMU, a multiboot ELF32.
    pub(crate) dma: PathBuf,
    /// An initial RAM file system that holds only `init`.
    pub(crate) initrd: PathBuf,
    /// The static Linux program that drives KVM.
    pub(crate) vmm: PathBuf,
    /// The static Linux program that attacks VMs of QEMU's.
    pub(crate) intruder: PathBuf,
    /// The static Linux program that reads and writes disks at random.
    pub(crate) random_io: PathBuf,
}

/// Builds the guests.
pub(crate) fn guests() -> Result<Guests> {
    packages::install(&[Need::Build])?;
    let workspace = paths::root().join("tests/guests");
    let out = paths::target("guests")?;
    tool::show(&mut cargo(&workspace, &["--workspace"])).context("cannot build the guests")?;
    let built = workspace.join(RELEASE);
    let [probe, vmx, dma] = ["probe", "vmx", "dma"]
        .map(|name| (built.join(name), out.join(name).with_extension("elf")));
    // QEMU's multiboot loader takes ELF32 only; the code inside is as it was.
    for (linked, image) in [&probe, &vmx, &dma] {
        objcopy(&["--strip-all", "-O", "elf32-i386"], linked, image)?;
    }
    let initrd = initramfs(&built.join("init"), &[], &out.join("initrd.cpio"))?;
    let [vmm, intruder, random_io] = ["vmm", "intruder", "random-io"].map(|name| built.join(name));
    Ok(Guests { probe: probe.1, vmx: vmx.1, dma: dma.1, initrd, vmm, intruder, random_io })
}

/// Builds the administrator's tool, as a static program for hosts that have nothing else; the path of it.
pub(crate) fn visorctl() -> Result<PathBuf> {
    packages::install(&[Need::Build])?;
    let (root, target) = (paths::root(), "x86_64-unknown-linux-gnu");
    let mut command = cargo(&root, &["-p", "visorctl", "--target", target]);
    let flags = "-Ctarget-feature=+crt-static -Crelocation-model=static";
    tool::show(command.env("RUSTFLAGS", flags)).context("cannot build visorctl")?;
    Ok(paths::target("")?.join(target).join("release/visorctl"))
}

/// Builds the tenant's program, for the build machine; the path of it.
pub(crate) fn tenant() -> Result<PathBuf> {
    packages::install(&[Need::Build])?;
    tool::show(&mut cargo(&paths::root(), &["-p", "tenant"])).context("cannot build tenant")?;
    Ok(paths::target("")?.join("release/tenant"))
}

/// Has `visorctl`, the program `tool`, make a VM of a kernel and an initial RAM file system in the folder `dir`,
/// as `words` say.
pub(crate) fn linux_vm(tool: &Path, of: [&Path; 2], words: &[&str], dir: &Path) -> Result<()> {
    let [kernel, initrd] = of;
    let mut command = Command::new(tool);
    let _ = command.args(["ticket", "linux", "--kernel"]).arg(kernel).arg("--initrd").arg(initrd);
    tool::run(command.args(words).arg("--output-dir").arg(dir))
}

/// Writes the initial RAM file system `base` with `files` (name, source) added to `out`. Linux
/// unpacks archives one after the other.
pub(crate) fn extended(base: &Path, files: &[(&str, &Path)], out: &Path) -> Result<PathBuf> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("no {}", path.display()));
    let mut bytes = read(base)?;
    let mut archive = Archive::default();
    for (name, source) in files {
        let _ = archive.program(name, &read(source)?)?;
    }
    bytes.extend(archive.finish()?);
    fs::write(out, bytes).context("cannot write the initial RAM file system")?;
    Ok(out.to_path_buf())
}

/// Writes an initial RAM file system with `init` and `files` (name, source) to `out`.
pub(crate) fn initramfs(init: &Path, files: &[(&str, &Path)], out: &Path) -> Result<PathBuf> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("no {}", path.display()));
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "tmp"] {
        let _ = archive.directory(folder)?;
    }
    let _ = archive.device("dev/console", (5, 1))?;
    let _ = archive.program("init", &read(init)?)?;
    for (name, source) in files {
        let _ = archive.program(name, &read(source)?)?;
    }
    fs::write(out, archive.finish()?).context("cannot write the initial RAM file system")?;
    Ok(out.to_path_buf())
}

fn cargo(workspace: &Path, words: &[&str]) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let _ = command.args(["build", "--quiet", "--release"]).args(words).current_dir(workspace);
    // What is built is looked for where cargo leaves it by itself.
    let _ = command.env_remove("CARGO_TARGET_DIR").env_remove("CARGO_BUILD_TARGET_DIR");
    command
}

fn objcopy(words: &[&str], from: &Path, to: &Path) -> Result<()> {
    ensure!(from.exists(), "the build left no {}", from.display());
    tool::run(Command::new("objcopy").args(words).arg(from).arg(to))
}

/// Moves `fresh` to `kept` unless it holds the same: what depends on it then stays as it is.
fn keep_if_same(fresh: &Path, kept: &Path) -> Result<()> {
    let same = fs::read(kept).is_ok_and(|old| fs::read(fresh).is_ok_and(|new| old == new));
    if same {
        fs::remove_file(fresh).context("cannot remove a copy")
    } else {
        fs::rename(fresh, kept).context("cannot keep what was built")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_end_up_below_the_checkout_whatever_the_callers_do() {
        let command = cargo(Path::new("."), &[]);
        for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"] {
            let mut set = command.get_envs().filter(|(other, _)| *other == name);
            assert_eq!(set.next(), Some((name.as_ref(), None)));
        }
    }

    #[test]
    fn a_file_that_did_not_change_keeps_its_time() {
        let dir = env::temp_dir().join(format!("xtask-keep-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (fresh, kept) = (dir.join("fresh"), dir.join("kept"));
        fs::write(&kept, "same").unwrap();
        let before = fs::metadata(&kept).unwrap().modified().unwrap();
        fs::write(&fresh, "same").unwrap();
        keep_if_same(&fresh, &kept).unwrap();
        assert_eq!(fs::metadata(&kept).unwrap().modified().unwrap(), before);
        fs::write(&fresh, "other").unwrap();
        keep_if_same(&fresh, &kept).unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"other");
        assert!(!fresh.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
