//! A chipset with Intel TXT beside a machine of QEMU's, which has none: its registers, and what SENTER does to the TPM.
//!
//! The registers are the memory of a device, `ivshmem-plain`, which GRUB moves to where chipsets have them. That memory
//! is a file: it holds what the test has written, and what the visor writes stays there to be looked at. The heap and
//! tboot's page are in it as well. As the last word of it GRUB rings for SENTER: a thread between QEMU and the TPM's
//! control socket then begins a dynamic launch, by the commands `CMD_HASH_START`, `_DATA` and `_END` of swtpm.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::tpm::{Interface, Tpm};

/// Where the memory appears: TXT's private registers, and behind them the public ones.
const BASE: u64 = 0xfed2_0000;
const BYTES: usize = 0x2_0000;
const PUBLIC: usize = 0x1_0000;
/// Places in the memory that TXT has no registers at.
const HEAP: usize = 0x8000;
const HEAP_BYTES: u64 = 0x4000;
const SHARED: usize = 0xc000;
/// GRUB writes 1 there for a launch, and waits for a 2.
const BELL: usize = 0x1_f000;
/// Offsets of registers, in both spaces.
pub(crate) const DIDVID: usize = 0x110;
pub(crate) const STS: usize = 0x000;
pub(crate) const ESTS: usize = 0x008;
pub(crate) const ERRORCODE: usize = 0x030;
pub(crate) const HEAP_BASE: usize = 0x300;
pub(crate) const HEAP_SIZE: usize = 0x308;
const SINIT: usize = 0x270;
const CMD_SECRETS: usize = 0x8e0;
pub(crate) const E2STS: usize = 0x8f0;

/// What SENTER measures into PCR 17, in the place of a SINIT module.
pub(crate) const MODULE: &[u8] = b"a SINIT module";
/// What GRUB has PCR 18 extended by, in the place of tboot.
pub(crate) const LAUNCHED: &[u8] = b"a visor";

/// How often the bell is listened for.
const PERIOD: Duration = Duration::from_millis(2);

/// What the chipset shows.
#[derive(Clone, Debug)]
pub(crate) struct Memory(Vec<u8>);

impl Memory {
    /// As after a launch by tboot.
    pub(crate) fn launched() -> Self {
        let heap = BASE + u64::try_from(HEAP).unwrap_or(0);
        let registers = [
            (STS, 0x1_8091),
            (DIDVID, 0x1_b003_8086),
            (SINIT, 0x7ff0_0000),
            (SINIT + 8, 0x2_0000),
            (HEAP_BASE, heap),
            (HEAP_SIZE, HEAP_BYTES),
        ];
        let memory = Self(vec![0; BYTES]).private(E2STS, 2);
        let memory =
            registers.iter().fold(memory, |memory, (at, value)| memory.public(*at, *value));
        let parts: [(u64, u64); 4] = [(44, 6), (300, 3), (108, 7), (200, 9)];
        let (memory, _) = parts.iter().fold((memory, 0), |(memory, at), (bytes, version)| {
            let memory = memory.heap(at, *bytes).heap(at + 8, *version);
            (memory, at + usize::try_from(*bytes).unwrap_or(0))
        });
        let page = [0x4b82_e8b3_663c_8dff, 0x087a_054d_ea19_aabf, 6];
        (0..).zip(page).fold(memory, |memory, (place, word)| memory.page(place * 8, word))
    }

    fn put(mut self, at: usize, value: u64) -> Self {
        if let Some(place) = self.0.get_mut(at..at + 8) {
            place.copy_from_slice(&value.to_le_bytes());
        }
        self
    }

    /// With `value` in the public register at offset `at`.
    pub(crate) fn public(self, at: usize, value: u64) -> Self {
        self.put(PUBLIC + at, value)
    }

    /// With `value` in the private register at offset `at`.
    pub(crate) fn private(self, at: usize, value: u64) -> Self {
        self.put(at, value)
    }

    /// With `value` at offset `at` of the heap.
    pub(crate) fn heap(self, at: usize, value: u64) -> Self {
        self.put(HEAP + at, value)
    }

    /// With `value` at offset `at` of tboot's page.
    pub(crate) fn page(self, at: usize, value: u64) -> Self {
        self.put(SHARED + at, value)
    }

