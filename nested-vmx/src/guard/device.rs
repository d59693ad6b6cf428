//! Device memory and string I/O of a protected VM.
//!
//! The visor decodes the VM's instruction, translates its operands, and does all of it but the accesses
//! to the device. Of those the host is told one after the other: of one to memory as an EPT violation at a
//! `mov` in the window page, which does the same access with registers that say nothing else; of an
//! element of INS or OUTS as an IN or OUT. Once an access has been answered the instruction is finished,
//! whatever happens meanwhile, as devices notice when an access is repeated.
//!
//! The VM's own breakpoints on device memory do not fire.

use core::mem;

use emulate::access::LONGEST;
use emulate::context::{self, Context};
use emulate::decode::Mode;
use emulate::instruction::instruction;
use emulate::operand::{Base, Segments};
use emulate::plan::{Plan, Step, Trouble};
use emulate::store;
use emulate::walk::{AddressSpace, Error};
use ept::shadow::Access;

use super::exits::{EPT_VIOLATION, FAULT, PORT};
use super::leave::{NMI, Page, VALID, inform};
use super::{Cause, DECOY_RIP, Delivery, Entered, File, Guarded, Registers, Secrets, Space};
use super::{Verdict, decoy, put, window};
use crate::check::Wanted;
use crate::control::{EntryControls, Secondary};
use crate::cr::{CR0_PE, CR0_PG};
use crate::disclosure::Exit;
use crate::exit::{self, Event};
use crate::field::{self as f, Segment, SegmentFields, Vmcs};
use crate::vcpu::Vcpu;
use crate::vmcs12::Vmcs12;

const RBX: u8 = 3;

/// What the host is told of: the kind, the address of device memory, the number of bytes, and what is
/// stored, or 0.
pub(super) type Told = (Exit, u64, u8, u64);

/// An instruction of the VM's that accesses a device; or a store that the visor makes in the VM's place.
pub(super) struct Job {
    /// `None`: the visor's store.
    plan: Option<Plan>,
    /// The access that is due; `None` once all are answered.
    told: Option<Told>,
    /// Whether that holds what the host sees stored, and not what the VM stores.
    is_ready: bool,
    /// It became due by the answer to the one before, and the host has not been told of it.
    is_new: bool,
    /// The window page, and the page of a device that the processor's word there leads to; `None` for INS
    /// and OUTS.
    window: Option<(u64, u64)>,
    /// That word, also once the processor has another.
    word: u8,
}

impl Job {
    /// Has the access that is due be what the host sees of it.
    fn prepare(&mut self, space: &impl Space) -> Result<(), (u64, Access)> {
        if let Some((Exit::DeviceWrite, address, bytes, value)) = &mut self.told
            && !self.is_ready
        {
            *value = space.stored((*address, *bytes), *value)?;
        }
        self.is_ready = true;
        if let (Some((window, page)), Some((_, address, ..))) = (&mut self.window, self.told)
            && *page != address & !0xfff
        {
            *window = space.open(address, self.word)?;
            *page = address & !0xfff;
        }
        Ok(())
    }
}

const fn told(step: Step) -> Option<Told> {
    Some(match step {
        Step::Load(piece) => (Exit::DeviceRead, piece.physical, piece.bytes, 0),
        Step::Store(piece, data) => (Exit::DeviceWrite, piece.physical, piece.bytes, data),
        Step::In(bytes) => (Exit::PortIn, 0, bytes, 0),
        Step::Out(bytes, data) => (Exit::PortOut, 0, bytes, data),
        Step::Finish => return None,
    })
}

/// Access rights: 32-bit code, or offsets.
const BIG: u32 = 1 << 14;

/// The VM's registers, RSP among them, for an instruction that the visor does.
struct Processor<'p, 'v> {
    file: &'p mut File,
    vcpu: &'p mut Vcpu<'v>,
}

impl store::Registers for Processor<'_, '_> {
    fn general(&self, number: u8) -> u64 {
        self.file.get(usize::from(number)).copied().unwrap_or(0)
    }

    fn set_general(&mut self, number: u8, value: u64) {
        if let Some(register) = self.file.get_mut(usize::from(number)) {
            *register = value;
        }
    }

    fn rflags(&self) -> u64 {
        self.vcpu.fields().read(f::GUEST_RFLAGS)
    }

