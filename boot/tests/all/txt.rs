use std::cell::RefCell;
use std::collections::BTreeMap;

use boot::memory::Memory;
use boot::txt::{TxtError, check, check_secrets, part};
use ept::addr::Span;
use proptest::prelude::*;

use crate::fake::{Fake, quads, words};

const HEAP: u64 = 0x7ff2_0000;
const HEAP_BYTES: u64 = 0xe_0000;
const SHARED: u32 = 0x8d_e000;
/// Of the heap's parts, where they begin, and how many bytes each has.
const PARTS: [(usize, usize); 4] = [(0, 44), (44, 300), (344, 108), (452, 200)];

const STS: u64 = 0x000;
const ESTS: u64 = 0x008;
const ERRORCODE: u64 = 0x030;
const DIDVID: u64 = 0x110;
const SINIT_BASE: u64 = 0x270;
const SINIT_SIZE: u64 = 0x278;
const HEAP_BASE: u64 = 0x300;
const HEAP_SIZE: u64 = 0x308;

/// A heap as tboot and SINIT leave one.
pub(crate) fn heap() -> Vec<u8> {
    let mut heap = Vec::new();
    for ((at, len), version) in PARTS.into_iter().zip([6, 3, 7, 9]) {
        assert_eq!(at, heap.len());
        heap.extend(quads(&[u64::try_from(len).expect("a short part")]));
        heap.extend(words(&[version]));
        heap.resize(at + len, 0);
    }
    heap.resize(0x1000, 0);
    heap
}

/// A page that tboot shares.
pub(crate) fn shared(version: u32, flags: u32) -> Vec<u8> {
    let mut page = words(&[0x663c_8dff, 0x4b82_e8b3, 0xea19_aabf, 0x087a_054d, version]);
    page.resize(568, 0);
    page.extend(words(&[flags]));
    page.resize(4096, 0);
    page
}

/// A machine after a launch, with what a test changes on it.
struct Machine {
    registers: BTreeMap<u64, u64>,
    heap: Vec<u8>,
    page: Vec<u8>,
    shared: Option<u32>,
}

/// Memory of which nothing may be read but the heap, as far as its registers say, and tboot's page.
struct Watched<'a> {
    memory: Fake,
    machine: &'a Machine,
}

impl Memory for Watched<'_> {
    fn bytes(&self, span: Span) -> Option<&[u8]> {
        let heap = [HEAP_BASE, HEAP_SIZE].map(|at| self.machine.registers[&at]);
        let in_heap = Span::sized(heap[0], heap[1]).is_some_and(|heap| heap.covers(span));
        let page = self.machine.shared.map(u64::from);
        assert!(in_heap || page == Some(span.start()), "{span:?} is read");
        self.memory.bytes(span)
    }
}

impl Machine {
    fn launched() -> Self {
        let registers = [
            // What servers say under tboot: SENTER done, private space and localities 1 and 2 open.
            (STS, 0x1_8091),
            (ESTS, 0),
            (ERRORCODE, 0),
            (DIDVID, 0x1_b003_8086),
            (SINIT_BASE, 0x7ff0_0000),
            (SINIT_SIZE, 0x2_0000),
            (HEAP_BASE, HEAP),
            (HEAP_SIZE, HEAP_BYTES),
        ];
        let registers = registers.into_iter().collect();
        Self { registers, heap: heap(), page: shared(6, 0), shared: Some(SHARED) }
    }

    fn with(mut self, register: u64, value: u64) -> Self {
        let _ = self.registers.insert(register, value);
        self
    }