    /// The word that tboot appends to the visor's command line.
    pub(crate) fn word() -> String {
        format!("tboot={:#x}", BASE + u64::try_from(SHARED).unwrap_or(0))
    }
}

/// How much of a launch GRUB does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Senter {
    /// None: only the registers are there.
    None,
    /// None, but PCR 17 and 18 are extended at locality 2, as any software can where that is open.
    Forge,
    /// SENTER, after which nothing extends PCR 18.
    Only,
    /// All.
    AndMeasure,
}

/// The socket of the TPM, which QEMU is kept from.
const CONTROL: &str = "tpm.control";

/// A chipset with its TPM.
#[derive(Debug)]
pub(crate) struct Chipset {
    file: PathBuf,
    _tpm: Tpm,
}

impl Chipset {
    /// Makes one in the folder `dir`, to which QEMU then connects.
    pub(crate) fn start(dir: &Path, memory: &Memory) -> Result<Self> {
        Self::before(Tpm::listening(dir, CONTROL)?, dir, memory)
    }

    /// As [`Chipset::start`], with the TPM that is in the folder `state`.
    pub(crate) fn of(state: &Path, dir: &Path, memory: &Memory) -> Result<Self> {
        Self::before(Tpm::serving(state, dir, CONTROL)?, dir, memory)
    }

    fn before(tpm: Tpm, dir: &Path, memory: &Memory) -> Result<Self> {
        let file = dir.join("txt.memory");
        fs::write(&file, &memory.0).context("cannot write the chipset's memory")?;
        let control = UnixStream::connect(dir.join(CONTROL)).context("no TPM to control")?;
        let listener =
            UnixListener::bind(dir.join("tpm.socket")).context("cannot make a socket for QEMU")?;
        let bell = OpenOptions::new().read(true).write(true).open(&file);
        let bell = bell.context("cannot open the chipset's memory")?;
        let log = dir.join("txt.log");
        // Ends with QEMU, whose connection it is.
        let _ = thread::spawn(move || {
            if let Err(why) = serve(&listener, control, &bell) {
                let _ = fs::write(log, format!("{why:#}\n"));
            }
        });
        Ok(Self { file, _tpm: tpm })
    }

    /// What QEMU, in the folder, is told.
    pub(crate) fn arguments() -> String {
        format!(
            "-object memory-backend-file,id=txt,share=on,mem-path=txt.memory,size={BYTES} \
             -device ivshmem-plain,memdev=txt {}",
            Tpm::arguments(Interface::Fifo)
        )
    }

    /// Whether the visor has had the chipset remember that memory holds secrets.
    pub(crate) fn keeps_secrets(&self) -> Result<bool> {
        let memory = fs::read(&self.file).context("cannot read the chipset's memory")?;
        let word = memory.get(CMD_SECRETS..CMD_SECRETS + 8).context("the memory is short")?;
        Ok(word != [0; 8])
    }
}

/// What GRUB does before it boots: it moves the memory to its place, and launches.
pub(crate) fn commands(senter: Senter) -> String {
    let mut text = String::new();
    for register in ["04.w=0", &format!("18.l={BASE:x}"), "1c.l=0", "04.w=2"] {
        let _ = writeln!(text, "setpci -d 1af4:1110 {register}");
    }
    if matches!(senter, Senter::Only | Senter::AndMeasure) {
        let bell = BASE + u64::try_from(BELL).unwrap_or(0);
        let _ = writeln!(text, "write_dword {bell:#x} 1\nset word=1");
        let _ = writeln!(text, "while [ \"$word\" != 2 ]; do read_dword -v word {bell:#x}; done");
    }
    let pcrs: &[u32] = match senter {
        Senter::None | Senter::Only => &[],
        Senter::Forge => &[17, 18],
        Senter::AndMeasure => &[18],
    };
    pcrs.iter().for_each(|pcr| text.push_str(&extend(*pcr)));
    text
}

