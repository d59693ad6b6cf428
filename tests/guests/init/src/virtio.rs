//! Uses devices: disks, a network, and a source of random numbers.

use std::fs::{self, File, OpenOptions};
use std::net::UdpSocket;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Duration;

use crate::{interface, system};

/// Bytes of each half of the disk. The host has filled the first one; the second one is for this VM.
const HALF: usize = 1 << 20;
/// Bytes of a request.
const PIECE: usize = 512 << 10;
/// Where QEMU's network serves files, and one that has what the disk begins with.
const SERVER: &str = "10.0.2.2:69";
const NAME: &str = "part";
const PART: usize = 64 << 10;

/// Reads what the host has put on the disk `name`, and writes it back elsewhere with all bits changed.
pub(crate) fn disk(name: &str) -> Result<(), String> {
    let fail = |why: std::io::Error| format!("{name}: {why}");
    // Nothing is kept in memory in between.
    let disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open(name);
    let disk = disk.map_err(fail)?;
    let mut content = vec![0; HALF];
    for (at, piece) in (0_u64..).step_by(PIECE).zip(content.chunks_mut(PIECE)) {
        disk.read_exact_at(piece, at).map_err(fail)?;
    }
    check(&content, |byte| byte)?;
    content.iter_mut().for_each(|byte| *byte = !*byte);
    let second = u64::try_from(HALF).map_err(|why| why.to_string())?;
    for (at, piece) in (second..).step_by(PIECE).zip(content.chunks(PIECE)) {
        disk.write_all_at(piece, at).map_err(fail)?;
    }
    drop(disk);
    fs::write("/proc/sys/vm/drop_caches", "1").map_err(|why| why.to_string())?;
    let disk = File::open(name).map_err(fail)?;
    disk.read_exact_at(&mut content, second).map_err(fail)?;
    check(&content, |byte| !byte)?;
    println!("init: disk is right");
    Ok(())
}

/// Whether [`disk`] has been here before: of all that it has left.
pub(crate) fn kept(name: &str) -> Result<(), String> {
    let fail = |why: std::io::Error| format!("{name}: {why}");
    let disk = File::open(name).map_err(fail)?;
    let mut content = vec![0; HALF];
    disk.read_exact_at(&mut content, 0).map_err(fail)?;
    check(&content, |byte| byte)?;
    let second = u64::try_from(HALF).map_err(|why| why.to_string())?;
    disk.read_exact_at(&mut content, second).map_err(fail)?;
    check(&content, |byte| !byte)?;
    println!("init: disk is as it was left");
    Ok(())
}

/// [`disk`] for a SATA disk, an NVMe disk and a virtio disk, once they have been found.
pub(crate) fn disks() -> Result<(), String> {
    for name in ["/dev/sda", "/dev/nvme0n1", "/dev/vda"] {
        system::wait_for(name, || fs::exists(name).unwrap_or(false))?;
        println!("init: {name}");
        disk(name)?;
    }
    Ok(())
}

/// Whether `content` is what the host has made, seen through `by`: in each 8 bytes a number that follows from
/// where they are.
fn check(content: &[u8], by: impl Fn(u8) -> u8) -> Result<(), String> {
    for (at, word) in (0_u64..).zip(content.chunks_exact(8)) {
        let expected = at.wrapping_mul(0xd134_2543_de82_ef95).rotate_left(29).to_le_bytes();
        if word.iter().zip(expected).any(|(found, byte)| by(*found) != byte) {
            return Err(format!("wrong bytes at {:#x}", at * 8));
        }
    }
    Ok(())
}

/// Fetches a part of what is on the disk by TFTP (RFC 1350): the kernel has its address by DHCP.
pub(crate) fn network() -> Result<(), String> {
    if !system::text("/proc/net/pnp").contains("#PROTO: DHCP") {
        return Err("no address by DHCP".to_owned());
    }
    transfer()
}

/// [`network`] by the card `eth0`, with an address of QEMU's network.
pub(crate) fn card() -> Result<(), String> {
    let up = "/sys/class/net/eth0/carrier";
    system::wait_for("eth0", || fs::exists(up).unwrap_or(false))?;
    interface::configure("eth0", [10, 0, 2, 15], [255, 255, 255, 0])?;
    system::wait_for("a link", || system::text(up).trim() == "1")?;
    transfer()
}

fn transfer() -> Result<(), String> {
    let content = fetch().map_err(|why| format!("tftp: {why}"))?;
    check_part(&content)?;
    println!("init: network is right");
    Ok(())
}

/// Whether `content` is what the host serves.
pub(crate) fn check_part(content: &[u8]) -> Result<(), String> {
    if content.len() != PART {
        return Err(format!("{} bytes came", content.len()));
    }
    check(content, |byte| byte)
}

fn fetch() -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let request = [b"\0\x01", NAME.as_bytes(), b"\0octet\0"].concat();
    let _ = socket.send_to(&request, SERVER)?;
    let (mut content, mut packet, mut block) = (Vec::new(), [0; 1024], 1_u16);
    loop {
        let (count, from) = socket.recv_from(&mut packet)?;
        let [high, low] = block.to_be_bytes();
        let Some(data) = packet[..count].strip_prefix(&[0, 3, high, low]) else {
            return Err(std::io::Error::other("another packet than was expected"));
        };
        content.extend_from_slice(data);
        let _ = socket.send_to(&[0, 4, high, low], from)?;
        if data.len() < 512 {
            return Ok(content);
        }
        block = block.wrapping_add(1);
    }
}

/// Reads random numbers: no two pieces are the same.
pub(crate) fn random() -> Result<(), String> {
    let mut pieces = [[0; 64]; 16];
    let source = system::open("/dev/hwrng")?;
    for piece in &mut pieces {
        std::io::Read::read_exact(&mut &source, piece).map_err(|why| why.to_string())?;
    }
    let is_new = |at: usize| !pieces[..at].contains(&pieces[at]) && pieces[at] != [0; 64];
    if !(0..pieces.len()).all(is_new) {
        return Err("the same numbers again".to_owned());
    }
    println!("init: random numbers are there");
    Ok(())
}
