//! The visor's own command line: words separated by spaces, parsed strictly.

use core::fmt;

/// What the visor logs: messages of this level and of the levels before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What makes the visor stop.
    Error,
    /// What an operator should look at.
    Warn,
    /// One line per step of the boot.
    Info,
    /// Everything.
    Debug,
}

/// Where messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serial {
    /// Nowhere.
    Off,
    /// A 16550 UART.
    Port {
        /// First of its eight I/O ports.
        port: u16,
        /// Bits per second; divides 115,200.
        baud: u32,
    },
}

/// What the visor does when it cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// Stops every processor.
    Halt,
    /// Resets the machine.
    Reset,
}

/// An error of an emulator that the visor works around. On a real machine the work-around would let
/// the host out, so it must be asked for, where attestation sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quirk {
    /// None: the processor does what its manual says.
    None,
    /// Bochs 2.7 keeps an INIT that reaches a processor waiting for a start-up IPI, and raises it at
    /// every VM entry from then on.
    BochsInit,
}

/// What the command line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What is logged.
    pub log: LogLevel,
    /// Where it is logged.
    pub serial: Serial,
    /// What happens when the visor cannot go on.
    pub panic: OnPanic,
    /// What an emulator needs.
    pub quirk: Quirk,
    /// Whether VMCS shadowing is used where the processor has it.
    pub vmcs_shadowing: bool,
    /// Whether tickets are taken in clear, from whoever may use the control port.
    pub dev_tickets: bool,
    /// Whether VMs without a ticket may run.
    pub unprotected_vms: bool,
    /// Whether tickets are taken where no IOMMU keeps devices from memory.
    pub without_iommu: bool,
    /// Whether tickets are taken where the processor shows VMs' memory by transient execution.
    pub leaky_processor: bool,
}

impl Default for Options {
    fn default() -> Self {
        let (port, baud) = (0x3f8, FASTEST);
        Self {
            log: LogLevel::Info,
            serial: Serial::Port { port, baud },
            panic: OnPanic::Halt,
            quirk: Quirk::None,
            vmcs_shadowing: true,
            dev_tickets: false,
            unprotected_vms: true,
            without_iommu: false,
            leaky_processor: false,
        }
    }
}

/// Bits per second of a 16550 UART whose divisor is one.
const FASTEST: u32 = 115_200;

/// A word of the command line: `name=value`.
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// What precedes the `=`.
    pub name: &'static str,
    /// What may follow it.
    pub values: &'static str,
    /// What it does, in one sentence.
    pub meaning: &'static str,
}

/// Every word there is.
pub const WORDS: &[Word] = &[
    Word {
        name: "log",
        values: "off|error|warn|info|debug",
        meaning: "Logs messages of this level and of the levels before it (default: info).",
    },
    Word {
        name: "serial",
        values: "com1|com2|com3|com4|0xPORT[,BAUD]|off",
        meaning: "Logs to this serial port, 8N1; any port may have a BAUD (default: com1,115200).",
    },
    Word {
        name: "panic",
        values: "halt|reset",
        meaning: "Stops or resets the machine when the visor cannot go on (default: halt).",
    },
    Word {
        name: "quirk",
        values: "bochs-init",
        meaning: "Starts processors again that Bochs 2.7 cannot start; insecure on a real machine.",
    },
    Word {
        name: "vmcs-shadowing",
        values: "on|off",
        meaning: "Uses VMCS shadowing where the processor has it, or does without (default: on).",
    },
    Word {
        name: "dev-tickets",
        values: "on|off",
        meaning: "Takes tickets for protected VMs in clear, for development (default: off).",
    },
    Word {
        name: "unprotected-vms",
        values: "run|refuse",
        meaning: "Lets VMs run that have no ticket, or refuses them (default: run).",
    },
    Word {
        name: "insecure-no-iommu",
        values: "on|off",
        meaning: "Takes tickets where no IOMMU keeps devices from VMs' memory (default: off).",
    },
    Word {
        name: "insecure-processor",
        values: "on|off",
        meaning: "Takes tickets where the processor does not keep VMs' memory from its host (default: off).",
    },
];

