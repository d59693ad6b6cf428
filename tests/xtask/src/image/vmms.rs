//! Initial RAM file systems of hosts that run the distribution's own VMMs: QEMU, and Xen's `xl`.

pub(crate) mod rooted;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::programs::Programs;
use super::{disks, iso, qcow2};
use crate::build::Guests;
use crate::machine::{Image, Payload};
use crate::{build, packages, paths, tool};

/// Scripts of hosts; the first is sourced by the others.
const STEPS: &str = include_str!("vmms/steps.sh");
const QEMU: &str = include_str!("vmms/qemu.sh");
const XL: &str = include_str!("vmms/xl.sh");
const MADE: &str = include_str!("vmms/made.sh");
/// Sourced by that, where they are.
const LIFE: &str = include_str!("vmms/life.sh");
const DISK_IO: &str = include_str!("vmms/disk-io.sh");
const TENANT: &str = include_str!("vmms/tenant.sh");
/// Carries a TPM's commands over a serial line.
const TPM_LINE: &str = include_str!("vmms/tpm-line.sh");
const ATTACKED: &str = include_str!("vmms/attacked.sh");
/// The script of Xen's guests.
const DOMU: &str = include_str!("vmms/domu.sh");

/// A guest of `xl` without disks or network.
const XL_GUEST: &str = include_str!("vmms/xl.cfg");

/// A guest of `xl` that boots from a CD.
const HVM_GUEST: &str = include_str!("vmms/hvm.cfg");

/// The command line of guests of `xl`.
const DOMU_WORDS: &str =
    "console=hvc0 quiet panic=-1 mitigations=off random.trust_cpu=on no_timer_check";

/// The command line of a VM that `visorctl` makes.
const MADE_WORDS: &str = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check \
                          random.trust_cpu=on nokaslr";

/// Such a VM: its folder, what its `init` does, and how it differs from others.
type Made = (&'static str, &'static str, &'static [&'static str]);
const MADE_VMS: [Made; 16] = [
    ("vm", "", &[]),
    ("vm-2", "cpu-hotplug", &["--processors", "2"]),
    ("vm-beats", "beats", &["--memory", "40M"]),
    ("vm-balloon", "breaths", &["--virtio", "1", "--memory", "96M"]),
    ("vm-reset", "secret,reboot-always reboot=t", &["--processors", "2", "--restarts", "3"]),
    ("vm-virtio", "disk,network,random,console,files ip=dhcp", &["--virtio", "5"]),
    ("vm-q35", "", &["--machine", "q35"]),
    (
        "vm-q35-reset",
        "secret,reboot-always reboot=t",
        &["--machine", "q35", "--processors", "2", "--restarts", "3"],
    ),
    ("vm-q35-virtio", "disk,network,random ip=dhcp", &["--machine", "q35", "--virtio", "3"]),
    ("vm-sealed", "disk,network,random ip=dhcp", &["--virtio", "3", SEALED, "0"]),
    ("vm-kept", "disk-kept", &["--virtio", "3", SEALED, "0"]),
    (
        "vm-q35-sealed",
        "disk,network,random ip=dhcp",
        &["--machine", "q35", "--virtio", "3", SEALED, "0"],
    ),
    ("vm-lies", "disk,stay,disk ip=dhcp", &["--virtio", "4"]),
    ("vm-q35-lies", "disk,stay,disk ip=dhcp", &["--machine", "q35", "--virtio", "4"]),
    ("vm-io", "disk-io", &["--virtio", "1"]),
    ("vm-io-sealed", "disk-io", &["--virtio", "1", EMPTY, "0"]),
];

/// Which of its devices is the sealed disk, or a sealed one that is large and empty.
const SEALED: &str = "--disk";
const EMPTY: &str = "--disk=empty";

/// The disk of those that have one: the host has filled the first half.
const DISK_HALF: u64 = 1 << 20;
/// How much of that QEMU serves over the network, too.
const SERVED: usize = 64 << 10;

/// What QEMU loads when it runs a PC with a kernel and without a display.
const FIRMWARE: [&str; 4] = [
    "usr/share/seabios/bios-256k.bin",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot.bin",
    "usr/share/qemu/linuxboot_dma.bin",
];

/// What QEMU loads when it has no KVM.
const QEMU_SOFTWARE: &str = "usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so";

/// Where the distribution keeps Xen's programs.
const XEN: &str = "usr/lib/xen-4.17";
const XEN_PROGRAMS: [&str; 5] =
    ["xl", "xenstored", "xenconsoled", "xen-init-dom0", "libxl-save-helper"];

