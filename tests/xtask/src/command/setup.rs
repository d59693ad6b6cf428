//! `cargo xtask setup`: installs, fetches and builds everything beforehand.

use anyhow::Result;

use crate::packages::{self, Built, Need};

/// Makes the machine ready for every other command, which would otherwise do its part itself.
pub(crate) fn setup() -> Result<()> {
    packages::install(&Need::ALL)?;
    for (what, path) in [
        ("stock kernel", packages::stock_kernel()?),
        ("Xen", packages::xen()?),
        ("tboot", packages::tboot()?),
        ("small kernel", Built::Small.kernel()?),
    ] {
        println!("{what}: {}", path.display());
    }
    Ok(())
}
