//! `vectors/decode.py`, which has nothing of this crate, reads what this crate writes, and refuses what it
//! would refuse.

use std::path::PathBuf;
use std::process::{self, Command};
use std::{env, fs};

use disk::header::Header;
use disk::storage::Storage;
use disk::volume::Volume;

use crate::host::{Event, Host};
use crate::world::{Room, WRAPPING, content, filled, header, new_disk, opening};

/// What the decoder says.
enum Said {
    /// The state that it found, and the content, as numbers.
    Read(String, Vec<u64>),
    /// Why it read nothing.
    Refused(String),
}

/// A folder that goes with the value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Has the decoder read the first `total` blocks.
fn decode(host: &Host, total: u64, key: [u8; 32]) -> Said {
    let name = format!("disk-{}-{:?}", process::id(), std::thread::current().id());
    let folder = Folder(env::temp_dir().join(name));
    fs::create_dir_all(&folder.0).unwrap();
    let (image, plain) = (folder.0.join("image"), folder.0.join("plain"));
    let blocks: Vec<u8> = (0..total).flat_map(|at| host.block(at)).collect();
    fs::write(&image, blocks).unwrap();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/decode.py");
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    // Without -B, folders for compiled code appear beside the program.
    let mut command = Command::new("python3");
    let output = command.arg("-B").args([program, &key]).args([&image, &plain]).output();
    let output = output.expect("the decoder needs python3");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() {
        let plain = fs::read(plain).unwrap();
        let (blocks, rest) = plain.as_chunks::<4096>();
        assert!(rest.is_empty());
        return Said::Read(text(output.stdout), blocks.iter().map(crate::world::number).collect());
    }
    let why = text(output.stderr);
    assert!(!plain.exists() && why.starts_with("decode.py: "), "{why}");
    Said::Refused(why)
}

/// A disk, what it reads as, and what names that state.
type State = (Host, Vec<u64>, (u64, [u8; 16]));

/// Three leaves, and a log for some 40 blocks at a time.
fn sizes() -> Header {
    header(300, 128, 64)
}

/// A disk whose log is empty, and then one with flushed changes in its log that are of all kinds, and
/// what either reads as.
fn disks() -> [State; 2] {
    let header = sizes();
    let mut host = new_disk(&header);
    let mut room = Room::new(&header, 8);
    let mut volume = Volume::new(&header, room.memory(), opening(1)).unwrap();
    for block in [0, 1, 2, 127, 128, 200, 299] {
        volume.write(&mut host, block, &[filled(block + 1000)]).unwrap();
    }
    volume.checkpoint(&mut host).unwrap();
    let closed = (host.clone(), content(&mut volume, &mut host).unwrap(), volume.moment());
    // In a place that is free, and twice; over what is there; forgotten; forgotten and written again.
    volume.write(&mut host, 50, &[filled(1)]).unwrap();
    volume.write(&mut host, 50, &[filled(2)]).unwrap();
    volume.write(&mut host, 1, &[filled(3), filled(4)]).unwrap();
    volume.flush(&mut host).unwrap();
    volume.forget(&mut host, 127, 74).unwrap();
    volume.write(&mut host, 128, &[filled(5)]).unwrap();
    volume.write(&mut host, 1, &[filled(6)]).unwrap();
    volume.flush(&mut host).unwrap();
    let open = (host.clone(), content(&mut volume, &mut host).unwrap(), volume.moment());
    [closed, open]
}

/// The decoder must read `expected`, and call the state as the crate does.
fn reads(host: &Host, expected: &[u64], moment: Option<(u64, [u8; 16])>) {
    match decode(host, sizes().geometry.total(), WRAPPING) {
        Said::Read(said, content) => {
            assert!(content == expected);
            let Some((moment, tag)) = moment else { return };
            let tag: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
            let state = format!("\"moment\": {moment}, \"tag\": \"{tag}\"");
            assert!(said.contains(&state), "{said} is not {state}");
        }
        Said::Refused(why) => panic!("{why}"),
    }
}

fn refuses(host: &Host, why: &str) {
    match decode(host, sizes().geometry.total(), WRAPPING) {
        Said::Read(..) => panic!("read: {why}"),
        Said::Refused(said) => assert!(said.contains(why), "{said} and not: {why}"),
    }
}

