//! One VMCS of the host in use: what goes into VMCS02 at an entry, what of an exit the host sees.

use bitflags::bitflags;

use crate::check::{self, Context, Invalid, Wanted};
use crate::control::{EntryControls, ExitControls, Pin, Primary};
use crate::field::{self as f, Vmcs};
use crate::merge::{self, Environment, HostRegisters};
use crate::unroll::{UNROLLED, unroll};
use crate::vmcs12::{Class, HOT, INFORMATION, SELDOM_WRITTEN, Vmcs12, class, places, position};

/// A set of fields of [`HOT`] or [`INFORMATION`], by position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set(u32);

impl Set {
    const ALL: Self = Self(u32::MAX);

    const fn add(&mut self, position: usize) {
        self.0 |= 1 << position;
    }

    const fn has(self, position: usize) -> bool {
        self.0 >> position & 1 != 0
    }

    /// Positions of `fields` that `chosen` names.
    const fn of(fields: &[u32], chosen: &[u32]) -> Self {
        let (mut set, mut at) = (Self(0), 0);
        while at < fields.len() {
            let mut rest = chosen;
            while let [encoding, after @ ..] = rest {
                #[expect(clippy::indexing_slicing, reason = "checked at compile time")]
                if *encoding == fields[at] {
                    set.add(at);
                }
                rest = after;
            }
            at += 1;
        }
        set
    }

    /// Positions of `fields` that `chosen` does not name.
    const fn all_but(fields: &[u32], chosen: &[u32]) -> Self {
        Self(!Self::of(fields, chosen).0)
    }

    /// Positions of those that are in it, with encoding and place.
    #[inline(always)]
    fn each(self, fields: &'static [(u32, usize)]) -> impl Iterator<Item = (usize, u32, usize)> {
        let mut rest = self.0;
        core::iter::from_fn(move || {
            let position = usize::try_from(rest.trailing_zeros()).ok()?;
            let (encoding, place) = *fields.get(position)?;
            rest &= rest.wrapping_sub(1);
            Some((position, encoding, place))
        })
    }
}

const _: () = assert!(HOT.len() <= UNROLLED && INFORMATION.len() <= UNROLLED, "see `unroll`");
static HOT_PLACES: [(u32, usize); HOT.len()] = places(HOT);
static INFORMATION_PLACES: [(u32, usize); INFORMATION.len()] = places(INFORMATION);

/// Hot fields that belong to the VM's state.
const STATE: Set =
    Set::of(&HOT, &[0x4816, 0x4818, 0x4824, 0x6800, 0x6802, 0x6804, 0x681c, 0x681e, 0x6820]);
/// Hot fields that the host writes without exits.
const WRITTEN: Set = Set::all_but(&HOT, &SELDOM_WRITTEN);
/// The fields that make up an event to inject.
const EVENT: Set = Set::of(&HOT, &[0x4016, 0x4018, 0x401a]);
/// What a host changes when it has emulated an instruction: RSP, RIP, RFLAGS.
const USUAL: Set = Set::of(&HOT, &[0x681c, 0x681e, 0x6820]);
const CR4: Set = Set::of(&HOT, &[0x6804]);
/// What every exit tells: reason, qualification, the event that it is, the one that it interrupted,
/// and how long the instruction is.
const TOLD: Set = Set::of(&INFORMATION, &[0x4402, 0x4404, 0x4408, 0x440a, 0x440c, 0x6400]);
/// What exits tell that are not [`is_plain`]: the error code, more about the instruction, a
/// guest-physical and a linear address. Never the error of an instruction, nor what only SMM uses.
const DETAILS: Set = Set::of(&INFORMATION, &[0x2400, 0x4406, 0x440e, 0x640a]);

/// Whether an exit for this reason leaves all [`DETAILS`] undefined (SDM vol. 3, 29.2): external
/// interrupts, windows, CPUID, HLT, INVD, RDTSC, VMCALL, RDMSR, WRMSR, PAUSE, RDTSCP, the preemption
/// timer, WBINVD; and IN and OUT.
const fn is_plain(reason: u32, qualification: u64) -> bool {
    const IO: u32 = 30;
    const STRING: u64 = 1 << 4;
    const PLAIN: u64 = 1 << 1
        | 1 << 7
        | 1 << 8
        | 1 << 10
        | 1 << 12
        | 1 << 13
        | 1 << 16
        | 1 << 18
        | 1 << 31
        | 1 << 32
        | 1 << 40
        | 1 << 51
        | 1 << 52
        | 1 << 54;
    reason < 64 && PLAIN >> reason & 1 != 0 || reason == IO && qualification & STRING == 0
}

