//! `vms` and `destroy`.

use std::fmt;

use serde::Serialize;
use ticket::port::{
    ABSENT, INDEX_UNPROTECTED, INDEX_VM_ASKED, INDEX_VM_CAUSE, INDEX_VM_CPUS, INDEX_VM_DESTROY,
    INDEX_VM_ID, INDEX_VM_RESIDENT, INDEX_VM_SEALED, INDEX_VM_WANTED, VMS, VmState,
};

use crate::failure::{Exit, Failure};
use crate::hex;
use crate::port::Port;
use crate::reason;
use crate::visor::Visor;

/// All VMs of the host, as far as the visor knows them.
#[derive(Debug, Serialize)]
pub(crate) struct Vms {
    vms: Vec<Vm>,
    /// VMs that ran without a ticket since boot.
    unprotected: u32,
}

/// One VM with a ticket.
#[derive(Debug, Serialize)]
struct Vm {
    vm: u32,
    id: String,
    state: &'static str,
    /// Why it was stopped.
    cause: Option<u32>,
    /// The same in words.
    reason: Option<&'static str>,
    vcpus: u32,
    resident_pages: u32,
    sealed_pages: u32,
    /// A page that the host does not give it, or not for writing.
    waits_for: Option<Page>,
}

/// A page that a VM waits for.
#[derive(Debug, Serialize)]
struct Page {
    /// Its guest-physical address.
    page: String,
    /// How often the host was told in a row.
    asked: u32,
}

/// A host that is asked for a page so often in a row is not only slow.
const OFTEN: u32 = 64;

/// The page that the selected VM waits for; visors before 1.4 do not say.
fn wanted<P: Port>(visor: &mut Visor<P>) -> Option<Page> {
    let asked = visor.value(INDEX_VM_ASKED);
    let number = u64::from(visor.value(INDEX_VM_WANTED));
    let page = || Page { page: format!("{:#x}", number << 12), asked };
    (asked != ABSENT && asked >= OFTEN).then(page)
}

/// Asks the visor for its VMs.
///
/// # Errors
/// As [`Visor::find_with_tickets`].
pub(crate) fn vms(port: impl Port) -> Result<Vms, Failure> {
    let mut visor = Visor::find_with_tickets(port)?;
    let mut vms = Vec::new();
    for vm in 0..VMS {
        let state = match visor.vm(vm)? {
            VmState::None => continue,
            VmState::Waiting => "waiting",
            VmState::Running => "running",
            VmState::Stopped => "stopped",
        };
        let cause = (state == "stopped").then(|| visor.value(INDEX_VM_CAUSE));
        vms.push(Vm {
            vm,
            id: hex::encode(&visor.bytes::<16>(INDEX_VM_ID)),
            state,
            cause,
            reason: cause.and_then(|cause| reason::of_cause(cause.into())),
            vcpus: visor.value(INDEX_VM_CPUS),
            resident_pages: visor.value(INDEX_VM_RESIDENT),
            sealed_pages: visor.value(INDEX_VM_SEALED),
            waits_for: if state == "running" { wanted(&mut visor) } else { None },
        });
    }
    Ok(Vms { vms, unprotected: visor.value(INDEX_UNPROTECTED) })
}

impl Vms {
    pub(crate) const fn exit(&self) -> Exit {
        if self.unprotected == 0 { Exit::Good } else { Exit::Unprotected }
    }
}

impl fmt::Display for Vms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "VM  STATE    VCPUS   RESIDENT     SEALED  ID")?;
        for of in &self.vms {
            let Vm { vm, id, state, vcpus, resident_pages, sealed_pages, .. } = of;
            write!(f, "{vm:2}  {state:7}  {vcpus:5}  {resident_pages:9}  {sealed_pages:9}  {id}")?;
            match (&of.cause, &of.waits_for) {
                (Some(cause), _) => {
                    writeln!(f, "  cause {cause}: {}", of.reason.unwrap_or("unknown"))?;
                }
                (None, Some(Page { page, asked })) => {
                    writeln!(f, "  waits for page {page}, asked for {asked} times")?;
                }
                (None, None) => writeln!(f)?,
            }
        }
        match self.unprotected {
            0 => Ok(()),
            count => writeln!(f, "UNPROTECTED: {count} VMs ran without a ticket"),
        }
    }
}

/// A VM that is no more.
#[derive(Debug, Serialize)]
pub(crate) struct Destroyed {
    vm: u32,
}

/// Has the VM in slot `vm` destroyed.
///
/// # Errors
/// As [`Visor::find_with_tickets`], [`Failure::NoVm`] and [`Failure::NotDestroyed`].
pub(crate) fn destroy(port: impl Port, vm: u32) -> Result<Destroyed, Failure> {
    let mut visor = Visor::find_with_tickets(port)?;
    if visor.vm(vm)? == VmState::None {
        return Err(Failure::NoVm(vm));
    }
    visor.put(INDEX_VM_DESTROY, 1);
    match visor.vm(vm)? {
        VmState::None => Ok(Destroyed { vm }),
        VmState::Waiting | VmState::Running | VmState::Stopped => Err(Failure::NotDestroyed(vm)),
    }
}

impl fmt::Display for Destroyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "VM {} is destroyed", self.vm)
    }
}
