//! What a tenant accepts: TOML, in which every word is known and nothing is accepted that is not written
//! down.

use std::collections::{BTreeMap, BTreeSet};

use evidence::Bytes;
use serde::Deserialize;

/// Firmware, its configuration, the boot loader, and what it loads (PC Client Platform Firmware Profile,
/// 2.3.4, and GRUB).
pub const STATIC: std::ops::RangeInclusive<u8> = 0..=9;
/// A measured launch.
pub const DYNAMIC: [u8; 2] = [17, 18];
/// No PC has one behind it.
const LAST: u8 = 23;
/// PCRs that hold settings and no code: any value that the log explains may be accepted.
const SETTINGS: [u8; 4] = [1, 3, 5, 6];

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How the attestation key may have been bound to the machine.
    pub bindings: BTreeSet<Binding>,
    /// What must be known of the certificates that a machine was enrolled by.
    pub revocation: Revocation,
    /// SHA-256 digests of `visor.elf`.
    pub builds: BTreeSet<Bytes>,
    /// Command lines of the visor.
    pub command_lines: BTreeSet<String>,
    /// How the visor may have been launched.
    pub launches: BTreeSet<Launch>,
    /// The states that the IOMMU may be in.
    pub iommu: BTreeSet<String>,
    /// Whether the visor may run VMs without tickets.
    pub unprotected_vms: BTreeSet<String>,
    /// What is accepted in PCRs.
    pub pcrs: BTreeMap<u8, Accepted>,
    /// What is waived.
    pub insecure: Insecure,
}

/// How an attestation key came to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Binding {
    /// It is in the TPM whose endorsement key has a certificate of an authority that the tenant trusts.
    Certificate,
    /// It is in the TPM with an endorsement key that the tenant knows.
    PinnedEk,
    /// The tenant knows it.
    PinnedAk,
}

impl Binding {
    /// Its word in a policy.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::PinnedEk => "pinned-ek",
            Self::PinnedAk => "pinned-ak",
        }
    }
}

/// Which revocation lists are needed. Unless a policy says otherwise, all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Revocation {
    /// A current one of each authority between the endorsement key and the root, and of the root.
    #[default]
    Required,
    /// Those that are given.
    IfGiven,
}

/// How the visor was launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Launch {
    /// By Intel TXT.
    Txt,
    /// By the firmware's boot loader.
    Plain,
}

impl Launch {
    /// Its word in a policy and in the visor's log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Plain => "plain",
        }
    }
}

/// What is accepted in a PCR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// One of these values.
    Values(BTreeSet<Bytes>),
    /// Any sequence of events with these digests.
    Events(BTreeSet<Bytes>),
    /// Whatever the log explains.
    Explained,
}

/// What is waived. With any of it, no verdict is better than `insecure`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Insecure {
    /// The visor may be any build, or one that nothing proves.
    pub any_build: bool,
    /// The visor may be an image for tests, which does not protect itself from the host.
    pub without_vmx: bool,
    /// The visor may be an image for tests, whose TPM is at the end of a serial line.
    pub serial_tpm: bool,
    /// The visor may take tickets in clear.
    pub dev_tickets: bool,
    /// The IOMMU may be in any state.
    pub any_iommu: bool,
    /// The visor need not show that it is alive.
    pub no_signature: bool,
    /// PCRs that may have any value that the log explains.
    pub any_value: BTreeSet<u8>,
    /// PCRs whose values the log need not explain.
    pub unexplained: BTreeSet<u8>,
}

/// Why a text is no policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPolicy {
    /// The file's form is wrong, or a word is not known.
    Form(String),
    /// It is for a later version of this program.
    Format(u32),
    /// A list that must say something is empty.
    Empty(&'static str),
    /// This is no SHA-256 digest.
    Digest(String),
    /// What is said of this PCR is none of, or more than one of, `values`, `events` and `explained`.
    Pcr(u8),
    /// This PCR comes twice.
    Twice(u8),
    /// This PCR holds code: `explained` would accept any.
    Code(u8),
    /// This PCR stands for a measured launch, which only its value can show.
    Launch(u8),
    /// No such state or word.
    Word(String),
}