/// What has changed since VMCS02 was written last.
#[derive(Clone, Copy, Debug)]
struct Changes {
    cold: Cold,
    /// Hot fields.
    hot: Set,
}

bitflags! {
    /// Changes of fields that are not hot.
    #[derive(Clone, Copy, Debug)]
    struct Cold: u8 {
        const CONTROLS = 1;
        /// Controls or the host's state: the checks are due.
        const UNCHECKED = 1 << 1;
        /// The VM's state.
        const GUEST = 1 << 2;
        /// Whether to exit as soon as the VM can take an interrupt or NMI.
        const WINDOWS = 1 << 3;
    }
}

impl Changes {
    const ALL: Self = Self { cold: Cold::all(), hot: Set::ALL };
    const NONE: Self = Self { cold: Cold::empty(), hot: Set(0) };
}

/// A VMCS of the host in use.
#[derive(Debug)]
pub struct Vcpu<'a> {
    /// The fields as the host knows them.
    fields: &'a mut Vmcs12,
    changes: Changes,
    /// The VM has run since its cold fields were read from VMCS02.
    stale: bool,
    /// [`merge::replaces_saved`] and [`merge::inherits`] of the controls that VMCS02 has.
    replaces_saved: bool,
    inherits: bool,
    /// What the host's shadow VMCS does not show yet.
    unseen: (Set, Set),
}

/// A VM that is entered must pass these; see [`Vcpu::check`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The instruction fails.
    Instruction(Invalid),
    /// The entry fails for the guest's state, with this exit qualification.
    GuestState(u64),
}

/// The event to inject is valid.
const VALID: u32 = 1 << 31;
const WINDOWS: Primary = Primary::INTERRUPT_WINDOW.union(Primary::NMI_WINDOW);

/// Takes fields over from a VMCS of the hardware, and notes those that were others before.
///
/// Positions are constants: what is not in a set vanishes, and the rest are VMREADs and comparisons in
/// a row. A loop over a table takes three times as many instructions, at every entry and exit.
struct Taker<'a, V> {
    fields: &'a mut Vmcs12,
    vmcs: &'a V,
    hot: Set,
    information: Set,
}

impl<'a, V: Vmcs> Taker<'a, V> {
    const fn of(fields: &'a mut Vmcs12, vmcs: &'a V) -> Self {
        Self { fields, vmcs, hot: Set(0), information: Set(0) }
    }

    /// What the host writes.
    #[inline(always)]
    fn written<const POSITION: usize>(&mut self) {
        if const { WRITTEN.has(POSITION) } && self.differs(HOT_PLACES.get(POSITION)) {
            self.hot.add(POSITION);
        }
    }

    /// What an exit leaves.
    #[inline(always)]
    fn told<const POSITION: usize>(&mut self) {
        if const { STATE.has(POSITION) } && self.differs(HOT_PLACES.get(POSITION)) {
            self.hot.add(POSITION);
        }
        if const { TOLD.has(POSITION) } && self.differs(INFORMATION_PLACES.get(POSITION)) {
            self.information.add(POSITION);
        }
    }

    /// What only some exits leave.
    #[inline(always)]
    fn detail<const POSITION: usize>(&mut self) {
        if const { DETAILS.has(POSITION) } && self.differs(INFORMATION_PLACES.get(POSITION)) {
            self.information.add(POSITION);
        }
    }

    #[inline(always)]
    fn differs(&mut self, field: Option<&(u32, usize)>) -> bool {
        let Some((encoding, place)) = field else {
            return false;
        };
        let value = self.vmcs.read_raw(*encoding);
        let differs = value != self.fields.at(*place);
        if differs {
            self.fields.set_at(*place, value);
        }
        differs
    }
}

