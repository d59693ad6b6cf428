//! Machines in QEMU.
use std::path::Path;
use anyhow::{Result, bail};
use super::serial::Watch;
use super::{Machine, Outcome, Payload};
pub(super) fn boot(_: &Machine, _: &Payload, _: &Path, _: &mut dyn Watch) -> Result<Outcome> {
    bail!("QEMU is not supported yet")
}
