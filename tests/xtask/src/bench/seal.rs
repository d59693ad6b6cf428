//! `seal`: how fast pages are sealed and unsealed, natively on one core, beside AES-256-GCM of the
//! machine's OpenSSL.

use std::process::Command;

use anyhow::Result;

use super::speed::{best, line, openssl};
use super::{Figure, native};
use crate::suite::Rig;
use crate::tool;

const BENCH: &str = "seal";

/// Lets both run and compares them.
pub(super) fn measure(_: &Rig<'_>) -> Result<Vec<Figure>> {
    let program = native::example("seal", "speed")?;
    let [sealing, unsealing, peer] = best(|| {
        let said = tool::output(&mut Command::new(&program))?;
        Ok([line(&said, "seal ")?, line(&said, "unseal ")?, openssl(["-evp", "aes-256-gcm"])?])
    })?;
    Ok(vec![
        sealing.figure(BENCH, "seal.gbps")?,
        unsealing.figure(BENCH, "unseal.gbps")?,
        peer.figure(BENCH, "openssl_aes256gcm.gbps")?,
        sealing.ratio(peer, BENCH, "ratio")?,
    ])
}