/// Writes those hot fields of a set into VMCS02 that are usually in it.
struct Writer<'a, V> {
    fields: &'a Vmcs12,
    hot: Set,
    v02: &'a mut V,
}

impl<V: Vmcs> Writer<'_, V> {
    #[inline(always)]
    fn usual<const POSITION: usize>(&mut self) {
        if let Some((encoding, place)) = HOT_PLACES.get(POSITION)
            && const { USUAL.has(POSITION) }
            && self.hot.has(POSITION)
        {
            self.v02.write_raw(*encoding, self.fields.at(*place));
        }
    }
}

impl<'a> Vcpu<'a> {
    /// A VMCS that was just loaded; VMCS02 holds nothing of it yet.
    pub fn new(fields: &'a mut Vmcs12) -> Self {
        let unseen = (Set::ALL, Set::ALL);
        let (replaces_saved, inherits) = (true, true);
        Self { fields, changes: Changes::ALL, stale: false, replaces_saved, inherits, unseen }
    }

    /// The fields as the host knows them.
    #[must_use]
    pub const fn fields(&self) -> &Vmcs12 {
        self.fields
    }

    /// The fields, for what is no VMWRITE: launch state, instruction error.
    pub const fn fields_mut(&mut self) -> &mut Vmcs12 {
        self.fields
    }

    /// Takes over what a region holds; VMCS02 and the shadow VMCS hold nothing of it yet.
    pub fn load(&mut self, read: impl FnMut(usize) -> u64) {
        self.fields.load(read);
        self.changes = Changes::ALL;
        self.stale = false;
        self.unseen = (Set::ALL, Set::ALL);
    }

    /// Whether [`Vcpu::fetch`] is due before the host reads or writes this field.
    #[must_use]
    pub fn is_stale(&self, encoding: u32) -> bool {
        // What the last exit has saved, the controls say that it was made with.
        let decides = encoding == f::EXIT_CONTROLS.encoding();
        self.stale && (decides || class(encoding) == Class::Guest)
    }

    /// Whether the VM has run since its cold fields were read.
    #[must_use]
    pub const fn has_stale(&self) -> bool {
        self.stale
    }

    /// Reads the cold fields of the VM's state from VMCS02.
    pub fn fetch(&mut self, v02: &impl Vmcs) {
        for (encoding, place) in &merge::PLAIN {
            self.fields.set_at(*place, v02.read_raw(*encoding));
        }
        let exit = Wanted::of(self.fields).exit;
        if exit.contains(ExitControls::SAVE_DEBUG) {
            self.fields.write(f::GUEST_DR7, v02.read(f::GUEST_DR7));
            self.fields.write(f::GUEST_DEBUGCTL, v02.read(f::GUEST_DEBUGCTL));
        }
        if exit.contains(ExitControls::SAVE_PAT) {
            self.fields.write(f::GUEST_PAT, v02.read(f::GUEST_PAT));
        }
        if exit.contains(ExitControls::SAVE_EFER) {
            self.fields.write(f::GUEST_EFER, v02.read(f::GUEST_EFER));
        }
        self.stale = false;
    }

    /// Reads just these of them.
    pub(crate) fn fetch_some(&mut self, encodings: &[u32], v02: &impl Vmcs) {
        for encoding in encodings {
            self.fields.write_raw(*encoding, v02.read_raw(*encoding));
        }
    }

    /// Does a VMWRITE that exited, of a field that exists and is not stale.
    pub fn write(&mut self, encoding: u32, value: u64) {
        let before = self.primary();
        self.fields.write_raw(encoding, value);
        match class(encoding) {
            Class::None | Class::Information => {}
            Class::Control => self.changes.cold |= Cold::CONTROLS | Cold::UNCHECKED,
            Class::Host => {
                self.changes.cold |= Cold::UNCHECKED;
                // The one field of the host's state that the processor loads from VMCS02.
                if encoding & !1 == f::HOST_PERF_GLOBAL.encoding() {
                    self.changes.cold |= Cold::CONTROLS;
                }
            }
            Class::Guest => self.changes.cold |= Cold::GUEST,
            Class::HotControl | Class::HotGuest => {
                if let Some(position) = position(encoding) {
                    self.changed(position);
                    self.unseen.0.add(position);
                }
                self.compare(before);
            }
        }
    }

