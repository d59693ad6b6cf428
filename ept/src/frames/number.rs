//! Numbers that the frame table has for protected VMs and for views.

/// The number of a protected VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vm(pub(super) u8);

impl Vm {
    /// How many there can be at once.
    pub const MAX: u8 = 64;

    /// The VM with this number, which is below [`Vm::MAX`].
    #[must_use]
    pub const fn new(number: u8) -> Option<Self> {
        if number < Self::MAX { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

/// The number of a view: one of the visor's frames, which the host sees in the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View(pub u8);
