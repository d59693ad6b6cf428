//! The visor's control port as the host sees it: write an index to [`PORT`], read a value.
//!
//! Both test programs read it, the probe from ring 0 and `init` through `iopl`; they differ only in
//! the [`Port`] they bring.
#![no_std]
#![forbid(unsafe_code)]

/// The dword I/O port.
pub const PORT: u16 = 0x0ce0;
/// The dword I/O port for values that are written.
pub const DATA: u16 = 0x0ce4;
/// What index 0 reads when a visor answers: "VISR".
pub const MAGIC: u32 = 0x5253_4956;

/// Where [`MAGIC`] is.
pub const INDEX_MAGIC: u32 = 0;
const INDEX_VERSION: u32 = 1;
const INDEX_BASE: u32 = 2;
const INDEX_LENGTH: u32 = 3;
const INDEX_PROCESSORS: u32 = 4;
/// Where the number of counters is.
pub const INDEX_COUNTERS: u32 = 5;
const INDEX_EVENTS: u32 = 6;
const INDEX_TABLES: u32 = 7;
const INDEX_FREE: u32 = 8;
const INDEX_TICKS: u32 = 0x80;
/// Where the low half of the first counter is.
pub const INDEX_COUNTER: u32 = 0x100;
const ABSENT: u32 = 0xffff_ffff;

/// Access to [`PORT`].
pub trait Port {
    /// Writes `index` to the port, then reads the value there.
    fn read(&mut self, index: u32) -> u32;
}

/// The visor's status, read from a port that has one behind it.
#[derive(Debug)]
pub struct Status<P>(P);

/// Why there is no status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoVisor {
    /// What index 0 read instead of [`MAGIC`].
    pub found: u32,
}

impl core::fmt::Display for NoVisor {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "no visor at port {PORT:#x}: read {:#x}", self.found)
    }
}

impl<P: Port> Status<P> {
    /// Finds the visor behind `port`.
    ///
    /// # Errors
    /// [`NoVisor`] when the magic is not there.
    pub fn find(mut port: P) -> Result<Self, NoVisor> {
        match port.read(INDEX_MAGIC) {
            MAGIC => Ok(Self(port)),
            found => Err(NoVisor { found }),
        }
    }

    /// First byte and length in bytes of the visor's reservation.
    pub fn reservation(&mut self) -> (u64, u64) {
        let base = u64::from(self.0.read(INDEX_BASE));
        let length = u64::from(self.0.read(INDEX_LENGTH));
        (base << 20, length << 20)
    }

    /// How often the visor was entered for basic exit reason `reason`; `None` beyond its table.
    pub fn exits(&mut self, reason: u32) -> Option<u64> {
        let low = INDEX_COUNTER.checked_add(reason.checked_mul(2)?)?;
        (reason < self.counters()).then(|| self.pair(low))
    }

    /// Number of exit counters.
    pub fn counters(&mut self) -> u32 {
        self.0.read(INDEX_COUNTERS)
    }

    /// TSC ticks in the visor so far.
    pub fn ticks(&mut self) -> u64 {
        self.pair(INDEX_TICKS)
    }

    /// Number of security events recorded so far.
    pub fn events(&mut self) -> u32 {
        self.0.read(INDEX_EVENTS)
    }

    /// Hands every value to `line` as (name, value); exit counters that are zero are left out.
    pub fn each(&mut self, mut line: impl FnMut(Name, u64)) {
        // Before what the visor must count for it: its tables.
        let ticks = self.ticks();
        let (base, length) = self.reservation();
        let version = self.0.read(INDEX_VERSION);
        line(Name::Plain("version.major"), u64::from(version >> 16));
        line(Name::Plain("version.minor"), u64::from(version & 0xffff));
        line(Name::Plain("reservation.base"), base);
        line(Name::Plain("reservation.length"), length);
        let processors = self.0.read(INDEX_PROCESSORS);
        line(Name::Plain("processors"), u64::from(processors));
        line(Name::Plain("events"), u64::from(self.events()));
        line(Name::Plain("tables"), u64::from(self.0.read(INDEX_TABLES)));
        line(Name::Plain("free"), u64::from(self.0.read(INDEX_FREE)));
        line(Name::Plain("ticks"), ticks);
        let mut total: u64 = 0;
        for reason in 0..self.counters().min(256) {
            let count = self.exits(reason).unwrap_or(0);
            total = total.saturating_add(count);
            if count != 0 {
                line(Name::Exit(reason), count);
            }
        }
        line(Name::Plain("exits"), total);
    }

    /// The low half latches the high half, so it is read first.
    fn pair(&mut self, index: u32) -> u64 {
        let low = self.0.read(index);
        let high = self.0.read(index.saturating_add(1));
        if (low, high) == (ABSENT, ABSENT) {
            return 0;
        }
        u64::from(high) << 32 | u64::from(low)
    }
}

