//! Images that machines boot from.

pub(crate) mod cpio;
mod disks;
pub(crate) mod elf32;
pub(crate) mod iso;
pub(crate) mod programs;
mod qcow2;
pub(crate) mod remote;
pub(crate) mod vectors;
pub(crate) mod vmms;
pub(crate) mod works;
