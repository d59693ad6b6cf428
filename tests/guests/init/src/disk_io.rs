//! What requests of a disk take: many of each kind, past the kernel's cache, by the machine's clock.
//!
//! The host counts meanwhile: `init: disk-io ready NAME` asks it to, then it sends a line, and `init: disk-io done NAME
//! COUNT TICKS` tells of so many requests. Each block has its number in it, so a disk that is wrong is an error.

use crate::system::checked;
use std::arch::x86_64::_rdtsc;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of a block, and of a long request.
const BLOCK: u64 = 4 << 10;
const LONG: u64 = 128 << 10;
/// Blocks that lie in memory at a time: enough for one long request, or eight short ones.
const BUFFER: u64 = LONG / BLOCK;
/// Random requests are in so many places of [`LONG`] bytes, each of which is this far from the one before: no two below one
/// leaf of the tree of a sealed disk, which has 512 KiB.
const PLACES: u64 = 256;
const STRIDE: u64 = 7 << 19;
/// Requests in sequence are below that.
const SEQUENCE: u64 = 16 << 20;

/// A block in memory, as direct I/O wants it.
#[repr(C, align(4096))]
#[derive(Clone)]
struct Block([u8; BLOCK as usize]);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}
use Direction::{Read, Write};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    Sequence,
    Random,
}
use Order::{Random, Sequence};

/// Requests of one kind: what they are called, how many bytes each has, in which order, how many at a time, and how many in
/// all.
struct Work(&'static str, Direction, u64, Order, u64, u64);

/// What writes to a sealed disk cost comes in turns of some hundred, so there are many.
const WORKS: [Work; 11] = [
    // What it takes to count.
    Work("nothing", Read, BLOCK, Sequence, 1, 0),
    Work("read-4k-seq", Read, BLOCK, Sequence, 1, 1024),
    Work("read-4k-rand", Read, BLOCK, Random, 1, 1024),
    Work("read-128k-seq", Read, LONG, Sequence, 1, 128),
    Work("read-128k-rand", Read, LONG, Random, 1, 256),
    Work("write-4k-seq", Write, BLOCK, Sequence, 1, 4096),
    Work("write-4k-rand", Write, BLOCK, Random, 1, 2048),
    Work("write-128k-seq", Write, LONG, Sequence, 1, 128),
    Work("write-128k-rand", Write, LONG, Random, 1, 256),
    Work("read-4k-rand-8", Read, BLOCK, Random, 8, 1024),
    Work("write-4k-rand-8", Write, BLOCK, Random, 8, 2048),
];

/// Does all of [`WORKS`] to the disk `name`, once everything that they touch has been written twice.
pub(crate) fn measure(name: &str) -> Result<(), String> {
    let mut options = OpenOptions::new();
    let disk = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(name);
    let disk = disk.map_err(|why| format!("{name}: {why}"))?;
    let mut queue = Queue::new(&disk)?;
    for _ in 0..2 {
        queue.perform(&Work("fill", Write, LONG, Sequence, 1, SEQUENCE / LONG))?;
        queue.perform(&Work("fill", Write, LONG, Random, 1, PLACES))?;
    }
    for work in &WORKS {
        println!("init: disk-io ready {}", work.0);
        let _ = std::io::stdin().read_line(&mut String::new()).map_err(|why| why.to_string())?;
        let began = clock();
        queue.perform(work)?;
        println!("init: disk-io done {} {} {}", work.0, work.5, clock() - began);
    }
    Ok(())
}

/// The machine's clock, which counts instructions in Bochs.
fn clock() -> u64 {
    // SAFETY: RDTSC is always allowed here and touches no memory.
    unsafe { _rdtsc() }
}

impl Work {
    /// Where on the disk the request of this number is. Random ones go through all places before they come to one of them
    /// again, and each time to another block of it.
    fn place(&self, number: u64) -> u64 {
        let Self(_, _, bytes, order, ..) = *self;
        match order {
            Sequence => number * bytes,
            Random => {
                let (round, place) = (number / PLACES, number * 151 % PLACES);
                place * STRIDE + (place + round * 11) * bytes % LONG
            }
        }
    }
}

/// A request as the kernel has it (`struct iocb`, Linux, `include/uapi/linux/aio_abi.h`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    data: u64,
    key: u32,
    how: u32,
    operation: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    unused: u64,
    flags: u32,
    event: u32,
}

/// That one is done (`struct io_event`, likewise).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Done {
    data: u64,
    request: u64,
    result: i64,
    more: i64,
}

/// Most requests at a time.
const DEPTH: usize = 8;

/// Requests of a disk that are under way, each with its part of the buffer.
struct Queue<'f> {
    disk: &'f File,
    context: u64,
    buffer: Vec<Block>,
}

