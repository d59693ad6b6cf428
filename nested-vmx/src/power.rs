//! Writes to ports that reset the machine or put it to sleep: memory survives most of them, and the visor does not.

use ept::list::{Full, List};

use crate::io::{Access, Direction};

/// The keyboard controller's data.
const KEYBOARD_DATA: u16 = 0x60;
/// Its commands; its status when read.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// Fast reset, and the A20 gate.
const FAST: u16 = 0x92;
/// Commands for SMM.
const SMI_COMMAND: u16 = 0xb2;
/// The reset control register of Intel's chipsets.
const CONTROL: u16 = 0xcf9;
/// Has the next byte of data go to the controller's output port, of which bit 0 is the reset line, active low.
const WRITE_OUTPUT_PORT: u8 = 0xd1;

/// What a byte at a port must be to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// The port.
    pub port: u16,
    /// The bits that count.
    pub mask: u8,
    /// What they must be.
    pub value: u8,
}

impl Trigger {
    const fn new(port: u16, mask: u8, value: u8) -> Self {
        Self { port, mask, value }
    }

    /// ACPI's reset register, a byte at `port` that resets the machine when it is `value` (ACPI 6.5, 4.8.3.6). A port
    /// of its own is for nothing else, and which bits count is not known: any write counts. Where bits have other
    /// uses, those of `value` count, and all of a command, of which others are harmless.
    #[must_use]
    pub const fn reset(port: u16, value: u8) -> Self {
        match (port, value) {
            (KEYBOARD_DATA | KEYBOARD_COMMAND | SMI_COMMAND, _) | (FAST | CONTROL, 0) => {
                Self::new(port, u8::MAX, value)
            }
            (FAST | CONTROL, _) => Self::new(port, value, value),
            _ => Self::new(port, 0, 0),
        }
    }

    /// The byte at `port` with SLP_EN in bit 5: the upper one of PM1 control, or the sleep control register (ACPI
    /// 6.5, 4.8.3.2.1 and 4.8.3.7).
    #[must_use]
    pub const fn sleep(port: u16) -> Self {
        Self::new(port, 1 << 5, 1 << 5)
    }

    const fn fires(self, port: u16, byte: u8) -> bool {
        self.port == port && byte & self.mask == self.value
    }
}

/// What every PC has: the reset control register of Intel's chipsets, where bit 2 resets whatever the kind of reset;
/// fast reset; and the controller's pulses on lines whose bits are 0, of which line 0 is reset.
const EVERYWHERE: [Trigger; 3] = [
    Trigger::new(CONTROL, 4, 4),
    Trigger::new(FAST, 1, 1),
    Trigger::new(KEYBOARD_COMMAND, 0xf1, 0xf0),
];

/// Most triggers that ACPI adds: its reset register, and where sleep begins.
const ADDED: usize = 6;

/// Follows what is written to such ports.
#[derive(Debug)]
pub struct Watch {
    added: List<Trigger, ADDED>,
    /// Whether the next byte of data may go to the keyboard controller's output port. Other commands may come
    /// between: not every controller forgets the first one. Nor is it over before a byte was taken: until then the
    /// next one may go there in its place.
    output_port: bool,
}

#[expect(clippy::new_without_default, reason = "it is for a static")]
impl Watch {
    /// Only what every PC has.
    #[must_use]
    pub const fn new() -> Self {
        Self { added: List::new(Trigger::new(0, 0, 0)), output_port: false }
    }

    /// One more.
    ///
    /// # Errors
    /// [`Full`] after as many as ACPI knows.
    pub fn add(&mut self, trigger: Trigger) -> Result<(), Full> {
        self.added.push(trigger)
    }

    fn triggers(&self) -> impl Iterator<Item = Trigger> {
        EVERYWHERE.into_iter().chain(self.added.iter().copied())
    }

    /// Ports that have to exit for this; some may be there twice.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.triggers().map(|trigger| trigger.port).chain([KEYBOARD_DATA])
    }

    /// Whether the machine ends when `access` writes `value`.
    #[must_use]
    pub fn ends(&self, access: Access, value: u32) -> bool {
        bytes(access, value).any(|(port, byte)| self.byte_ends(port, byte))
    }

    fn byte_ends(&self, port: u16, byte: u8) -> bool {
        let lowers_reset = port == KEYBOARD_DATA && self.output_port && byte & 1 == 0;
        lowers_reset || self.triggers().any(|trigger| trigger.fires(port, byte))
    }

    /// Has `pass` do an access that does not end the machine, and returns what it answers. All that are done go
    /// through here, one after the other. `is_ready` waits for a while, and says whether the keyboard controller has
    /// taken what was written to it; if not, what is about its output port is dropped.
    pub fn perform(
        &mut self,
        access: Access,
        value: u32,
        is_ready: impl Fn() -> bool,
        pass: impl FnOnce() -> u32,
    ) -> u32 {
        let is_command = bytes(access, value).any(|at| at == (KEYBOARD_COMMAND, WRITE_OUTPUT_PORT));
        let is_data =
            self.output_port && bytes(access, value).any(|(port, _)| port == KEYBOARD_DATA);
        if !is_command && !is_data {
            return pass();
        }
        if !is_ready() {
            return 0;
        }
        let answer = pass();
        let is_taken = is_ready();
        self.output_port = is_command || !is_taken;
        answer
    }
}

/// The bytes that `access` writes of `value`, and where.
fn bytes(access: Access, value: u32) -> impl Iterator<Item = (u16, u8)> {
    let is_out = access.direction == Direction::Out;
    let bytes = access.ports().zip(value.to_le_bytes()).filter(move |_| is_out);
    bytes.filter_map(|(port, byte)| Some((port?, byte)))
}
