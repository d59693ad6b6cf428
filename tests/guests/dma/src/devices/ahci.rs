//! The first disk of an AHCI controller (AHCI 1.3.1), by one command slot.

use super::{Device, Ended, wait};
use crate::memory::{change, frames, read, write};
use crate::pci::{self, Function};

const SATA_AHCI: u32 = 0x01_0601;
const GLOBAL_CONTROL: u64 = 0x04;
const AHCI_ENABLE: u32 = 1 << 31;
const FIRST_PORT: u64 = 0x100;
const PORT_STEP: u64 = 0x80;

/// Registers of a port.
const COMMAND_LIST: u64 = 0x00;
const RECEIVED: u64 = 0x08;
const INTERRUPTS: u64 = 0x10;
const COMMAND: u64 = 0x18;
const TASK_FILE: u64 = 0x20;
const STATUS: u64 = 0x28;
const ERRORS: u64 = 0x30;
const ISSUE: u64 = 0x38;

const START: u32 = 1;
const RECEIVE: u32 = 1 << 4;
const RECEIVES: u32 = 1 << 14;
const RUNS: u32 = 1 << 15;
const HAS_ERROR: u32 = 1;
const IS_DISK: u32 = 0x0101;

const READ_DMA_EXT: u8 = 0x25;
const WRITE_DMA_EXT: u8 = 0x35;
/// Length of a command in words, and the bit that says that it writes to the disk.
const HEADER: u32 = 5;
const IS_WRITE: u32 = 1 << 6;
const SECTORS: u8 = 8;
const BYTES: u32 = 4096;

pub(crate) struct Ahci {
    function: Function,
    port: u64,
    list: u64,
    table: u64,
}

impl Ahci {
    /// The first disk of the first controller that has one.
    pub(crate) fn find() -> Option<Self> {
        pci::by_class(SATA_AHCI).find_map(|function| {
            function.start();
            let base = function.bar(5);
            write(base + GLOBAL_CONTROL, AHCI_ENABLE);
            let ports = (0..32).map(|index| base + FIRST_PORT + PORT_STEP * index);
            let is_disk = |port: &u64| {
                read::<u32>(port + STATUS) & 0xf == 3 && read::<u32>(port + 0x24) == IS_DISK
            };
            let port = ports.take(6).find(is_disk)?;
            let list = frames(3);
            let disk = Self { function, port, list, table: list + 2 * 4096 };
            disk.set_up();
            Some(disk)
        })
    }

    /// Takes the port from the firmware.
    fn set_up(&self) {
        change(self.port + COMMAND, START, 0);
        let _ = wait(|| read::<u32>(self.port + COMMAND) & RUNS == 0);
        change(self.port + COMMAND, RECEIVE, 0);
        let _ = wait(|| read::<u32>(self.port + COMMAND) & RECEIVES == 0);
        write(self.port + COMMAND_LIST, self.list as u32);
        write(self.port + COMMAND_LIST + 4, 0_u32);
        write(self.port + RECEIVED, self.list as u32 + 4096);
        write(self.port + RECEIVED + 4, 0_u32);
        write(self.port + ERRORS, u32::MAX);
        change(self.port + COMMAND, 0, RECEIVE);
        change(self.port + COMMAND, 0, START);
    }

    fn transfer(&mut self, command: u8, direction: u32, address: u64) -> Ended {
        write(self.list, HEADER | direction | 1 << 16);
        write(self.list + 4, 0_u32);
        write(self.list + 8, self.table);
        // Register FIS, host to device: sector 0 on, by LBA.
        let fis = [0x27, 0x80, command, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, SECTORS, 0, 0, 0];
        write::<[u8; 16]>(self.table, fis);
        write(self.table + 0x80, address);
        write(self.table + 0x88, 0_u32);
        write(self.table + 0x8c, BYTES - 1);
        write(self.port + INTERRUPTS, u32::MAX);
        write(self.port + ISSUE, 1_u32);
        match wait(|| read::<u32>(self.port + ISSUE) & 1 == 0) {
            Ended::Done if read::<u32>(self.port + TASK_FILE) & HAS_ERROR != 0 => Ended::Failed,
            ended => ended,
        }
    }
}

impl Device for Ahci {
    fn name(&self) -> &'static str {
        "ahci"
    }

    fn function(&self) -> Function {
        self.function
    }

    fn bytes(&self) -> u64 {
        u64::from(BYTES)
    }

    fn take(&mut self, from: u64) -> Ended {
        self.transfer(WRITE_DMA_EXT, IS_WRITE, from)
    }

    fn store(&mut self, to: u64) -> Ended {
        self.transfer(READ_DMA_EXT, 0, to)
    }
}
