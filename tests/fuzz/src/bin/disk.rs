//! Sealed disks by somebody who has the keys: a first byte that says what is made, and then its content. What
//! nobody without keys can make, a wrong tool can.
#![no_main]

#[expect(dead_code, reason = "the tests of `disk` use more of it")]
#[path = "../../../../disk/tests/disk/host.rs"]
mod host;
#[expect(dead_code, reason = "the tests of `disk` use more of it")]
#[path = "../../../../disk/tests/disk/world.rs"]
mod world;

use disk::header::Header;
use disk::storage::{Block, Error};
use disk::volume::Volume;
use seal::aead::{AeadKey, Tag};
use seal::key::hkdf;

use host::Host;
use world::{Room, WRAPPING, filled, header, new_disk, opening};

// The tests run without the processor's AES instructions, so here they are.
const _: () = assert!(seal::HARDWARE_AES);

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&what, content)) = data.split_first() else {
        return;
    };
    match what % 4 {
        0 => read_header(content),
        1 => {
            let mut host = new_disk(&header(130, 64, 16));
            let at = header(130, 64, 16).geometry.anchors_at();
            let mut ad = 130_u128.to_le_bytes();
            ad[8] = 1;
            let mut block = body(content);
            let _ = seal(4, &ad, &mut block, 0);
            host.set(at + 1, block);
            use_disk(host);
        }
        _ => use_disk(frames(content)),
    }
});

/// A block that holds `content` between nonce and tag.
fn body(content: &[u8]) -> Block {
    let mut block = [0; 4096];
    block[16..4080].iter_mut().zip(content).for_each(|(to, from)| *to = *from);
    block
}

/// The key for a purpose, as docs/disk-format.md has it.
fn key(salt: &[u8], secret: &[u8; 32], purpose: u8) -> AeadKey {
    let mut filled = [0; 32];
    filled[..salt.len()].copy_from_slice(salt);
    let key = hkdf(&filled, secret, [b"visor disk 1", &[purpose], &[]]);
    AeadKey::new(key.bytes()[..16].try_into().unwrap())
}

/// Seals a block that carries its nonce, which is `number`, and its tag.
fn seal(purpose: u8, ad: &[u8], block: &mut Block, number: u8) -> Tag {
    let disk = header(130, 64, 16);
    block[..16].fill(number);
    let nonce = [number; 16];
    let tag = key(&disk.id, &disk.volume, purpose).encrypt(&nonce, ad, &mut block[16..4080]);
    block[4080..].copy_from_slice(&tag);
    tag
}

/// A header with this body.
fn read_header(content: &[u8]) {
    let mut block: Block = [0; 4096];
    block[..8].copy_from_slice(b"VISORDSK");
    block[8] = 1;
    block[48..4080].iter_mut().zip(content).for_each(|(to, from)| *to = *from);
    let (clear, rest) = block.split_at_mut(48);
    let (body, tag) = rest.split_last_chunk_mut().unwrap();
    *tag = key(&[0; 32], &WRAPPING, 0).encrypt(&[0; 16], clear, body);
    let word = |at: usize| {
        content.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
    };
    // The size that it says, if the sum of that is a number at all.
    let sizes = disk::geometry::Geometry::new(word(48), word(56), word(64));
    let total = sizes.map_or(1000, disk::geometry::Geometry::total);
    let mut again: Block = [0; 4096];
    match Header::open(&mut block, &WRAPPING, total) {
        Ok(header) => {
            assert_eq!(Some(header.geometry), sizes);
            header.seal(&WRAPPING, &[0; 32], &mut again);
            assert!(Header::open(&mut again, &WRAPPING, total + 1).is_err());
        }
        Err(refusal) => fuzz::one_line(&refusal.to_string()),
    }
}

