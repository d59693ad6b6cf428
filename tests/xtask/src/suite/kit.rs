//! What tests boot, made or fetched when the first of them asks.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Error, Result};

use crate::build::{self, ForTests, Guests};
use crate::image::vmms::{self, XenVm};
use crate::image::{remote, works};
use crate::machine::{Image, Machine, Payload};
use crate::packages::{self, Built};
use crate::paths;

/// What every Linux host is told, bare or not: a serial console, nothing that waits, nothing that
/// differs between runs. `idle=halt`, because Bochs loses wake-ups from MWAIT;
/// `acpiphp.disable`, because SeaBIOS describes a PCI hotplug controller that Bochs does not have: its
/// registers read as all ones, which at any ACPI event makes Linux remove every device.
pub(crate) const LINUX: &str = "console=ttyS0,115200 quiet panic=-1 mitigations=off tsc=reliable \
                     random.trust_cpu=on no_timer_check nokaslr idle=halt libata.force=disable \
                     acpiphp.disable=1";

/// What every Xen is told; see Xen's `docs/misc/xen-command-line.pandoc`.
const XEN: &str = "com1=115200,8n1 console=com1 loglvl=all guest_loglvl=all noreboot vga=none \
                   no-real-mode edd=off cpuidle=0 mce=0 spec-ctrl=no xpti=no watchdog=0 \
                   sched=credit bootscrub=0 apicv=0 dom0_mem=256M,max:256M";

/// What Linux is told as dom0. The TSC runs at the emulated rate of instructions.
const DOM0: &str = "console=hvc0 panic=-1 mitigations=off random.trust_cpu=on rdinit=/init \
                    swiotlb=1024 tsc_early_khz=20000 libata.force=disable acpiphp.disable=1";

/// A host, with what its command line has beyond the usual.
#[derive(Clone, Debug)]
pub(crate) enum Host {
    /// The small kernel and `init`.
    Small(String),
    /// The distribution's kernel and `init`.
    Stock(String),
    /// The distribution's Xen with the small kernel and `init` as dom0.
    Xen { xen: String, dom0: String },
    /// The distribution's Xen with the distribution's kernel and `init` as dom0.
    StockXen { xen: String, dom0: String },
    /// The small kernel with KVM's modules, `init` and `vmm`.
    Kvm(String),
    /// As [`Host::Kvm`], with `visorctl`.
    Protected(String),
    /// As [`Host::Kvm`], with the small kernel and [`Host::Kvm`]'s files once more, for a VM.
    KvmLinux(String),
    /// As [`Host::KvmLinux`], with a compiler and a database for the VM.
    KvmWorks(String),
    /// The distribution's kernel with KVM's modules, `init` and `vmm`.
    StockKvm(String),
    /// The small kernel with KVM's modules and QEMU, whose guest is the small kernel too.
    Qemu(String),
    /// As [`Host::Qemu`], with the distribution's kernel as the host.
    StockQemu(String),
    /// The small kernel with KVM's modules, QEMU, `visorctl`, and a VM that this has made.
    Made(String),
    /// As [`Host::Made`], with the kernel that moves memory about as the host.
    Life(String),
    /// As [`Host::Made`], with VMs whose root file system is on a sealed disk.
    Rooted(String),
    /// As [`Host::Made`], with a program that attacks the VM.
    Attacked(String),
    /// As [`Host::Attacked`], with the distribution's kernel as the host.
    StockAttacked(String),
    /// The distribution's Xen with the small kernel, `init`, `vmm` and `visorctl` as dom0.
    XenVms { xen: String, dom0: String },
    /// The distribution's Xen with the small kernel as dom0, and `xl` there, whose guests are the
    /// small kernel too.
    Xl { xen: String, dom0: String },
    /// As [`Host::Xl`], with `visorctl` and a VM that this has made.
    XlMade { vm: XenVm, xen: String, dom0: String },
    /// The bare-metal probe.
    Probe(String),
    /// The bare-metal user of VMX.
    Vmx(String),
    /// These files, the kernel first.
    Files(Vec<Image>),
}

/// What runs on a machine: a host, on the visor with these words or on the bare machine.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    pub(crate) visor: Option<String>,
    pub(crate) host: Host,
}

