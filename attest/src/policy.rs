//! What a tenant permits the visor to do with a sealed ticket.

use ticket::error::Error;

/// Bytes of a policy.
pub const POLICY_BYTES: usize = 64;
/// What every policy begins with.
pub const MAGIC: [u8; 8] = *b"VISRPOL1";

const WITHOUT_LAUNCH: u32 = 1;
const WITHOUT_IOMMU: u32 = 2;
const DEVELOPMENT: u32 = 4;

/// What is wrong with a visor, or its machine, so that a tenant may not want it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weaknesses {
    /// It was not launched by TXT: what ran before it may have changed it.
    pub plain_launch: bool,
    /// No IOMMU keeps devices from memory.
    pub no_iommu: bool,
    /// It was started with `dev-tickets`.
    pub development: bool,
}

/// What a tenant says of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The Ed25519 public key of the tenant, who signs.
    pub tenant: [u8; 32],
    /// Ascends from each ticket of a tenant's to the next. Not 0.
    pub serial: u64,
    /// The ticket is taken as long as the visor's age is below this: in 2^32 ticks of the TSC. `u64::MAX`:
    /// as long as it runs. A host can stop that clock.
    pub not_after: u64,
    /// What it is taken in spite of.
    pub permits: Weaknesses,
}

impl Policy {
    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; POLICY_BYTES] {
        let Weaknesses { plain_launch, no_iommu, development } = self.permits;
        let bits =
            [(plain_launch, WITHOUT_LAUNCH), (no_iommu, WITHOUT_IOMMU), (development, DEVELOPMENT)];
        let permissions: u32 = bits.iter().filter(|(is_set, _)| *is_set).map(|(_, bit)| bit).sum();
        let mut bytes = [0; POLICY_BYTES];
        let [permissions, zeros] = [permissions, 0].map(u32::to_le_bytes);
        let [serial, not_after] = [self.serial, self.not_after].map(u64::to_le_bytes);
        let fields: [&[u8]; 6] = [&MAGIC, &permissions, &zeros, &serial, &not_after, &self.tenant];
        for (place, byte) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *place = *byte;
        }
        bytes
    }

    /// Reads a policy.
    ///
    /// # Errors
    /// [`Error::Content`] for everything that [`bytes`](Self::bytes) does not make, a serial of 0 included.
    pub fn read(bytes: &[u8; POLICY_BYTES]) -> Result<Self, Error> {
        Self::parse(bytes).filter(|policy| policy.bytes() == *bytes).ok_or(Error::Content)
    }

    fn parse(bytes: &[u8; POLICY_BYTES]) -> Option<Self> {
        let word = |at| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let long = |at| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let permissions = word(8)?;
        let permits = Weaknesses {
            plain_launch: permissions & WITHOUT_LAUNCH != 0,
            no_iommu: permissions & WITHOUT_IOMMU != 0,
            development: permissions & DEVELOPMENT != 0,
        };
        let (serial, not_after) = (long(16).filter(|serial| *serial != 0)?, long(24)?);
        Some(Self { tenant: *bytes.last_chunk()?, serial, not_after, permits })
    }

    /// Whether a visor of this age, with these weaknesses, may take the ticket.
    ///
    /// # Errors
    /// Why not.
    pub const fn check(&self, age: u64, found: Weaknesses) -> Result<(), Error> {
        if found.plain_launch && !self.permits.plain_launch {
            Err(Error::PlainLaunch)
        } else if found.no_iommu && !self.permits.no_iommu {
            Err(Error::OpenToDevices)
        } else if found.development && !self.permits.development {
            Err(Error::Development)
        } else if age >= self.not_after {
            Err(Error::Expired)
        } else {
            Ok(())
        }
    }
}
