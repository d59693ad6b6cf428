//! Attacks by DMA on pages that change their owner, while disks are busy. The visor without VMX
//! (`visor/without-vmx`) keeps a processor that gives a page to a VM, and back, when it is asked.

use crate::edu::{self, Edu, Page};
use crate::{devmem, unit, virtio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often a page changes its owner twice.
const ROUNDS: u64 = 5;

/// Words of the visor's last page: `visor/without-vmx/processor.rs` says which.
const NUMBER: usize = 0;
const IS_TAKE: usize = 1;
const FRAME: usize = 2;
const IS_DONE: usize = 3;
const ANSWERED: usize = 4;

struct Server {
    page: *mut u64,
    number: u64,
}

impl Server {
    fn find() -> Result<Self, String> {
        let (_, end) = edu::reservation().ok_or("no reservation in /proc/iomem")?;
        Ok(Self { page: devmem::map_page(end - 1)?, number: 0 })
    }

    fn ask(&mut self, is_take: u64, frame: u64) -> Result<(), String> {
        self.number += 1;
        for (index, value) in [(IS_TAKE, is_take), (FRAME, frame), (NUMBER, self.number)] {
            // SAFETY: words of the page that is mapped.
            unsafe { self.page.add(index).write_volatile(value) };
        }
        // SAFETY: as above.
        let read = |index| unsafe { self.page.add(index).read_volatile() };
        let start = Instant::now();
        while read(ANSWERED) != self.number {
            if start.elapsed() > Duration::from_secs(10) {
                return Err("the visor does not answer".to_owned());
            }
            thread::yield_now();
        }
        if read(IS_DONE) == 1 { Ok(()) } else { Err("the visor refuses".to_owned()) }
    }

    /// Has a VM take the page.
    fn take(&mut self, page: &Page) -> Result<(), String> {
        self.ask(1, page.physical)
    }

    fn give_back(&mut self, page: &Page) -> Result<(), String> {
        self.ask(0, page.physical)
    }
}

/// Attacks a VM's page by each teaching device, while the disks are read and written.
pub(crate) fn change() -> Result<(), String> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut rounds = 0;
            while !is_over.load(Ordering::Relaxed) {
                virtio::disks()?;
                rounds += 1;
            }
            Ok::<u32, String>(rounds)
        });
        let result = attack();
        is_over.store(true, Ordering::Relaxed);
        let rounds = load.join().map_err(|_| "the load ended")??;
        println!("init: {rounds} rounds of load meanwhile");
        result
    })
}

/// Has a VM take a page, and again once the unit is off.
pub(crate) fn behind_an_open_unit() -> Result<(), String> {
    let (mut server, page) = (Server::find()?, Page::new()?);
    let mut pass = || server.take(&page).and_then(|()| server.give_back(&page));
    pass()?;
    println!("init: a page is taken and given back");
    unit::switch_off()?;
    let passed = pass();
    // Not before: the visor may see it at once, and what it says then is on the same line.
    let _ = unit::tell()?;
    passed?;
    println!("init: a page is taken from devices that go on to reach it");
    Ok(())
}

fn attack() -> Result<(), String> {
    let mut server = Server::find()?;
    let is_on = unit::tell()?;
    for device in edu::devices() {
        let mut edu = Edu::open(&device)?;
        let mut page = Page::new()?;
        let (mut reads, mut writes) = (0, 0);
        for round in 0..ROUNDS {
            let hosts = |index: usize| (round << 32 | index as u64).wrapping_mul(0x9e37_79b9);
            let vms = |index: usize| hosts(index) ^ 0x5a5a;
            move_to(&mut edu, &mut page, hosts)?;
            server.take(&page)?;
            page.fill(vms);
            edu.take(page.physical)?;
            reads += u32::from(edu.content()?.holds(vms));
            if is_on {
                unit::fault()?;
            }
            edu.fill(hosts)?;
            edu.store(page.physical)?;
            writes += u32::from(!page.holds(vms));
            if is_on {
                unit::fault()?;
            }
            server.give_back(&page)?;
        }
        move_to(&mut edu, &mut page, |index| index as u64)?;
        let name = &edu.name;
        println!("init: edu {name} read {reads} and wrote {writes} of {ROUNDS} pages of a VM's");
    }
    Ok(())
}

/// As long as the page is the host's, its device writes and reads it: also what the unit remembers is that.
fn move_to(edu: &mut Edu, page: &mut Page, value: impl Fn(usize) -> u64) -> Result<(), String> {
    page.fill(|_| 0);
    edu.fill(&value)?;
    edu.store(page.physical)?;
    edu.fill(|_| 0)?;
    edu.take(page.physical)?;
    if page.holds(&value) && edu.content()?.holds(&value) {
        Ok(())
    } else {
        Err(format!("edu {} does not reach the host's page", edu.name))
    }
}
