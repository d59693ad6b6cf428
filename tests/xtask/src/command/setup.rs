//! `cargo xtask setup`: installs, fetches and builds everything beforehand.

use anyhow::Result;
use clap::Args;

use crate::packages::{self, Built, InTheWay, Need};

#[derive(Args, Debug)]
pub(super) struct Options {
    /// Remove installed packages that cannot stand beside those needed
    #[arg(long)]
    remove: bool,
}

/// Makes the machine ready for every other command, which would otherwise do its part itself.
pub(super) fn setup(options: &Options) -> Result<()> {
    let in_the_way = if options.remove { InTheWay::Remove } else { InTheWay::Keep };
    packages::install_with(&Need::ALL, in_the_way)?;
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
