//! Debian packages: installed on the system where they are tools, unpacked into the cache where
//! they are what the tests boot.

mod programs;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{paths, tool};
pub(crate) use programs::{tpm_tools, vmms, works};

/// Something that a command does with other people's tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Linking and converting what Rust builds, and the other implementations that tests compare it with.
    Build,
    /// Boot images, and fetching what is on them.
    Image,
    /// Emulation with VMX.
    Bochs,
    /// Emulation of UEFI, tboot, TPMs and machines without VMX.
    Qemu,
    /// Building the small kernel.
    Kernel,
}

impl Need {
    /// Everything that this harness can do.
    pub(crate) const ALL: [Self; 5] =
        [Self::Build, Self::Image, Self::Bochs, Self::Qemu, Self::Kernel];

    const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Build => &["binutils", "gcc", "libc6-dev", "python3"],
            Self::Image => &[
                "cpio",
                "e2fsprogs",
                "grub-common",
                "grub-efi-amd64-bin",
                "grub-pc-bin",
                "isolinux",
                "mtools",
                "syslinux-common",
                "util-linux",
                "xorriso",
            ],
            Self::Bochs => &["bochs", "bochsbios", "seabios", "vgabios"],
            Self::Qemu => &["ovmf", "qemu-system-x86", "swtpm", "swtpm-tools", "tpm2-tools"],
            Self::Kernel => {
                &["bc", "bison", "flex", "libelf-dev", "libssl-dev", "lz4", "make", "xz-utils"]
            }
        }
    }
}

/// What becomes of installed packages that those needed cannot stand beside, such as QEMU's tools of
/// another release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InTheWay {
    /// They stay, and nothing is installed.
    Keep,
    /// They go.
    Remove,
}

/// Installs what `needs` lack, unless that removes something.
pub(crate) fn install(needs: &[Need]) -> Result<()> {
    install_with(needs, InTheWay::Keep)
}

/// Installs what `needs` lack.
pub(crate) fn install_with(needs: &[Need], in_the_way: InTheWay) -> Result<()> {
    let wanted: Vec<&str> = needs.iter().flat_map(|need| need.packages()).copied().collect();
    let missing = missing(&wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("xtask: installing {}", missing.join(" "));
    refresh_lists(&missing)?;
    let simulated = tool::output(Command::new("apt-get").args(apt_install("-s", &missing)))
        .with_context(|| format!("install by hand: {}", missing.join(" ")))?;
    let removed = removals(&simulated);
    ensure!(
        removed.is_empty() || in_the_way == InTheWay::Remove,
        "installing {} removes {}: `cargo xtask setup --remove` does both",
        missing.join(" "),
        removed.join(" ")
    );
    if !removed.is_empty() {
        eprintln!("xtask: removing {}", removed.join(" "));
    }
    let mut command = as_root("apt-get");
    let _ = command.args(apt_install("-y", &missing));
    tool::show(&mut command)
        .with_context(|| format!("install by hand: apt-get install {}", missing.join(" ")))
}

fn apt_install<'a>(how: &'a str, packages: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["install", how, "-qq", "--no-install-recommends"];
    words.extend(packages);
    words
}

/// A command that runs as root, by sudo where that is needed.
fn as_root(program: &str) -> Command {
    let root = tool::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut command = Command::new(if root { "env" } else { "sudo" });
    let _ = command.arg("DEBIAN_FRONTEND=noninteractive").arg(program);
    command
}

/// The packages of `wanted` that are not installed.
fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let format = "${Package} ${db:Status-Status}\n";
    let mut query = Command::new("dpkg-query");
    let _ = query.args(["-W", "-f", format]).args(wanted);
    // The status is 1 when a package is unknown, which is an answer here.
    let output = query.output().context("cannot start dpkg-query: this needs a Debian system")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(not_installed(wanted, &text))
}

fn not_installed<'a>(wanted: &[&'a str], statuses: &str) -> Vec<&'a str> {
    let installed = |name: &str| {
        let line = format!("{name} installed");
        statuses.lines().any(|status| status == line)
    };
    wanted.iter().copied().filter(|name| !installed(name)).collect()
}

