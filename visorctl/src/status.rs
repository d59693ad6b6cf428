//! `status`.

use std::fmt;

use serde::Serialize;
use ticket::port::{
    INDEX_AUDIT_END, INDEX_BASE, INDEX_CLEAR, INDEX_COUNTER, INDEX_COUNTERS, INDEX_DESPITE_LEAKS,
    INDEX_DMA_REFUSED, INDEX_EVENTS, INDEX_FREE, INDEX_IOMMU, INDEX_LEAKS, INDEX_LENGTH,
    INDEX_LOG_BYTES, INDEX_PROCESSORS, INDEX_REFUSES, INDEX_TABLES, INDEX_TICKS, INDEX_TPM,
    INDEX_UNPROTECTED, INDEX_WAITING, INDEX_WITHOUT_IOMMU, Iommu, Tpm, VMS, VmState, WITH_IOMMU,
    WITH_LEAKS, WITH_TPM,
};

use crate::failure::{Exit, Failure};
use crate::port::Port;
use crate::visor::Visor;

/// How the visor is.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    version: Version,
    memory: Memory,
    processors: u32,
    /// Accesses of the host that were refused.
    refused_accesses: u32,
    /// Frames of the host that are tables of its VMs.
    vm_tables: u32,
    /// Exits since boot.
    exits: u64,
    /// TSC ticks spent in the visor since boot.
    ticks: u64,
    /// Nothing from a visor without tickets.
    protection: Option<Protection>,
    /// Nothing from a visor that knows of none.
    tpm: Option<Measured>,
}

/// Whether tenants can tell what the visor is.
#[derive(Debug, Serialize)]
struct Measured {
    state: &'static str,
    /// Bytes of the log.
    log: u32,
}

#[derive(Debug, Serialize)]
struct Version {
    major: u32,
    minor: u32,
}

#[derive(Debug, Serialize)]
struct Memory {
    /// First byte.
    base: u64,
    /// Bytes.
    length: u64,
    /// Pages that are left.
    free_pages: u32,
}

#[derive(Debug, Serialize)]
struct Protection {
    /// Whether tickets are taken in clear.
    clear_tickets: bool,
    /// Whether VMs without a ticket are refused.
    refuses_unprotected: bool,
    waiting_tickets: u32,
    running: u32,
    stopped: u32,
    /// VMs that ran without a ticket since boot.
    unprotected: u32,
    audit_events: u32,
    /// Nothing from a visor that knows of none.
    iommu: Option<Devices>,
    /// Likewise.
    processor: Option<Processor>,
}

/// What the processor says of transient execution.
#[derive(Debug, Serialize)]
struct Processor {
    /// It does not say that it keeps a VM's memory from its host.
    leaks: bool,
    /// Whether tickets are taken nevertheless.
    tickets_despite: bool,
}

/// What is known of devices.
#[derive(Debug, Serialize)]
struct Devices {
    state: &'static str,
    /// Whether tickets are taken where it does not keep devices from memory.
    tickets_without: bool,
    /// Accesses that it has refused.
    refused: u32,
}

/// Asks the visor for everything.
///
/// # Errors
/// As [`Visor::find`].
pub(crate) fn status(port: impl Port) -> Result<Status, Failure> {
    let mut visor = Visor::find(port)?;
    // Before what the visor must do to answer all else.
    let ticks = visor.wide(INDEX_TICKS);
    let counters = visor.value(INDEX_COUNTERS).min(256);
    let mib = |value: u32| u64::from(value) << 20;
    Ok(Status {
        version: Version { major: visor.version() >> 16, minor: visor.version() & 0xffff },
        memory: Memory {
            base: mib(visor.value(INDEX_BASE)),
            length: mib(visor.value(INDEX_LENGTH)),
            free_pages: visor.value(INDEX_FREE),
        },
        processors: visor.value(INDEX_PROCESSORS),
        refused_accesses: visor.value(INDEX_EVENTS),
        vm_tables: visor.value(INDEX_TABLES),
        exits: (0..counters)
            .map(|reason| visor.wide(INDEX_COUNTER + 2 * reason))
            .fold(0, u64::saturating_add),
        ticks,
        protection: visor.has_tickets().then(|| protection(&mut visor)).transpose()?,
        tpm: (visor.version() >= WITH_TPM).then(|| measured(&mut visor)).transpose()?,
    })
}

fn protection<P: Port>(visor: &mut Visor<P>) -> Result<Protection, Failure> {
    let (mut running, mut stopped) = (0, 0);
    for slot in 0..VMS {
        match visor.vm(slot)? {
            VmState::Running => running += 1,
            VmState::Stopped => stopped += 1,
            VmState::None | VmState::Waiting => {}
        }
    }
    Ok(Protection {
        clear_tickets: visor.value(INDEX_CLEAR) == 1,
        refuses_unprotected: visor.value(INDEX_REFUSES) == 1,
        waiting_tickets: visor.value(INDEX_WAITING),
        running,
        stopped,
        unprotected: visor.value(INDEX_UNPROTECTED),
        audit_events: visor.value(INDEX_AUDIT_END),
        iommu: (visor.version() >= WITH_IOMMU).then(|| devices(visor)).transpose()?,
        processor: (visor.version() >= WITH_LEAKS).then(|| Processor {
            leaks: visor.value(INDEX_LEAKS) == 1,
            tickets_despite: visor.value(INDEX_DESPITE_LEAKS) == 1,
        }),
    })
}

