//! What a host and its VMs may do.

pub(crate) const VMXON: u64 = 0x1000;
pub(crate) const REGIONS: [u64; 3] = [0x2000, 0x3000, 0x4000];

/// Where the host's VMREAD and VMWRITE go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shadowing {
    /// Each exits.
    Absent,
    /// Those that the bitmaps let through reach a shadow VMCS.
    Present,
}

/// How an entry ends that the visor lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The VM runs, and leaves.
    Exit,
    /// It also takes events of the visor's own.
    ExitAfterEvents,
    /// The processor refuses VMCS02.
    Refused,
    /// The processor fails to load the VM's state.
    Failed,
}

/// What the host does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Vmxon(u64),
    Vmxoff,
    Vmclear(u64),
    Vmptrld(u64),
    Read(u64),
    Write(u64, u64),
    /// Changes these bits of a field.
    Flip(u32, u64),
    /// Writes all fields of a VMCS that can be entered.
    Repair,
    /// Stores to a region, which may be loaded.
    Poke(u64, usize, u64),
    /// By VMLAUNCH or VMRESUME, whichever is due; the host's registers; what the VM does.
    Enter([u64; 4], Vec<(u8, u64)>, Ending),
    /// The instruction that is not due.
    EnterWrongly,
}
