//! `cargo xtask run`: one boot, with the serial line shown live.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::machine::{
    self, Bios, Cpu, End, Image, Lines, Loader, Machine, Messages, Payload, Runner, Step,
    TripleFault, Watch,
};
use crate::packages::{self, Need};
use crate::paths;
use crate::suite::{Host, Kit};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A host of the test bed, with its usual command line
    #[arg(long, value_enum, default_value_t = Known::Small, conflicts_with = "host_kernel")]
    host: Known,
    /// The host: a bzImage or a multiboot ELF
    #[arg(long, value_name = "FILE")]
    host_kernel: Option<PathBuf>,
    /// The host's command line; with --host, words added to the usual ones
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// The host's initial RAM file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// A further module of the host, with its command line: "FILE WORDS…"
    #[arg(long, value_name = "FILE WORDS")]
    module: Vec<String>,
    /// The visor to boot instead of the one that is built here
    #[arg(long, value_name = "FILE")]
    visor: Option<PathBuf>,
    /// The visor's command line
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    visor_append: String,
    /// Boot the host on the bare machine, without the visor
    #[arg(long)]
    bare: bool,
    #[command(flatten)]
    machine: MachineOptions,
    /// End with success at the first line that holds this
    #[arg(long, value_name = "TEXT")]
    until: Option<String>,
    /// Where the image and the logs are kept
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// The hosts that need no file.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Known {
    /// The small kernel
    Small,
    /// The distribution's kernel
    Stock,
    /// The small kernel with KVM's modules and the VMM that drives KVM
    Kvm,
    /// As kvm, with a kernel and an initramfs for a VM
    KvmLinux,
    /// As kvm-linux, with a compiler and a database for the VM
    KvmWorks,
    /// The distribution's kernel with KVM's modules and the VMM
    StockKvm,
    /// The distribution's Xen with the small kernel as dom0
    Xen,
    /// The distribution's Xen with the distribution's kernel as dom0
    StockXen,
    /// The bare-metal probe
    Probe,
    /// The bare-metal user of VMX
    Vmx,
}

impl Known {
    /// The host with `words` for its kernel, dom0's where there is one.
    fn host(self, words: &str) -> Host {
        let (words, xen) = (words.to_owned(), String::new());
        match self {
            Self::Small => Host::Small(words),
            Self::Stock => Host::Stock(words),
            Self::Kvm => Host::Kvm(words),
            Self::KvmLinux => Host::KvmLinux(words),
            Self::KvmWorks => Host::KvmWorks(words),
            Self::StockKvm => Host::StockKvm(words),
            Self::Xen => Host::Xen { xen, dom0: words },
            Self::StockXen => Host::StockXen { xen, dom0: words },
            Self::Probe => Host::Probe(words),
            Self::Vmx => Host::Vmx(words),
        }
    }
}

#[derive(Debug, Args)]
struct MachineOptions {
    /// The emulator (default: qemu-kvm where KVM nests VMX, else bochs)
    #[arg(long, value_enum)]
    runner: Option<Runner>,
    /// The boot loader
    #[arg(long, value_enum, default_value_t = Loader::Isolinux)]
    loader: Loader,
    /// The CPU model
    #[arg(long, value_enum, default_value_t = Cpu::Haswell)]
    cpu: Cpu,
    /// Processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: u32,
    /// Memory in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    memory: u32,
    /// Reset on a triple fault, as a real machine does, instead of ending the run
    #[arg(long)]
    reset: bool,
    /// Millions of instructions in a second of the emulated clock (Bochs)
    #[arg(long, default_value_t = machine::USUAL_MIPS, value_name = "MILLIONS",
          value_parser = clap::value_parser!(u64).range(1..=4000))]
    mips: u64,
    /// The deadline in seconds of the emulated clock
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    deadline: u64,
}