    fn heap(mut self, at: usize, bytes: &[u8]) -> Self {
        self.heap[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn page(mut self, page: Vec<u8>) -> Self {
        self.page = page;
        self
    }

    fn check(&self) -> Result<(), TxtError> {
        let mut memory = Fake::with(HEAP, self.heap.clone());
        memory.put(SHARED.into(), self.page.clone());
        let read = RefCell::new(Vec::new());
        let register = |at| {
            assert!(!read.borrow().contains(&at), "register {at:#x} is read twice");
            read.borrow_mut().push(at);
            self.registers[&at]
        };
        check(register, &Watched { memory, machine: self }, self.shared)
    }
}

#[test]
fn a_launch_is_recognized_with_tboots_page_and_without() {
    let machine = Machine::launched();
    assert_eq!(machine.check(), Ok(()));
    assert_eq!(Machine { shared: None, ..machine }.check(), Ok(()));
    // The first versions, in which parts are as short as can be.
    let mut heap = Vec::new();
    for (len, version) in [(36, 2), (12, 0), (92, 4), (152, 6)] {
        let at = heap.len();
        heap.extend(quads(&[len]));
        heap.extend(words(&[version]));
        heap.resize(at + usize::try_from(len).expect("a short part"), 0);
    }
    let len = u64::try_from(heap.len()).expect("a short heap");
    let old = Machine { heap, ..Machine::launched() }.with(HEAP_SIZE, len);
    assert_eq!(old.page(shared(3, 0)).check(), Ok(()));
}

#[test]
fn a_machine_without_a_launch_says_so() {
    for silence in [0, u64::MAX] {
        let machine = Machine::launched();
        let registers = machine.registers.keys().map(|at| (*at, silence)).collect();
        assert_eq!(Machine { registers, ..machine }.check(), Err(TxtError::Absent));
    }
    // None was done; one was, and was ended.
    for status in [0x1_8090, 0x1_8093, 0x82] {
        let found = Machine::launched().with(STS, status).check();
        assert_eq!(found, Err(TxtError::NotLaunched));
    }
    assert!(TxtError::Absent.is_usual() && TxtError::NotLaunched.is_usual());
}

#[test]
fn a_module_that_says_that_it_met_no_error_speaks_for_a_launch() {
    for code in [0xc000_0001, 0xc000_0009, 0x4000_0c41] {
        assert_eq!(Machine::launched().with(ERRORCODE, code).check(), Ok(()), "{code:#x}");
    }
    for code in [0x8000_0001, 0xc000_0011, 0xc000_0401, 0xc000_8001, 0xc001_0001, 0xe000_0001] {
        let found = Machine::launched().with(ERRORCODE, code).check();
        assert_eq!(found, Err(TxtError::Failed { errors: 0, code }), "{code:#x}");
    }
}

#[test]
fn every_register_can_speak_against_a_launch() {
    let code = 0xc000_0c41;
    for (register, value, expected) in [
        (DIDVID, 0x1_b003_1022, TxtError::Absent),
        (STS, 0x1_8011, TxtError::Closed),
        (ESTS, 0x01, TxtError::Failed { errors: 1, code: 0 }),
        (ESTS, 0x40, TxtError::Failed { errors: 0x40, code: 0 }),
        (ERRORCODE, code, TxtError::Failed { errors: 0, code }),
        (HEAP_BASE, u64::MAX, TxtError::Regions),
        (HEAP_SIZE, 0, TxtError::Regions),
        (HEAP_SIZE, (16 << 20) + 1, TxtError::Regions),
        (HEAP_SIZE, u64::MAX, TxtError::Regions),
        (SINIT_SIZE, 0, TxtError::Regions),
        (SINIT_BASE, u64::MAX, TxtError::Regions),
        (SINIT_BASE, HEAP + 0x1000, TxtError::Regions),
        // There is memory, and nothing in it; there is none.
        (HEAP_BASE, HEAP + 0x800, TxtError::Heap("BiosData")),
        (HEAP_BASE, HEAP - 0x1000, TxtError::Heap("BiosData")),
        (HEAP_BASE, 1 << 40, TxtError::Heap("BiosData")),
    ] {
        let found = Machine::launched().with(SINIT_BASE, 0x7000_0000).with(register, value);
        assert_eq!(found.check(), Err(expected), "{register:#x} = {value:#x}");
        assert!(expected == TxtError::Absent || !expected.is_usual());
    }
}

#[test]
fn every_part_of_the_heap_has_its_length_and_version_checked() {
    let names = ["BiosData", "OsMleData", "OsSinitData", "SinitMleData"];
    let least: [u64; 4] = [36, 12, 92, 152];
    for (((at, _), name), least) in PARTS.into_iter().zip(names).zip(least) {
        let left = HEAP_BYTES - u64::try_from(at).expect("a short heap");
        for len in [0, 8, least - 1, left + 1, 1 << 63, u64::MAX, u64::MAX - HEAP] {
            let found = Machine::launched().heap(at, &len.to_le_bytes()).check();
            assert_eq!(found, Err(TxtError::Heap(name)), "{len} bytes");
        }
    }
    for (at, version, name) in
        [(8, 1, "BiosData"), (352, 3, "OsSinitData"), (460, 5, "SinitMleData")]
    {
        let found = Machine::launched().heap(at, &words(&[version])).check();
        assert_eq!(found, Err(TxtError::Heap(name)), "version {version}");
    }
    // The heap ends within a part, and within the head of one.
    for len in [651, 460] {
        let found = Machine::launched().with(HEAP_SIZE, len).check();
        assert_eq!(found, Err(TxtError::Heap("SinitMleData")));
    }
}

#[test]
fn tboots_page_must_be_one_and_its_processors_startable() {
    let check = |page| Machine::launched().page(page).check();
    let mut other = shared(6, 0);
    other[15] ^= 1;
    assert_eq!(check(other), Err(TxtError::Shared));
    assert_eq!(check(shared(6, 0)[..583].to_vec()), Err(TxtError::Shared));
    assert_eq!(check(shared(6, 1)), Err(TxtError::Waiting));
    assert_eq!(check(shared(7, 3)), Err(TxtError::Waiting));
    // The flags are newer than that.
    assert_eq!(check(shared(5, 1)), Ok(()));
    for elsewhere in [0, SHARED + 8, u32::MAX] {
        let machine = Machine { shared: Some(elsewhere), ..Machine::launched() };
        assert_eq!(machine.check(), Err(TxtError::Shared));
    }
}

#[test]
fn secrets_are_kept_if_the_chipset_says_so() {
    assert_eq!(check_secrets(0b10), Ok(()));
    assert_eq!(check_secrets(0b1101), Err(TxtError::Forgetful));
    assert_eq!(check_secrets(u64::MAX), Ok(()));
}

#[test]
fn only_the_last_word_is_tboots() {
    let page = Some(0x8d_e000);
    assert_eq!(part(b"visor.elf log=info tboot=0x8de000"), (&b"visor.elf log=info"[..], page));
    assert_eq!(part(b" tboot=0x8de000"), (&b""[..], page));
    assert_eq!(part(b"log=info  tboot=0x8DE000"), (&b"log=info "[..], page));
    // What is not tboot's is left for the parser of the command line, which refuses it.
    for line in [
        "tboot=0x8de000",
        "tboot=0x8de000 log=info",
        "a tboot=8de000",
        "a tboot=0x",
        "a tboot=0x+8de000",
        "a tboot=0x100000000",
        "a tboot=0x8de000 ",
        "a\ttboot=0x8de000",
        "a xtboot=0x8de000",
        "a tboot=0x8de00g",
        "",
    ] {
        assert_eq!(part(line.as_bytes()), (line.as_bytes(), None), "{line}");
    }
    let (twice, _) = part(b"a tboot=0x1 tboot=0x2");
    assert_eq!(twice, b"a tboot=0x1");
    assert!(boot::cmdline::parse(b"tboot=0x1").is_err());
}

#[test]
fn what_speaks_against_a_launch_is_one_line_of_text() {
    let errors = [
        TxtError::Absent,
        TxtError::NotLaunched,
        TxtError::Closed,
        TxtError::Failed { errors: u64::MAX, code: u64::MAX },
        TxtError::Regions,
        TxtError::Heap("SinitMleData"),
        TxtError::Shared,
        TxtError::Waiting,
        TxtError::Forgetful,
        TxtError::Unmeasured,
    ];
    let lines: std::collections::BTreeSet<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), errors.len());
    assert!(lines.iter().all(|line| line.len() < 100 && !line.contains('\n')));
}

proptest! {
    #[test]
    fn no_machine_makes_the_checks_panic(
        registers in prop::array::uniform8(any::<u64>()),
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        place in 0_usize..600,
        address in any::<u32>(),
    ) {
        let mut machine = Machine::launched();
        for (at, mask) in machine.registers.clone().keys().zip(registers) {
            // Half of the registers stay as they should be.
            if mask & 1 == 0 {
                let _ = machine.registers.insert(*at, mask >> (mask & 62));
            }
        }
        let machine = machine.heap(place, &bytes);
        let _ = Machine { shared: Some(address), ..machine }.check();
    }

    #[test]
    fn what_is_parted_is_whole(line in prop::collection::vec(any::<u8>(), 0..60)) {
        let (rest, address) = part(&line);
        prop_assert!(line.starts_with(rest));
        prop_assert_eq!(address.is_none(), rest.len() == line.len());
    }
}