fn measured<P: Port>(visor: &mut Visor<P>) -> Result<Measured, Failure> {
    let value = visor.value(INDEX_TPM);
    let state = Tpm::of_word(value).ok_or(Failure::Protocol { index: INDEX_TPM, value })?;
    Ok(Measured {
        state: match state {
            Tpm::Measured => "measured",
            Tpm::Absent => "absent",
            Tpm::Broken => "broken",
        },
        log: visor.value(INDEX_LOG_BYTES),
    })
}

fn devices<P: Port>(visor: &mut Visor<P>) -> Result<Devices, Failure> {
    let value = visor.value(INDEX_IOMMU);
    let state = Iommu::of_word(value);
    let state = state.ok_or(Failure::Protocol { index: INDEX_IOMMU, value })?;
    Ok(Devices {
        state: match state {
            Iommu::On => "on",
            Iommu::Absent => "absent",
            Iommu::Broken => "broken",
            Iommu::Late => "late",
        },
        tickets_without: visor.value(INDEX_WITHOUT_IOMMU) == 1,
        refused: visor.value(INDEX_DMA_REFUSED),
    })
}

impl Status {
    /// What the status means for those who want all VMs protected.
    ///
    /// # Errors
    /// [`Failure::OldVisor`] if the visor cannot know.
    pub(crate) fn require_protected(&self) -> Result<Exit, Failure> {
        let Version { major, minor } = self.version;
        let protection = self.protection.as_ref().ok_or(Failure::OldVisor(major << 16 | minor))?;
        Ok(if protection.unprotected == 0 { Exit::Good } else { Exit::Unprotected })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory { base, length, free_pages } = self.memory;
        writeln!(
            f,
            "this host runs on the visor, interface {}.{}",
            self.version.major, self.version.minor
        )?;
        writeln!(
            f,
            "memory:      {base:#x}..{:#x}, {} MiB, {free_pages} pages left",
            base.saturating_add(length),
            length >> 20
        )?;
        writeln!(f, "processors:  {}", self.processors)?;
        writeln!(f, "refused:     {} accesses of the host", self.refused_accesses)?;
        writeln!(f, "exits:       {} in {} ticks", self.exits, self.ticks)?;
        writeln!(f, "VM tables:   {}", self.vm_tables)?;
        if let Some(tpm) = &self.tpm {
            write!(f, "{tpm}")?;
        }
        match &self.protection {
            Some(protection) => write!(f, "{protection}"),
            None => writeln!(f, "protection:  none: this visor has no tickets"),
        }
    }
}

const LEAKY: &str = "the processor does not keep VMs' memory from the host";

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "protected:   {} VMs run, {} are stopped", self.running, self.stopped)?;
        writeln!(f, "tickets:     {} wait for their VMs", self.waiting_tickets)?;
        if self.clear_tickets {
            writeln!(f, "INSECURE:    tickets are taken in clear (dev-tickets)")?;
        }
        if let Some(devices) = &self.iommu {
            write!(f, "{devices}")?;
        }
        match self.processor {
            Some(Processor { leaks: true, tickets_despite: true }) => {
                writeln!(f, "INSECURE:    {LEAKY} (insecure-processor)")?;
            }
            Some(Processor { leaks: true, tickets_despite: false }) => {
                writeln!(f, "LEAKS:       {LEAKY}: tickets are refused")?;
            }
            Some(Processor { leaks: false, .. }) | None => {}
        }
        writeln!(f, "audit:       {} events", self.audit_events)?;
        match self.unprotected {
            0 if self.refuses_unprotected => {
                writeln!(f, "others:      VMs without a ticket are refused")
            }
            0 => Ok(()),
            count => writeln!(f, "UNPROTECTED: {count} VMs ran without a ticket"),
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = match self.state {
            "on" => Some("on"),
            "late" => Some("on, but devices could reach the visor while it started"),
            _ => None,
        };
        if let Some(since) = since {
            return writeln!(
                f,
                "IOMMU:       {since}, refused {} accesses of devices",
                self.refused
            );
        }
        let why =
            if self.state == "absent" { "there is no IOMMU" } else { "the IOMMU is not used" };
        if self.tickets_without {
            writeln!(f, "INSECURE:    {why}: devices reach VMs' memory (insecure-no-iommu)")
        } else {
            writeln!(f, "NO IOMMU:    {why}: tickets are refused")
        }
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            "measured" => {
                writeln!(
                    f,
                    "TPM:         PCR 19 holds what the visor is, log of {} bytes",
                    self.log
                )
            }
            "absent" => writeln!(f, "TPM:         none: no tenant can tell what runs here"),
            _ => writeln!(f, "TPM:         not used: no tenant can tell what runs here"),
        }
    }
}
