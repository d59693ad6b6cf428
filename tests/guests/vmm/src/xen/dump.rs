//! A domain's memory and registers in a file.

use std::fs::File;
use std::io::Write;

use super::attacks::context;
use super::call::{Body, Xen};
use super::domain::{PAUSE, UNPAUSE};
use crate::memory::PAGE;

/// The first domain that a toolstack makes, and its memory.
const DOMAIN: u32 = 1;
const MEMORY: u64 = 40 << 20;
/// Frames that an HVM guest has not (xen/tools/libs/guest/xg_dom_x86.c, `meminit_hvm`).
const HOLE: std::ops::Range<u64> = 0xa0..0xc0;
const FILE: &str = "/run/core";

/// Does the calls of `xl dump-core` for frames that are there. `xl` asks for each frame below the hole for devices in
/// turn, a million of them, and no run in Bochs has waited for that.
pub(crate) fn dump() -> Result<(), String> {
    let xen = Xen::open()?;
    let _ = xen.domctl(PAUSE, DOMAIN, Body::of(&[]))?;
    let done = written(&xen).map_err(|why| format!("{FILE}: {why}"));
    let _ = xen.domctl(UNPAUSE, DOMAIN, Body::of(&[]))?;
    done
}

fn written(xen: &Xen) -> Result<(), String> {
    let mut file = File::create(FILE).map_err(|why| why.to_string())?;
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(|why| why.to_string());
    let frames: Vec<u64> = (0..HOLE.start).chain(HOLE.end..MEMORY / PAGE as u64).collect();
    for some in frames.chunks(32) {
        put(&xen.map(DOMAIN, some)?.read())?;
    }
    put(&context(xen, DOMAIN)?)
}