/// The packages that `apt-get -s` would remove.
fn removals(simulated: &str) -> Vec<&str> {
    let removed = simulated.lines().filter_map(|line| line.strip_prefix("Remv "));
    removed.filter_map(|rest| rest.split_whitespace().next()).collect()
}

/// Fetches the package lists where they do not know one of `packages`.
fn refresh_lists(packages: &[&str]) -> Result<()> {
    if packages.iter().all(|name| candidate(name).is_ok()) {
        return Ok(());
    }
    eprintln!("xtask: fetching package lists");
    tool::show(as_root("apt-get").args(["update", "-qq"])).context("cannot fetch package lists")
}

/// The version of `package` that would be installed.
fn candidate(package: &str) -> Result<String> {
    let policy = tool::output(Command::new("apt-cache").args(["policy", package]))?;
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    match candidate {
        Some(version) if version != "(none)" => Ok(version.to_owned()),
        Some(_) | None => bail!("no package source of this system has {package}"),
    }
}

/// The package that the empty package `meta` stands for: its first dependency.
fn depends(meta: &str) -> Result<String> {
    refresh_lists(&[meta])?;
    let text = tool::output(Command::new("apt-cache").args(["depends", meta]))?;
    let name = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    name.map(str::to_owned).with_context(|| format!("{meta} depends on nothing"))
}

/// One thing that the tests boot, unpacked from a package.
fn unpacked(package: &str) -> Result<PathBuf> {
    refresh_lists(&[package])?;
    let version = candidate(package)?.replace(':', "%3a");
    cached(&format!("{package}_{version}"), |dir| {
        eprintln!("xtask: fetching {package} {version}");
        tool::run(Command::new("apt-get").args(["download", "-qq", package]).current_dir(dir))?;
        let deb = only_file(dir, ".deb")?;
        tool::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
        fs::remove_file(&deb).context("cannot remove the package file")
    })
}

/// The folder `name` of the cache, filled by `fill` if no earlier run has done so. A folder
/// appears under its name only when it is complete, and one process at a time fills.
fn cached(name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let base = paths::cache("")?;
    let done = base.join(name);
    if done.exists() {
        return Ok(done);
    }
    let lock = File::create(base.join("lock")).context("cannot lock the cache")?;
    lock.lock().context("cannot lock the cache")?;
    if !done.exists() {
        let partial = base.join("partial");
        paths::emptied(&partial)?;
        fill(&partial)?;
        fs::rename(&partial, &done).context("cannot add to the cache")?;
    }
    Ok(done)
}

/// The one file of `dir` whose name begins or ends as asked.
fn only_file(dir: &Path, part: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut found = entries.filter_map(Result::ok).filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(part) || name.ends_with(part)
    });
    match (found.next(), found.next()) {
        (Some(entry), None) => Ok(entry.path()),
        (_, _) => bail!("{} holds no single file {part}", dir.display()),
    }
}

/// The distribution's own kernel, a bzImage.
pub(crate) fn stock_kernel() -> Result<PathBuf> {
    let package = depends("linux-image-amd64")?;
    only_file(&unpacked(&package)?.join("boot"), "vmlinuz-")
}

/// The distribution's own Xen, a multiboot ELF, expanded: not every loader does that itself.
pub(crate) fn xen() -> Result<PathBuf> {
    let boot = unpacked("xen-hypervisor-4.17-amd64")?.join("boot");
    expanded(&only_file(&boot, ".gz")?, "xen")
}

/// The distribution's own tboot, a multiboot ELF, expanded.
pub(crate) fn tboot() -> Result<PathBuf> {
    let boot = unpacked("tboot")?.join("boot");
    expanded(&boot.join("tboot.gz"), "tboot")
}

