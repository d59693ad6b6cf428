//! Sealing and unsealing of a VM's pages.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::aead::Forged;
use crate::cipher::Cipher;
use crate::key::{Purpose, SubKey, VmKey};
use crate::record::{LAST_VERSION, Resident, Sealed, Stamp, check};

/// The content of a page.
pub type Page = [u8; 4096];

/// A page of a VM's guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPage(u64);

impl GuestPage {
    /// The page that begins at guest-physical `address`; `None` if none does, or if no processor has
    /// so wide an address (SDM vol. 3 rev. 78, section 5.5: 52 bits).
    #[must_use]
    pub const fn at(address: u64) -> Option<Self> {
        if address.is_multiple_of(4096) && address < 1 << 52 { Some(Self(address)) } else { None }
    }

    /// The address.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.0
    }

    /// The number of the page: address ÷ 4,096.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0 / 4096
    }
}

/// Why a page is not sealed or unsealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The VM has used up its versions. The page is as it was.
    Exhausted,
    /// What came back for this page is not what the record says. The page is zeroed now.
    Forged(GuestPage),
    /// This version of the visor does not know this algorithm.
    Algorithm(u8),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sealing: ")?;
        match self {
            Self::Exhausted => f.write_str("the VM has no version left to seal a page with"),
            Self::Forged(page) => write!(f, "guest page {:#x} came back changed", page.base()),
            Self::Algorithm(id) => write!(f, "a record of algorithm {id}, which is not known"),
        }
    }
}

impl core::error::Error for Refusal {}

/// Seals the pages of one launch of one VM, on any number of processors at once.
///
/// It alone chooses versions, and gives each out once: so no nonce repeats, whatever the caller
/// remembers, forgets or mixes up. It takes the VM's key, so that no second one counts under it.
pub struct Sealer {
    root: VmKey,
    cipher: Cipher,
    /// The version given out last.
    version: AtomicU64,
}

impl Sealer {
    /// Begins a launch.
    #[must_use]
    pub fn new(root: VmKey) -> Self {
        Self { cipher: Cipher::new(&root), root, version: AtomicU64::new(0) }
    }

    /// Begins the VM's next launch, under [`VmKey::anew`].
    #[must_use]
    pub fn anew(&self, launch: &[u8; 32]) -> Self {
        Self::new(self.root.anew(launch))
    }

    /// A sub-key of the VM's key.
    #[must_use]
    pub fn subkey(&self, purpose: Purpose) -> SubKey {
        self.root.subkey(purpose)
    }

    /// Seals `page`, which is the VM's at `at`, in place.
    ///
    /// Nobody else may reach the page: neither the host, nor its devices, nor the VM.
    ///
    /// # Errors
    /// [`Refusal::Exhausted`]; the page is as it was.
    pub fn seal(&self, at: GuestPage, page: &mut Page) -> Result<Sealed, Refusal> {
        let stamp = self.next()?;
        Ok(Sealed { stamp, tag: self.cipher.encrypt(at, stamp, page) })
    }

    /// Seals a page that is probably as it was when it was unsealed: if it is, to the same bytes and the
    /// same record.
    ///
    /// That is found out here. The page is encrypted under its former version and the tag compared; if it
    /// differs, that is undone, and the page is sealed under a new version. So a caller that is wrong
    /// costs time, and never a second ciphertext under one nonce.
    ///
    /// # Errors
    /// [`Refusal::Exhausted`], if the page has changed; it is as it was.
    /// [`Refusal::Forged`] if somebody else wrote to the page meanwhile; it is zeroed.
    pub fn reseal(&self, at: GuestPage, page: &mut Page, was: Resident) -> Result<Sealed, Refusal> {
        let tag = self.cipher.encrypt(at, was.stamp, page);
        if check(&tag) == was.check {
            return Ok(Sealed { stamp: was.stamp, tag });
        }
        let undone = self.cipher.decrypt(at, was.stamp, page, &tag);
        undone.map_err(|Forged| Refusal::Forged(at))?;
        self.seal(at, page)
    }

    /// Unseals what came back as the page at `at`, in place, if it is what `record` says: sealed for this
    /// VM, in this launch, at `at`, with exactly this version and content.
    ///
    /// # Errors
    /// [`Refusal::Forged`] otherwise; the page is zeroed, so nothing of what was decrypted is left.
    pub fn unseal(
        &self,
        at: GuestPage,
        page: &mut Page,
        record: &Sealed,
    ) -> Result<Resident, Refusal> {
        let fits = self.cipher.decrypt(at, record.stamp, page, &record.tag);
        fits.map_err(|Forged| Refusal::Forged(at))?;
        Ok(record.resident())
    }

    /// A version that was never given out. Only the count itself is shared, so the order is free.
    fn next(&self) -> Result<Stamp, Refusal> {
        let up = |last: u64| (last < LAST_VERSION).then_some(last + 1);
        let last = self.version.fetch_update(Ordering::Relaxed, Ordering::Relaxed, up);
        last.map(|last| Stamp::current(last + 1)).map_err(|_| Refusal::Exhausted)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("root", &self.root).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::sync::Barrier;
    use std::vec::Vec;

    use super::*;
    use crate::key::VmId;

    #[test]
    fn processors_that_seal_at_once_get_versions_of_their_own() {
        let sealer = Sealer::new(VmKey::launch(VmId([1; 16]), &[2; 32], &[3; 32]));
        let together = Barrier::new(2);
        let work = || {
            let _ = together.wait();
            (0..100_000).map(|_| sealer.next().unwrap().word()).collect::<Vec<_>>()
        };
        let mut stamps = std::thread::scope(|scope| {
            let threads = [scope.spawn(work), scope.spawn(work)];
            threads.map(|thread| thread.join().unwrap()).concat()
        });
        stamps.sort_unstable();
        assert!((1..=200_000).map(|version| Stamp::current(version).word()).eq(stamps));
    }

    #[test]
    fn the_last_version_is_used_and_then_pages_stay_as_they_are() {
        let sealer = Sealer::new(VmKey::launch(VmId([1; 16]), &[2; 32], &[3; 32]));
        sealer.version.store(LAST_VERSION - 1, Ordering::Relaxed);
        let at = GuestPage::at(0x1000).unwrap();
        let mut page = [5; 4096];
        let record = sealer.seal(at, &mut page).unwrap();
        assert_eq!(record.version(), LAST_VERSION);
        let resident = sealer.unseal(at, &mut page, &record).unwrap();
        assert_eq!(sealer.seal(at, &mut page), Err(Refusal::Exhausted));
        assert_eq!(page, [5; 4096]);
        // What has not changed needs no version.
        assert_eq!(sealer.reseal(at, &mut page, resident), Ok(record));
        let resident = sealer.unseal(at, &mut page, &record).unwrap();
        page[9] = 6;
        let changed = page;
        assert_eq!(sealer.reseal(at, &mut page, resident), Err(Refusal::Exhausted));
        assert_eq!(page, changed);
    }
}