    fn primary(&self) -> Primary {
        Primary::from_bits_retain(self.fields.read(f::PRIMARY_CONTROLS))
    }

    /// The primary controls were `before`. Two of them come and go with every event that waits; the
    /// others say what further fields mean.
    fn compare(&mut self, before: Primary) {
        let changed = before.symmetric_difference(self.primary());
        if !changed.is_empty() {
            self.changes.cold |= Cold::WINDOWS;
        }
        if !changed.difference(WINDOWS).is_empty() {
            self.changes.cold |= Cold::CONTROLS | Cold::UNCHECKED;
        }
    }

    fn changed(&mut self, position: usize) {
        self.changes.hot.add(position);
    }

    /// Takes over what the host has written to its shadow VMCS.
    #[inline(always)]
    pub fn pull(&mut self, shadow: &impl Vmcs) {
        let before = self.primary();
        let mut taker = Taker::of(self.fields, shadow);
        unroll!(taker.written());
        self.changes.hot.0 |= taker.hot.0;
        self.compare(before);
    }

    /// Whether [`Vcpu::push`] has something to show.
    #[must_use]
    pub fn has_unseen(&self) -> bool {
        self.unseen != (Set(0), Set(0))
    }

    /// Shows the host's shadow VMCS what it does not show yet.
    pub fn push(&mut self, shadow: &mut impl Vmcs) {
        for (_, encoding, place) in self.unseen.0.each(&HOT_PLACES) {
            shadow.write_raw(encoding, self.fields.at(place));
        }
        for (_, encoding, place) in self.unseen.1.each(&INFORMATION_PLACES) {
            shadow.write_raw(encoding, self.fields.at(place));
        }
        self.unseen = (Set(0), Set(0));
    }

    /// Whether [`Vcpu::check`] is due. (The host's mode, which is part of what is checked, cannot change
    /// in VMX operation, where paging is always on.)
    #[must_use]
    pub fn is_unchecked(&self) -> bool {
        self.changes.cold.intersects(Cold::UNCHECKED | Cold::GUEST | Cold::WINDOWS)
            || self.changes.hot.0 & CR4.0 != 0
    }

