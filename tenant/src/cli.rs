//! The words of the command line.

mod image;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use evidence::Bytes;

pub use self::image::{ImageCommand, Long, Telling};

/// Checks a machine and its visor before a tenant parts with a key.
///
/// Exit codes: 0 trusted, or done; 1 not trusted; 2 wrong usage, or a policy that is none; 3 insecure: the
/// policy waives what does not hold; 4 not supported; 5 a file is missing, in the way, or of another
/// kind; 6 a bug.
#[derive(Debug, Parser)]
#[command(name = "tenant", version)]
pub struct Cli {
    /// Answers in JSON, on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Gets to know a machine
    Enroll {
        /// How.
        #[command(subcommand)]
        command: Enroll,
    },
    /// Makes a question for a machine, which its answer must be for
    Challenge {
        /// What the tenant accepts
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
        /// The challenge's file, which must not exist yet
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// For how many minutes the challenge is worth something
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1440))]
        minutes: u16,
    },
    /// Says whether evidence holds, and why not
    Verify(Verification),
    /// Writes the same as a page of HTML
    Report {
        /// The evidence, and what it is held against.
        #[command(flatten)]
        verification: Verification,
        /// The page's file, which must not exist yet
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Makes the tenant's own key, by which visors know the tenant's tickets
    Key {
        /// The key's file, which must not exist yet
        out: PathBuf,
    },
    /// Makes a VM that boots a Linux kernel without anybody's firmware, and its ticket: all that is in it at first
    ///
    /// The same as `visorctl ticket linux`. The ticket stays here: the host gets the other files, and, sealed, this.
    Measure(measure::Order),
    /// Seals a ticket for a visor, if the evidence for it holds
    Seal {
        /// The ticket, in clear (`measure`)
        ticket: PathBuf,
        /// The evidence, and what it is held against.
        #[command(flatten)]
        verification: Verification,
        /// The tenant's key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The sealed ticket's file, which must not exist yet
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// A file for `tenant receipt`, which must not exist yet
        #[arg(long, value_name = "FILE")]
        record: PathBuf,
        /// More than that of any ticket before; left out: the seconds since 1970
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        serial: Option<u64>,
        /// How long the visor takes the ticket: so often 2^32 ticks of the TSC, which are about two seconds
        #[arg(long, value_name = "N")]
        lifetime: Option<u64>,
        /// Goes on where the policy waives what does not hold
        #[arg(long)]
        insecure: bool,
    },
    /// Checks what the visor signed about a VM that was launched with a sealed ticket
    Receipt {
        /// What `visorctl receipt` wrote
        receipt: PathBuf,
        /// What `tenant seal` wrote
        #[arg(long, value_name = "FILE")]
        record: PathBuf,
        /// The question that the receipt answers
        #[arg(long, value_name = "FILE")]
        challenge: PathBuf,
    },
    /// Makes sealed disks of plain ones, and the other way round
    Image {
        /// What.
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Works with policies
    Policy {
        /// What.
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Computes what a build of the visor and its command line will measure
    Expect {
        /// The build, `visor.elf`
        visor: PathBuf,
        /// The command line that the boot loader will give it
        #[arg(long, value_name = "WORDS", default_value = "")]
        command_line: String,
    },
    /// Writes evidence in its other form: JSON as an Entity Attestation Token, and the other way round
    Convert {
        /// The evidence
        evidence: PathBuf,
        /// The other form's file, which must not exist yet
        out: PathBuf,
    },
    /// Shows how the boots behind two pieces of evidence differ
    Diff {
        /// The one
        before: PathBuf,
        /// The other
        after: PathBuf,
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

/// Evidence, and what it is held against.
#[derive(Debug, Args)]
pub struct Verification {
    /// What `visorctl attest quote` wrote
    pub evidence: PathBuf,
    /// The question
    #[arg(long, value_name = "FILE")]
    pub challenge: PathBuf,
    /// The machine, as `tenant enroll` wrote it
    #[arg(long, value_name = "FILE")]
    pub machine: PathBuf,
    /// What the tenant accepts
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// An authority's revocation list, in DER or PEM; there can be more than one
    #[arg(long = "crl", value_name = "FILE")]
    pub lists: Vec<PathBuf>,
}

/// Ways to get to know a machine.
#[derive(Debug, Subcommand)]
pub enum Enroll {
    /// Checks the endorsement key, and makes a secret that only its TPM can give back
    Begin {
        /// What `visorctl attest identity` wrote
        identity: PathBuf,
        /// Certificates, in PEM, of authorities that are trusted
        #[arg(long = "root", value_name = "FILE", required_unless_present = "pin_ek")]
        roots: Vec<PathBuf>,
        /// The name of the endorsement key, if it is known: no certificate is asked for
        #[arg(long, value_name = "HEX", conflicts_with = "roots")]
        pin_ek: Option<Bytes>,
        /// A file for the tenant, which must not exist yet
        #[arg(long, value_name = "FILE")]
        pending: PathBuf,
        /// A file for `visorctl attest activate`, which must not exist yet
        #[arg(long, value_name = "FILE")]
        activation: PathBuf,
    },
    /// Checks that the TPM gave the secret back
    Finish {
        /// What `begin` wrote for the tenant
        pending: PathBuf,
        /// What `visorctl attest activate` wrote
        activated: PathBuf,
        /// The machine's file, which must not exist yet
        #[arg(long, value_name = "FILE")]
        machine: PathBuf,
    },
    /// Believes an attestation key whose name is known
    Pin {
        /// What `visorctl attest identity` wrote
        identity: PathBuf,
        /// The name of the attestation key
        #[arg(long, value_name = "HEX")]
        ak: Bytes,
        /// The machine's file, which must not exist yet
        #[arg(long, value_name = "FILE")]
        machine: PathBuf,
    },
}

/// What can be done with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Reads a policy, and holds evidence against it whose verdict is known
    Test {
        /// The policy
        policy: PathBuf,
        /// Cases, in TOML (docs/attestation.md)
        #[arg(long, value_name = "FILE")]
        cases: Option<PathBuf>,
    },
}

impl Command {
    /// The command's name in answers.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Enroll { command: Enroll::Begin { .. } } => "enroll begin",
            Self::Enroll { command: Enroll::Finish { .. } } => "enroll finish",
            Self::Enroll { command: Enroll::Pin { .. } } => "enroll pin",
            Self::Challenge { .. } => "challenge",
            Self::Verify(_) => "verify",
            Self::Report { .. } => "report",
            Self::Key { .. } => "key",
            Self::Measure(_) => "measure",
            Self::Seal { .. } => "seal",
            Self::Receipt { .. } => "receipt",
            Self::Image { command } => command.name(),
            Self::Policy { command: PolicyCommand::Test { .. } } => "policy test",
            Self::Expect { .. } => "expect",
            Self::Convert { .. } => "convert",
            Self::Diff { .. } => "diff",
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
