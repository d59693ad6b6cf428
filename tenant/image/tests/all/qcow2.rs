//! A qcow2 that is spelled out here (QEMU, docs/interop/qcow2.rst), and what is read of it.

use std::fs;
use std::path::Path;
use std::process::Command;

use image::Error;
use image::plain;

use super::folder::Folder;

/// Bytes in a cluster.
const CLUSTER: usize = 65_536;

/// What a cluster of the disk is in the file.
#[derive(Clone, Copy)]
pub(crate) enum Cluster {
    /// Not there.
    Absent,
    /// Said to be zeros.
    Zero,
    /// Full of this byte.
    Filled(u8),
}

/// A qcow2, version 3, of `bytes` bytes with these clusters, and the name of a backing file.
pub(crate) fn qcow2(bytes: u64, clusters: &[Cluster], backing: &str) -> Vec<u8> {
    // The header, the table of reference counts, their block, the two tables of clusters.
    let mut file = vec![0; 5 * CLUSTER];
    let offset = |cluster: usize| u64::try_from(cluster * CLUSTER).unwrap();
    let mut at = 0;
    let backing_at = if backing.is_empty() { 0 } else { 512 };
    for number in [u64::from_be_bytes(*b"QFI\xfb\0\0\0\x03"), backing_at] {
        file[at..at + 8].copy_from_slice(&number.to_be_bytes());
        at += 8;
    }
    let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(&mut file, 512, backing.as_bytes());
    put(&mut file, 16, &u32::try_from(backing.len()).unwrap().to_be_bytes());
    put(&mut file, 20, &16_u32.to_be_bytes());
    put(&mut file, 24, &bytes.to_be_bytes());
    put(&mut file, 36, &1_u32.to_be_bytes());
    put(&mut file, 40, &offset(3).to_be_bytes());
    put(&mut file, 48, &offset(1).to_be_bytes());
    put(&mut file, 56, &1_u32.to_be_bytes());
    put(&mut file, 96, &4_u32.to_be_bytes());
    put(&mut file, 100, &104_u32.to_be_bytes());
    put(&mut file, CLUSTER, &offset(2).to_be_bytes());
    put(&mut file, 3 * CLUSTER, &(offset(4) | 1 << 63).to_be_bytes());
    for (number, cluster) in clusters.iter().enumerate() {
        let entry = match cluster {
            Cluster::Absent => 0,
            Cluster::Zero => 1,
            Cluster::Filled(byte) => {
                let here = u64::try_from(file.len()).unwrap();
                file.resize(file.len() + CLUSTER, *byte);
                here | 1 << 63
            }
        };
        put(&mut file, 4 * CLUSTER + 8 * number, &entry.to_be_bytes());
    }
    for cluster in 0..file.len() / CLUSTER {
        put(&mut file, 2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    file
}

/// All that is read, and how many blocks are said to be written.
pub(crate) fn read(path: &Path) -> (Vec<u8>, u64) {
    let mut source = plain::open(path).unwrap();
    let mut all = vec![[0; 4096]; usize::try_from(source.blocks()).unwrap()];
    let (mut at, mut written) = (0, 0);
    while let Some(run) = source.written(at).unwrap() {
        assert!(run.start >= at && run.end > run.start && run.end <= source.blocks());
        let place = usize::try_from(run.start).unwrap()..usize::try_from(run.end).unwrap();
        all[place.clone()].fill([0xee; 4096]);
        source.read(run.start, &mut all[place]).unwrap();
        (at, written) = (run.end, written + run.end - run.start);
    }
    (all.concat(), written)
}

#[test]
fn holes_of_a_qcow2_are_skipped_and_all_else_is_read() {
    let folder = Folder::new("qcow2");
    let path = folder.path("plain");
    let clusters =
        [Cluster::Absent, Cluster::Filled(7), Cluster::Zero, Cluster::Absent, Cluster::Filled(9)];
    // The last cluster is cut short, in the middle of a block.
    let bytes = 4 * CLUSTER + 5 * 4096 + 512;
    fs::write(&path, qcow2(u64::try_from(bytes).unwrap(), &clusters, "")).unwrap();
    let (content, written) = read(&path);
    let mut expected = vec![0; bytes.next_multiple_of(4096)];
    expected[CLUSTER..2 * CLUSTER].fill(7);
    expected[4 * CLUSTER..bytes].fill(9);
    assert!(content == expected);
    assert_eq!(written, 16 + 6);
}

#[test]
fn no_other_file_that_a_qcow2_names_is_opened() {
    let folder = Folder::new("backing");
    let (path, secret) = (folder.path("plain"), folder.path("secret"));
    fs::write(&secret, [1; 65_536]).unwrap();
    let backing = secret.to_str().unwrap();
    fs::write(&path, qcow2(65_536, &[Cluster::Absent], backing)).unwrap();
    assert!(matches!(plain::open(&path), Err(Error::Plain(..))));
    fs::write(&path, qcow2(65_536, &[Cluster::Absent], "")).unwrap();
    assert_eq!(read(&path), (vec![0; 65_536], 0));
}

/// `cargo test -p image -- --ignored`
#[test]
#[ignore = "needs qemu-img"]
fn what_qemu_makes_is_read_as_qemu_reads_it() {
    let folder = Folder::new("qemu");
    let (raw, path) = (folder.path("raw"), folder.path("plain"));
    let content: Vec<u8> = (0..3_000_u32)
        .flat_map(|block| {
            let byte = if block % 7 < 4 { 0 } else { u8::try_from(block % 251).unwrap() };
            [byte; 1024]
        })
        .collect();
    fs::write(&raw, &content).unwrap();
    for more in [&["-o", "cluster_size=4096"][..], &["-c"], &["-o", "compat=0.10"]] {
        let mut command = Command::new("qemu-img");
        let _ = command.args(["convert", "-f", "raw", "-O", "qcow2"]).args(more);
        assert!(command.args([&raw, &path]).status().unwrap().success());
        let (read, written) = read(&path);
        assert!(read == content, "{more:?}");
        if more.contains(&"cluster_size=4096") {
            let used = content.chunks(4096).filter(|block| block.iter().any(|byte| *byte != 0));
            assert_eq!(usize::try_from(written).unwrap(), used.count());
        }
    }
}
