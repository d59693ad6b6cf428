//! The TPM: what the visor measures of itself, before the host runs, and the log of that. From then on the TPM is
//! the host's, at locality 0; the other localities' registers are out of its reach (`crate::tables`).

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use attest::log::Log;
use attest::measure::{Before, Configuration, Event, Launch, Recorder};
use attest::tpm::{Error, Tpm};
use boot::acpi::AcpiError;
use boot::txt::PRIVATE;
use ept::addr::Span;
use spin::Mutex;
use ticket::port::Tpm as State;

use crate::{cpu, tis, txt, vectors};

/// Physical address of the registers of locality 0; those of the others follow.
pub(crate) const BASE: u64 = 0xfed4_0000;

/// Registers that are nobody's but the visor's, be there a TPM or not: firmware's tables, which say so, are not
/// measured. The localities above 0, and the private registers of TXT, by which a launched environment has the
/// chipset forget that there are secrets in memory (TXT Software Development Guide, appendix B).
pub(crate) const DENIED: [Span; 2] =
    [Span::sized(BASE + 0x1000, 0x4000).unwrap(), Span::sized(PRIVATE, 0x1_0000).unwrap()];

/// Why no TPM holds what the visor is.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serial-tpm", expect(dead_code, reason = "nothing looks for a TPM"))]
pub(crate) enum Lack {
    Table,
    Acpi(AcpiError),
    /// ACPI has it driven by this other method.
    Method(u32),
    /// Its control area is not where those of TPMs with localities are.
    Elsewhere(u64),
    /// Something has extended PCR 19 before, which no log of the visor's could explain.
    Extended,
    Tpm(Error),
}

impl From<Error> for Lack {
    fn from(error: Error) -> Self {
        Self::Tpm(error)
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => f.write_str("the machine has no TPM 2.0, or it is off"),
            Self::Acpi(error) => error.fmt(f),
            Self::Method(number) => write!(f, "it takes commands by method {number} only"),
            Self::Elsewhere(address) => write!(f, "its control area is at {address:#x}"),
            Self::Extended => f.write_str("something has extended PCR 19 before"),
            Self::Tpm(error) => error.fmt(f),
        }
    }
}

/// What is measured of the visor.
#[derive(Debug)]
pub(crate) struct Visor<'a> {
    /// What it was told. The TPM has a word in how it was launched.
    pub(crate) configuration: Configuration<'a>,
    /// What keeps devices from memory, in a word, and by how many units.
    pub(crate) iommu: (&'a str, usize),
    /// Physical address of the page that tboot shares, if it has told one.
    pub(crate) tboot: Option<u32>,
}

static STATE: AtomicU32 = AtomicU32::new(State::Absent.word());
/// Whether the TPM holds, and explains, a measured launch.
static LAUNCHED: AtomicBool = AtomicBool::new(false);
/// Complete, or empty.
static LOG: Mutex<Log> = Mutex::new(Log::empty());
/// In the image, as it is too big for a stack.
static EVENT: Mutex<Event> = Mutex::new(Event::empty());

/// Whether a TPM holds what the visor is.
pub(crate) fn state() -> State {
    State::of_word(STATE.load(Ordering::Relaxed)).unwrap_or(State::Broken)
}

/// Whether a measured launch came before what the TPM holds of the visor.
pub(crate) fn is_launched() -> bool {
    LAUNCHED.load(Ordering::Relaxed)
}

/// Does something with the log, which is empty unless all of it is in the TPM.
pub(crate) fn with_log<T>(work: impl FnOnce(&[u8]) -> T) -> T {
    work(LOG.lock().bytes())
}

/// The visor's public keys, made with random bytes of the TPM's if it has any. Only the first call makes keys.
type Key<'a> = &'a dyn Fn(Option<[u8; 32]>) -> [u8; 64];

/// Has the TPM hold what `visor` is and its `key`, if there is one, from the boot loader's copy of ACPI's root pointer
/// on. A machine without one goes on: it is the tenants who decide what that is worth.
pub(crate) fn measure(
    rsdp: Option<&[u8]>,
    visor: &Visor<'_>,
    key: impl Fn(Option<[u8; 32]>) -> [u8; 64],
) {
    let begin = cpu::tsc();
    let state = match tis::find(rsdp).and_then(|tis| extend(tis, visor, &key)) {
        Ok(launch) => {
            LAUNCHED.store(launch == Launch::Txt, Ordering::Relaxed);
            State::Measured
        }
        Err(why) => {
            let _ = key(None);
            LOG.lock().clear();
            log::warn!("no TPM holds what the visor is: {why}");
            if matches!(why, Lack::Table) { State::Absent } else { State::Broken }
        }
    };
    STATE.store(state.word(), Ordering::Relaxed);
    log::debug!("TPM: {} ticks", cpu::tsc().wrapping_sub(begin));
}

#[expect(clippy::large_stack_frames, reason = "runs once, on the boot stack of 64 KiB")]
fn extend(tis: tis::Tis, visor: &Visor<'_>, key: Key<'_>) -> Result<Launch, Lack> {
    let (log, event) = (&mut *LOG.lock(), &mut *EVENT.lock());
    let mut tpm = Tpm::find(tis)?;
    let interface = tpm.interface();
    let mut recorder = Recorder::start(&mut tpm, log)?;
    let banks = recorder.banks().len();
    let done = recorder.before().map_err(Lack::Tpm).and_then(|before| {
        let words = match before {
            Before::Ones => "all ones, as without a measured launch",
            Before::Zeros => "zero, as after a measured launch",
            Before::Extended => return Err(Lack::Extended),
        };
        log::info!("TPM: {interface}, {banks} banks; PCR 19 is {words}");
        // Before there are keys, which a reset may leave in memory.
        let launch = txt::launch(visor.tboot, before, &mut recorder)?;
        let configuration = Configuration { launch, ..visor.configuration };
        // A command line that is too long is hashed.
        recorder.record(vectors::with(|| event.configuration(&configuration))?)?;
        recorder.record(event.iommu(visor.iommu.0, visor.iommu.1)?)?;
        let public = key(Some(recorder.random()?));
        recorder.record(event.key(&public)?)?;
        Ok(launch)
    });
    // The host gets the TPM in any case.
    let launch = recorder.finish().map_err(Lack::Tpm).and(done)?;
    let len = log.bytes().len();
    log::info!("TPM: PCR 19 holds the visor's configuration and key; {len} bytes of log");
    Ok(launch)
}
