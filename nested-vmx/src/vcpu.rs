//! One VMCS of the host in use: what goes into VMCS02 at an entry, what of an exit the host sees.

use crate::check::{self, Context, Invalid, Wanted};
use crate::control::{EntryControls, ExitControls, Primary};
use crate::field::{self as f, Vmcs};
use crate::merge::{self, Environment};
use crate::vmcs12::{Class, HOT, INFORMATION, SELDOM_WRITTEN, Vmcs12, class, places};

/// A set of fields of [`HOT`] or [`INFORMATION`], by position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set(u32);

const _: () = assert!(HOT.len() <= 32 && INFORMATION.len() <= 32, "a set has 32 bits");

impl Set {
    const ALL: Self = Self(u32::MAX);

    const fn add(&mut self, position: usize) {
        self.0 |= 1 << position;
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

static HOT_PLACES: [(u32, usize); HOT.len()] = places(HOT);
static INFORMATION_PLACES: [(u32, usize); INFORMATION.len()] = places(INFORMATION);

/// Hot fields that belong to the VM's state.
const STATE: Set =
    Set::of(&HOT, &[0x4816, 0x4818, 0x4824, 0x6800, 0x6802, 0x6804, 0x681c, 0x681e, 0x6820]);
/// Hot fields that the host writes without exits.
const WRITTEN: Set = Set::all_but(&HOT, &SELDOM_WRITTEN);
/// The fields that make up an event to inject.
const EVENT: Set = Set::of(&HOT, &[0x4016, 0x4018, 0x401a]);
const CR4: Set = Set::of(&HOT, &[0x6804]);
/// What an exit tells: not the error of an instruction, and not what only SMM uses.
const TOLD: Set = Set::all_but(&INFORMATION, &[0x4400, 0x6402, 0x6404, 0x6406, 0x6408]);

/// What has changed since VMCS02 was written last.
#[derive(Clone, Copy, Debug)]
struct Changes {
    controls: bool,
    /// Controls or the host's state: the checks are due.
    unchecked: bool,
    /// Fields of the VM's state that are not hot.
    guest: bool,
    /// Hot fields.
    hot: Set,
}

impl Changes {
    const ALL: Self = Self { controls: true, unchecked: true, guest: true, hot: Set::ALL };
    const NONE: Self = Self { controls: false, unchecked: false, guest: false, hot: Set(0) };
}

/// A VMCS of the host in use.
#[derive(Debug)]
pub struct Vcpu<'a> {
    /// The fields as the host knows them.
    fields: &'a mut Vmcs12,
    changes: Changes,
    /// The VM has run since its cold fields were read from VMCS02.
    stale: bool,
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

impl<'a> Vcpu<'a> {
    /// A VMCS that was just loaded; VMCS02 holds nothing of it yet.
    pub fn new(fields: &'a mut Vmcs12) -> Self {
        Self { fields, changes: Changes::ALL, stale: false, unseen: (Set::ALL, Set::ALL) }
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
        for encoding in merge::plain_guest_fields(&[Class::Guest]) {
            self.fields.write_raw(encoding, v02.read_raw(encoding));
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

    /// Does a VMWRITE that exited, of a field that exists and is not stale.
    pub fn write(&mut self, encoding: u32, value: u64) {
        let before = self.primary();
        self.fields.write_raw(encoding, value);
        match class(encoding) {
            Class::None | Class::Information => {}
            Class::Control => (self.changes.controls, self.changes.unchecked) = (true, true),
            Class::Host => {
                self.changes.unchecked = true;
                // The one field of the host's state that the processor loads from VMCS02.
                self.changes.controls |= encoding & !1 == f::HOST_PERF_GLOBAL.encoding();
            }
            Class::Guest => self.changes.guest = true,
            Class::HotControl | Class::HotGuest => {
                if let Some(position) = HOT.iter().position(|hot| *hot == encoding & !1) {
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
        self.changes.unchecked |= !changed.is_empty();
        self.changes.controls |= !changed.difference(WINDOWS).is_empty();
    }

    fn changed(&mut self, position: usize) {
        self.changes.hot.add(position);
    }

    /// Takes over what the host has written to its shadow VMCS.
    pub fn pull(&mut self, shadow: &impl Vmcs) {
        let before = self.primary();
        for (position, encoding, place) in WRITTEN.each(&HOT_PLACES) {
            let value = shadow.read_raw(encoding);
            if value != self.fields.at(place) {
                self.fields.set_at(place, value);
                self.changed(position);
            }
        }
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

    /// Checks what VMLAUNCH and VMRESUME check and the processor cannot.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn check(&mut self, context: &Context<'_>) -> Result<(), Refusal> {
        // The host's mode is part of what is checked, and changes without a VMWRITE.
        let long = Wanted::of(self.fields).exit.contains(ExitControls::HOST_64_BIT);
        if self.changes.unchecked || long != context.long_mode {
            check::controls(self.fields, context).map_err(Refusal::Instruction)?;
            check::host_state(self.fields, context).map_err(Refusal::Instruction)?;
            self.changes.unchecked = false;
        }
        if self.changes.guest || self.changes.hot.0 & CR4.0 != 0 {
            check::guest_state(self.fields, context).map_err(Refusal::GuestState)?;
        }
        Ok(())
    }

    /// Has everything written again: VMCS02 is a fresh one.
    pub const fn renew(&mut self) {
        self.changes = Changes::ALL;
        self.unseen = (Set::ALL, Set::ALL);
    }

    /// Brings VMCS02 up to date.
    pub fn merge(&mut self, env: &Environment<'_>, v02: &mut impl Vmcs) {
        let mut changes = core::mem::replace(&mut self.changes, Changes::NONE);
        let wanted = Wanted::of(self.fields);
        // What the new controls make of the VM's state depends on what it was; and what the last exit
        // has saved must not be lost, should this entry fail.
        if self.stale && (changes.controls || merge::replaces_saved(&wanted)) {
            self.fetch(v02);
        }
        changes.guest |= changes.controls;
        if changes.controls {
            merge::controls(self.fields, env, v02);
        }
        if changes.guest {
            merge::guest(self.fields, v02);
            merge::kept(self.fields, &wanted, v02);
        }
        merge::switched(self.fields, &wanted, env, v02);
        let mut hot = if changes.controls { Set::ALL } else { changes.hot };
        if self.fields.read(f::ENTRY_INTERRUPTION) & VALID != 0 {
            // Events of the visor's own may have passed through VMCS02.
            hot.0 |= EVENT.0;
        }
        for (_, encoding, place) in hot.each(&HOT_PLACES) {
            merge::hot_field(encoding, self.fields.at(place), &wanted, v02);
        }
    }

    /// Takes over what an exit of the VM leaves for the host to see.
    pub fn capture(&mut self, v02: &impl Vmcs) {
        self.stale = true;
        for (position, encoding, place) in STATE.each(&HOT_PLACES) {
            let value = v02.read_raw(encoding);
            if value != self.fields.at(place) {
                self.fields.set_at(place, value);
                self.unseen.0.add(position);
            }
        }
        let exit = Wanted::of(self.fields).exit;
        if exit.contains(ExitControls::SAVE_PREEMPTION_TIMER) {
            self.show_hot(f::PREEMPTION_TIMER.encoding(), v02.read(f::PREEMPTION_TIMER).into());
        }
        // An event that was injected is no longer pending (SDM vol. 3, 29.2).
        let injected = self.fields.read(f::ENTRY_INTERRUPTION) & !VALID;
        self.show_hot(f::ENTRY_INTERRUPTION.encoding(), injected.into());
        let long = v02.read(f::ENTRY_CONTROLS) & EntryControls::IA32E_GUEST.bits();
        let entry = self.fields.read(f::ENTRY_CONTROLS) & !EntryControls::IA32E_GUEST.bits();
        // A VM of a 32-bit host may not be entered in IA-32e mode.
        self.changes.unchecked |= self.fields.read(f::ENTRY_CONTROLS) != entry | long;
        self.fields.write(f::ENTRY_CONTROLS, entry | long);
        for (position, encoding, place) in TOLD.each(&INFORMATION_PLACES) {
            let value = v02.read_raw(encoding);
            if value != self.fields.at(place) {
                self.fields.set_at(place, value);
                self.unseen.1.add(position);
            }
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
        if let Some(position) = INFORMATION.iter().position(|field| *field == encoding) {
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
        if let Some(position) = HOT.iter().position(|field| *field == encoding) {
            self.show(position, encoding, value);
        }
    }
}
