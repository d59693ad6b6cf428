//! Exits for port accesses: PCI configuration, the control port, and what resets the machine or has it sleep.
#![expect(unsafe_code, reason = "port accesses done on the host's behalf")]

use membrane::Progress;
use nested_vmx::field::{EXIT_QUALIFICATION, Vmcs};
use nested_vmx::io::{Access, ConfigWrite, Direction, PCI_ADDRESS, Size, Target, config_write};
use nested_vmx::power::{KEYBOARD_COMMAND, Watch};
use spin::Mutex;

use crate::cpu::vmx::Current;
use crate::cpu::{self, low};
use crate::events::{self, Event};
use crate::host::{GP0, Next, Registers};
use crate::machine::Machine;
use crate::percpu::PerCpu;
use crate::scrub::{self, Last};
use crate::status;
use crate::submit;

/// What the host wrote to the configuration-address register last. The register itself is written
/// together with each data access, under this lock, so that no processor can change it between
/// the check and the access.
static CONFIG_ADDRESS: Mutex<u32> = Mutex::new(0);

/// What ends the machine. Held until an access is done, so that no processor gets between the question and it.
pub(crate) static WATCH: Mutex<Watch> = Mutex::new(Watch::new());

/// Does one port access of the host.
pub(crate) fn handle(cpu: &PerCpu, machine: &Machine, registers: &mut Registers) -> Next {
    let Some(access) = Access::decode(Current.read(EXIT_QUALIFICATION)) else {
        // INS and OUTS: no driver uses them on these ports.
        return GP0;
    };
    let out = low(registers.rax) & access.size.mask();
    let answer = match access.target() {
        Target::Control => match access.direction {
            Direction::Out => {
                cpu.control.set(out);
                0
            }
            Direction::In => status::answer(cpu),
        },
        Target::Data => match access.direction {
            Direction::Out => match submit::write(machine, cpu.control.get(), out) {
                Progress::Done => 0,
                Progress::Again => return Next::Stay,
            },
            Direction::In => status::answer(cpu),
        },
        Target::PciAddress => {
            let mut address = CONFIG_ADDRESS.lock();
            if access.direction == Direction::Out {
                *address = out;
            }
            *address
        }
        Target::PciData => config_data(cpu, access, out),
        Target::Nothing => u32::MAX,
        Target::Machine => {
            let mut watch = WATCH.lock();
            if watch.ends(access, out) {
                scrub::for_host(machine, Last::Write(access, out));
            }
            watch.perform(access, out, keyboard_is_ready, || pass(access, out))
        }
    };
    if access.direction == Direction::In {
        // A byte or word leaves the rest of RAX; a dword clears its upper half.
        let kept = match access.size {
            Size::Byte | Size::Word => registers.rax & !u64::from(access.size.mask()),
            Size::Dword => 0,
        };
        registers.rax = kept | u64::from(answer & access.size.mask());
    }
    Next::Step
}

fn config_data(cpu: &PerCpu, access: Access, out: u32) -> u32 {
    let address = CONFIG_ADDRESS.lock();
    if access.direction == Direction::Out {
        match config_write(*address) {
            ConfigWrite::Perform => {}
            ConfigWrite::Drop => return 0,
            ConfigWrite::Refuse => {
                events::record(cpu.index.get(), Event::RefusedConfig(*address));
                return 0;
            }
        }
    }
    // SAFETY: selecting a configuration register has no effect by itself.
    unsafe { cpu::port_out(PCI_ADDRESS, Size::Dword, *address) };
    pass(access, out)
}

/// Waits some 50 ms for the keyboard controller to take what was written to it. Says whether it has: its status, bit 1.
fn keyboard_is_ready() -> bool {
    (0..50_000).any(|_| cpu::port_in(KEYBOARD_COMMAND, Size::Byte) & 2 == 0)
}

fn pass(access: Access, out: u32) -> u32 {
    match access.direction {
        Direction::In => cpu::port_in(access.port, access.size),
        Direction::Out => {
            // SAFETY: a write to a port changes no memory that the compiler knows of. The host bridge's
            // registers, which could remap memory, were checked to be none of its; what others of a
            // chipset can remap by ports or memory is an assumption: see `docs/threat-model.md`.
            unsafe { cpu::port_out(access.port, access.size, out) };
            0
        }
    }
}
