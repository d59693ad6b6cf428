//! A TPM made of the specification, for the tests: both interfaces, five localities, commands, two banks. It obeys
//! as badly as it is told to, and keeps what happened.

use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use sha2::{Digest as _, Sha256, Sha384};

use super::registers::Registers;

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It never grants a locality.
    Grants,
    /// It never lets go of one.
    Keeps,
    /// It never gets ready.
    Ready,
    /// It takes no bytes.
    Full,
    /// It wants no last byte.
    Sated,
    /// It wants more than the last byte.
    Greedy,
    /// It never ends a command.
    Works,
    /// Its answers end early, once.
    Short,
    /// Its answers always end early.
    Shorter,
    /// Its answers do not end.
    Long,
    /// CRB: it fails.
    Fails,
    /// CRB: its buffers are somewhere else.
    Elsewhere,
    /// It answers so to so many commands.
    Refuses(u32, u32),
    /// It says that an answer has so many bytes.
    Says(u32),
    /// There is no locality but 0: registers of others read as this.
    One(u8),
}

/// Which interface it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Fifo,
    Crb,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    Claim(u8),
    Release(u8),
    /// A command, at this locality.
    Command(u8, Vec<u8>),
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) kind: Kind,
    pub(crate) flaw: Option<Flaw>,
    pub(crate) history: Vec<Did>,
    pub(crate) active: Option<u8>,
    /// PCR 19 in the banks of SHA-256 and SHA-384.
    pub(crate) pcr: (Vec<u8>, Vec<u8>),
    /// PCR 17 and 18 in the bank of SHA-256: the first byte, and what all others are.
    pub(crate) launch: [(u8, u8); 2],
    /// In the place of what it would answer.
    pub(crate) answer: Option<Vec<u8>>,
    pub(crate) pauses: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    read: usize,
    is_ready: bool,
    is_idle: bool,
    memory: Vec<u8>,
}

/// A handle to it.
#[derive(Clone, Debug)]
pub(crate) struct Fake(pub(crate) Rc<RefCell<State>>);

impl Fake {
    pub(crate) fn new(kind: Kind, flaw: Option<Flaw>) -> Self {
        Self(Rc::new(RefCell::new(State {
            kind,
            flaw,
            history: Vec::new(),
            active: None,
            pcr: (std::vec![0xff; 32], std::vec![0xff; 48]),
            launch: [(0xff, 0xff); 2],
            answer: None,
            pauses: 0,
            input: Vec::new(),
            output: Vec::new(),
            read: 0,
            is_ready: false,
            is_idle: true,
            memory: std::vec![0; 0xf80],
        })))
    }
}

