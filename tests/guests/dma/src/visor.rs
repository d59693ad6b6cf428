//! What the visor has in the machine: memory that no device reaches, tables there, the frame table.

use crate::memory::{PAGE, read, write};
use bare::fault::Local;
use bare::info::Info;
use ept::addr::{Frame, GuestFrame, Span};
use ept::ept01::TableMem;
use ept::frames::{Event, FrameTable, View, Vm};

/// The visor's memory: tables first, then the frame table's words.
pub(crate) const START: u64 = 32 << 20;
pub(crate) const WORDS: u64 = 48 << 20;
pub(crate) const END: u64 = 64 << 20;

/// What the host sees in the place of a VM's page; the visor's last frame is the first view.
pub(crate) const VIEW: View = View(0);
pub(crate) const VIEWS: u64 = END - PAGE;

/// Physical memory as the crates that the visor shares read it.
pub(crate) struct Physical;

impl boot::memory::Memory for Physical {
    fn bytes(&self, span: Span) -> Option<&[u8]> {
        let length = usize::try_from(span.len()).ok()?;
        let is_mapped = span.start() != 0 && span.end() <= 1 << 32;
        // SAFETY: `bare` maps the first 4 GiB; what is read there, firmware's tables, stays as it is.
        is_mapped.then(|| unsafe { core::slice::from_raw_parts(span.start() as *const u8, length) })
    }
}

/// Frames for tables.
pub(crate) struct Tables {
    next: u64,
    /// Those taken back: each leads to the one before.
    free: Option<Frame>,
    /// How many are in use.
    pub(crate) used: u64,
}

impl Tables {
    pub(crate) const fn new() -> Self {
        Self { next: START, free: None, used: 0 }
    }
}

/// Where entry `index` of `table` is.
fn place(table: Frame, index: usize) -> u64 {
    assert!((START..WORDS).contains(&table.base()) && index < 512, "no table of the visor's");
    table.base() + 8 * index as u64
}

impl TableMem for Tables {
    fn allocate(&mut self) -> Option<Frame> {
        let frame = match self.free {
            Some(frame) => {
                self.free = Frame::at(read(place(frame, 0))).filter(|frame| frame.base() != 0);
                frame
            }
            None => {
                let frame = Frame::at(self.next).filter(|frame| frame.base() < WORDS)?;
                self.next += PAGE;
                frame
            }
        };
        for index in 0..512 {
            write(place(frame, index), 0_u64);
        }
        self.used += 1;
        Some(frame)
    }

    fn free(&mut self, frame: Frame) {
        write(place(frame, 0), self.free.map_or(0, Frame::base));
        self.free = Some(frame);
        self.used -= 1;
    }

    fn read(&self, table: Frame, index: usize) -> u64 {
        read(place(table, index))
    }

    fn write(&mut self, table: Frame, index: usize, raw: u64) {
        write(place(table, index), raw);
    }
}

impl iommu::Memory for Tables {
    fn write_back(&mut self, table: Frame, index: usize) {
        let at = place(table, index) as *const u8;
        // SAFETY: the line is mapped; flushing it changes nothing that a program sees.
        unsafe {
            core::arch::x86_64::_mm_clflush(at);
            core::arch::x86_64::_mm_mfence();
        }
    }
}

/// The frame table of the machine, with the visor's memory claimed.
pub(crate) fn frames(info: &Info) -> FrameTable<'static> {
    static RAM: Local<[Span; 16]> = Local::new([Span::EMPTY; 16]);
    // SAFETY: called once, by the boot processor.
    let ram = unsafe { &mut *RAM.get() };
    let whole = info.regions().iter().filter(|region| region.kind == 1).filter_map(|region| {
        let start = region.base.next_multiple_of(PAGE);
        Span::new(start, region.end() / PAGE * PAGE).filter(|span| !span.is_empty())
    });
    let count = ram.iter_mut().zip(whole).map(|(place, span)| *place = span).count();
    let ram = &ram[..count];
    let words = FrameTable::entries(ram);
    assert!(WORDS + 8 * words <= VIEWS, "too much RAM");
    // SAFETY: RAM of the visor's, which the image does not use otherwise.
    let storage = unsafe { core::slice::from_raw_parts_mut(WORDS as *mut u64, words as usize) };
    let own = Span::new(START, END).unwrap_or_default();
    let mut frames = match FrameTable::new(ram, storage) {
        Ok(frames) => frames,
        Err(why) => panic!("{why}"),
    };
    assert!(frames.apply(own, Event::Claim).is_ok(), "{own} is not all RAM");
    frames.set_views(Span::sized(VIEWS, PAGE).unwrap_or_default());
    frames
}

/// What makes a frame a VM's: its first, which has the frame where the machine has it.
pub(crate) fn take(frame: Frame) -> Event {
    match (Vm::new(0), GuestFrame::at(frame.base())) {
        (Some(vm), Some(page)) => Event::Take(vm, page),
        _ => panic!("no page for a VM"),
    }
}