impl Stack {
    /// `host` on the visor.
    pub(crate) fn on_visor(host: Host) -> Self {
        let visor = Some(String::new());
        Self { visor, host }
    }

    /// `host` on the visor, which does without VMCS shadowing.
    pub(crate) fn without_shadowing(host: Host) -> Self {
        let visor = Some("vmcs-shadowing=off".to_owned());
        Self { visor, host }
    }

    /// `host` on the bare machine.
    pub(crate) const fn bare(host: Host) -> Self {
        Self { visor: None, host }
    }
}

/// Something that is made once, or fails to be made once.
struct Once<T>(OnceLock<Box<Result<T, String>>>);

impl<T: Clone> Once<T> {
    const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The thing, made by `make` at the first call; other threads wait for it meanwhile.
    fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let made = || Box::new(make().map_err(|error| format!("{error:#}")));
        self.0.get_or_init(made).as_ref().clone().map_err(Error::msg)
    }
}

/// Everything that can be booted.
pub(crate) struct Kit {
    visor: Once<PathBuf>,
    without_vmx: Once<PathBuf>,
    serial_tpm: Once<PathBuf>,
    guests: Once<Guests>,
    small: Once<PathBuf>,
    stock: Once<PathBuf>,
    xen: Once<PathBuf>,
    small_kvm: Once<PathBuf>,
    protected: Once<PathBuf>,
    kvm_linux: Once<PathBuf>,
    kvm_works: Once<PathBuf>,
    stock_kvm: Once<PathBuf>,
    stock_drivers: Once<PathBuf>,
    remote: Once<PathBuf>,
    qemu: Once<PathBuf>,
    stock_qemu: Once<PathBuf>,
    made: Once<PathBuf>,
    life: Once<PathBuf>,
    rooted: Once<PathBuf>,
    attacked: Once<PathBuf>,
    stock_attacked: Once<PathBuf>,
    xl: Once<PathBuf>,
    xl_made: Once<PathBuf>,
    xl_two: Once<PathBuf>,
    xl_heart: Once<PathBuf>,
    xl_virtio: Once<PathBuf>,
    xl_sealed: Once<PathBuf>,
}

impl fmt::Debug for Kit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Kit").finish_non_exhaustive()
    }
}

impl Kit {
    /// A kit in which nothing is made yet.
    pub(crate) const fn new() -> Self {
        Self {
            visor: Once::new(),
            without_vmx: Once::new(),
            serial_tpm: Once::new(),
            guests: Once::new(),
            small: Once::new(),
            stock: Once::new(),
            xen: Once::new(),
            small_kvm: Once::new(),
            protected: Once::new(),
            kvm_linux: Once::new(),
            kvm_works: Once::new(),
            stock_kvm: Once::new(),
            stock_drivers: Once::new(),
            remote: Once::new(),
            qemu: Once::new(),
            stock_qemu: Once::new(),
            made: Once::new(),
            life: Once::new(),
            rooted: Once::new(),
            attacked: Once::new(),
            stock_attacked: Once::new(),
            xl: Once::new(),
            xl_made: Once::new(),
            xl_two: Once::new(),
            xl_heart: Once::new(),
            xl_virtio: Once::new(),
            xl_sealed: Once::new(),
        }
    }

    /// The visor's image.
    pub(crate) fn visor(&self) -> Result<PathBuf> {
        self.visor.get(build::visor)
    }

    /// The image of the visor that does without VMX.
    pub(crate) fn without_vmx(&self) -> Result<PathBuf> {
        self.without_vmx.get(|| build::visor_for_tests(ForTests::WithoutVmx))
    }

    /// The image of the visor that has its TPM at the end of a serial line.
    pub(crate) fn serial_tpm(&self) -> Result<PathBuf> {
        self.serial_tpm.get(|| build::visor_for_tests(ForTests::SerialTpm))
    }

