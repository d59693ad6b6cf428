//! Claims: what is checked, and what came out.

use serde::Serialize;

/// A part of the chain from the hardware to the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// The TPM and its keys.
    Hardware,
    /// What the TPM says.
    Quote,
    /// What ran before the visor.
    Boot,
    /// The visor.
    Visor,
    /// The visor's key.
    Key,
}

impl Link {
    /// All, in the chain's order.
    pub const ALL: [Self; 5] = [Self::Hardware, Self::Quote, Self::Boot, Self::Visor, Self::Key];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hardware => "hardware",
            Self::Quote => "quote",
            Self::Boot => "boot",
            Self::Visor => "visor",
            Self::Key => "key",
        }
    }
}

/// What came out of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is as it should be.
    Met,
    /// It is not.
    Unmet,
    /// It is not, and the policy accepts that.
    Waived,
    /// It cannot be said, because what it rests on is not there.
    Unknown,
}

/// A claim, and what came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Claim {
    /// Its name.
    pub id: &'static str,
    /// The part of the chain that it belongs to.
    pub link: Link,
    /// The PCR that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcr: Option<u8>,
    /// What came out.
    pub state: State,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub actual: String,
    /// Where that comes from.
    pub source: String,
    /// What to do about it.
    pub remedy: &'static str,
}

/// What can be claimed. Each has its forgeries in the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The attestation key is the enrolled one.
    AkEnrolled,
    /// It signs only what its TPM says.
    AkRestricted,
    /// It is bound to the machine as the policy asks for.
    AkBinding,
    /// No certificate that it rests on was revoked.
    EkRevocation,
    /// Quote and signature can be read.
    QuoteForm,
    /// The signature is the attestation key's.
    QuoteSignature,
    /// It is a TPM's quote, and nothing else that a TPM signs.
    QuoteKind,
    /// The challenge was not made too long ago, or in the future.
    ChallengeAge,
    /// The quote has the challenge's nonce.
    QuoteNonce,
    /// The quote is over the PCRs and the bank that were asked for.
    QuoteSelection,
    /// The values given along are the quoted ones.
    QuoteValues,
    /// The firmware's log can be read.
    BootLog,
    /// The visor's log can be read.
    VisorLog,
    /// A log explains the PCR's value.
    PcrExplained,
    /// The policy accepts what is in the PCR.
    PcrAccepted,
    /// PCR 19 has the visor's three events, and no other.
    VisorEvents,
    /// The visor was launched in a way that the policy accepts.
    LaunchAccepted,
    /// There was a measured launch, if the visor says so.
    LaunchMeasured,
    /// The visor runs the host in VMX non-root operation.
    Vmx,
    /// The visor has measured itself by the machine's own TPM.
    Tpm,
    /// The visor is a build that the policy knows.
    VisorBuild,
    /// Its command line is one of the policy's.
    CommandLine,
    /// The IOMMU is in a state that the policy accepts.
    Iommu,
    /// Tickets in clear are refused.
    DevTickets,
    /// What the visor does about VMs without tickets.
    UnprotectedVms,
    /// The visor's key is the measured one.
    VisorKey,
    /// The visor has signed the nonce with it.
    VisorAlive,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::AkEnrolled,
        Self::AkRestricted,
        Self::AkBinding,
        Self::EkRevocation,
        Self::QuoteForm,
        Self::QuoteSignature,
        Self::QuoteKind,
        Self::ChallengeAge,
        Self::QuoteNonce,
        Self::QuoteSelection,
        Self::QuoteValues,
        Self::BootLog,
        Self::VisorLog,
        Self::PcrExplained,
        Self::PcrAccepted,
        Self::VisorEvents,
        Self::LaunchAccepted,
        Self::LaunchMeasured,
        Self::Vmx,
        Self::Tpm,
        Self::VisorBuild,
        Self::CommandLine,
        Self::Iommu,
        Self::DevTickets,
        Self::UnprotectedVms,
        Self::VisorKey,
        Self::VisorAlive,
    ];

    /// Its name, which scripts may rely on.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::AkEnrolled => "ak-enrolled",
            Self::AkRestricted => "ak-restricted",
            Self::AkBinding => "ak-binding",
            Self::EkRevocation => "ek-revocation",
            Self::QuoteForm => "quote-form",
            Self::QuoteSignature => "quote-signature",
            Self::QuoteKind => "quote-kind",
            Self::ChallengeAge => "challenge-age",
            Self::QuoteNonce => "quote-nonce",
            Self::QuoteSelection => "quote-selection",
            Self::QuoteValues => "quote-values",
            Self::BootLog => "boot-log",
            Self::VisorLog => "visor-log",
            Self::PcrExplained => "pcr-explained",
            Self::PcrAccepted => "pcr-accepted",
            Self::VisorEvents => "visor-events",
            Self::LaunchAccepted => "launch-accepted",
            Self::LaunchMeasured => "launch-measured",
            Self::Vmx => "vmx",
            Self::Tpm => "tpm",
            Self::VisorBuild => "visor-build",
            Self::CommandLine => "command-line",
            Self::Iommu => "iommu",
            Self::DevTickets => "dev-tickets",
            Self::UnprotectedVms => "unprotected-vms",
            Self::VisorKey => "visor-key",
            Self::VisorAlive => "visor-alive",
        }
    }

    /// The part of the chain that it belongs to.
    #[must_use]
    pub const fn link(self) -> Link {
        match self {
            Self::AkEnrolled | Self::AkRestricted | Self::AkBinding | Self::EkRevocation => {
                Link::Hardware
            }
            Self::QuoteForm
            | Self::QuoteSignature
            | Self::QuoteKind
            | Self::ChallengeAge
            | Self::QuoteNonce
            | Self::QuoteSelection
            | Self::QuoteValues => Link::Quote,
            Self::BootLog
            | Self::PcrExplained
            | Self::PcrAccepted
            | Self::LaunchAccepted
            | Self::LaunchMeasured => Link::Boot,
            Self::VisorLog
            | Self::VisorEvents
            | Self::Vmx
            | Self::Tpm
            | Self::VisorBuild
            | Self::CommandLine
            | Self::Iommu
            | Self::DevTickets
            | Self::UnprotectedVms => Link::Visor,
            Self::VisorKey | Self::VisorAlive => Link::Key,
        }
    }

    /// What to do where it is not met.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::AkEnrolled => "This is another machine, or its TPM was cleared: enroll it.",
            Self::AkRestricted => {
                "Have the host make a key with `visorctl attest identity`, and enroll it."
            }
            Self::AkBinding => "Enroll the machine in a way that the policy's `bindings` has.",
            Self::EkRevocation => {
                "Fetch the authorities' lists and give them with `--crl`. If one has the machine's certificate, trust it no more."
            }
            Self::QuoteForm => {
                "Ask the host for new evidence; only RSASSA, RSAPSS and ECDSA are known."
            }
            Self::QuoteSignature => {
                "The quote is forged or damaged. Ask the host for new evidence."
            }
            Self::QuoteKind => "The TPM signed something else. Ask the host for new evidence.",
            Self::ChallengeAge => "Make a new challenge, and check the clock.",
            Self::QuoteNonce => {
                "This is evidence for another challenge, perhaps from before. Ask for new."
            }
            Self::QuoteSelection => "Have the host quote what the challenge asks for.",
            Self::QuoteValues => {
                "The values changed since the quote, or are forged. Ask for new evidence."
            }
            Self::BootLog => "The host must give the log of its firmware, whole.",
            Self::VisorLog => "The host must give the visor's log, whole.",
            Self::PcrExplained => {
                "Something was measured that the log does not have, or the log was changed. Do not trust this boot."
            }
            Self::PcrAccepted => {
                "Find out what this is (`tenant diff`), and only then put it into the policy."
            }
            Self::VisorEvents => "This is not what a visor measures. Do not trust this boot.",
            Self::LaunchAccepted => "Boot the visor in a way that the policy's `launches` has.",
            Self::LaunchMeasured => {
                "There was no measured launch, whatever the visor's log says. Do not trust this boot."
            }
            Self::Vmx => {
                "This is an image for tests, from which the host can take everything. Boot a visor."
            }
            Self::Tpm => {
                "This is an image for tests: whoever has the serial line measures what it likes. Boot a visor."
            }
            Self::VisorBuild => {
                "Build the visor from its source, and put its SHA-256 into the policy if it is this one."
            }
            Self::CommandLine => "Correct the boot loader's configuration, or the policy.",
            Self::Iommu => "Switch the IOMMU on in the firmware; see the visor's own log.",
            Self::DevTickets => "Boot the visor without `dev-tickets`.",
            Self::UnprotectedVms => "Correct the visor's command line, or the policy.",
            Self::VisorKey => {
                "The key is not the one that the visor made at this boot. Seal nothing to it."
            }
            Self::VisorAlive => {
                "The visor does not have this key, or runs no more. Seal nothing to it."
            }
        }
    }
}