fn expanded(compressed: &Path, name: &str) -> Result<PathBuf> {
    let plain = compressed.with_file_name(name);
    if !plain.exists() {
        // Under another name first: another process may be doing the same.
        let own = compressed.with_file_name(format!("{name}.{}", std::process::id()));
        let out = File::create(&own).context("cannot write to the cache")?;
        tool::show(Command::new("gzip").arg("-dc").arg(compressed).stdout(out))?;
        fs::rename(&own, &plain).context("cannot add to the cache")?;
    }
    Ok(plain)
}

/// A kernel that is built from the distribution's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Built {
    /// The small one of the quick tests.
    Small,
    /// The small one, and what moves the memory of processes about.
    Life,
}

impl Built {
    /// Its name, and its options: of two for the same thing the later one counts.
    fn config(self) -> Result<(&'static str, String)> {
        let (name, files): (_, &[&str]) = match self {
            Self::Small => ("small", &["small.config"]),
            Self::Life => ("life", &["small.config", "life.config"]),
        };
        let folder = paths::root().join("tests/kernels");
        let texts = files.iter().map(|file| {
            let path = folder.join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        });
        Ok((name, texts.collect::<Result<_>>()?))
    }

    /// Its folder: `bzImage` and the modules of [`KVM_MODULES`].
    fn folder(self) -> Result<PathBuf> {
        let source = "linux-source-6.1";
        refresh_lists(&[source])?;
        let version = candidate(source)?;
        let (name, config) = self.config()?;
        let folder = format!("linux-{name}_{}", key(&[version.as_bytes(), config.as_bytes()]));
        cached(&folder, |dir| build_kernel(source, &config, dir))
    }

    /// The bzImage.
    pub(crate) fn kernel(self) -> Result<PathBuf> {
        Ok(self.folder()?.join("bzImage"))
    }

    /// KVM's modules, in the order in which they are loaded.
    pub(crate) fn kvm(self) -> Result<Vec<PathBuf>> {
        let dir = self.folder()?;
        Ok(KVM_MODULES.iter().map(|module| dir.join(file_name(module))).collect())
    }
}

/// KVM's modules in the order in which they are loaded, where a kernel tree keeps them.
const KVM_MODULES: [&str; 3] =
    ["virt/lib/irqbypass.ko", "arch/x86/kvm/kvm.ko", "arch/x86/kvm/kvm-intel.ko"];

/// KVM's modules of the distribution's own kernel, in the order in which they are loaded.
pub(crate) fn stock_kvm() -> Result<Vec<PathBuf>> {
    let package = depends("linux-image-amd64")?;
    let release = only_file(&unpacked(&package)?.join("lib/modules"), "")?;
    Ok(KVM_MODULES.iter().map(|module| release.join("kernel").join(module)).collect())
}

/// What the distribution's kernel needs for disks and a network card on a machine of today.
pub(crate) const DRIVERS: [&str; 6] =
    ["ahci", "sd_mod", "nvme", "virtio_pci", "virtio_blk", "e1000e"];

/// What it needs for a folder that QEMU shares with it.
pub(crate) const SHARING: [&str; 3] = ["virtio_pci", "9pnet_virtio", "9p"];

/// The modules `names` of the distribution's own kernel with those that they need, in the order in which they are
/// loaded.
pub(crate) fn stock_modules(names: &[&str]) -> Result<Vec<PathBuf>> {
    let package = depends("linux-image-amd64")?;
    let release = only_file(&unpacked(&package)?.join("lib/modules"), "")?;
    let mut files = Vec::new();
    list_modules(&release.join("kernel"), &mut files)?;
    let mut order = Vec::new();
    for name in names {
        add_module(name, &files, &mut order)?;
    }
    Ok(order)
}

/// All modules below `dir`.
fn list_modules(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry.context("cannot list a folder")?.path();
        if path.is_dir() {
            list_modules(&path, files)?;
        } else if path.extension().is_some_and(|kind| kind == "ko") {
            files.push(path);
        }
    }
    Ok(())
}