    /// An initial RAM file system for the distribution's kernel with `init` and drivers.
    pub(crate) fn stock_drivers(&self) -> Result<PathBuf> {
        self.stock_drivers.get(|| {
            let modules = packages::stock_modules(&packages::DRIVERS)?;
            let names: Vec<String> =
                (0..modules.len()).map(|number| format!("module-{number:02}")).collect();
            let files: Vec<(&str, &Path)> = names
                .iter()
                .map(String::as_str)
                .zip(modules.iter().map(PathBuf::as_path))
                .collect();
            let out = paths::target("guests")?.join("drivers-stock.cpio");
            build::extended(&self.guests()?.initrd, &files, &out)
        })
    }

    /// An initial RAM file system for the distribution's kernel that does what the build machine tells it.
    pub(crate) fn remote(&self) -> Result<PathBuf> {
        self.remote.get(|| {
            let out = paths::target("guests")?.join("remote.cpio");
            remote::host(&build::visorctl()?, &out)
        })
    }

    /// The guest programs.
    pub(crate) fn guests(&self) -> Result<Guests> {
        self.guests.get(build::guests)
    }

    /// The small kernel, a bzImage.
    pub(crate) fn small(&self) -> Result<PathBuf> {
        self.small.get(|| Built::Small.kernel())
    }

    /// The distribution's kernel, a bzImage.
    pub(crate) fn stock(&self) -> Result<PathBuf> {
        self.stock.get(packages::stock_kernel)
    }

    /// The distribution's Xen, a multiboot ELF.
    pub(crate) fn xen(&self) -> Result<PathBuf> {
        self.xen.get(packages::xen)
    }

    /// An initial RAM file system with `modules` and the VMM that uses them, called `name`.
    fn with_kvm(&self, modules: &[PathBuf], name: &str) -> Result<PathBuf> {
        let guests = self.guests()?;
        let mut files = vec![("vmm", guests.vmm.as_path())];
        for module in modules {
            let name = module.file_name().and_then(|name| name.to_str());
            files.push((name.context("a module without a name")?, module.as_path()));
        }
        build::extended(&guests.initrd, &files, &paths::target("guests")?.join(name))
    }

    fn small_kvm(&self) -> Result<PathBuf> {
        self.small_kvm.get(|| self.with_kvm(&Built::Small.kvm()?, "kvm-small.cpio"))
    }

    fn stock_kvm(&self) -> Result<PathBuf> {
        self.stock_kvm.get(|| self.with_kvm(&packages::stock_kvm()?, "kvm-stock.cpio"))
    }

    fn protected(&self) -> Result<PathBuf> {
        self.protected.get(|| {
            let tool = build::visorctl()?;
            let out = paths::target("guests")?.join("protected.cpio");
            build::extended(&self.small_kvm()?, &[("visorctl", tool.as_path())], &out)
        })
    }

    fn kvm_linux(&self) -> Result<PathBuf> {
        self.kvm_linux.get(|| self.with_vm(&self.small_kvm()?, "kvm-linux.cpio"))
    }

    fn kvm_works(&self) -> Result<PathBuf> {
        self.kvm_works.get(|| {
            let initrd = paths::target("guests")?.join("works.cpio");
            self.with_vm(&works::added(&self.small_kvm()?, &initrd)?, "kvm-works.cpio")
        })
    }

    /// An initial RAM file system, called `name`, of a host whose VM boots with `initrd`.
    fn with_vm(&self, initrd: &Path, name: &str) -> Result<PathBuf> {
        let kernel = self.small()?;
        let files = [("kernel", kernel.as_path()), ("initrd2", initrd)];
        build::extended(&self.small_kvm()?, &files, &paths::target("guests")?.join(name))
    }

    fn qemu(&self) -> Result<PathBuf> {
        self.qemu.get(|| self.with_qemu(&Built::Small.kvm()?, "qemu-small.cpio"))
    }

    fn stock_qemu(&self) -> Result<PathBuf> {
        self.stock_qemu.get(|| self.with_qemu(&packages::stock_kvm()?, "qemu-stock.cpio"))
    }

    fn with_qemu(&self, modules: &[PathBuf], name: &str) -> Result<PathBuf> {
        vmms::qemu(&self.small()?, modules, &paths::target("guests")?.join(name))
    }

    /// The parts of a VM that `visorctl` makes of the small kernel, for a host with KVM's `modules`.
    fn parts(&self, modules: Vec<PathBuf>) -> Result<vmms::Parts> {
        self.parts_of(self.small()?, modules)
    }