/// What the guest of QEMU has on its disk beside busybox: name, text.
const GUEST: [(&str, &str); 6] = [
    ("etc/inittab", include_str!("vmms/guest/inittab")),
    ("etc/rc", include_str!("vmms/guest/rc")),
    ("etc/passwd", "root::0:0:root:/:/bin/sh\n"),
    ("etc/group", "root:x:0:\n"),
    ("etc/profile", "export PS1='guest# '\n"),
    ("check", include_str!("vmms/guest/check")),
];

/// Names that busybox has on the guest's disk.
const APPLETS: [&str; 21] = [
    "awk", "cat", "dd", "grep", "head", "hostname", "ifconfig", "login", "md5sum", "mount",
    "nproc", "ping", "poweroff", "sh", "sync", "umount", "wget", "echo", "getty", "init", "reboot",
];

/// The guest's second disk: a line, and zeros up to 64 KiB.
const DATA: (&str, u64) = ("from the host\n", 64 << 10);

/// An initial RAM file system in which QEMU runs `kernel` with KVM's `modules`, made at `out`.
pub(crate) fn qemu(kernel: &Path, modules: &[PathBuf], out: &Path) -> Result<PathBuf> {
    let root = packages::vmms()?;
    let parts = parts(out)?;
    let mut programs = host(&root, &parts, QEMU)?;
    programs.program("usr/bin/qemu-system-x86_64")?;
    for name in FIRMWARE {
        programs.file(name)?;
    }
    add_modules(&mut programs, modules)?;
    programs.add("guest/kernel", kernel);
    programs.add("guest/root.ext4", &disk(&root, &parts)?);
    let (line, size) = DATA;
    let data = written(&parts, "data", line)?;
    let file = fs::File::options().append(true).open(&data).context("cannot extend a disk")?;
    file.set_len(size).context("cannot extend a disk")?;
    programs.add("guest/data", &data);
    finish(&programs, out)
}

fn add_modules(programs: &mut Programs, modules: &[PathBuf]) -> Result<()> {
    for module in modules {
        let name = module.file_name().and_then(|name| name.to_str());
        programs.add(name.context("a module without a name")?, module);
    }
    Ok(())
}

/// VMs that `visorctl` makes for Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum XenVm {
    /// Boots, and ends.
    Plain,
    /// Has two processors, one of which goes and comes back.
    Two,
    /// Has a secret, and says at each beat whether anybody has changed it.
    Heart,
    /// Has a disk, a network and a source of random numbers.
    Virtio,
    /// Has a disk that its tenant has sealed.
    Sealed,
}

impl XenVm {
    /// Its name, what its `init` does, and words for `visorctl`.
    const fn made(self) -> (&'static str, &'static str, &'static [&'static str]) {
        match self {
            Self::Plain => ("xl-made", "", &["--memory", "64M"]),
            Self::Two => ("xl-two", "cpu-hotplug", &["--memory", "64M", "--processors", "2"]),
            Self::Heart => ("xl-heart", "heart", &["--memory", "40M"]),
            Self::Virtio => {
                ("xl-virtio", "disk,network,random ip=dhcp", &["--memory", "64M", "--virtio", "3"])
            }
            Self::Sealed => ("xl-sealed", "disk", &["--memory", "64M", "--virtio", "1"]),
        }
    }
}

/// What goes into VMs that `visorctl` makes.
#[derive(Debug)]
pub(crate) struct Parts {
    /// `visorctl`.
    pub(crate) tool: PathBuf,
    /// The VM's.
    pub(crate) kernel: PathBuf,
    /// The VM's initial RAM file system.
    pub(crate) initrd: PathBuf,
    /// KVM's, for the host.
    pub(crate) modules: Vec<PathBuf>,
}

/// An initial RAM file system in which QEMU runs VMs that `visorctl` makes, made at `out`.
pub(crate) fn made(of: &Parts, out: &Path) -> Result<PathBuf> {
    let (mut programs, parts) = with_made(of, (MADE, &MADE_VMS), out)?;
    programs.add("life.sh", &written(&parts, "life.sh", LIFE)?);
    programs.add("disk-io.sh", &written(&parts, "disk-io.sh", DISK_IO)?);
    disks::add_empty(&mut programs, &parts)?;
    disk_of_made(&mut programs, &parts)?;
    let [_, sealed] = sealed_disk(&parts)?;
    programs.add("data/sealed", &sealed);
    finish(&programs, out)
}