/// What a value is called in test output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A value with a name of its own.
    Plain(&'static str),
    /// The counter of one basic exit reason.
    Exit(u32),
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Plain(name) => f.write_str(name),
            Self::Exit(reason) => match reason_name(reason) {
                Some(name) => write!(f, "exits.{name}"),
                None => write!(f, "exits.{reason}"),
            },
        }
    }
}

/// The name of a basic exit reason (SDM vol. 3, appendix C).
#[must_use]
pub fn reason_name(reason: u32) -> Option<&'static str> {
    let index = usize::try_from(reason).ok()?;
    REASONS.get(index).copied().filter(|name| !name.is_empty())
}

/// By basic exit reason; the empty ones are not defined.
const REASONS: [&str; 70] = [
    "exception-or-nmi",
    "external-interrupt",
    "triple-fault",
    "init",
    "sipi",
    "io-smi",
    "other-smi",
    "interrupt-window",
    "nmi-window",
    "task-switch",
    "cpuid",
    "getsec",
    "hlt",
    "invd",
    "invlpg",
    "rdpmc",
    "rdtsc",
    "rsm",
    "vmcall",
    "vmclear",
    "vmlaunch",
    "vmptrld",
    "vmptrst",
    "vmread",
    "vmresume",
    "vmwrite",
    "vmxoff",
    "vmxon",
    "cr-access",
    "dr-access",
    "io",
    "rdmsr",
    "wrmsr",
    "entry-guest-state",
    "entry-msr-load",
    "",
    "mwait",
    "mtf",
    "",
    "monitor",
    "pause",
    "entry-machine-check",
    "",
    "tpr-below-threshold",
    "apic-access",
    "virtualized-eoi",
    "gdtr-idtr",
    "ldtr-tr",
    "ept-violation",
    "ept-misconfiguration",
    "invept",
    "rdtscp",
    "preemption-timer",
    "invvpid",
    "wbinvd",
    "xsetbv",
    "apic-write",
    "rdrand",
    "invpcid",
    "vmfunc",
    "encls",
    "rdseed",
    "pml-full",
    "xsaves",
    "xrstors",
    "pconfig",
    "spp",
    "umwait",
    "tpause",
    "loadiwkey",
];

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{ABSENT, MAGIC, Name, NoVisor, Port, Status};
    use std::collections::BTreeMap;
    use std::string::ToString;
    use std::vec::Vec;

    struct Fake(BTreeMap<u32, u32>);
    impl Port for Fake {
        fn read(&mut self, index: u32) -> u32 {
            self.0.get(&index).copied().unwrap_or(ABSENT)
        }
    }

    fn fake() -> Fake {
        Fake(BTreeMap::from([
            (0, MAGIC),
            (1, 0x0001_0002),
            (2, 1000),
            (3, 24),
            (4, 2),
            (5, 49),
            (6, 3),
            (7, 17),
            (8, 500),
            (0x80, 5),
            (0x81, 1),
            (0x100 + 2 * 10, 7),
            (0x101 + 2 * 10, 2),
        ]))
    }

    #[test]
    fn an_empty_port_is_not_a_visor() {
        let found = Status::find(Fake(BTreeMap::new())).err();
        assert_eq!(found, Some(NoVisor { found: ABSENT }));
    }

    #[test]
    fn counters_are_64_bits_wide_and_named() {
        let mut lines = Vec::new();
        Status::find(fake()).unwrap().each(|name, value| lines.push((name.to_string(), value)));
        let of = |name: &str| lines.iter().find(|line| line.0 == name).map(|line| line.1);
        assert_eq!(of("exits.cpuid"), Some(0x2_0000_0007));
        assert_eq!(of("ticks"), Some(0x1_0000_0005));
        assert_eq!(of("reservation.base"), Some(1000 << 20));
        assert_eq!(of("exits.hlt"), None);
        assert_eq!(of("version.minor"), Some(2));
        assert_eq!((of("tables"), of("free")), (Some(17), Some(500)));
    }

    #[test]
    fn a_reason_beyond_the_table_has_no_counter() {
        let mut status = Status::find(fake()).unwrap();
        assert_eq!(status.exits(49), None);
        assert_eq!(status.exits(10), Some(0x2_0000_0007));
    }

    #[test]
    fn reasons_carry_the_names_of_the_manual() {
        assert_eq!(Name::Exit(48).to_string(), "exits.ept-violation");
        assert_eq!(Name::Exit(55).to_string(), "exits.xsetbv");
        assert_eq!(Name::Exit(35).to_string(), "exits.35");
        assert_eq!(Name::Exit(69).to_string(), "exits.loadiwkey");
    }
}
