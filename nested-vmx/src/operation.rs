//! VMX operation of one processor as the host sees it: what its VMX instructions do and how they fail
//! (SDM vol. 3, chapter 31).

use ept::addr::Frame;

use crate::check::{Context, is_ept_pointer};
use crate::vmcs12::{Class, Launch, REVISION, class};

/// VM-instruction errors (SDM vol. 3, 31.4) that an instruction itself finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Error {
    /// VMCALL in VMX root operation.
    Vmcall = 1,
    /// VMCLEAR with an invalid address.
    ClearAddress = 2,
    /// VMCLEAR of the VMXON region.
    ClearVmxon = 3,
    /// VMLAUNCH of a VMCS that is not clear.
    LaunchNotClear = 4,
    /// VMRESUME of a VMCS that is not launched.
    ResumeNotLaunched = 5,
    /// VMPTRLD with an invalid address.
    LoadAddress = 9,
    /// VMPTRLD of the VMXON region.
    LoadVmxon = 10,
    /// VMPTRLD of a region with another revision.
    LoadRevision = 11,
    /// VMREAD or VMWRITE of a field that does not exist.
    NoField = 12,
    /// VMWRITE of a field that can only be read.
    ReadOnlyField = 13,
    /// VMXON in VMX root operation.
    VmxonTwice = 15,
    /// VM entry while MOV to SS blocks events.
    BlockedByMovSs = 26,
    /// INVEPT or INVVPID with an invalid operand.
    InvalidOperand = 28,
}

/// How a VMX instruction ends (SDM vol. 3, 31.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// VMsucceed.
    Succeed,
    /// VMfailInvalid.
    FailInvalid,
    /// VMfailValid with this error, or VMfailInvalid when no VMCS is current.
    Fail(u32),
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        #[expect(clippy::as_conversions, reason = "the discriminant is the number")]
        Self::Fail(error as u32)
    }
}

impl Answer {
    /// RFLAGS after the instruction, and the error for the current VMCS's instruction-error field.
    #[must_use]
    pub const fn conclude(self, rflags: u64, current: Option<Frame>) -> (u64, Option<u32>) {
        /// CF, PF, AF, ZF, SF, OF.
        const ARITHMETIC: u64 = 0x8d5;
        const CARRY: u64 = 1;
        const ZERO: u64 = 1 << 6;
        let cleared = rflags & !ARITHMETIC;
        match self {
            Self::Succeed => (cleared, None),
            Self::Fail(number) if current.is_some() => (cleared | ZERO, Some(number)),
            Self::FailInvalid | Self::Fail(_) => (cleared | CARRY, None),
        }
    }
}

/// What INVEPT or INVVPID is to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// INVEPT of one EPT pointer.
    Root(u64),
    /// INVEPT of all.
    AllRoots,
    /// INVVPID of this type (0, 1 or 3), tag and linear address.
    Tag(u64, u16, u64),
    /// INVVPID of all tags.
    AllTags,
}

/// The host's VMX operation on one processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    vmxon: Option<Frame>,
    current: Option<Frame>,
}

impl Operation {
    /// Outside VMX operation.
    pub const OFF: Self = Self { vmxon: None, current: None };

    /// Whether the host is in VMX operation.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.vmxon.is_some()
    }

    /// The region of the current VMCS.
    #[must_use]
    pub const fn current(&self) -> Option<Frame> {
        self.current
    }

    /// VMXON of `pointer`, where memory begins with `revision`.
    #[must_use]
    pub fn vmxon(
        &mut self,
        pointer: u64,
        revision: impl FnOnce(Frame) -> Option<u32>,
        context: &Context<'_>,
    ) -> Answer {
        if self.is_on() {
            return Error::VmxonTwice.into();
        }
        let Some(frame) = region(pointer, context) else {
            return Answer::FailInvalid;
        };
        if revision(frame) != Some(REVISION) {
            return Answer::FailInvalid;
        }
        *self = Self { vmxon: Some(frame), current: None };
        Answer::Succeed
    }

    /// VMXOFF.
    #[must_use]
    pub const fn vmxoff(&mut self) -> Answer {
        *self = Self::OFF;
        Answer::Succeed
    }

    /// Which region VMCLEAR of `pointer` clears. If it is the current one, none is current then.
    ///
    /// # Errors
    /// How the instruction fails.
    pub fn vmclear(&mut self, pointer: u64, context: &Context<'_>) -> Result<Frame, Answer> {
        let frame = region(pointer, context).ok_or(Error::ClearAddress)?;
        if self.vmxon == Some(frame) {
            return Err(Error::ClearVmxon.into());
        }
        if self.current == Some(frame) {
            self.current = None;
        }
        Ok(frame)
    }

    /// Which region VMPTRLD of `pointer` makes current.
    ///
    /// # Errors
    /// How the instruction fails.
    pub fn vmptrld(
        &mut self,
        pointer: u64,
        revision: impl FnOnce(Frame) -> Option<u32>,
        context: &Context<'_>,
    ) -> Result<Frame, Answer> {
        let frame = region(pointer, context).ok_or(Error::LoadAddress)?;
        if self.vmxon == Some(frame) {
            return Err(Error::LoadVmxon.into());
        }
        if revision(frame) != Some(REVISION) {
            return Err(Error::LoadRevision.into());
        }
        self.current = Some(frame);
        Ok(frame)
    }
}