/// An initial RAM file system of a host that tenants ask, made at `out`: QEMU, for the VM whose files are in the folder
/// `vm`; `visorctl`, the program `tool`; tpm2-tools. The VM's ticket is not there.
pub(crate) fn asked(tool: &Path, vm: &Path, modules: &[PathBuf], out: &Path) -> Result<PathBuf> {
    let parts = parts(out)?;
    let mut programs = host(&packages::vmms()?, &parts, MADE)?;
    programs.program("usr/bin/qemu-system-x86_64")?;
    programs.file("usr/share/qemu/kvmvapic.bin")?;
    add_modules(&mut programs, modules)?;
    programs.add("visorctl", tool);
    programs.add("tenant.sh", &written(&parts, "tenant.sh", TENANT)?);
    programs.add("tpm-line", &written(&parts, "tpm-line", TPM_LINE)?);
    for file in ["stub.rom", "qemu.args", "image.bin"] {
        programs.add(&format!("vm/{file}"), &vm.join(file));
    }
    let _ = finish(&programs, out)?;
    let mut tools = Programs::of(&packages::tpm_tools()?);
    tools.program("usr/bin/tpm2")?;
    tools.program("usr/lib/x86_64-linux-gnu/libtss2-tcti-cmd.so.0")?;
    let tools = tools.archive(&[])?;
    let mut archive = fs::File::options().append(true).open(out).context("cannot add programs")?;
    std::io::Write::write_all(&mut archive, &tools).context("cannot add programs")?;
    Ok(out.to_path_buf())
}

/// An initial RAM file system in which `intruder` attacks such a VM, made at `out`.
pub(crate) fn attacked(of: &Parts, intruder: &Path, out: &Path) -> Result<PathBuf> {
    let vms: [Made; 2] = [("vm", "heart", &[]), ("vm-other", "heart", &[])];
    let (mut programs, _) = with_made(of, (ATTACKED, &vms), out)?;
    programs.add("intruder", intruder);
    finish(&programs, out)
}

/// A host with a script, QEMU, and VMs that `visorctl` has made; and the folder of its parts.
fn with_made(
    of: &Parts,
    (script, vms): (&str, &[Made]),
    out: &Path,
) -> Result<(Programs, PathBuf)> {
    let parts = parts(out)?;
    let mut programs = host(&packages::vmms()?, &parts, script)?;
    programs.program("usr/bin/qemu-system-x86_64")?;
    // A PC asks for it, though nothing runs it.
    programs.file("usr/share/qemu/kvmvapic.bin")?;
    add_modules(&mut programs, &of.modules)?;
    programs.add("visorctl", &of.tool);
    for (name, actions, more) in vms {
        let vm = parts.join(name);
        make(of, (actions, more), &parts, &vm)?;
        for file in ["ticket", "stub.rom", "qemu.args"] {
            programs.add(&format!("{name}/{file}"), &vm.join(file));
        }
    }
    // It is the same for all.
    programs.add("vm/image.bin", &parts.join("vm/image.bin"));
    Ok((programs, parts))
}

/// Makes such a VM in the folder `vm`.
fn make(of: &Parts, (actions, more): (&str, &[&str]), parts: &Path, vm: &Path) -> Result<()> {
    let line = format!("{MADE_WORDS} init.do={actions}");
    let mut words = vec!["--cmdline", &line];
    words.extend(more);
    let disk;
    if let [.., kind @ (SEALED | EMPTY), number] = more {
        let [key, image] = if *kind == SEALED { sealed_disk(parts)? } else { disks::empty(parts)? };
        disk = format!("{number},{},{}", key.display(), image.display());
        words.truncate(words.len() - 2);
        words.extend([SEALED, &disk]);
    }
    if !more.contains(&"--memory") {
        words.extend(["--memory", "64M"]);
    }
    build::linux_vm(&of.tool, [&of.kernel, &of.initrd], &words, vm)
}

/// What the host has put on the first half of a disk.
fn half_of_disk() -> Vec<u8> {
    let word = |at: u64| at.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(29).to_le_bytes();
    (0..DISK_HALF / 8).flat_map(word).collect()
}

/// The same disk sealed, as a tenant does it: its key and its image.
fn sealed_disk(parts: &Path) -> Result<[PathBuf; 2]> {
    let [plain, key, image] = ["plain", "disk.key", "sealed"].map(|name| parts.join(name));
    if !image.exists() {
        let mut disk = half_of_disk();
        disk.resize(disk.len() * 2, 0);
        fs::write(&plain, disk).context("cannot write a disk")?;
        let tenant = build::tenant()?;
        tool::run(Command::new(&tenant).args(["image", "key"]).arg(&key))?;
        let mut seal = Command::new(&tenant);
        tool::run(seal.args(["image", "seal", "--key"]).args([&key, &plain, &image]))?;
    }
    Ok([key, image])
}