    /// The same, of another kernel.
    fn parts_of(&self, kernel: PathBuf, modules: Vec<PathBuf>) -> Result<vmms::Parts> {
        let initrd = self.guests()?.initrd;
        Ok(vmms::Parts { tool: build::visorctl()?, kernel, initrd, modules })
    }

    fn made(&self) -> Result<PathBuf> {
        self.made.get(|| {
            let out = paths::target("guests")?.join("made.cpio");
            vmms::made(&self.parts(Built::Small.kvm()?)?, &out)
        })
    }

    fn life(&self) -> Result<PathBuf> {
        self.life.get(|| {
            let out = paths::target("guests")?.join("life.cpio");
            vmms::made(&self.parts_of(Built::Life.kernel()?, Built::Life.kvm()?)?, &out)
        })
    }

    /// An initial RAM file system with VMs whose root file system is on a sealed disk.
    pub(crate) fn rooted(&self) -> Result<PathBuf> {
        self.rooted.get(|| {
            let out = paths::target("guests")?.join("rooted.cpio");
            vmms::rooted::made(&self.parts(Built::Small.kvm()?)?, &self.guests()?.random_io, &out)
        })
    }

    fn attacked(&self) -> Result<PathBuf> {
        self.attacked.get(|| self.with_intruder(Built::Small.kvm()?, "attacked-small.cpio"))
    }

    fn stock_attacked(&self) -> Result<PathBuf> {
        let modules = packages::stock_kvm;
        self.stock_attacked.get(|| self.with_intruder(modules()?, "attacked-stock.cpio"))
    }

    fn with_intruder(&self, modules: Vec<PathBuf>, name: &str) -> Result<PathBuf> {
        let out = paths::target("guests")?.join(name);
        vmms::attacked(&self.parts(modules)?, &self.guests()?.intruder, &out)
    }

    fn xl(&self) -> Result<PathBuf> {
        self.xl.get(|| vmms::xl(&self.small()?, &paths::target("guests")?.join("xl.cpio")))
    }

    fn xl_made(&self, vm: XenVm) -> Result<PathBuf> {
        let once = match vm {
            XenVm::Plain => &self.xl_made,
            XenVm::Two => &self.xl_two,
            XenVm::Heart => &self.xl_heart,
            XenVm::Virtio => &self.xl_virtio,
            XenVm::Sealed => &self.xl_sealed,
        };
        once.get(|| vmms::made_for_xen(&self.parts(Vec::new())?, vm, &self.guests()?))
    }

    /// The Linux kernel of `host` and its initial RAM file system.
    fn linux(&self, host: &Host) -> Result<Vec<PathBuf>> {
        type Make = fn(&Kit) -> Result<PathBuf>;
        let initrd: Make = |kit| Ok(kit.guests()?.initrd);
        let (kernel, initrd): (Make, Make) = match host {
            Host::Small(_) | Host::Xen { .. } => (Self::small, initrd),
            Host::Stock(_) | Host::StockXen { .. } => (Self::stock, initrd),
            Host::Kvm(_) => (Self::small, Self::small_kvm),
            Host::Protected(_) | Host::XenVms { .. } => (Self::small, Self::protected),
            Host::KvmLinux(_) => (Self::small, Self::kvm_linux),
            Host::KvmWorks(_) => (Self::small, Self::kvm_works),
            Host::StockKvm(_) => (Self::stock, Self::stock_kvm),
            Host::Qemu(_) => (Self::small, Self::qemu),
            Host::StockQemu(_) => (Self::stock, Self::stock_qemu),
            Host::Made(_) => (Self::small, Self::made),
            Host::Life(_) => (|_| Built::Life.kernel(), Self::life),
            Host::Rooted(_) => (Self::small, Self::rooted),
            Host::Attacked(_) => (Self::small, Self::attacked),
            Host::StockAttacked(_) => (Self::stock, Self::stock_attacked),
            Host::Xl { .. } => (Self::small, Self::xl),
            Host::XlMade { vm, .. } => return Ok(vec![self.small()?, self.xl_made(*vm)?]),
            Host::Probe(_) | Host::Vmx(_) | Host::Files(_) => return Ok(Vec::new()),
        };
        Ok(vec![kernel(self)?, initrd(self)?])
    }

