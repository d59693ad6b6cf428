//! A VM's guest-physical memory, as its ticket has it. Everything else is device memory.

use ept::addr::GuestFrame;
use ept::list::{Full, List};
use ticket::{Class, MAX_RANGES, Range};

/// A virtio device whose data the visor carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Its number in the VM, below [`ticket::MAX_TRANSPORTS`].
    pub number: usize,
    /// What kind of registers it has.
    pub class: Class,
    /// Where they begin.
    pub registers: u64,
    /// Where in them.
    pub offset: u64,
    /// Its part of the memory that the VM shares with the host.
    pub shared: Range,
}

/// The ranges of a ticket.
#[derive(Clone, Debug)]
pub struct Map(List<Range, MAX_RANGES>);

impl Map {
    /// No memory at all.
    #[must_use]
    pub const fn new() -> Self {
        Self(List::new(Range { start: 0, length: 0, class: Class::Private }))
    }

    /// Adds `range`, of whole pages, which lies above all others.
    ///
    /// # Errors
    /// [`Full`] if there are as many as a ticket may have, or if it does not lie above.
    pub fn add(&mut self, range: Range) -> Result<(), Full> {
        match self.0.last() {
            Some(last) if last.end() > range.start => Err(Full),
            Some(_) | None => self.0.push(range),
        }
    }

    /// Whose memory `page` is; `None`: a device's.
    #[must_use]
    pub fn class(&self, page: GuestFrame) -> Option<Class> {
        self.range(page).map(|range| range.class)
    }

    /// All memory of that class around it.
    #[must_use]
    pub fn range(&self, page: GuestFrame) -> Option<Range> {
        let range = self.0.iter().find(|range| range.contains(page.base()))?;
        range.class.registers().is_none().then_some(*range)
    }

    /// The virtio device that has its registers at `address`.
    #[must_use]
    pub fn transport(&self, address: u64) -> Option<Transport> {
        let Range { start, class, .. } = *self.0.iter().find(|range| range.contains(address))?;
        let (each, at) = (class.registers()?, address - start);
        let number = usize::try_from(at / each).ok()?;
        let shared = *self.0.iter().filter(|range| range.class == Class::Shared).nth(number)?;
        let offset = at % each;
        Some(Transport { number, class, registers: address - offset, offset, shared })
    }

    /// The page in which the host is shown accesses to devices: the first one of a window, below 4 GiB so
    /// that code without long mode reaches it.
    #[must_use]
    pub fn window(&self) -> Option<GuestFrame> {
        const END: u64 = 1 << 32;
        let first = self.0.iter().find(|range| range.class == Class::Window)?;
        GuestFrame::at(first.start).filter(|page| page.base() < END)
    }
}

impl Default for Map {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64, class: Class) -> Range {
        Range { start: start * 4096, length: pages * 4096, class }
    }

    #[test]
    fn a_page_is_of_the_class_of_its_range_and_else_a_devices() {
        let mut map = Map::new();
        map.add(range(1, 2, Class::Private)).unwrap();
        map.add(range(3, 1, Class::Shared)).unwrap();
        map.add(range(8, 1, Class::Window)).unwrap();
        let classes = [0, 1, 2, 3, 4, 7, 8, 9].map(|n| map.class(GuestFrame::containing(n * 4096)));
        let (private, shared) = (Some(Class::Private), Some(Class::Shared));
        let expected = [None, private, private, shared, None, None, Some(Class::Window), None];
        assert_eq!(classes, expected);
    }

    #[test]
    fn a_virtio_device_has_512_bytes_of_registers_and_the_shared_range_of_its_number() {
        let mut map = Map::new();
        map.add(range(2, 1, Class::Shared)).unwrap();
        map.add(range(3, 1, Class::Window)).unwrap();
        map.add(range(4, 2, Class::Shared)).unwrap();
        map.add(range(8, 1, Class::Virtio)).unwrap();
        assert_eq!(map.class(GuestFrame::containing(0x8000)), None);
        let shared = range(4, 2, Class::Shared);
        let found =
            Transport { number: 1, class: Class::Virtio, registers: 0x8200, offset: 0x1fc, shared };
        assert_eq!(map.transport(0x83fc), Some(found));
        let found = [0x7fff, 0x8000, 0x81ff, 0x8200, 0x8400, 0x8fff, 0x9000]
            .map(|at| map.transport(at).map(|transport| transport.number));
        assert_eq!(found, [None, Some(0), Some(0), Some(1), None, None, None]);
    }

    #[test]
    fn a_virtio_device_on_pci_has_16_kib_of_registers() {
        let mut map = Map::new();
        map.add(range(2, 1, Class::Shared)).unwrap();
        map.add(range(4, 2, Class::Shared)).unwrap();
        map.add(range(8, 32, Class::VirtioPci)).unwrap();
        for page in [8, 39] {
            assert_eq!(map.class(GuestFrame::containing(page * 4096)), None);
        }
        let shared = range(4, 2, Class::Shared);
        let found = Transport {
            number: 1,
            class: Class::VirtioPci,
            registers: 0xc000,
            offset: 0x3ffc,
            shared,
        };
        assert_eq!(map.transport(0xfffc), Some(found));
        let found = [0x7fff, 0x8000, 0xbfff, 0xc000, 0x1_0000, 0x2_7fff, 0x2_8000]
            .map(|at| map.transport(at).map(|transport| transport.number));
        assert_eq!(found, [None, Some(0), Some(0), Some(1), None, None, None]);
    }

    #[test]
    fn the_window_page_is_the_first_one_of_a_window_below_4_gib() {
        let mut map = Map::new();
        map.add(range(1, 2, Class::Private)).unwrap();
        assert_eq!(map.window(), None);
        map.add(range(8, 3, Class::Window)).unwrap();
        map.add(range(11, 1, Class::Window)).unwrap();
        assert_eq!(map.window(), GuestFrame::at(8 * 4096));
        for (number, window) in [(0xf_ffff, GuestFrame::at(0xffff_f000)), (0x10_0000, None)] {
            let mut map = Map::new();
            map.add(range(number, 1, Class::Window)).unwrap();
            assert_eq!(map.window(), window);
        }
    }

    #[test]
    fn ranges_that_overlap_or_are_too_many_are_refused() {
        let mut map = Map::new();
        for number in 0..16 {
            map.add(range(2 * number, 1, Class::Private)).unwrap();
        }
        assert_eq!(map.add(range(100, 1, Class::Private)), Err(Full));
        let mut map = Map::new();
        map.add(range(1, 2, Class::Private)).unwrap();
        assert_eq!(map.add(range(2, 2, Class::Shared)), Err(Full));
        assert_eq!(map.add(range(0, 1, Class::Shared)), Err(Full));
    }
}