impl<'f> Queue<'f> {
    fn new(disk: &'f File) -> Result<Self, String> {
        let mut context = 0_u64;
        // SAFETY: the kernel writes to one number.
        let _ = checked(unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut context) })?;
        let buffer = vec![Block([0x5a; BLOCK as usize]); BUFFER as usize];
        Ok(Self { disk, context, buffer })
    }

    /// Does `work`: as soon as some requests are done, as many are made at once.
    fn perform(&mut self, work: &Work) -> Result<(), String> {
        let Work(_, direction, bytes, _, depth, count) = *work;
        let (mut made, mut done) = (0, 0);
        let mut places = [0; DEPTH];
        let mut free: Vec<usize> = (0..depth as usize).collect();
        while done < count {
            let mut requests = Vec::with_capacity(DEPTH);
            while made < count {
                let Some(slot) = free.pop() else { break };
                places[slot] = work.place(made);
                made += 1;
                requests.push(self.request(direction, slot, (places[slot], bytes)));
            }
            self.submit(&requests)?;
            for event in self.wait()? {
                let slot = event.data as usize;
                if event.result != bytes as i64 {
                    return Err(format!("{} bytes at {:#x}", event.result, places[slot]));
                }
                if direction == Read {
                    self.check(slot, (places[slot], bytes))?;
                }
                free.push(slot);
                done += 1;
            }
        }
        Ok(())
    }

    /// The blocks of a slot whose requests have so many bytes.
    fn blocks(&mut self, slot: usize, bytes: u64) -> &mut [Block] {
        let count = (bytes / BLOCK) as usize;
        &mut self.buffer[slot * count..][..count]
    }

    /// A request for what is at a place of the disk, with what is to be written there.
    fn request(&mut self, direction: Direction, slot: usize, (at, bytes): (u64, u64)) -> Request {
        let file = self.disk.as_raw_fd() as u32;
        let blocks = self.blocks(slot, bytes);
        if direction == Write {
            for (number, block) in (at / BLOCK..).zip(blocks.iter_mut()) {
                block.0[..8].copy_from_slice(&number.to_le_bytes());
            }
        }
        Request {
            data: slot as u64,
            operation: u16::from(direction == Write),
            file,
            buffer: blocks.as_mut_ptr() as u64,
            bytes,
            offset: at as i64,
            ..Request::default()
        }
    }

    fn submit(&self, requests: &[Request]) -> Result<(), String> {
        let pointers: Vec<&Request> = requests.iter().collect();
        // SAFETY: the kernel copies the requests. What they point to is the buffer's, which stays where it is, and of
        // which a slot is not looked at before its request is done.
        let taken = unsafe {
            libc::syscall(libc::SYS_io_submit, self.context, pointers.len(), pointers.as_ptr())
        };
        let taken = checked(taken)?;
        if taken == requests.len() as i64 { Ok(()) } else { Err(format!("{taken} requests taken")) }
    }

    /// Waits for one request at least; those that are done.
    fn wait(&self) -> Result<Vec<Done>, String> {
        let mut events = [Done::default(); DEPTH];
        let none = std::ptr::null::<libc::timespec>();
        // SAFETY: the kernel writes to at most so many events.
        let count = unsafe {
            let events = events.as_mut_ptr();
            libc::syscall(libc::SYS_io_getevents, self.context, 1_i64, DEPTH, events, none)
        };
        Ok(events[..checked(count)? as usize].to_vec())
    }

    /// Each block that was read must have its number.
    fn check(&mut self, slot: usize, (at, bytes): (u64, u64)) -> Result<(), String> {
        for (number, block) in (at / BLOCK..).zip(self.blocks(slot, bytes)) {
            if block.0[..8] != number.to_le_bytes() {
                return Err(format!("block {number:#x} is another one"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_where_the_disk_was_filled() {
        let is_filled = |at: u64, bytes| {
            at + bytes <= SEQUENCE || at / STRIDE < PLACES && at % STRIDE + bytes <= LONG
        };
        for work in &WORKS {
            for number in 0..work.5 {
                let at = work.place(number);
                assert!(is_filled(at, work.2) && at % work.2 == 0, "{} {number}", work.0);
            }
        }
    }

    #[test]
    fn random_requests_are_in_all_places_before_they_come_back() {
        let work = Work("", Read, BLOCK, Random, 1, 2 * PLACES);
        let places = |numbers: std::ops::Range<u64>| {
            numbers.map(|number| work.place(number)).collect::<std::collections::BTreeSet<_>>()
        };
        let leaves: std::collections::BTreeSet<u64> =
            places(0..PLACES).iter().map(|at| at >> 19).collect();
        assert_eq!(leaves.len() as u64, PLACES);
        assert!(places(0..PLACES).is_disjoint(&places(PLACES..2 * PLACES)));
    }
}