/// Adds the module `name` of `files` to `order`, behind those that it needs.
fn add_module(name: &str, files: &[PathBuf], order: &mut Vec<PathBuf>) -> Result<()> {
    // Some files are called with a hyphen where the module has an underscore.
    let is_it = |file: &&PathBuf| {
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        stem.is_some_and(|stem| stem.replace('-', "_") == name.replace('-', "_"))
    };
    let file = files.iter().find(is_it).with_context(|| format!("no module {name}"))?;
    if order.contains(file) {
        return Ok(());
    }
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    for needed in needed_modules(&bytes) {
        add_module(&needed, files, order)?;
    }
    order.push(file.clone());
    Ok(())
}

/// The modules that a module's information, words `name=value` that end with zeros, says it needs.
fn needed_modules(module: &[u8]) -> Vec<String> {
    let word = module.split(|byte| *byte == 0).find_map(|word| word.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(word.unwrap_or_default()).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// A short name for content.
fn key(parts: &[&[u8]]) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(Sha256::digest(part));
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn build_kernel(source: &str, config: &str, dir: &Path) -> Result<()> {
    install(&[Need::Build, Need::Kernel])?;
    eprintln!("xtask: fetching {source}");
    tool::run(Command::new("apt-get").args(["download", "-qq", source]).current_dir(dir))?;
    let deb = only_file(dir, ".deb")?;
    tool::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
    let archive = dir.join(format!("usr/src/{source}.tar.xz"));
    tool::run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(dir))?;
    let tree = dir.join(source);
    let options = dir.join("config");
    fs::write(&options, config).context("cannot write the kernel's options")?;
    make_kernel(&tree, &options)?;
    for part in ["arch/x86/boot/bzImage"].iter().chain(&KVM_MODULES) {
        let _ = fs::copy(tree.join(part), dir.join(file_name(part)))
            .with_context(|| format!("cannot keep {part} of the kernel"))?;
    }
    for leftover in [tree, dir.join("usr")] {
        fs::remove_dir_all(leftover).context("cannot remove the kernel's source")?;
    }
    fs::remove_file(deb).context("cannot remove the kernel's source package")
}

fn make_kernel(tree: &Path, config: &Path) -> Result<()> {
    let mut configure = Command::new("make");
    let _ = configure.args(["-s", "allnoconfig"]).env("KCONFIG_ALLCONFIG", config);
    tool::run(configure.current_dir(tree))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    eprintln!("xtask: building a kernel, once: 12 minutes of processor time, {jobs} jobs");
    let mut make = Command::new("nice");
    let wanted = ["bzImage", "modules"];
    let _ = make.args(["make", "-s", &format!("-j{jobs}")]).args(wanted).current_dir(tree);
    tool::run(&mut make)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_counts_as_installed_only_in_that_state() {
        let statuses = "bochs installed\nqemu-system-x86 config-files\n";
        let wanted = ["bochs", "qemu-system-x86", "xorriso"];
        assert_eq!(not_installed(&wanted, statuses), ["qemu-system-x86", "xorriso"]);
    }

    #[test]
    fn a_removal_is_found_in_a_simulated_installation() {
        let text = "Inst ovmf (1 Debian)\nRemv qemu-utils [1:9.0]\nConf ovmf\n";
        assert_eq!(removals(text), ["qemu-utils"]);
    }

    #[test]
    fn a_module_names_those_that_it_needs() {
        let module = b"\x7fELF\0license=GPL\0depends=libahci,scsi-mod\0name=ahci\0";
        assert_eq!(needed_modules(module), ["libahci", "scsi-mod"]);
        assert!(needed_modules(b"\0depends=\0name=x\0").is_empty());
        assert!(needed_modules(b"").is_empty());
    }

    #[test]
    fn the_cache_key_depends_on_every_part_and_on_where_parts_end() {
        assert_eq!(key(&[b"6.1", b"A=y"]), key(&[b"6.1", b"A=y"]));
        assert_ne!(key(&[b"6.1", b"A=y"]), key(&[b"6.1A", b"=y"]));
        assert_ne!(key(&[b"6.1", b"A=y"]), key(&[b"6.2", b"A=y"]));
        assert_eq!(key(&[]).len(), 16);
    }
}
