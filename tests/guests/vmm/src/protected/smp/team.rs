//! A VM whose processors run in threads of their own, but for the first.

use super::guest::{self, Command};
use super::launch::{self, Id, Visor};
use crate::kvm::{Counted, gives};
use crate::memory::{Memory, PAGE};
use crate::protected::guest::{
    ARGUMENT_PORT, BULK, BULK_PAGES, COMMAND_PORT, GADGET_PORT, RESET, RESET_AT, RESULT_PORT, SIZE,
};
use crate::protected::victim::{Kind, Ticket, Trouble, odd};
use crate::tests::alarm_in;
use crate::threads::{self, Runner};
use crate::vm::{Exit, Vcpu, Vm};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use ticket::Class;
use ticket::port::VmState;

/// Long enough for every command, in the emulated clock.
const PATIENCE: Duration = Duration::from_secs(8);
const BULK_SLOT: u32 = 1;

/// Something that is done to a processor before it runs; it has its id at KVM.
pub(super) type Prepare = fn(&Vcpu, u64) -> Result<(), String>;

/// How a VM is made.
#[derive(Clone, Copy)]
pub(super) struct Options {
    /// How many processors its ticket permits.
    pub(super) permitted: u32,
    /// The ids at KVM of processors besides the first.
    pub(super) others: &'static [u64],
    pub(super) prepare: Prepare,
    /// What CPUID is to say of the ids, if not what they are.
    pub(super) shown: Option<u32>,
    /// Whether the others run only when they are [let go](Team::release).
    pub(super) held: bool,
}

impl Options {
    /// A VM with `count` processors, with nothing odd about it.
    pub(super) fn of(count: u32) -> Self {
        const ALL: [u64; 7] = [1, 2, 3, 4, 5, 6, 7];
        let others = ALL.get(..count as usize - 1).unwrap_or(&[]);
        let others: &'static [u64] = Box::leak(others.to_vec().into_boxed_slice());
        Self { permitted: count, others, prepare: |_, _| Ok(()), shown: None, held: false }
    }
}

/// What the threads of the others share.
struct Shared {
    is_over: AtomicBool,
    is_held: AtomicBool,
    /// Where they are to run: changes at each move.
    place: AtomicUsize,
    runners: Mutex<Vec<Runner>>,
    /// How processors ended.
    ends: Mutex<Vec<Result<Exit, String>>>,
}

/// A VM and its processors.
pub(super) struct Team {
    first: Vcpu,
    others: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    vm: Arc<Vm>,
    memory: Arc<Memory>,
    kind: Kind,
    id: Id,
    argument: u32,
    ticket: Ticket,
}

impl Team {
    /// A VM whose first processor waits for its first command; the others have not begun.
    pub(super) fn started(kind: Kind, options: Options) -> Result<Self, Trouble> {
        let mut team = Self::new(kind, options)?;
        match team.next()? {
            Exit::In(COMMAND_PORT, 1) => {}
            other => return Err(odd(&other)),
        }
        if !options.held {
            team.release();
        }
        Ok(team)
    }

    /// Lets the others run.
    pub(super) fn release(&self) {
        self.shared.is_held.store(false, Ordering::Relaxed);
    }

    fn new(kind: Kind, options: Options) -> Result<Self, String> {
        static MADE: AtomicU64 = AtomicU64::new(1);
        let seed = MADE.fetch_add(1, Ordering::Relaxed);
        let image = guest::image(seed);
        let mut id = *b"team of vmm\0\0\0\0\0";
        id[12..].copy_from_slice(&seed.to_le_bytes()[..4]);
        let mut ticket = Ticket::none();
        if kind == Kind::Ticketed {
            ticket = Ticket::submit(id, &words(id, &image, options.permitted)?)?;
        }
        let memory = Memory::aligned(SIZE)?;
        for (at, bytes) in &image {
            let offset = if *at == RESET_AT { RESET } else { *at as usize };
            memory.write(offset, bytes);
        }
        let vm = Vm::new()?;
        vm.with_irqchip()?;
        vm.slot(0, 0, 0, memory.part(0..RESET))?;
        bulk(&vm, &memory)?;
        vm.slot(2, 0, RESET_AT, memory.part(RESET..RESET + PAGE))?;
        let first = processor(&vm, 0, &options)?;
        let ends = Mutex::new(Vec::new());
        let shared = Shared {
            is_over: AtomicBool::new(false),
            is_held: AtomicBool::new(true),
            place: AtomicUsize::new(0),
            runners: Mutex::new(Vec::new()),
            ends,
        };
        let (vm, memory, shared) = (Arc::new(vm), Arc::new(memory), Arc::new(shared));
        let mut team =
            Self { first, others: Vec::new(), shared, vm, memory, kind, id, argument: 0, ticket };
        threads::catch_kicks()?;
        for number in options.others {
            let vcpu = processor(&team.vm, *number, &options)?;
            let shared = Arc::clone(&team.shared);
            let (number, prepare) = (*number, options.prepare);
            team.others.push(thread::spawn(move || {
                let end = drive(vcpu, number, prepare, &shared);
                shared.ends.lock().map(|mut ends| ends.push(end)).unwrap_or_default();
            }));
        }
        Ok(team)
    }