/// Adds an empty disk for snapshots, a disk for VMs that `visorctl` makes, what is served of it, and the hash that it has when the VM has
/// written the complement of its first half to the second one.
fn disk_of_made(programs: &mut Programs, parts: &Path) -> Result<()> {
    use sha2::{Digest, Sha256};
    let mut disk = half_of_disk();
    let served = disk.get(..SERVED).unwrap_or_default().to_vec();
    let after = disk.iter().map(|byte| !byte);
    let hash = Sha256::digest(disk.iter().copied().chain(after).collect::<Vec<u8>>());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    disk.resize(disk.len() * 2, 0);
    for (name, content) in [
        ("disk", disk),
        ("served/part", served),
        ("disk.after", format!("{hash}  -\n").into()),
        ("snapshots", qcow2::empty()),
    ] {
        let path = parts.join(name.replace('/', "-"));
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        programs.add(&format!("data/{name}"), &path);
    }
    Ok(())
}

/// A dom0 with `xl`.
fn dom0(root: &Path, parts: &Path) -> Result<Programs> {
    let mut programs = host(root, parts, XL)?;
    for name in XEN_PROGRAMS {
        programs.program(&format!("{XEN}/bin/{name}"))?;
    }
    // A dom0 of fixed size, and no scripts for devices that no guest has.
    programs.add("etc/xen/xl.conf", &written(parts, "xl.conf", "autoballoon=\"off\"\n")?);
    Ok(programs)
}

/// Adds the device model of `xl`.
fn add_device_model(programs: &mut Programs) -> Result<()> {
    programs.program("usr/libexec/xen-qemu-system-i386")?;
    programs.file("usr/share/qemu/kvmvapic.bin")?;
    // Wanted even where there is no display.
    programs.file("usr/share/qemu/keymaps/en-us")
}

/// As [`made`], for Xen's `xl` in a dom0.
pub(crate) fn made_for_xen(of: &Parts, kind: XenVm, guests: &Guests) -> Result<PathBuf> {
    let root = packages::vmms()?;
    let (name, ..) = kind.made();
    let out = paths::target("guests")?.join(format!("{name}.cpio"));
    let parts = parts(&out)?;
    let mut programs = dom0(&root, &parts)?;
    add_device_model(&mut programs)?;
    programs.add("visorctl", &of.tool);
    match kind {
        XenVm::Plain | XenVm::Two => {}
        XenVm::Heart => {
            programs.add("vmm", &guests.vmm);
            programs.add("intruder", &guests.intruder);
        }
        XenVm::Virtio => {
            disk_of_made(&mut programs, &parts)?;
            // The device model has no network in itself; this one is the network.
            programs.program("usr/bin/qemu-system-x86_64")?;
            programs.file(QEMU_SOFTWARE)?;
        }
        XenVm::Sealed => disk_of_made(&mut programs, &parts)?,
    }
    add_xen_vm(&mut programs, (of, kind), &parts)?;
    finish(&programs, &out)
}

/// Adds the VM, and its sealed disk.
fn add_xen_vm(programs: &mut Programs, (of, kind): (&Parts, XenVm), parts: &Path) -> Result<()> {
    let (_, actions, more) = kind.made();
    let line = format!("{MADE_WORDS} init.do={actions}");
    let mut words = [&["--machine", "xen", "--cmdline", line.as_str()], more].concat();
    let disk;
    if kind == XenVm::Sealed {
        let [key, image] = sealed_disk(parts)?;
        programs.add("data/sealed", &image);
        disk = format!("0,{},{}", key.display(), image.display());
        words.extend([SEALED, &disk]);
    }
    let vm = parts.join("vm");
    build::linux_vm(&of.tool, [&of.kernel, &of.initrd], &words, &vm)?;
    for name in ["ticket", "image.elf", "firmware.bin", "xl.cfg"] {
        programs.add(&format!("vm/{name}"), &vm.join(name));
    }
    Ok(())
}