/// An answer with this tag, code and body.
pub(crate) fn answer(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(10 + body.len()).unwrap();
    [&tag.to_be_bytes()[..], &len.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

/// Digests of `data`, as a TPM lists them: of SHA-1, too, in which no PCR is allocated.
fn digests(data: &[u8]) -> Vec<u8> {
    let mut list = std::vec![0, 0, 0, 3, 0, 4];
    list.extend([0x51; 20]);
    list.extend([0, 0xc]);
    list.extend(Sha384::digest(data));
    list.extend([0, 0xb]);
    list.extend(Sha256::digest(data));
    list
}

impl State {
    fn execute(&mut self) {
        let locality = self.active.unwrap();
        let command = std::mem::take(&mut self.input);
        self.output = self.reply(locality, &command);
        self.read = 0;
        self.history.push(Did::Command(locality, command));
        match self.flaw {
            Some(Flaw::Says(len)) => self.output[2..6].copy_from_slice(&len.to_be_bytes()),
            Some(Flaw::Short) => self.output.truncate(9),
            Some(Flaw::Shorter) => self.output.truncate(11),
            Some(Flaw::Long) => self.output.push(0),
            _ => {}
        }
    }

    fn reply(&mut self, locality: u8, command: &[u8]) -> Vec<u8> {
        if let Some(Flaw::Refuses(code, times)) = self.flaw {
            self.flaw = (times > 1).then_some(Flaw::Refuses(code, times - 1));
            return answer(0x8001, code, &[]);
        }
        if let Some(answer) = &self.answer {
            return answer.clone();
        }
        let len = u32::from_be_bytes(command[2..6].try_into().unwrap());
        assert_eq!(usize::try_from(len).unwrap(), command.len());
        let (head, body) = command.split_at(10);
        let (tag, code) = (&head[..2], &head[6..]);
        match u32::from_be_bytes(code.try_into().unwrap()) {
            0x17a => {
                assert_eq!(
                    (tag, body),
                    (&[0x80, 1][..], &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1][..])
                );
                let banks = [
                    0, 0, 0, 0, 5, 0, 0, 0, 3, 0, 4, 3, 0, 0, 0, 0, 0xb, 3, 255, 255, 255, 0, 0xc,
                    3, 255, 255, 255,
                ];
                answer(0x8001, 0, &banks)
            }
            0x17b => {
                let len = u16::from_be_bytes(body.try_into().unwrap());
                let mut random = body.to_vec();
                random.extend((0..len).map(|at| u8::try_from(at).unwrap() ^ 0x5a));
                answer(0x8001, 0, &random)
            }
            0x17e => {
                assert_eq!(body[..4], [0, 0, 0, 1]);
                assert_eq!(body[6..9], [3, 0, 0]);
                let value = self.value(body[9], body[5]);
                let mut told = [&[0, 0, 0, 9][..], body, &[0, 0, 0, 1, 0]].concat();
                told.push(u8::try_from(value.len()).unwrap());
                told.extend(value);
                answer(0x8001, 0, &told)
            }
            0x13c => {
                let authorized = [0, 0, 0, 19, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
                assert_eq!((tag, &body[..17]), (&[0x80, 2][..], &authorized[..]));
                let len = usize::from(u16::from_be_bytes(body[17..19].try_into().unwrap()));
                let data = &body[19..];
                assert_eq!(len, data.len());
                if !matches!(locality, 2 | 3) {
                    return answer(0x8001, 0x907, &[]);
                }
                let (short, long) = (Sha256::digest(data), Sha384::digest(data));
                self.pcr.0 = Sha256::digest([&self.pcr.0[..], &short].concat()).to_vec();
                self.pcr.1 = Sha384::digest([&self.pcr.1[..], &long].concat()).to_vec();
                let list = digests(data);
                let len = u32::try_from(list.len()).unwrap().to_be_bytes();
                answer(0x8002, 0, &[&len[..], &list, &[0, 0, 1, 0, 0]].concat())
            }
            other => panic!("command {other:#x}"),
        }
    }

    /// The PCR of this bit among those from 16 on, in the bank of this algorithm.
    fn value(&self, bit: u8, bank: u8) -> Vec<u8> {
        let of_launch = |(first, rest)| {
            let mut value = std::vec![rest; 32];
            value[0] = first;
            value
        };
        match (bit, bank) {
            (2, 0xb) => of_launch(self.launch[0]),
            (4, 0xb) => of_launch(self.launch[1]),
            (8, 0xb) => self.pcr.0.clone(),
            (8, 0xc) => self.pcr.1.clone(),
            other => panic!("PCR and bank {other:x?}"),
        }
    }

    fn claim(&mut self, locality: u8) {
        if self.flaw != Some(Flaw::Grants) && self.active.is_none() {
            self.active = Some(locality);
            self.history.push(Did::Claim(locality));
        }
    }

    fn release(&mut self, locality: u8) {
        if self.flaw != Some(Flaw::Keeps) && self.active == Some(locality) {
            self.active = None;
            self.history.push(Did::Release(locality));
        }
    }

    fn is_absent(&self, locality: u8) -> Option<u8> {
        match self.flaw {
            Some(Flaw::One(filler)) if locality > 0 => Some(filler),
            _ => None,
        }
    }

    /// The FIFO's status: bursts of 7 bytes, and its answer.
    fn status(&self) -> u32 {
        let burst = if self.flaw == Some(Flaw::Full) { 0 } else { 7 << 8 };
        let wanted = self.input.get(2..6).map(|len| u32::from_be_bytes(len.try_into().unwrap()));
        let have = u32::try_from(self.input.len()).unwrap();
        let expects = self.is_ready && wanted.is_none_or(|wanted| have < wanted);
        let expects = match self.flaw {
            Some(Flaw::Sated) => false,
            Some(Flaw::Greedy) => self.is_ready,
            _ => expects,
        };
        let available = self.read < self.output.len() && self.flaw != Some(Flaw::Works);
        0x80 | burst
            | u32::from(self.is_ready && self.input.is_empty()) << 6
            | u32::from(expects) << 3
            | u32::from(available) << 4
    }

    fn set_status(&mut self, bit: u8) {
        match bit {
            0x40 => {
                self.is_ready = self.flaw != Some(Flaw::Ready);
                self.input.clear();
                self.output.clear();
                self.read = 0;
            }
            0x20 => {
                self.is_ready = false;
                self.execute();
            }
            0x02 => {
                if self.flaw == Some(Flaw::Short) {
                    self.flaw = None;
                    let Some(Did::Command(locality, last)) = self.history.pop() else { panic!() };
                    self.output = self.reply(locality, &last);
                    self.history.push(Did::Command(locality, last));
                }
                self.read = 0;
            }
            other => panic!("status {other:#x}"),
        }
    }

    fn fifo_read(&mut self, locality: u8, at: u64) -> u32 {
        let is_active = self.active == Some(locality);
        match at {
            0x00 => 0x80 | u32::from(is_active) << 5,
            0x18 if is_active => self.status(),
            0x24 if is_active => {
                let byte = self.output.get(self.read).copied().unwrap_or(0xff);
                self.read += 1;
                byte.into()
            }
            0x30 => 0,
            _ => panic!("read at {at:#x} of locality {locality}"),
        }
    }

    fn fifo_write(&mut self, locality: u8, at: u64, value: u8) {
        match (at, value) {
            (0x00, 0x02) => self.claim(locality),
            (0x00, 0x20) => self.release(locality),
            (0x18, bit) if self.active == Some(locality) => self.set_status(bit),
            (0x24, byte) if self.active == Some(locality) => self.input.push(byte),
            _ => panic!("write of {value:#x} at {at:#x} of locality {locality}"),
        }
    }

    fn crb_read(&self, locality: u8, at: u64) -> u32 {
        let is_elsewhere = self.flaw == Some(Flaw::Elsewhere);
        match at {
            0x00 => {
                let active = self.active.map_or(0, |active| 2 | u32::from(active) << 2);
                0x81 | active
            }
            0x30 => 1,
            0x40 => u32::from(self.flaw == Some(Flaw::Ready)),
            0x44 => u32::from(self.flaw == Some(Flaw::Fails)) | u32::from(self.is_idle) << 1,
            0x4c => u32::from(self.flaw == Some(Flaw::Works)),
            0x58 | 0x64 => 0xf80,
            // As some do, it names the page of locality 0 for answers.
            0x5c => 0xfed4_0080 + (u32::from(locality) << 12),
            0x68 if is_elsewhere => 0xfed3_ff00,
            0x68 => 0xfed4_0080,
            0x60 | 0x6c => 0,
            _ => panic!("read at {at:#x} of locality {locality}"),
        }
    }

    fn crb_write(&mut self, locality: u8, at: u64, value: u32) {
        match (at, value) {
            (0x08, 1) => self.claim(locality),
            (0x08, 2) => self.release(locality),
            (0x40, 1) => self.is_idle = self.flaw == Some(Flaw::Ready),
            (0x40, 2) => self.is_idle = true,
            (0x4c, 1) => {
                assert!(!self.is_idle && self.active == Some(locality));
                let len = u32::from_be_bytes(self.memory[2..6].try_into().unwrap());
                self.input = self.memory[..usize::try_from(len).unwrap()].to_vec();
                self.execute();
                self.memory[..self.output.len()].copy_from_slice(&self.output);
            }
            _ => panic!("write of {value:#x} at {at:#x} of locality {locality}"),
        }
    }
}

fn place(offset: u64) -> (u8, u64) {
    let locality = u8::try_from(offset >> 12).unwrap();
    assert!(locality < super::LOCALITIES);
    (locality, offset & 0xfff)
}

impl Registers for Fake {
    fn read8(&self, offset: u64) -> u8 {
        let state = &mut *self.0.borrow_mut();
        let (locality, at) = place(offset);
        if let Some(filler) = state.is_absent(locality) {
            return filler;
        }
        match state.kind {
            Kind::Fifo => u8::try_from(state.fifo_read(locality, at)).unwrap(),
            Kind::Crb => state.memory[usize::try_from(at - 0x80).unwrap()],
        }
    }

    fn read32(&self, offset: u64) -> u32 {
        let state = &mut *self.0.borrow_mut();
        let (locality, at) = place(offset);
        if let Some(filler) = state.is_absent(locality) {
            return u32::from_le_bytes([filler; 4]);
        }
        match state.kind {
            Kind::Fifo => state.fifo_read(locality, at),
            Kind::Crb => state.crb_read(locality, at),
        }
    }

    fn write8(&mut self, offset: u64, value: u8) {
        let state = &mut *self.0.borrow_mut();
        let (locality, at) = place(offset);
        match state.kind {
            _ if state.is_absent(locality).is_some() => {}
            Kind::Fifo => state.fifo_write(locality, at, value),
            Kind::Crb => state.memory[usize::try_from(at - 0x80).unwrap()] = value,
        }
    }

    fn write32(&mut self, offset: u64, value: u32) {
        let state = &mut *self.0.borrow_mut();
        let (locality, at) = place(offset);
        if state.is_absent(locality).is_none() {
            assert_eq!(state.kind, Kind::Crb);
            state.crb_write(locality, at, value);
        }
    }

    fn pause(&self) {
        self.0.borrow_mut().pauses += 1;
    }
}