/// A disk with a log of frames: each is its kind, how many entries, and six bytes for each of them.
fn frames(mut content: &[u8]) -> Host {
    let disk = header(130, 64, 16);
    let mut host = new_disk(&disk);
    let anchor = host.block(disk.geometry.anchors_at());
    let mut tag: Tag = anchor[4080..].try_into().unwrap();
    let mut at = disk.geometry.log_at();
    for index in 0..20_u8 {
        let Some(([kind, count], rest)) = content.split_first_chunk() else {
            break;
        };
        let entries = rest.len().min(6 * usize::from(*count)) / 6 * 6;
        let (entries, rest) = rest.split_at(entries);
        content = rest;
        let mut head = body(&u64::from(index + 1).to_le_bytes());
        head[24] = *kind;
        head[28] = *count;
        let mut carried = Vec::new();
        for (number, bytes) in entries.chunks_exact(6).take(101).enumerate() {
            let to = &mut head[32 + 40 * number..][..40];
            let [low, high, level, what, a, b] = *bytes else { unreachable!("chunks of six") };
            (to[0], to[1], to[5], to[6], to[7]) = (low, high, level, what % 8, what >> 7);
            let mut block = filled(u64::from(a) + 1);
            let nonce = [
                index ^ 0x80,
                b,
                u8::try_from(number).unwrap(),
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
                1,
            ];
            let place = u128::from(u16::from_le_bytes([low, high])) | u128::from(level) << 64;
            let purpose = if level == 0 { 1 } else { 2 };
            let seal = key(&disk.id, &disk.volume, purpose);
            let record = [nonce, seal.encrypt(&nonce, &place.to_le_bytes(), &mut block)].concat();
            match what % 8 {
                2 => to[8..10].copy_from_slice(&[a, b]),
                // Now and then a record of something else.
                _ if b % 16 == 15 => to[8..].fill(a),
                _ => to[8..].copy_from_slice(&record),
            }
            match what % 8 {
                0 if level == 0 => host.set(low.into(), block),
                1 => carried.push(block),
                _ => {}
            }
        }
        let ad = [[0; 8], u64::from(index).to_le_bytes()].concat();
        tag = seal(3, &[&ad[..], &tag].concat(), &mut head, index);
        for block in [head].into_iter().chain(carried) {
            host.set(at, block);
            at += 1;
        }
    }
    host
}

/// What can be read of the disk: each block, or that it cannot be.
fn look(volume: &mut Volume, host: &mut Host) -> Vec<Option<Block>> {
    let read = |at| {
        let mut block = [[0; 4096]];
        volume.read(host, at, &mut block).ok().map(|()| block[0])
    };
    (0..130).map(read).collect()
}

/// Opens the disk, and does everything with it. What is read does not change by that.
fn use_disk(mut host: Host) {
    let disk = header(130, 64, 16);
    let mut room = Room::new(&disk, 2);
    let mut volume = Volume::new(&disk, room.memory(), opening(1)).unwrap();
    if let Err(error) = volume.open(&mut host) {
        assert!(error != Error::Wait && error != Error::Failed);
        fuzz::one_line(&error.to_string());
        return;
    }
    let before = look(&mut volume, &mut host);
    let work = [
        volume.forget(&mut host, 3, 2),
        volume.write(&mut host, 3, &[filled(1), filled(2)]),
        volume.checkpoint(&mut host),
        volume.next_written(&mut host, 0).map(|_| ()),
    ];
    for error in work.iter().filter_map(|done| done.err()) {
        fuzz::one_line(&error.to_string());
    }
    if work.iter().all(Result::is_ok) {
        let mut room = Room::new(&disk, 2);
        let mut volume = Volume::new(&disk, room.memory(), opening(2)).unwrap();
        volume.open(&mut host).unwrap();
        let after = look(&mut volume, &mut host);
        assert!(after[3] == Some(filled(1)) && after[4] == Some(filled(2)));
        assert!(after[..3] == before[..3] && after[5..] == before[5..]);
    }
}
