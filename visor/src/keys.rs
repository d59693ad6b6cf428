//! The visor's keys, and what it signs by them.

use attest::keys::{Keys, PUBLIC_BYTES, SIGNATURE_BYTES};
use attest::statement::{Body, Kind};
use spin::Once;
use zeroize::Zeroizing;

use crate::{random, vectors};

static KEYS: Once<Keys> = Once::new();

/// Makes the keys of this boot; the public ones, as [`Keys::public`] has them. `tpm` are random bytes that a TPM
/// has made, if there is one. `None` if the processor's generator does not work.
pub(crate) fn make(tpm: Option<[u8; 32]>) -> Option<[u8; PUBLIC_BYTES]> {
    let mut bytes = Zeroizing::new([0; 64]);
    for half in bytes.as_chunks_mut::<32>().0 {
        *half = random::bytes32()?;
    }
    let keys = vectors::with(|| Keys::new(&bytes, tpm.as_ref()))?;
    Some(*KEYS.call_once(|| keys).public())
}

/// The keys, for code that only runs once they are there.
pub(crate) fn get() -> &'static Keys {
    KEYS.get().unwrap_or_else(|| panic!("there are no keys"))
}

/// Signs a statement.
pub(crate) fn sign(kind: Kind, body: &Body) -> [u8; SIGNATURE_BYTES] {
    vectors::with(|| get().state(kind, body))
}
