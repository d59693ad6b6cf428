//! Random bytes of the system's.

use crate::error::Error;

/// Random bytes.
///
/// # Errors
/// [`Error::Random`].
pub(crate) fn array<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}