    /// Number of its processors.
    pub(super) fn count(&self) -> u32 {
        self.others.len() as u32 + 1
    }

    pub(super) const fn label(&self) -> &'static str {
        match self.kind {
            Kind::Plain => "unprotected",
            Kind::Ticketed => "protected",
        }
    }

    /// What the visor says of the VM.
    pub(super) fn state(&self) -> Result<Option<(VmState, u32)>, String> {
        match self.kind {
            Kind::Plain => Ok(None),
            Kind::Ticketed => Visor::find()?.state(self.id).map(Some),
        }
    }

    /// How processors ended so far.
    pub(super) fn ends(&self) -> Vec<Result<Exit, String>> {
        self.shared.ends.lock().map(|ends| ends.clone()).unwrap_or_default()
    }

    /// Whether one came where no honest path leads to.
    pub(super) fn is_taken(&self) -> bool {
        self.ends().iter().any(|end| matches!(end, Ok(Exit::Out(GADGET_PORT, _))))
    }

    fn next(&mut self) -> Result<Exit, Trouble> {
        alarm_in(PATIENCE)?;
        let exit = self.first.run();
        alarm_in(Duration::ZERO)?;
        match exit? {
            Exit::Out(GADGET_PORT, _) => Err(Trouble::Taken),
            Exit::Shutdown => Err(Trouble::Shutdown),
            Exit::Interrupted => Err(Trouble::Hung),
            exit => Ok(exit),
        }
    }

    /// Tells the first processor what to do; the result.
    pub(super) fn command(&mut self, command: Command) -> Result<u32, Trouble> {
        self.first.answer(&[command as u8]);
        let mut result = None;
        for _ in 0..16 {
            match (self.next()?, result) {
                (Exit::Out(RESULT_PORT, bytes), None) => {
                    result = Some(<[u8; 4]>::try_from(bytes).map_or(0, u32::from_le_bytes));
                }
                (Exit::In(COMMAND_PORT, 1), Some(result)) => return Ok(result),
                (Exit::In(COMMAND_PORT, 1), None) => self.first.answer(&[command as u8]),
                (Exit::In(ARGUMENT_PORT, 4), None) => {
                    self.first.answer(&self.argument.to_le_bytes());
                }
                (other, _) => return Err(odd(&other)),
            }
        }
        Err(Trouble::Hung)
    }

    pub(super) fn command_with(&mut self, command: Command, argument: u32) -> Result<u32, Trouble> {
        self.argument = argument;
        self.command(command)
    }

    /// Has the guest start processor `id`, and waits until it works.
    pub(super) fn bring_up(&mut self, id: u32) -> Result<(), Trouble> {
        let before = self.command(Command::Count)?;
        let _ = self.command_with(Command::Start, guest::START | id)?;
        if self.reaches(Command::Count, before + 1)? { Ok(()) } else { Err(Trouble::Hung) }
    }

    /// Whether the result of `command` comes to be `wanted` in a while.
    pub(super) fn reaches(&mut self, command: Command, wanted: u32) -> Result<bool, Trouble> {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            if self.command(command)? >= wanted {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(false)
    }

    /// Moves all processors to others of the host's.
    pub(super) fn scatter(&self, round: usize) {
        let _ = launch::move_to(round % host_processors());
        let _ = self.shared.place.fetch_add(1, Ordering::Relaxed);
        self.kick();
    }

    fn kick(&self) {
        let runners = self.shared.runners.lock().map(|runners| runners.clone()).unwrap_or_default();
        runners.into_iter().for_each(Runner::kick);
    }

    /// Does `work` while another thread does `beside` again and again.
    pub(super) fn beside(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), Trouble>,
        beside: impl Fn(&Vm, &Memory) -> Result<(), String> + Send,
    ) -> Result<(), Trouble> {
        let is_over = AtomicBool::new(false);
        let (vm, memory) = (Arc::clone(&self.vm), Arc::clone(&self.memory));
        thread::scope(|scope| {
            let over = &is_over;
            let other = scope.spawn(move || {
                threads::leave_alarms()?;
                while !over.load(Ordering::Relaxed) {
                    beside(&vm, &memory)?;
                }
                Ok::<(), String>(())
            });
            let done = work(self);
            is_over.store(true, Ordering::Relaxed);
            other.join().unwrap_or_else(|_| Err("a thread ended early".to_owned()))?;
            done
        })
    }

    fn stop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        while self.others.iter().any(|other| !other.is_finished()) {
            self.kick();
            thread::sleep(Duration::from_millis(1));
        }
        for other in self.others.drain(..) {
            let _ = other.join();
        }
    }

    /// Ends the VM; the visor must forget it then.
    pub(super) fn end(mut self) -> Result<(), String> {
        self.stop();
        let Self { first, vm, memory, mut ticket, .. } = self;
        drop((first, vm, memory));
        ticket.withdraw()
    }
}