    fn set_rflags(&mut self, value: u64) {
        put(self.vcpu, f::GUEST_RFLAGS.encoding(), value);
    }
}

const fn fields_of(segment: Base) -> SegmentFields {
    match segment {
        Base::Es => Segment::Es.fields(),
        Base::Cs => Segment::Cs.fields(),
        Base::Ss => Segment::Ss.fields(),
        Base::Ds => Segment::Ds.fields(),
        Base::Fs => Segment::Fs.fields(),
        Base::Gs => Segment::Gs.fields(),
    }
}

/// The VM as VMCS02 has it at an exit, of which an instruction looks at little.
struct Exited<'p, V>(&'p V);

impl<V: Vmcs> Segments for Exited<'_, V> {
    fn base(&self, segment: Base) -> u64 {
        self.0.read(fields_of(segment).base)
    }

    /// SDM vol. 3, 5.3 and 5.5; access rights as in table 26-2.
    fn permits(&self, segment: Base, offset: u64, bytes: u64, access: context::Access) -> bool {
        const CODE: u32 = 1 << 3;
        const DOWN: u32 = 1 << 2;
        const ALLOWS: u32 = 1 << 1;
        const UNUSABLE: u32 = 1 << 16;
        let (fields, place) = (self.0, fields_of(segment));
        let (limit, rights) = (u64::from(fields.read(place.limit)), fields.read(place.rights));
        // In real mode code can be written.
        let is_typed = fields.read(f::GUEST_CR0) & CR0_PE != 0;
        let is_code = rights & CODE != 0;
        let of_type = if access == context::Access::Write {
            !is_code && rights & ALLOWS != 0
        } else {
            !is_code || rights & ALLOWS != 0
        };
        let last = offset.saturating_add(bytes - 1);
        let within = if !is_code && rights & DOWN != 0 {
            offset > limit && last <= if rights & BIG != 0 { 0xffff_ffff } else { 0xffff }
        } else {
            last <= limit
        };
        within && rights & UNUSABLE == 0 && (of_type || !is_typed)
    }
}

impl<V: Vmcs> Exited<'_, V> {
    fn context(&self, space: &impl Space) -> Context {
        let fields = self.0;
        let [level, ..] = (fields.read(Segment::Ss.fields().rights) >> 5 & 3).to_le_bytes();
        Context {
            cr0: fields.read(f::GUEST_CR0),
            cr3: fields.read(f::GUEST_CR3),
            cr4: fields.read(f::GUEST_CR4),
            efer: fields.read(f::GUEST_EFER),
            rflags: fields.read(f::GUEST_RFLAGS),
            pkru: space.pkru(),
            cpl: level,
            physical_bits: space.physical_bits(),
            huge_pages: true,
            ..Context::default()
        }
    }

    /// What the instruction at RIP does.
    ///
    /// # Errors
    /// What becomes of the exit, if it cannot be done.
    fn plan(&self, registers: &Processor<'_, '_>, space: &impl Space) -> Result<Plan, Verdict> {
        let (context, mode) = (self.context(space), mode(self.0));
        let memory = AddressSpace { context: &context, memory: space };
        let rip = self.0.read(f::GUEST_RIP);
        let narrow = || self.base(Base::Cs).wrapping_add(rip) & 0xffff_ffff;
        let at = if mode == Mode::Bits64 { rip } else { narrow() };
        let failed = |error| failed(space, error);
        let mut bytes = [0; LONGEST];
        let code = memory.fetch(at, &mut bytes).map_err(failed)?;
        let Some(instruction) = instruction(code, mode, rip) else {
            if code.len() < LONGEST {
                // It may go on where nothing can be fetched from at the moment.
                let next = at.wrapping_add(u64::try_from(code.len()).unwrap_or(0));
                memory.read(next, &mut [0], context::Access::Fetch).map_err(failed)?;
            }
            return Err(Verdict::Stop(Cause::Instruction));
        };
        let is_device = |address| space.is_device(address);
        let plan = Plan::new(&instruction, &memory, registers, self, is_device);
        plan.map_err(|trouble| match trouble {
            Trouble::Memory(error) => failed(error),
            Trouble::Segment(Base::Ss) => Verdict::Raise(Event::StackFault),
            Trouble::Segment(_) => Verdict::Raise(FAULT),
            // Code or tables have changed meanwhile.
            Trouble::Ordinary => Verdict::Stay,
            // Processors may exit before they look at the count.
            Trouble::Nothing => Verdict::Step,
            Trouble::Unsupported => Verdict::Stop(Cause::Instruction),
        })
    }
}