    /// The files of `host`, its kernel first.
    pub(crate) fn images(&self, host: &Host) -> Result<Vec<Image>> {
        let (usual, words) = match host {
            Host::Small(words)
            | Host::Stock(words)
            | Host::Kvm(words)
            | Host::Protected(words)
            | Host::KvmLinux(words)
            | Host::KvmWorks(words)
            | Host::StockKvm(words)
            | Host::Qemu(words)
            | Host::StockQemu(words)
            | Host::Made(words)
            | Host::Life(words)
            | Host::Rooted(words)
            | Host::Attacked(words)
            | Host::StockAttacked(words) => (LINUX, words),
            Host::Xen { dom0, .. }
            | Host::StockXen { dom0, .. }
            | Host::XenVms { dom0, .. }
            | Host::Xl { dom0, .. }
            | Host::XlMade { dom0, .. } => (DOM0, dom0),
            Host::Probe(words) => return Ok(vec![Image::new(self.guests()?.probe, words)]),
            Host::Vmx(words) => return Ok(vec![Image::new(self.guests()?.vmx, words)]),
            Host::Files(images) => return Ok(images.clone()),
        };
        let mut images: Vec<Image> =
            self.linux(host)?.into_iter().map(|file| Image::new(file, "")).collect();
        if let Some(kernel) = images.first_mut() {
            kernel.words = format!("{usual} {words}");
        }
        if let Host::Xen { xen, .. }
        | Host::StockXen { xen, .. }
        | Host::XenVms { xen, .. }
        | Host::Xl { xen, .. }
        | Host::XlMade { xen, .. } = host
        {
            images.insert(0, Image::new(self.xen()?, format!("{XEN} {xen}")));
        }
        Ok(images)
    }

    /// What the boot loader gets for `stack`.
    pub(crate) fn payload(&self, stack: &Stack, machine: &Machine) -> Result<Payload> {
        let images = self.images(&stack.host)?;
        if let Some(words) = &stack.visor {
            let kernel = Image::new(self.visor()?, machine.visor_words(words));
            let modules = images;
            return Ok(Payload::Multiboot { kernel, modules });
        }
        let mut images = images.into_iter();
        let kernel = images.next().unwrap_or_else(|| Image::new("", ""));
        Ok(match stack.host {
            Host::Small(_)
            | Host::Stock(_)
            | Host::Kvm(_)
            | Host::Protected(_)
            | Host::KvmLinux(_)
            | Host::KvmWorks(_)
            | Host::StockKvm(_)
            | Host::Qemu(_)
            | Host::StockQemu(_)
            | Host::Made(_)
            | Host::Life(_)
            | Host::Rooted(_)
            | Host::Attacked(_)
            | Host::StockAttacked(_) => {
                let initrd = images.next().map(|image| image.file);
                Payload::Linux { kernel, initrd }
            }
            Host::Xen { .. }
            | Host::StockXen { .. }
            | Host::XenVms { .. }
            | Host::Xl { .. }
            | Host::XlMade { .. }
            | Host::Probe(_)
            | Host::Vmx(_)
            | Host::Files(_) => {
                let modules = images.collect();
                Payload::Multiboot { kernel, modules }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_made_is_tried_once() {
        let once = Once::<u8>::new();
        let mut tries = 0;
        for _ in 0..2 {
            let made = once.get(|| {
                tries += 1;
                anyhow::bail!("broken")
            });
            assert_eq!(made.unwrap_err().to_string(), "broken");
        }
        assert_eq!(tries, 1);
    }

    #[test]
    fn the_first_file_of_a_bare_host_is_its_kernel() {
        let host = Host::Files(vec![Image::new("k", "words"), Image::new("i", "")]);
        let stack = Stack::bare(host);
        let Payload::Multiboot { kernel, modules } =
            Kit::new().payload(&stack, &Machine::default()).unwrap()
        else {
            panic!("files are multiboot");
        };
        assert_eq!((kernel.words.as_str(), modules.len()), ("words", 1));
    }
}