impl std::fmt::Display for NoPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Form(why) => f.write_str(why),
            Self::Format(found) => write!(f, "format {found}: this program knows format 1"),
            Self::Empty(list) => write!(f, "`{list}` accepts nothing"),
            Self::Digest(text) => write!(f, "{text:?} is no SHA-256 digest of 64 digits"),
            Self::Pcr(pcr) => {
                write!(
                    f,
                    "PCR {pcr}: say one of `values`, `events`, `explained = true`, and not of PCR 19"
                )
            }
            Self::Twice(pcr) => write!(f, "PCR {pcr} comes twice"),
            Self::Code(pcr) => {
                write!(
                    f,
                    "PCR {pcr} holds code: `explained` would accept any; say `[insecure] any-value`"
                )
            }
            Self::Launch(pcr) => {
                write!(f, "PCR {pcr} stands for a measured launch: say its `values`")
            }
            Self::Word(word) => write!(f, "no such word: {word:?}"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Text {
    format: u32,
    hardware: Hardware,
    visor: Visor,
    #[serde(default)]
    pcr: Vec<Pcr>,
    #[serde(default)]
    insecure: Insecure,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Hardware {
    bindings: BTreeSet<Binding>,
    #[serde(default)]
    revocation_lists: Revocation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Visor {
    builds: Vec<String>,
    command_lines: BTreeSet<String>,
    launches: BTreeSet<Launch>,
    iommu: BTreeSet<String>,
    unprotected_vms: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pcr {
    index: u8,
    values: Option<Vec<String>>,
    events: Option<Vec<String>>,
    #[serde(default)]
    explained: bool,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`NoPolicy`].
    pub fn parse(text: &str) -> Result<Self, NoPolicy> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let form = |why: toml::de::Error| NoPolicy::Form(why.to_string().trim_end().to_owned());
        let head: Head = toml::from_str(text).map_err(form)?;
        if head.format != 1 {
            return Err(NoPolicy::Format(head.format));
        }
        let text: Text = toml::from_str(text).map_err(form)?;
        debug_assert_eq!(text.format, 1);
        let visor = text.visor;
        check_words(&visor.iommu, &["on", "late", "none", "insecure"])?;
        check_words(&visor.unprotected_vms, &["run", "refuse"])?;
        let lists = [
            ("bindings", text.hardware.bindings.is_empty()),
            ("builds", visor.builds.is_empty() && !text.insecure.any_build),
            ("command-lines", visor.command_lines.is_empty()),
            ("launches", visor.launches.is_empty()),
            ("iommu", visor.iommu.is_empty() && !text.insecure.any_iommu),
            ("unprotected-vms", visor.unprotected_vms.is_empty()),
        ];
        if let Some((list, _)) = lists.into_iter().find(|(_, is_empty)| *is_empty) {
            return Err(NoPolicy::Empty(list));
        }
        let mut waived = text.insecure.any_value.union(&text.insecure.unexplained);
        if let Some(pcr) = waived.find(|pcr| **pcr == crate::visor::PCR || **pcr > LAST) {
            return Err(NoPolicy::Pcr(*pcr));
        }
        let mut pcrs = BTreeMap::new();
        for pcr in text.pcr {
            let index = pcr.index;
            if pcrs.insert(index, accepted(pcr)?).is_some() {
                return Err(NoPolicy::Twice(index));
            }
        }
        Ok(Self {
            bindings: text.hardware.bindings,
            revocation: text.hardware.revocation_lists,
            builds: digests(visor.builds)?,
            command_lines: visor.command_lines,
            launches: visor.launches,
            iommu: visor.iommu,
            unprotected_vms: visor.unprotected_vms,
            pcrs,
            insecure: text.insecure,
        })
    }

    /// The PCRs that a quote has to have for this policy, ascending.
    #[must_use]
    pub fn quoted(&self) -> Vec<u8> {
        let mut pcrs: BTreeSet<u8> = DYNAMIC.into_iter().chain([crate::visor::PCR]).collect();
        if self.launches.contains(&Launch::Plain) {
            pcrs.extend(STATIC);
        }
        pcrs.extend(self.pcrs.keys());
        pcrs.into_iter().collect()
    }
}

fn check_words(words: &BTreeSet<String>, known: &[&str]) -> Result<(), NoPolicy> {
    match words.iter().find(|word| !known.contains(&word.as_str())) {
        None => Ok(()),
        Some(word) => Err(NoPolicy::Word(word.clone())),
    }
}

fn accepted(pcr: Pcr) -> Result<Accepted, NoPolicy> {
    // The visor's own PCR has a key's hash in it, and another value at each boot.
    if pcr.index == crate::visor::PCR || pcr.index > LAST {
        return Err(NoPolicy::Pcr(pcr.index));
    }
    match (pcr.values, pcr.events, pcr.explained) {
        (Some(values), None, false) => Ok(Accepted::Values(digests(values)?)),
        // Whatever runs after a measured launch can extend its PCRs by whatever it likes.
        (None, Some(_), false) if DYNAMIC.contains(&pcr.index) => Err(NoPolicy::Launch(pcr.index)),
        (None, Some(events), false) => Ok(Accepted::Events(digests(events)?)),
        (None, None, true) if SETTINGS.contains(&pcr.index) => Ok(Accepted::Explained),
        (None, None, true) => Err(NoPolicy::Code(pcr.index)),
        _ => Err(NoPolicy::Pcr(pcr.index)),
    }
}

fn digests(texts: Vec<String>) -> Result<BTreeSet<Bytes>, NoPolicy> {
    let digest = |text: String| match text.parse::<Bytes>() {
        Ok(bytes) if bytes.0.len() == 32 => Ok(bytes),
        _ => Err(NoPolicy::Digest(text)),
    };
    texts.into_iter().map(digest).collect()
}