    /// Checks what VMLAUNCH and VMRESUME check and the processor cannot.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn check(&mut self, context: &Context<'_>) -> Result<(), Refusal> {
        if self.changes.cold.contains(Cold::UNCHECKED) {
            check::controls(self.fields, context).map_err(Refusal::Instruction)?;
            check::host_state(self.fields, context).map_err(Refusal::Instruction)?;
            self.changes.cold.remove(Cold::UNCHECKED);
        } else if self.changes.cold.contains(Cold::WINDOWS) {
            check::windows(self.fields, context).map_err(Refusal::Instruction)?;
        }
        if self.changes.cold.contains(Cold::GUEST) || self.changes.hot.0 & CR4.0 != 0 {
            check::guest_state(self.fields, context).map_err(Refusal::GuestState)?;
        }
        Ok(())
    }

    /// Has everything written again: VMCS02 is a fresh one.
    pub const fn renew(&mut self) {
        self.changes = Changes::ALL;
        self.unseen = (Set::ALL, Set::ALL);
    }

    /// Forgets what has changed but for checks that are due: VMCS02 is made of another VMCS12.
    pub(crate) const fn settle(&mut self) {
        let due = self.changes.cold.intersection(Cold::UNCHECKED);
        self.changes = Changes { cold: due, ..Changes::NONE };
    }

    /// Whether the next [`Vcpu::merge`] looks at the host's registers.
    #[must_use]
    pub const fn inherits(&self) -> bool {
        self.inherits || self.changes.cold.contains(Cold::CONTROLS)
    }

    /// Brings VMCS02 up to date.
    #[inline(always)]
    pub fn merge(&mut self, env: &Environment<'_>, host: &HostRegisters, v02: &mut impl Vmcs) {
        let Changes { cold, mut hot } = core::mem::replace(&mut self.changes, Changes::NONE);
        let wanted = Wanted::of(self.fields);
        // What new controls make of the VM's state depends on what it was; and what the last exit has
        // saved must not be lost, should this entry fail.
        if self.stale && (cold.contains(Cold::CONTROLS) || self.replaces_saved) {
            self.fetch(v02);
        }
        if !cold.is_empty() {
            self.merge_cold(cold, &wanted, env, v02);
        }
        merge::switched(self.fields, &wanted, host, v02);
        if wanted.pin.contains(Pin::PREEMPTION_TIMER) {
            // VMCS02 has what the last exit saved; each entry of the host's begins anew.
            v02.write(f::PREEMPTION_TIMER, self.fields.read(f::PREEMPTION_TIMER));
        }
        if cold.contains(Cold::CONTROLS) {
            hot = Set::ALL;
        }
        if self.fields.read(f::ENTRY_INTERRUPTION) & VALID != 0 {
            // Events of the visor's own may have passed through VMCS02.
            hot.0 |= EVENT.0;
        }
        let mut writer = Writer { fields: self.fields, hot, v02 };
        unroll!(writer.usual());
        for (_, encoding, place) in Set(hot.0 & !USUAL.0).each(&HOT_PLACES) {
            merge::hot_field(encoding, self.fields.at(place), &wanted, v02);
        }
    }

    #[cold]
    fn merge_cold(
        &mut self,
        cold: Cold,
        wanted: &Wanted,
        env: &Environment<'_>,
        v02: &mut impl Vmcs,
    ) {
        if cold.contains(Cold::CONTROLS) {
            self.replaces_saved = merge::replaces_saved(wanted);
            self.inherits = merge::inherits(wanted);
            merge::controls(self.fields, env, v02);
        }
        if cold.intersects(Cold::CONTROLS | Cold::GUEST) {
            merge::guest(self.fields, v02);
            merge::kept(self.fields, wanted, v02);
        }
    }

    /// Takes over what an exit of the VM leaves for the host to see.
    #[inline(always)]
    pub fn capture(&mut self, v02: &impl Vmcs) {
        self.stale = true;
        let mut taker = Taker::of(self.fields, v02);
        unroll!(taker.told());
        let fields = &taker.fields;
        if !is_plain(fields.read(f::EXIT_REASON), fields.read(f::EXIT_QUALIFICATION)) {
            unroll!(taker.detail());
        }
        self.unseen.0.0 |= taker.hot.0;
        self.unseen.1.0 |= taker.information.0;
        let exit = Wanted::of(self.fields).exit;
        if exit.contains(ExitControls::SAVE_PREEMPTION_TIMER) {
            self.show_hot(f::PREEMPTION_TIMER.encoding(), v02.read(f::PREEMPTION_TIMER).into());
        }
        // An event that was injected is no longer pending (SDM vol. 3, 29.2).
        let injected = self.fields.read(f::ENTRY_INTERRUPTION) & !VALID;
        self.show_hot(f::ENTRY_INTERRUPTION.encoding(), injected.into());
        let entry = self.fields.read(f::ENTRY_CONTROLS);
        let switched = (entry ^ v02.read(f::ENTRY_CONTROLS)) & EntryControls::IA32E_GUEST.bits();
        if switched != 0 {
            // A VM of a 32-bit host may not be entered in IA-32e mode.
            self.changes.cold |= Cold::UNCHECKED;
            self.fields.write(f::ENTRY_CONTROLS, entry ^ switched);
        }
    }

    /// Takes over why an entry failed; nothing else changes then (SDM vol. 3, 28.8).
    pub fn fail(&mut self, reason: u32, qualification: u64) {
        self.tell(f::EXIT_REASON.encoding(), reason.into());
        self.tell(f::EXIT_QUALIFICATION.encoding(), qualification);
    }

    /// Sets an information field.
    pub fn tell(&mut self, encoding: u32, value: u64) {
        if self.fields.read_raw(encoding) == value {
            return;
        }
        self.fields.write_raw(encoding, value);
        if let Some(position) = position(encoding) {
            self.unseen.1.add(position);
        }
    }

    fn show(&mut self, position: usize, encoding: u32, value: u64) {
        if self.fields.read_raw(encoding) != value {
            self.fields.write_raw(encoding, value);
            self.unseen.0.add(position);
        }
    }

    fn show_hot(&mut self, encoding: u32, value: u64) {
        if let Some(position) = position(encoding) {
            self.show(position, encoding, value);
        }
    }
}