#[test]
fn another_implementation_reads_what_is_written_with_and_without_a_log() {
    for (host, expected, moment) in disks() {
        reads(&host, &expected, Some(moment));
    }
}

#[test]
fn another_implementation_reads_what_each_step_of_a_checkpoint_leaves() {
    let header = sizes();
    let [_, (mut host, expected, moment)] = disks();
    let (before, events) = (host.clone(), host.events.len());
    let mut room = Room::new(&header, 8);
    let mut volume = Volume::new(&header, room.memory(), opening(2)).unwrap();
    volume.checkpoint(&mut host).unwrap();
    let mut now = before;
    let (mut steps, mut moments) = (0, Vec::new());
    for event in host.events.split_off(events) {
        match event {
            Event::Read(..) => continue,
            Event::Write(at, blocks) => now.write(at, &blocks).unwrap(),
            Event::Flush => continue,
        }
        steps += 1;
        let Said::Read(said, content) = decode(&now, header.geometry.total(), WRAPPING) else {
            panic!("after write {steps}");
        };
        assert!(content == expected, "after write {steps}");
        moments.push(said);
    }
    // The frame of the checkpoint and the anchor are states of their own.
    moments.dedup();
    assert!(steps > 5 && moments.len() == 3, "{steps} writes, {moments:?}");
    assert!(volume.moment().0 == moment.0 + 3 && moments[2].contains(&format!("{}", moment.0 + 3)));
    reads(&now, &expected, Some(volume.moment()));
}

#[test]
fn another_implementation_refuses_what_was_changed() {
    let geometry = sizes().geometry;
    let [(closed, ..), (open, ..)] = disks();
    let changed = |places: &[u64], byte: usize| {
        let mut host = open.clone();
        for at in places {
            let mut block = host.block(*at);
            block[byte] ^= 1;
            host.set(*at, block);
        }
        host
    };
    refuses(&changed(&[299], 4095), "block 299, level 0");
    refuses(&changed(&[geometry.place(1, 2)], 0), "block 2, level 1");
    refuses(&changed(&[geometry.place(2, 0)], 2000), "block 0, level 2");
    let headers = [geometry.headers_at(), geometry.headers_at() + 1];
    for byte in [0, 8, 12, 20, 60, 4090] {
        refuses(&changed(&headers, byte), "no header");
    }
    let anchors = [geometry.anchors_at(), geometry.anchors_at() + 1];
    refuses(&changed(&anchors, 100), "no anchor");
    // Blocks in each other's places, and an older state of one.
    let mut host = open.clone();
    let (one, two) = (host.block(0), host.block(299));
    host.set(0, two);
    host.set(299, one);
    refuses(&host, "block 0, level 0");
    let mut host = closed;
    host.set(50, open.block(51));
    host.set(0, open.block(50));
    refuses(&host, "block 0, level 0");
    let Said::Refused(why) = decode(&open, geometry.total(), [0; 32]) else { panic!("no key") };
    assert!(why.contains("no header"));
    let Said::Refused(why) = decode(&open, geometry.total() - 1, WRAPPING) else { panic!("short") };
    assert!(why.contains("size does not fit"));
}

/// What the crate reads of a disk.
fn opened(mut host: Host) -> (Vec<u64>, (u64, [u8; 16])) {
    let header = sizes();
    let mut room = Room::new(&header, 8);
    let mut volume = Volume::new(&header, room.memory(), opening(3)).unwrap();
    let content = content(&mut volume, &mut host).unwrap();
    (content, volume.moment())
}

#[test]
fn another_implementation_takes_a_log_of_which_something_was_lost_for_the_same_state_before() {
    let log = sizes().geometry.log_at();
    let [(_, first, begun), (open, _, last)] = disks();
    // Two frames, of three and two blocks besides their heads; and the one block that is in its place.
    let mut states = Vec::new();
    for at in (log..log + 7).chain([50]) {
        let mut host = open.clone();
        let mut block = host.block(at);
        block[100] ^= 1;
        host.set(at, block);
        let (expected, moment) = opened(host.clone());
        reads(&host, &expected, Some(moment));
        states.push(moment.0);
        assert_eq!(moment.0 == begun.0, expected == first);
    }
    let (first, second) = (begun.0, last.0 - 1);
    assert_eq!(states, [first, first, first, first, second, second, second, first]);
}
