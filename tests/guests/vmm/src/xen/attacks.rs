//! What root in dom0 can do to a domain. An attack says whether it has found something of the guest's secret;
//! what it has done to the guest, the guest says.

use std::thread::sleep;
use std::time::Duration;

use super::call::{Body, Xen};
use super::domain::{Domain, PAUSE, UNPAUSE, record};
use super::guest::{CODE, MEMORY, SECRET};
use crate::memory::PAGE;

/// An attack.
pub(super) type Attack = fn(&Xen, &Domain) -> Result<bool, String>;

/// The attacks by name.
pub(super) const ALL: &[(&str, Attack)] = &[
    ("xen-map-page", map_page),
    ("xen-map-all-memory", map_all),
    ("xen-saved-general-registers", saved_general),
    ("xen-saved-vector-registers", saved_vectors),
    ("xen-processor-context", general_and_vectors),
    ("xen-write-page", write_page),
    ("xen-write-code", write_code),
    ("xen-set-registers", set_registers),
    ("xen-set-rip", set_rip),
    ("xen-set-vector-registers", set_vectors),
    ("xen-move-page", move_page),
    ("xen-drop-page", drop_page),
    ("xen-inject-undefined", inject_undefined),
    ("xen-inject-protection", inject_protection),
];

/// xen/include/public/domctl.h.
const GET_VCPU: u32 = 13;
const GET_CONTEXT_PART: u32 = 55;
const ADD_TO_PHYSMAP: u64 = 7;
const REMOVE_FROM_PHYSMAP: u64 = 15;
/// Another page of the same domain.
const BY_FRAME: u64 = 2;
const INJECT_EVENT: u32 = 13;
const DEBUGGER_MEMORY: u32 = 1000;
const EXCEPTION: u32 = 3;

/// Lets the guest get to where its secret is in registers, and holds it there while `work` is done.
fn paused<T>(
    xen: &Xen,
    domain: &Domain,
    work: impl FnOnce() -> Result<T, String>,
) -> Result<T, String> {
    sleep(Duration::from_millis(20));
    let _ = xen.domctl(PAUSE, domain.number(), Body::of(&[]))?;
    let done = work();
    let _ = xen.domctl(UNPAUSE, domain.number(), Body::of(&[]))?;
    done
}

fn map_page(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    let page = xen.map(domain.number(), &[SECRET / PAGE as u64])?;
    Ok(domain.guest.is_in(&page.read()))
}

/// As `xl dump-core` does.
fn map_all(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    let frames: Vec<u64> = (0..MEMORY / PAGE as u64).collect();
    paused(xen, domain, || {
        for some in frames.chunks(256) {
            if domain.guest.is_in(&xen.map(domain.number(), some)?.read()) {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

/// The processor's state as Xen saves it.
fn saved(xen: &Xen, domain: &Domain) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0_u8; record::LEN];
    let body = Body::of(&[(0, 2)]).long(8, bytes.len() as u64).long(16, bytes.as_mut_ptr() as u64);
    let _ = xen.domctl(GET_CONTEXT_PART, domain.number(), body)?;
    Ok(bytes)
}

fn longs(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect()
}

fn saved_general(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    let state = paused(xen, domain, || saved(xen, domain))?;
    Ok(domain.guest.is_in_registers(&longs(&state[record::GENERAL])))
}

fn saved_vectors(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    let state = paused(xen, domain, || saved(xen, domain))?;
    Ok(domain.guest.is_in(&state[record::FPU..record::FPU + 512]))
}

/// The first processor's registers, as debuggers read them.
pub(super) fn context(xen: &Xen, domain: u32) -> Result<Vec<u8>, String> {
    const LEN: usize = 5168;
    let mut bytes = vec![0_u8; LEN];
    let body = Body::of(&[]).long(8, bytes.as_mut_ptr() as u64);
    let _ = xen.domctl(GET_VCPU, domain, body)?;
    Ok(bytes)
}

fn general_and_vectors(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    const GENERAL: core::ops::Range<usize> = 520..640;
    let bytes = paused(xen, domain, || context(xen, domain.number()))?;
    Ok(domain.guest.is_in_registers(&longs(&bytes[GENERAL])) || domain.guest.is_in(&bytes[..512]))
}

/// Reads memory at a linear address as `gdbsx` does. The distribution's Xen is built without (`CONFIG_GDBSX`).
pub(super) fn debugger_memory(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    let mut bytes = [0_u8; 64];
    let (gva, uva, length) = (8, 16, 24);
    let body = Body::of(&[(length, bytes.len() as u32)]);
    let body = body.long(gva, SECRET).long(uva, bytes.as_mut_ptr() as u64);
    let _ = paused(xen, domain, || xen.domctl(DEBUGGER_MEMORY, domain.number(), body))?;
    Ok(domain.guest.is_in(&bytes))
}

fn write_page(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    xen.map(domain.number(), &[SECRET / PAGE as u64])?.write(64, &[0x66; 64]);
    Ok(false)
}

fn write_code(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    const INVALID: [u8; 2] = [0x0f, 0x0b];
    let code = xen.map(domain.number(), &[CODE / PAGE as u64])?;
    // Behind the beginning, which does not run any more.
    code.write(64, &[INVALID; 64].concat());
    Ok(false)
}

/// Changes the processor's state, several times: one will meet the guest where that matters.
fn set(xen: &Xen, domain: &Domain, change: impl Fn(&mut [u8])) -> Result<bool, String> {
    for turn in 0..12 {
        sleep(Duration::from_millis(turn * 3));
        paused(xen, domain, || {
            let mut state = saved(xen, domain)?;
            change(&mut state);
            domain.set_state(xen, &state)
        })?;
    }
    Ok(false)
}

fn set_registers(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    set(xen, domain, |state| state[record::RBX..record::RBX + 4].fill(0x66))
}

fn set_rip(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    let at = (CODE + PAGE as u64).to_le_bytes();
    set(xen, domain, |state| state[record::RIP..record::RIP + 8].copy_from_slice(&at))
}

fn set_vectors(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    const XMM0: usize = 160;
    set(xen, domain, |state| state[record::FPU + XMM0..record::FPU + XMM0 + 16].fill(0x66))
}

/// Puts the second page of the secret where the first is.
fn move_page(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    let first = SECRET / PAGE as u64;
    let who = u64::from(domain.number());
    let mut words = [who | BY_FRAME << 32, first + 1, first];
    let _ = paused(xen, domain, || xen.memory(ADD_TO_PHYSMAP, &mut words))?;
    Ok(false)
}

fn drop_page(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    let mut words = [domain.number().into(), SECRET / PAGE as u64];
    let _ = paused(xen, domain, || xen.memory(REMOVE_FROM_PHYSMAP, &mut words))?;
    Ok(false)
}

fn inject(xen: &Xen, domain: &Domain, vector: u32, code: u32) -> Result<bool, String> {
    let operation = [INJECT_EVENT, 0, 0, vector | EXCEPTION << 8, code, 0, 0, 0];
    xen.device_model(domain.number(), &operation)?;
    Ok(false)
}

fn inject_undefined(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    inject(xen, domain, 6, u32::MAX)
}

fn inject_protection(xen: &Xen, domain: &Domain) -> Result<bool, String> {
    inject(xen, domain, 13, 0)
}
