//! `cargo xtask build`: the visor and the guests.

use anyhow::Result;

use crate::build;

/// Builds everything that the tests boot, apart from what is fetched.
pub(crate) fn build() -> Result<()> {
    let visor = build::visor()?;
    let digest = build::digest(&visor)?;
    let guests = build::guests()?;
    for path in [visor, guests.probe, guests.initrd] {
        println!("{}", path.display());
    }
    println!("{digest}  visor.elf");
    Ok(())
}