/// An initial RAM file system of a dom0 in which `xl` runs `kernel`, made at `out`.
pub(crate) fn xl(kernel: &Path, out: &Path) -> Result<PathBuf> {
    let root = packages::vmms()?;
    let parts = parts(out)?;
    let mut programs = dom0(&root, &parts)?;
    programs.add("guest/kernel", kernel);
    programs.add("guest/initrd", &domu(&root, &parts)?);
    emulated(&mut programs, kernel, &parts)?;
    for name in ["pvh", "stays"] {
        let words = if name == "stays" { "init.do=stay" } else { "" };
        let name = format!("{name}.cfg");
        let text = XL_GUEST
            .replace("NAME", name.trim_end_matches(".cfg"))
            .replace("WORDS", &format!("{DOMU_WORDS} {words}"));
        programs.add(&format!("guest/{name}"), &written(&parts, &name, &text)?);
    }
    finish(&programs, out)
}

/// Adds a guest of `xl` that boots `kernel` from a CD which the distribution's QEMU emulates.
fn emulated(programs: &mut Programs, kernel: &Path, parts: &Path) -> Result<()> {
    add_device_model(programs)?;
    programs.file(&format!("{XEN}/boot/hvmloader"))?;
    programs.file("usr/share/seabios/bios-256k.bin")?;
    let kernel = Image::new(kernel, DOMU_WORDS);
    let initrd = Some(parts.join("domu.cpio"));
    let dir = parts.join("cd");
    paths::emptied(&dir)?;
    programs.add(
        "guest/hvm.iso",
        &iso::isolinux(&Payload::Linux { kernel, initrd }, &dir, iso::Messages::Screen)?,
    );
    programs.add("guest/hvm.cfg", &written(parts, "hvm.cfg", HVM_GUEST)?);
    Ok(())
}

/// The initial RAM file system of Xen's guests.
fn domu(root: &Path, parts: &Path) -> Result<PathBuf> {
    let mut guest = Programs::of(root);
    guest.file("bin/busybox")?;
    guest.add("init", &written(parts, "domu.sh", DOMU)?);
    finish(&guest, &parts.join("domu.cpio"))
}

/// A host whose `/init` is `script`.
fn host(root: &Path, parts: &Path, script: &str) -> Result<Programs> {
    let mut programs = Programs::of(root);
    programs.file("bin/busybox")?;
    programs.add("steps.sh", &written(parts, "steps.sh", STEPS)?);
    programs.add("init", &written(parts, "init.sh", script)?);
    Ok(programs)
}

/// The folder for what goes into `out`, emptied.
fn parts(out: &Path) -> Result<PathBuf> {
    let parts = out.with_extension("parts");
    paths::emptied(&parts)?;
    Ok(parts)
}

fn finish(programs: &Programs, out: &Path) -> Result<PathBuf> {
    let folders = ["bin", "dev", "proc", "run", "sys", "tmp", "var"];
    fs::write(out, programs.archive(&folders)?)
        .with_context(|| format!("cannot write {}", out.display()))?;
    Ok(out.to_path_buf())
}

/// The guest's root file system: ext4 with busybox, [`GUEST`] and [`APPLETS`].
fn disk(root: &Path, parts: &Path) -> Result<PathBuf> {
    let tree = parts.join("root");
    paths::emptied(&tree)?;
    for folder in ["bin", "sbin", "dev", "proc", "sys", "etc", "tmp"] {
        fs::create_dir(tree.join(folder)).context("cannot make the guest's folders")?;
    }
    let _ = fs::copy(root.join("bin/busybox"), tree.join("bin/busybox"))
        .context("cannot copy busybox")?;
    for (name, text) in GUEST {
        let _ = written(&tree, name, text)?;
    }
    for name in APPLETS {
        symlink("busybox", tree.join("bin").join(name)).context("cannot name an applet")?;
    }
    for name in ["init", "getty"] {
        symlink("../bin/busybox", tree.join("sbin").join(name)).context("cannot name an applet")?;
    }
    ext4(&tree, &parts.join("root.ext4"), 6 << 20)
}

/// Makes an ext4 file system of so many bytes with the files of `tree`.
fn ext4(tree: &Path, image: &Path, bytes: usize) -> Result<PathBuf> {
    let _ = fs::remove_file(image);
    let mut make = Command::new("/sbin/mke2fs");
    let size = format!("{}k", bytes / 1024);
    let _ = make.args(["-q", "-t", "ext4", "-m", "0", "-d"]).arg(tree).arg(image).arg(size);
    tool::run(&mut make)?;
    Ok(image.to_path_buf())
}

/// Writes `text` to `name` below `dir`, for everyone to run.
fn written(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("cannot open up {}", path.display()))?;
    Ok(path)
}