/// Has the TPM extend `pcr` by [`LAUNCHED`] at locality 2, by the registers of its FIFO (PTP 1.05, 6.5.2).
fn extend(pcr: u32) -> String {
    /// Pages of localities 0 and 2; registers in them.
    const LOCALITY: [u32; 2] = [0xfed4_0000, 0xfed4_2000];
    const STATUS: u32 = 0x18;
    const DATA: u32 = 0x24;
    let [zero, two] = LOCALITY;
    let mut text = String::new();
    let mut write = |at: u32, byte: u8| {
        let _ = writeln!(text, "write_byte {at:#x} {byte:#x}");
    };
    // What firmware has is given up, 2 is asked for, and a command is begun.
    write(zero, 1 << 5);
    write(two, 1 << 1);
    write(two + STATUS, 1 << 6);
    for byte in pcr_event(pcr, LAUNCHED) {
        write(two + DATA, byte);
    }
    write(two + STATUS, 1 << 5);
    let wait = format!(
        "set byte=0\nwhile [ \"$byte\" != 90 ]; do read_byte -v byte {:#x}; done\n",
        two + STATUS
    );
    text.push_str(&wait);
    for (at, byte) in [(two + STATUS, 1 << 6), (two, 1 << 5)] {
        let _ = writeln!(text, "write_byte {at:#x} {byte:#x}");
    }
    text
}

/// `TPM2_PCR_Event` without a password.
fn pcr_event(pcr: u32, data: &[u8]) -> Vec<u8> {
    let authorization = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let len = u16::try_from(data.len()).unwrap_or(0).to_be_bytes();
    let body = [&pcr.to_be_bytes()[..], &authorization, &len, data].concat();
    let all = u32::try_from(body.len() + 10).unwrap_or(0).to_be_bytes();
    [&[0x80, 2][..], &all, &0x13c_u32.to_be_bytes(), &body].concat()
}

/// Carries QEMU's commands to the TPM, with the answers, until QEMU ends; and launches when the bell rings.
fn serve(listener: &UnixListener, mut tpm: UnixStream, bell: &File) -> Result<()> {
    let (mut qemu, _) = listener.accept().context("QEMU does not come")?;
    qemu.set_read_timeout(Some(PERIOD)).context("cannot set a time-out")?;
    let place = u64::try_from(BELL).unwrap_or(0);
    loop {
        if let Some((command, files)) = receive(&qemu)? {
            if command.is_empty() {
                return Ok(());
            }
            let answer = ask(&mut tpm, &command, &files)?;
            qemu.write_all(&answer).context("QEMU takes no answer")?;
        }
        let mut word = [0; 4];
        bell.read_exact_at(&mut word, place).context("cannot read the bell")?;
        if word == [1, 0, 0, 0] {
            launch(&mut tpm)?;
            bell.write_all_at(&[2, 0, 0, 0], place).context("cannot answer the bell")?;
        }
    }
}

/// What SENTER does: PCRs 17 to 22 become zeros, and PCR 17 is extended by the digest of [`MODULE`] (swtpm's
/// `tpm_ioctl.h`).
fn launch(tpm: &mut UnixStream) -> Result<()> {
    let [start, data, end] = [6_u32, 7, 8].map(u32::to_be_bytes);
    let len = u32::try_from(MODULE.len()).unwrap_or(0).to_be_bytes();
    for command in [&start[..], &[&data[..], &len, MODULE].concat(), &end] {
        let answer = ask(tpm, command, &[])?;
        ensure!(answer == [0; 4], "the TPM launches nothing: {answer:?}");
    }
    Ok(())
}

/// Sends a command with these files, and takes the answer.
fn ask(tpm: &mut UnixStream, command: &[u8], files: &[OwnedFd]) -> Result<Vec<u8>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    if !files.is_empty() {
        ensure!(control.push(SendAncillaryMessage::ScmRights(&files)), "QEMU sends many files");
    }
    let sent = sendmsg(&*tpm, &[IoSlice::new(command)], &mut control, SendFlags::empty());
    let sent = sent.context("the TPM takes no command")?;
    ensure!(sent == command.len(), "the TPM has taken a part of a command");
    let mut answer = vec![0; 4096];
    let len = tpm.read(&mut answer).context("the TPM does not answer")?;
    answer.truncate(len);
    Ok(answer)
}

/// What comes from QEMU, with files; nothing if it has closed the line, `None` if there is nothing yet.
fn receive(qemu: &UnixStream) -> Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(qemu, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC);
    let len = match received.map_err(std::io::Error::from) {
        Ok(received) => received.bytes,
        Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
            return Ok(None);
        }
        // QEMU was killed.
        Err(why) if why.kind() == ErrorKind::ConnectionReset => 0,
        Err(why) => return Err(why).context("QEMU cannot be heard"),
    };
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    bytes.truncate(len);
    Ok(Some((bytes, files)))
}
