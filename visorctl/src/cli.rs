//! The words of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use ticket::port::VMS;

use crate::attest::Attest;
use crate::hex;
use crate::lock;

/// Shows what the visor under this host does, gives it tickets of protected VMs, reads its audit log.
///
/// Needs root. Exit codes: 0 done, 1 error, 2 wrong usage, 3 UNPROTECTED: this host was booted without
/// the visor, or `vms` or `status --require-protected` found that a VM ran without a ticket.
#[derive(Debug, Parser)]
#[command(name = "visorctl", version)]
pub(crate) struct Cli {
    /// Answers in JSON, on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The file that keeps other programs from the visor's port meanwhile
    #[arg(long, global = true, value_name = "FILE", default_value = lock::DEFAULT)]
    pub(crate) lock: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows whether the visor is there, and how it is
    Status {
        /// Ends with exit code 3 also if a VM ran without a ticket since boot
        #[arg(long)]
        require_protected: bool,
    },
    /// Lists the VMs that have tickets, and counts those that ran without
    Vms,
    /// Gives the visor a ticket; the next VM that the host starts takes it
    Submit {
        /// The ticket's file
        ticket: PathBuf,
    },
    /// Shows the audit log and checks its chain
    Audit {
        /// Shows only events from this one on
        #[arg(long, value_name = "EVENT")]
        since: Option<u32>,
        /// The chain value before that event, as an earlier call showed it
        #[arg(long, value_name = "HEX", requires = "since", value_parser = hex::decode::<32>)]
        chain: Option<[u8; 32]>,
        /// Has the visor sign the chain value with these 32 bytes
        #[arg(long, value_name = "HEX", value_parser = hex::decode::<32>)]
        nonce: Option<[u8; 32]>,
    },
    /// Has the visor sign how a VM was launched; `tenant receipt` checks that
    Receipt {
        /// Its number, as `vms` shows it
        #[arg(value_parser = clap::value_parser!(u32).range(..i64::from(VMS)))]
        vm: u32,
        /// 32 bytes of the tenant's, so that the receipt is not older than they are
        #[arg(long, value_name = "HEX", value_parser = hex::decode::<32>)]
        nonce: [u8; 32],
        /// The receipt's file, which must not exist yet
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Has the visor compare its tables with its notion of who owns which memory
    Check,
    /// Destroys a VM: its pages are zeroed and given back to the host
    Destroy {
        /// Its number, as `vms` shows it
        #[arg(value_parser = clap::value_parser!(u32).range(..i64::from(VMS)))]
        vm: u32,
    },
    /// Makes tickets
    Ticket {
        #[command(subcommand)]
        command: Ticket,
    },
    /// Collects what proves this machine to a tenant, by tpm2-tools (docs/attestation.md)
    Attest {
        #[command(subcommand)]
        command: Attest,
    },
    /// Prints completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Writes manual pages
    Man {
        /// The folder for them
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Ticket {
    /// Makes a developer's ticket, in clear, from a description (docs/visorctl.md)
    ///
    /// Only a visor that was started with `dev-tickets` takes it as it is. A tenant seals it to one visor
    /// (`tenant seal`).
    Make {
        /// The description, in TOML
        description: PathBuf,
        /// The ticket's file, which must not exist yet
        ticket: PathBuf,
    },
    /// Makes a VM that boots a Linux kernel in QEMU without other firmware, and its ticket, in clear
    ///
    /// Kernel, initial RAM disk, command line and memory map are in the manifest. `stub.rom` has the
    /// VM's first instructions, `image.bin` the rest, `qemu.args` one argument of QEMU's a line.
    Linux(measure::Order),
}

impl Command {
    /// The command's name in answers.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Vms => "vms",
            Self::Submit { .. } => "submit",
            Self::Audit { .. } => "audit",
            Self::Receipt { .. } => "receipt",
            Self::Check => "check",
            Self::Destroy { .. } => "destroy",
            Self::Ticket { command: Ticket::Make { .. } } => "ticket make",
            Self::Ticket { command: Ticket::Linux(_) } => "ticket linux",
            Self::Attest { command } => command.name(),
            Self::Completions { .. } => "completions",
            Self::Man { .. } => "man",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