/// The claims so far.
#[derive(Debug, Default)]
pub(crate) struct Claims(pub(crate) Vec<Claim>);

/// What is compared, and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Compared {
    pub(crate) expected: String,
    pub(crate) actual: String,
    pub(crate) source: String,
}

/// What is compared.
pub(crate) fn compared(
    expected: impl ToString,
    actual: impl ToString,
    source: impl ToString,
) -> Compared {
    let (expected, actual) = (expected.to_string(), actual.to_string());
    Compared { expected, actual, source: source.to_string() }
}

impl From<bool> for State {
    fn from(is_met: bool) -> Self {
        if is_met { Self::Met } else { Self::Unmet }
    }
}

/// What the policy says of a claim that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiver {
    Granted,
    Refused,
}

impl From<bool> for Waiver {
    fn from(is_waived: bool) -> Self {
        if is_waived { Self::Granted } else { Self::Refused }
    }
}

impl State {
    /// The same, but waived where it does not hold and the policy says so.
    pub(crate) const fn or_waived(self, waiver: Waiver) -> Self {
        match (self, waiver) {
            (Self::Unmet, Waiver::Granted) => Self::Waived,
            (state, Waiver::Granted | Waiver::Refused) => state,
        }
    }
}

impl Claims {
    pub(crate) fn add(&mut self, check: Check, state: State, compared: Compared) {
        self.push(check, None, state, compared);
    }

    pub(crate) fn add_pcr(&mut self, check: Check, pcr: u8, state: State, compared: Compared) {
        self.push(check, Some(pcr), state, compared);
    }

    fn push(&mut self, check: Check, pcr: Option<u8>, state: State, compared: Compared) {
        let Compared { expected, actual, source } = compared;
        let (id, link, remedy) = (check.id(), check.link(), check.remedy());
        self.0.push(Claim { id, link, pcr, state, expected, actual, source, remedy });
    }
}