/// Does what the word `name=value` says; `None` if it says nothing.
fn apply(options: &mut Options, name: &str, value: &str) -> Option<()> {
    match (name, value) {
        ("log", "off") => options.log = LogLevel::Off,
        ("log", "error") => options.log = LogLevel::Error,
        ("log", "warn") => options.log = LogLevel::Warn,
        ("log", "info") => options.log = LogLevel::Info,
        ("log", "debug") => options.log = LogLevel::Debug,
        ("serial", _) => options.serial = serial(value)?,
        ("panic", "halt") => options.panic = OnPanic::Halt,
        ("panic", "reset") => options.panic = OnPanic::Reset,
        ("quirk", "bochs-init") => options.quirk = Quirk::BochsInit,
        ("vmcs-shadowing", "on") => options.vmcs_shadowing = true,
        ("vmcs-shadowing", "off") => options.vmcs_shadowing = false,
        ("dev-tickets", "" | "on") => options.dev_tickets = true,
        ("dev-tickets", "off") => options.dev_tickets = false,
        ("unprotected-vms", "run") => options.unprotected_vms = true,
        ("unprotected-vms", "refuse") => options.unprotected_vms = false,
        // In two parts: whole, the compiler would compare them in a vector register.
        _ => {
            let word = match name.strip_prefix("insecure-")? {
                "no-iommu" => &mut options.without_iommu,
                "processor" => &mut options.leaky_processor,
                _ => return None,
            };
            *word = match value {
                "" | "on" => true,
                "off" => false,
                _ => return None,
            };
        }
    }
    Some(())
}

fn serial(value: &str) -> Option<Serial> {
    if value == "off" {
        return Some(Serial::Off);
    }
    let (name, baud) = match value.split_once(',') {
        Some((name, baud)) => (name, decimal(baud)?),
        None => (value, FASTEST),
    };
    let port = match name {
        "com1" => 0x3f8,
        "com2" => 0x2f8,
        "com3" => 0x3e8,
        "com4" => 0x2e8,
        _ => hexadecimal(name.strip_prefix("0x")?)?,
    };
    // A 16550 has eight ports; its divisor is a whole number.
    let fits = port <= 0xfff8 && FASTEST.checked_rem(baud) == Some(0);
    fits.then_some(Serial::Port { port, baud })
}

/// A number without the sign that Rust's own parsers let pass.
fn decimal(digits: &str) -> Option<u32> {
    digits.parse().ok().filter(|_| !digits.starts_with('+'))
}

fn hexadecimal(digits: &str) -> Option<u16> {
    let number = u16::from_str_radix(digits, 16).ok();
    number.filter(|_| !digits.starts_with('+'))
}

/// Reads a command line from which the image's name was dropped (see [`cook`]).
///
/// # Errors
/// The first thing that is wrong with it: nothing in it is ignored.
pub fn parse(text: &[u8]) -> Result<Options, CmdlineError<'_>> {
    let odd = text.iter().find(|byte| !matches!(byte, b' '..=b'~'));
    odd.map_or(Ok(()), |&byte| Err(CmdlineError::NotText(byte)))?;
    let text = core::str::from_utf8(text).unwrap_or_default();
    let words = text.split(' ').filter(|word| !word.is_empty());
    let mut options = Options::default();
    for (place, word) in words.clone().enumerate() {
        let (name, value) = halves(word);
        // Hidden from the compiler, which would compare long names in vector registers.
        let known = core::hint::black_box(WORDS);
        if known.iter().all(|known| known.name != name) {
            return Err(CmdlineError::UnknownWord(word));
        }
        if words.clone().take(place).any(|earlier| halves(earlier).0 == name) {
            return Err(CmdlineError::Repeated(word));
        }
        apply(&mut options, name, value).ok_or(CmdlineError::BadValue(word))?;
    }
    Ok(options)
}

/// Name and value of a word; the value is empty if there is none.
fn halves(word: &str) -> (&str, &str) {
    word.split_once('=').unwrap_or((word, ""))
}

/// A command line as the loader `loader_name` handed it over, without the image's name.
///
/// GRUB 2 leaves the name out; every other loader puts it first. The rule is Xen's
/// (`xen/arch/x86/setup.c`, `loader_is_grub2` and `cmdline_cook`), so that one configuration
/// serves both.
#[must_use]
pub fn cook<'a>(raw: &'a [u8], loader_name: &[u8]) -> &'a [u8] {
    let line = raw.trim_ascii_start();
    let mut names = loader_name.windows(6).filter(|name| name.starts_with(b"GRUB "));
    if names.next().is_some_and(|name| !name.ends_with(b"0")) {
        return line;
    }
    let end = line.iter().position(|&byte| byte == b' ');
    end.and_then(|end| line.get(end..)).unwrap_or_default().trim_ascii_start()
}

/// What is wrong with the command line, with the word in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmdlineError<'a> {
    /// A word that is not in [`WORDS`].
    UnknownWord(&'a str),
    /// A word given a second time.
    Repeated(&'a str),
    /// A word with a value it does not take.
    BadValue(&'a str),
    /// A byte that is not printable ASCII.
    NotText(u8),
}

impl fmt::Display for CmdlineError<'_> {
    /// Shows no more of a word than it takes to recognize it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("command line: ")?;
        match self {
            Self::UnknownWord(word) => write!(f, "unknown word \"{word:.40}\""),
            Self::Repeated(word) => write!(f, "second word of its kind: \"{word:.40}\""),
            Self::BadValue(word) => write!(f, "bad value in \"{word:.40}\""),
            Self::NotText(byte) => write!(f, "byte {byte:#04x} is not printable ASCII"),
        }
    }
}