impl MachineOptions {
    fn machine(&self) -> Machine {
        Machine {
            runner: self.runner.unwrap_or_else(|| {
                if machine::kvm_nests() { Runner::QemuKvm } else { Runner::Bochs }
            }),
            cpu: self.cpu,
            cpus: self.cpus,
            memory_mib: self.memory,
            loader: self.loader,
            messages: Messages::Screen,
            bios: Bios::Usual,
            triple_fault: if self.reset { TripleFault::Resets } else { TripleFault::Ends },
            mips: self.mips,
            seconds: self.deadline,
            com2: None,
            disk: None,
        }
    }
}

const fn need(runner: Runner) -> Need {
    match runner {
        Runner::Bochs => Need::Bochs,
        Runner::QemuTcg | Runner::QemuKvm => Need::Qemu,
    }
}

/// Boots once; the status is 0 after a power-off or the awaited line, 1 otherwise.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let machine = options.machine.machine();
    packages::install(&[Need::Build, Need::Image, need(machine.runner)])?;
    let dir = match &options.dir {
        Some(dir) => std::path::absolute(dir).context("cannot find the current folder")?,
        None => paths::target("run")?.join(std::process::id().to_string()),
    };
    let mut show = Show::new(options.until.as_deref());
    let outcome = machine::boot(&machine, &payload(options, &machine)?, &dir, &mut show)?;
    eprintln!(
        "\nxtask: {}, after {} ms of processor time; logs in {}",
        outcome.end,
        outcome.cpu.as_millis(),
        dir.display()
    );
    let success = match outcome.end {
        End::Stopped => true,
        End::PowerOff => options.until.is_none(),
        End::TripleFault | End::Deadline | End::WallClock | End::Emulator(_) => false,
    };
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn payload(options: &Options, machine: &Machine) -> Result<Payload> {
    let kit = Kit::new();
    let mut images = match &options.host_kernel {
        Some(file) => vec![Image::new(absolute(file)?, &options.append)],
        None => kit.images(&options.host.host(&options.append))?,
    };
    if let Some(initrd) = &options.initrd {
        images.truncate(1);
        images.push(Image::new(absolute(initrd)?, ""));
    }
    for module in &options.module {
        let (file, words) = module.split_once(' ').unwrap_or((module, ""));
        images.push(Image::new(absolute(Path::new(file))?, words));
    }
    if !options.bare {
        let visor = match &options.visor {
            Some(file) => absolute(file)?,
            None => kit.visor()?,
        };
        let kernel = Image::new(visor, machine.visor_words(&options.visor_append));
        let modules = images;
        return Ok(Payload::Multiboot { kernel, modules });
    }
    let mut images = images.into_iter();
    let kernel = images.next().context("there is no host")?;
    if is_linux(&kernel.file)? {
        let initrd = images.next().map(|image| image.file);
        return Ok(Payload::Linux { kernel, initrd });
    }
    let modules = images.collect();
    Ok(Payload::Multiboot { kernel, modules })
}

fn absolute(file: &Path) -> Result<PathBuf> {
    file.canonicalize().with_context(|| format!("cannot find {}", file.display()))
}

/// Whether `file` is a bzImage: "HdrS" at 0x202 (Linux/x86 boot protocol, section 1.1).
fn is_linux(file: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    let mut open = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let _ = open.seek(SeekFrom::Start(0x202)).context("cannot read the host kernel")?;
    Ok(open.read_exact(&mut magic).is_ok() && &magic == b"HdrS")
}

/// Shows the serial line on standard output until a line holds the awaited text.
#[derive(Debug)]
pub(crate) struct Show<'a> {
    lines: Lines,
    until: Option<&'a str>,
}

impl<'a> Show<'a> {
    /// Shows everything, or everything until `until`.
    pub(crate) fn new(until: Option<&'a str>) -> Self {
        Self { lines: Lines::default(), until }
    }
}

impl Watch for Show<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Step {
        let mut out = io::stdout().lock();
        // Nobody may be reading any more: the run is then of no use to anyone.
        if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
            return Step::Stop;
        }
        let lines = self.lines.push(bytes);
        let found = self.until.is_some_and(|text| lines.iter().any(|line| line.contains(text)));
        if found { Step::Stop } else { Step::Continue }
    }
}