/// The frame that a VMX instruction's `pointer` names, if it can.
fn region(pointer: u64, context: &Context<'_>) -> Option<Frame> {
    Frame::at(pointer).filter(|_| pointer >> context.width == 0)
}

/// The field that VMREAD or VMWRITE of `operand` names.
///
/// # Errors
/// [`Error::NoField`].
pub fn field(operand: u64, context: &Context<'_>) -> Result<u32, Error> {
    u32::try_from(operand)
        .ok()
        .filter(|encoding| class(*encoding) != Class::None)
        .filter(|encoding| context.advertised.has_field(*encoding))
        .ok_or(Error::NoField)
}

/// Whether VMWRITE may change the field with this encoding, which exists.
///
/// # Errors
/// [`Error::ReadOnlyField`].
pub fn writable(encoding: u32) -> Result<(), Error> {
    if class(encoding) == Class::Information { Err(Error::ReadOnlyField) } else { Ok(()) }
}

/// Whether a VMCS in this launch state may be entered by `launch` (VMLAUNCH, if that is the state it
/// asks for, else VMRESUME), with events blocked as in `interruptibility`.
///
/// # Errors
/// How the instruction fails.
pub fn enterable(state: Launch, asks: Launch, interruptibility: u32) -> Result<(), Error> {
    const BY_MOV_SS: u32 = 1 << 1;
    if interruptibility & BY_MOV_SS != 0 {
        return Err(Error::BlockedByMovSs);
    }
    match (asks, state) {
        (Launch::Clear, Launch::Launched) => Err(Error::LaunchNotClear),
        (Launch::Launched, Launch::Clear) => Err(Error::ResumeNotLaunched),
        (Launch::Clear, Launch::Clear) | (Launch::Launched, Launch::Launched) => Ok(()),
    }
}

/// What INVEPT of `kind` with this descriptor drops.
///
/// # Errors
/// [`Error::InvalidOperand`].
pub fn invept(kind: u64, descriptor: [u64; 2], context: &Context<'_>) -> Result<Scope, Error> {
    const SINGLE: u64 = 1 << 25;
    const ALL: u64 = 1 << 26;
    let supported = context.advertised.capabilities().ept_vpid;
    let [pointer, _] = descriptor;
    match kind {
        1 if supported & SINGLE != 0 && is_ept_pointer(pointer, context) => {
            Ok(Scope::Root(pointer))
        }
        2 if supported & ALL != 0 => Ok(Scope::AllRoots),
        _ => Err(Error::InvalidOperand),
    }
}

/// What INVVPID of `kind` with this descriptor drops.
///
/// # Errors
/// [`Error::InvalidOperand`].
pub fn invvpid(kind: u64, descriptor: [u64; 2], context: &Context<'_>) -> Result<Scope, Error> {
    const FIRST_TYPE: u64 = 40;
    let [tag, linear] = descriptor;
    let supported = context.advertised.capabilities().ept_vpid;
    if kind > 3 || supported >> (FIRST_TYPE + kind) & 1 == 0 {
        return Err(Error::InvalidOperand);
    }
    let tag = u16::try_from(tag).map_err(|_| Error::InvalidOperand)?;
    match kind {
        2 => Ok(Scope::AllTags),
        _ if tag == 0 => Err(Error::InvalidOperand),
        0 if !context.is_canonical(linear) => Err(Error::InvalidOperand),
        _ => Ok(Scope::Tag(kind, tag, linear)),
    }
}