impl Guarded<'_> {
    /// After [`Verdict::Fault`], for an `address` that is a device's: finds out what the VM does there,
    /// and tells the host of its first access. The page at guest-physical address `window` holds what
    /// [`window::word`] says, and at [`Guarded::window_word`] an entry for the page at `address`.
    pub fn device(
        &mut self,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        v02: &impl Vmcs,
        (space, address, window): (&impl Space, u64, u64),
    ) -> Verdict {
        /// By a linear address, and not in the walk that translates it.
        const DATA: u64 = 0b11 << 7;
        const FETCH: u64 = 1 << 2;
        let qualification = v02.read(f::EXIT_QUALIFICATION);
        // A host without unrestricted guests runs code without paging on tables of its own.
        let secondary = Wanted::of(shown.fields()).secondary;
        if v02.read(f::EXIT_REASON) & 0xffff != EPT_VIOLATION
            || qualification & (DATA | FETCH) != DATA
            || v02.read(f::IDT_VECTORING) & VALID != 0
            || !secondary.contains(Secondary::UNRESTRICTED_GUEST)
        {
            return Verdict::Stop(Cause::Device(address));
        }
        self.begin(shown, registers, v02, (space, Some((window, address & !0xfff))))
    }

    /// After [`Verdict::StringPort`]: tells the host of the first element that the VM transfers.
    pub fn string_port(
        &mut self,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        v02: &impl Vmcs,
        space: &impl Space,
    ) -> Verdict {
        self.begin(shown, registers, v02, (space, None))
    }

    fn begin(
        &mut self,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        v02: &impl Vmcs,
        (space, window): (&impl Space, Option<(u64, u64)>),
    ) -> Verdict {
        self.take_over((Exit::DeviceRead, registers), v02);
        // What the host is told of an access needs these, at later entries too; the rest stays stale.
        self.effective.fetch_some(&[f::GUEST_EFER.encoding(), f::GUEST_ACTIVITY.encoding()], v02);
        let [_, _, _, _, rsp, ..] = &mut self.secrets.gprs;
        *rsp = v02.read(f::GUEST_RSP);
        let processor = Processor { file: &mut self.secrets.gprs, vcpu: &mut self.effective };
        let mut plan = match Exited(v02).plan(&processor, space) {
            Ok(plan) => plan,
            // Only I/O instructions exit with their length.
            Err(Verdict::Step) if window.is_some() => return Verdict::Stay,
            Err(verdict) => return verdict,
        };
        let told = told(plan.next(None, &processor));
        // Direction and size, as the processor has checked them.
        let port = window.is_none().then_some(v02.read(f::EXIT_QUALIFICATION) & 15);
        let found = match told {
            Some((Exit::PortIn, _, bytes, _)) => Some(8 | (u64::from(bytes) - 1)),
            Some((Exit::PortOut, _, bytes, _)) => Some(u64::from(bytes) - 1),
            _ => None,
        };
        if found != port {
            // The code has changed meanwhile.
            return Verdict::Stay;
        }
        let word = self.window_word();
        let plan = Some(plan);
        let mut job = Job { plan, told, is_ready: false, is_new: false, window, word };
        if let Err((address, access)) = job.prepare(space) {
            // The VM begins anew when it has the page.
            return match space.is_device(address) {
                true => Verdict::Stop(Cause::Device(address)),
                false => Verdict::Fault { address, access },
            };
        }
        self.secrets.job = Some(job);
        self.tell_timer(shown);
        self.show_access(shown, registers);
        self.sends().map_or(Verdict::Host, Verdict::Signal)
    }

    /// Which word of the window page this processor has for itself.
    #[must_use]
    pub fn window_word(&self) -> u8 {
        window::own(self.secrets.name)
    }

    /// The access to a device that is due.
    pub(super) fn access(&self) -> Option<Told> {
        self.secrets.job.as_ref().and_then(|job| job.told)
    }

    /// Tells the host of the access that is due.
    fn show_access(&mut self, shown: &mut Vcpu<'_>, registers: &mut impl Registers) {
        let Some(job) = &self.secrets.job else {
            return;
        };
        let Some((exit, address, bytes, _)) = job.told else {
            return;
        };
        let Some(row) = exit.row() else {
            return;
        };
        let effective = self.effective.fields();
        decoy::uncover(shown, effective, effective);
        self.reveal(row, registers);
        let (reason, qualification, told) = match job.window {
            None => {
                let length = effective.read(f::EXIT_INSTRUCTION_LENGTH);
                (PORT, self.qualification(row), (DECOY_RIP, length))
            }
            Some((window, _)) => {
                let stores = exit == Exit::DeviceWrite;
                let access = if stores { Access::WRITE } else { Access::READ };
                let page = Page { address, access, rights: Access::NONE };
                let (slot, length) = window::instruction(mode(effective), access, bytes);
                let own = u64::from(job.word) << if is_long(effective) { 12 } else { 13 };
                let is_paging = effective.read(f::GUEST_CR0) & CR0_PG != 0;
                let (base, linear) =
                    if is_paging { (0, own | address & 0xfff) } else { (window, address) };
                decoy::flatten(shown);
                put(shown, f::GUEST_CR3.encoding(), window);
                shown.tell(f::GUEST_LINEAR_ADDRESS.encoding(), linear);
                registers.set(RBX, linear);
                (EPT_VIOLATION, page.qualification(), (base + slot, length))
            }
        };
        inform(shown, (reason, qualification), (0, 0), (told.1, address));
        put(shown, f::GUEST_RIP.encoding(), told.0);
        if !job.plan.as_ref().is_some_and(Plan::is_single) {
            // An interrupt would have to wait. The host keeps it if it believes that it is blocked.
            put(shown, f::GUEST_RFLAGS.encoding(), decoy::FIXED);
        }
        self.secrets.pending = Some(exit);
        self.secrets.told = told;
    }

    /// Takes the host's answer to the access that it was told of, if it completes it: RAX. An instruction
    /// of which no access was answered is begun anew.
    pub(super) fn answer_access(&mut self, shown: &mut Vcpu<'_>, answer: Option<u64>) {
        let Secrets { job, gprs, .. } = &mut *self.secrets;
        let Some(job) = job else {
            return;
        };
        let Some(plan) = &mut job.plan else {
            if answer.is_some() {
                self.end(shown);
            }
            return;
        };
        if answer.is_some() {
            let processor = Processor { file: gprs, vcpu: &mut self.effective };
            job.told = told(plan.next(answer, &processor));
            (job.is_ready, job.is_new) = (false, true);
        } else if !plan.is_begun() {
            self.end(shown);
        }
    }

    /// The VM's instruction is done, or given up.
    fn end(&mut self, shown: &mut Vcpu<'_>) {
        shown.tell(f::GUEST_LINEAR_ADDRESS.encoding(), 0);
        self.secrets.job = None;
    }

    /// Goes on with an entry of which the answer was taken; also after [`Entered::Page`], when the VM has the
    /// page.
    ///
    /// # Errors
    /// Why the VM must stop.
    pub fn resume(
        &mut self,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        space: &impl Space,
    ) -> Result<Entered, Cause> {
        let Secrets { job, gprs, .. } = &mut *self.secrets;
        let is_shown = job.as_ref().is_some_and(|job| job.told.is_some());
        let ready = match job {
            Some(job) if is_shown => job.prepare(space),
            Some(_) | None => space.deliver(),
        };
        match ready {
            Err((address, _)) if space.is_device(address) => return Err(Cause::Device(address)),
            Err((address, access)) => return Ok(Entered::Page { address, access }),
            Ok(()) => {}
        }
        if is_shown {
            let is_new = job.as_mut().is_some_and(|job| mem::take(&mut job.is_new));
            self.keep_nmi(shown.fields());
            self.show_access(shown, registers);
            // What the host is told of once more the VM sends only once.
            let command = self.sends().filter(|_| is_new);
            return Ok(command.map_or(Entered::Show, Entered::Signal));
        }
        let Some(Job { plan: Some(plan), .. }) = job else {
            return self.kick(None, shown, registers, space);
        };
        let mut processor = Processor { file: gprs, vcpu: &mut self.effective };
        match plan.finish(space, &mut processor) {
            Ok(length) => {
                let [_, _, _, _, rsp, ..] = *gprs;
                self.put(f::GUEST_RSP.encoding(), rsp);
                self.end(shown);
                let raised = self.step(length);
                self.run(raised, shown, registers);
                Ok(Entered::Run)
            }
            Err(Error::Unreachable(address) | Error::Contended(address)) => {
                Ok(Entered::Page { address, access: Access::WRITE })
            }
            // The places are known.
            Err(Error::Fault { .. }) => Err(Cause::Instruction),
        }
    }

    /// Runs the VM, which is at no instruction; but first tells the host of what a device is to learn. If that is
    /// only told beside the VM's own accesses it may be never: a driver that is interrupted by a message accesses
    /// nothing. What is `raised` comes again then.
    pub(super) fn kick(
        &mut self,
        raised: Option<Event>,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        space: &impl Space,
    ) -> Result<Entered, Cause> {
        /// None: there is no entry for it yet.
        const NO_PAGE: u64 = u64::MAX;
        let event = self.admitted(shown.fields().read(f::ENTRY_INTERRUPTION));
        // There is room for one event that waits.
        let is_full = event.is_some() && self.secrets.delivery.is_some();
        let Some((address, value)) = (if is_full { None } else { space.kick() }) else {
            self.run(raised, shown, registers);
            return Ok(Entered::Run);
        };
        self.wake(shown.fields());
        let event = event.map(|information| Delivery { information, code: 0, length: 0 });
        self.secrets.delivery = self.secrets.delivery.take().or(event);
        self.secrets.job = Some(Job {
            plan: None,
            told: Some((Exit::DeviceWrite, address, 4, value)),
            is_ready: true,
            is_new: false,
            window: Some((0, NO_PAGE)),
            word: self.window_word(),
        });
        self.resume(shown, registers, space)
    }

    /// After [`Entered::Page`], when the host's table has the page with no more than `rights`: it is
    /// told of the page as by [`Guarded::tell_page`], and of its own event as cut short.
    pub fn show_page(
        &mut self,
        shown: &mut Vcpu<'_>,
        registers: &mut impl Registers,
        (address, rights): (u64, Access),
    ) {
        const TYPE: u32 = 7 << 8;
        let page = Page { address, access: Access::WRITE, rights };
        let event = shown.fields().read(f::ENTRY_INTERRUPTION);
        let of_host = event & (VALID | TYPE) == VALID || exit::is_nmi(event);
        let event = if of_host { event } else { 0 };
        inform(shown, (EPT_VIOLATION, page.qualification()), (0, event), (0, address & !0xfff));
        let fields = self.effective.fields();
        decoy::uncover(shown, fields, fields);
        if let Some(row) = Exit::Page.row() {
            self.reveal(row, registers);
        }
    }

    /// Keeps an NMI of the host's until the instruction is done. Another that comes until then is the
    /// same; one that comes while an interrupt waits is lost.
    fn keep_nmi(&mut self, shown: &Vmcs12) {
        const BLOCKED: u32 = 1 << 3;
        let blocked = self.effective.fields().read(f::GUEST_INTERRUPTIBILITY) & BLOCKED != 0;
        let is_free = self.secrets.delivery.is_none();
        if exit::is_nmi(shown.read(f::ENTRY_INTERRUPTION)) && !blocked && is_free {
            self.secrets.delivery = Some(Delivery { information: NMI, code: 0, length: 0 });
        }
    }
}

/// Whether IA-32e mode is active. Every exit saves that, but not EFER.
fn is_long(fields: &impl Vmcs) -> bool {
    fields.read(f::ENTRY_CONTROLS) & EntryControls::IA32E_GUEST.bits() != 0
}

/// How the VM's code is taken.
fn mode(fields: &impl Vmcs) -> Mode {
    const LONG: u32 = 1 << 13;
    let code = fields.read(Segment::Cs.fields().rights);
    if is_long(fields) && code & LONG != 0 {
        Mode::Bits64
    } else if code & BIG != 0 {
        Mode::Bits32
    } else {
        Mode::Bits16
    }
}

/// What becomes of an instruction of which this memory was not reached.
fn failed(space: &impl Space, error: Error) -> Verdict {
    match error {
        Error::Fault { linear, code } => Verdict::PageFault { linear, code },
        Error::Contended(_) => Verdict::Stay,
        Error::Unreachable(address) if space.is_device(address) => {
            Verdict::Stop(Cause::Device(address))
        }
        Error::Unreachable(address) => {
            let absent = space.read(address & !7).is_none();
            Verdict::Fault { address, access: if absent { Access::READ } else { Access::WRITE } }
        }
    }
}
