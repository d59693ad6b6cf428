//! I/O ports of the host: which exit, and the rule for each.
//!
//! All ports go to the machine without an exit, except PCI configuration mechanism #1, through which the host
//! bridge could be told to put something else where the visor's memory is, the visor's own control port, and
//! those of [`crate::power`].

/// Bytes of one I/O bitmap: 32,768 ports (SDM vol. 3, 26.6.4).
pub const BITMAP_BYTES: usize = 4096;

/// First of the four byte ports of the visor's control register.
pub const CONTROL_PORT: u16 = 0xce0;
/// First of those of the value that it selects.
pub const DATA_PORT: u16 = 0xce4;
/// PCI configuration address, a dword (PCI Local Bus 3.0, 3.2.2.3.2).
pub const PCI_ADDRESS: u16 = 0xcf8;
/// First of the four byte ports of PCI configuration data.
pub const PCI_DATA: u16 = 0xcfc;

/// Ports that exit on every machine, all below 0x8000.
const EXITING: [u16; 13] = [
    CONTROL_PORT,
    CONTROL_PORT + 1,
    CONTROL_PORT + 2,
    CONTROL_PORT + 3,
    DATA_PORT,
    DATA_PORT + 1,
    DATA_PORT + 2,
    DATA_PORT + 3,
    PCI_ADDRESS,
    PCI_DATA,
    PCI_DATA + 1,
    PCI_DATA + 2,
    PCI_DATA + 3,
];

/// Fills both bitmaps: what is above exits, and the ports in `more`.
pub fn fill_bitmaps(bitmaps: [&mut [u8; BITMAP_BYTES]; 2], more: impl Iterator<Item = u16>) {
    let [a, b] = bitmaps;
    a.fill(0);
    b.fill(0);
    for port in more.chain(EXITING) {
        let (bitmap, place) =
            if port < 0x8000 { (&mut *a, port) } else { (&mut *b, port - 0x8000) };
        if let Some(byte) = bitmap.get_mut(usize::from(place / 8)) {
            *byte |= 1 << (place % 8);
        }
    }
}

/// Width of a port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 1 byte.
    Byte,
    /// 2 bytes.
    Word,
    /// 4 bytes.
    Dword,
}

impl Size {
    /// Bits of EAX that take part.
    #[must_use]
    pub const fn mask(self) -> u32 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => u32::MAX,
        }
    }
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the host.
    In,
    /// From the host.
    Out,
}

/// One port access of the host, decoded from the exit qualification (SDM vol. 3, table 29-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// First port.
    pub port: u16,
    /// Width.
    pub size: Size,
    /// Direction.
    pub direction: Direction,
}

impl Access {
    /// Decodes a plain IN or OUT; `None` for INS and OUTS, which have no rule on these ports.
    #[must_use]
    pub const fn decode(qualification: u64) -> Option<Self> {
        let [low, _, port_low, port_high, ..] = qualification.to_le_bytes();
        if low & (1 << 4) != 0 {
            return None;
        }
        let size = match low & 7 {
            0 => Size::Byte,
            1 => Size::Word,
            3 => Size::Dword,
            _ => return None,
        };
        let direction = if low & (1 << 3) != 0 { Direction::In } else { Direction::Out };
        Some(Self { port: u16::from_le_bytes([port_low, port_high]), size, direction })
    }

    /// The ports that it touches; `None` for those past the last.
    pub fn ports(self) -> impl Iterator<Item = Option<u16>> {
        let count = match self.size {
            Size::Byte => 1,
            Size::Word => 2,
            Size::Dword => 4,
        };
        (0..count).map(move |offset| self.port.checked_add(offset))
    }

    /// What this access means to the visor.
    #[must_use]
    pub const fn target(self) -> Target {
        match (self.port, self.size) {
            (CONTROL_PORT, Size::Dword) => Target::Control,
            (DATA_PORT, Size::Dword) => Target::Data,
            (PCI_ADDRESS, Size::Dword) => Target::PciAddress,
            (PCI_DATA..=0xcff, _) => Target::PciData,
            // The processor splits such an access, and the bytes at the data ports are a
            // configuration access of their own.
            (0xcfb, Size::Word) | (0xcf9..=0xcfb, Size::Dword) => Target::Nothing,
            _ => Target::Machine,
        }
    }
}

/// What a port access means to the visor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The visor's control register: which value is meant.
    Control,
    /// That value.
    Data,
    /// The PCI configuration address.
    PciAddress,
    /// PCI configuration data at the address written last.
    PciData,
    /// An access that reaches into the configuration data from below: writes are dropped, reads give
    /// all ones.
    Nothing,
    /// A narrower access that only touches one of these ports: the machine's own business.
    Machine,
}

/// What becomes of a write to PCI configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigWrite {
    /// It reaches the machine.
    Perform,
    /// It has no effect. Every system writes the standard registers of every function when it
    /// looks for devices.
    Drop,
    /// It has no effect, and is worth an auditor's attention.
    Refuse,
}

/// The rule for a write through configuration `address`. The host bridge decides where memory
/// appears (PAM, TSEG, remap windows, ECAM): the host may only read it.
#[must_use]
pub const fn config_write(address: u32) -> ConfigWrite {
    /// Bus, device and function.
    const FUNCTION: u32 = 0x00ff_ff00;
    /// Registers from here on are the device's own (PCI Local Bus 3.0, 6.1).
    const FIRST_OWN: u32 = 0x40;
    if address & FUNCTION != 0 {
        ConfigWrite::Perform
    } else if address & 0xff < FIRST_OWN {
        ConfigWrite::Drop
    } else {
        ConfigWrite::Refuse
    }
}
