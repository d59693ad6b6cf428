//! Known answers: a whole disk, with all that went into it. It was opened by another implementation too
//! (`vectors/decode.py`); here the format is seen not to change.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use disk::volume::Volume;

use crate::world::{Room, WRAPPING, filled, header, new_disk, opening};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// The disk, its inputs, and what is on it, as JSON.
fn vectors() -> String {
    let header = header(130, 64, 16);
    let mut host = new_disk(&header);
    let mut room = Room::new(&header, 8);
    let mut volume = Volume::new(&header, room.memory(), opening(1)).unwrap();
    volume.write(&mut host, 0, &[filled(1), filled(2)]).unwrap();
    volume.write(&mut host, 129, &[filled(3)]).unwrap();
    volume.checkpoint(&mut host).unwrap();
    volume.write(&mut host, 0, &[filled(4)]).unwrap();
    volume.write(&mut host, 2, &[filled(5)]).unwrap();
    volume.forget(&mut host, 129, 1).unwrap();
    volume.flush(&mut host).unwrap();
    let (moment, tag) = volume.moment();

    let mut json = String::from("{\n");
    let _ = writeln!(json, "  \"wrapping_key\": \"{}\",", hex(&WRAPPING));
    let _ = writeln!(json, "  \"disk_id\": \"{}\",", hex(&header.id));
    let _ = writeln!(json, "  \"volume_key\": \"{}\",", hex(&header.volume));
    let sizes = header.geometry;
    let _ = writeln!(json, "  \"capacity\": {},", sizes.capacity());
    let _ = writeln!(json, "  \"log\": {},", sizes.log());
    let _ = writeln!(json, "  \"entries\": {},", sizes.entries());
    let _ = writeln!(json, "  \"total\": {},", sizes.total());
    let _ = writeln!(json, "  \"moment\": {moment},");
    let _ = writeln!(json, "  \"tag\": \"{}\",", hex(&tag));
    json += "  \"plaintext\": \"each block is one number in 8 bytes, again and again; all others are zeros\",\n";
    json += "  \"numbers\": { \"0\": 4, \"1\": 2, \"2\": 5 },\n";
    json += "  \"blocks\": {\n";
    let blocks = host.durable.iter().map(|(at, block)| format!("    \"{at}\": \"{}\"", hex(block)));
    json += &blocks.collect::<Vec<_>>().join(",\n");
    json + "\n  }\n}\n"
}

#[test]
fn the_format_is_what_it_was() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/disk.json");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, vectors()).unwrap();
    }
    assert!(fs::read_to_string(path).unwrap() == vectors(), "the format has changed");
}