fn words(id: Id, image: &[(u64, Vec<u8>)], permitted: u32) -> Result<Vec<u8>, String> {
    let ranges = [
        (0, RESET as u64, Class::Private),
        (BULK as u64, (BULK_PAGES * PAGE) as u64, Class::Private),
        (RESET_AT, PAGE as u64, Class::Private),
    ];
    let pages: Vec<_> = image.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
    launch::ticket_for(permitted, id, &ranges, &pages)
}

fn bulk(vm: &Vm, memory: &Memory) -> Result<(), String> {
    vm.slot(BULK_SLOT, 0, BULK as u64, memory.part(BULK..BULK + BULK_PAGES * PAGE))
}

/// Has KVM forget how the guest's pages are mapped, and gives them anew.
pub(super) fn renew_slot(vm: &Vm, memory: &Memory) -> Result<(), String> {
    const ALL: std::ops::Range<usize> = BULK..BULK + BULK_PAGES * PAGE;
    vm.slot(BULK_SLOT, crate::vm::LOG_DIRTY, BULK as u64, memory.part(ALL))?;
    let _ = vm.dirty(BULK_SLOT, BULK_PAGES)?;
    bulk(vm, memory)
}

/// The first word of every page.
pub(super) fn read_all(memory: &Memory) -> u64 {
    (0..memory.size() / PAGE).fold(0, |sum, page| sum ^ memory.word(page * PAGE))
}

/// A processor whose CPUID has its id, or what it is to show.
fn processor(vm: &Vm, number: u64, options: &Options) -> Result<Vcpu, String> {
    let vcpu = vm.vcpu(number)?;
    let mut cpuid = vm.cpuid()?;
    cpuid.name(options.shown.unwrap_or(number as u32));
    vcpu.handle.give(gives::<Counted>(0x90), &*cpuid)?;
    Ok(vcpu)
}

/// Runs a processor until it ends, or all is over.
fn drive(mut vcpu: Vcpu, number: u64, prepare: Prepare, shared: &Shared) -> Result<Exit, String> {
    threads::leave_alarms()?;
    shared.runners.lock().map(|mut runners| runners.push(Runner::this())).unwrap_or_default();
    prepare(&vcpu, number)?;
    let mut place = 0;
    while shared.is_held.load(Ordering::Relaxed) && !shared.is_over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(1));
    }
    while !shared.is_over.load(Ordering::Relaxed) {
        let now = shared.place.load(Ordering::Relaxed);
        if now != place {
            place = now;
            launch::move_to((now + number as usize) % host_processors())?;
        }
        match vcpu.run()? {
            Exit::Interrupted => {}
            exit => return Ok(exit),
        }
    }
    Ok(Exit::Interrupted)
}

fn host_processors() -> usize {
    // SAFETY: takes a number, gives a number.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(count).unwrap_or(1).max(1)
}
