//! `block-seal`: how fast blocks of a sealed disk are sealed and opened, natively on one core, beside
//! what disks are encrypted with elsewhere: AES-256-XTS, and HMAC-SHA256 where they are authenticated,
//! of the machine's OpenSSL.

use std::process::Command;

use anyhow::Result;

use super::speed::{best, line, openssl};
use super::{Figure, native};
use crate::suite::Rig;
use crate::tool;

const BENCH: &str = "block-seal";

/// Lets all run and compares them.
pub(super) fn measure(_: &Rig<'_>) -> Result<Vec<Figure>> {
    let program = native::example("disk", "speed")?;
    let [sealing, opening, xts, hmac] = best(|| {
        let said = tool::output(&mut Command::new(&program))?;
        let (sealing, opening) = (line(&said, "seal ")?, line(&said, "open ")?);
        Ok([sealing, opening, openssl(["-evp", "aes-256-xts"])?, openssl(["-hmac", "sha256"])?])
    })?;
    let peer = xts.and_then(hmac)?;
    Ok(vec![
        sealing.figure(BENCH, "seal.gbps")?,
        opening.figure(BENCH, "open.gbps")?,
        xts.figure(BENCH, "openssl_xts.gbps")?,
        peer.figure(BENCH, "openssl_xts_hmac.gbps")?,
        sealing.ratio(peer, BENCH, "ratio")?,
    ])
}
