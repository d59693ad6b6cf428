//! `tenant image`: kills, answers and exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

use serde_json::{Value, json};

use super::enrollment::Folder;
use super::schema;

const BLOCK: usize = 4096;

/// The program in a folder, with words between spaces.
fn program(folder: &Folder, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenant"));
    let _ = command.args(words.split(' ')).current_dir(folder.path(""));
    command
}

/// Runs `tenant --json image`: the exit code, and what is printed, which is as the schema says.
fn image(folder: &Folder, words: &str) -> (i32, Value) {
    let output = program(folder, &format!("--json image {words}")).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    schema::check(&said);
    let code = output.status.code().unwrap();
    assert_eq!(said["exit"], code, "{said}");
    (code, said)
}

/// Commands that all end with `code`, each with its error.
fn refused<const N: usize>(folder: &Folder, code: i32, commands: [(&str, &str); N]) {
    for (words, error) in commands {
        let (exit, said) = image(folder, words);
        assert_eq!((exit, &said["error"]["code"]), (code, &json!(error)), "{words}");
    }
}

/// A folder with a key and a plain disk of `blocks` blocks, of which every third is a hole of zeros.
fn folder(name: &str, blocks: usize) -> (Folder, Vec<u8>) {
    let folder = Folder::new(&format!("disks-{name}"));
    let content: Vec<u8> = (0..blocks)
        .flat_map(|block| {
            let mut bytes = [u8::try_from(block % 3).unwrap() * 0x51; BLOCK];
            if block % 3 > 0 {
                bytes[..8].copy_from_slice(&block.to_le_bytes());
            }
            bytes
        })
        .collect();
    fs::write(folder.path("plain"), &content).unwrap();
    assert_eq!(image(&folder, "key key").0, 0);
    (folder, content)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_disk_is_made_shown_checked_and_read_again() {
    let (folder, content) = folder("round", 300);
    let mode = fs::metadata(folder.path("key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (code, sealed) = image(&folder, "seal plain sealed --key key");
    assert_eq!((code, &sealed["answer"]["written_blocks"]), (0, &json!(200)));
    let (_, info) = image(&folder, "info sealed --key key");
    let answer = &info["answer"];
    assert_eq!(answer["capacity_blocks"], 300);
    assert_eq!(answer["id"], sealed["answer"]["id"]);
    let bytes = fs::metadata(folder.path("sealed")).unwrap().len();
    assert_eq!(answer["total_blocks"], bytes / 4096);
    let (code, verified) = image(&folder, "verify sealed --key key");
    assert_eq!((code, &verified["answer"]["broken"]), (0, &json!([])));
    assert_eq!(image(&folder, "unseal sealed again --key key").0, 0);
    assert!(fs::read(folder.path("again")).unwrap() == content);
    let mode = fs::metadata(folder.path("again")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let words = [
        ("info", "1200K, 300 blocks of 4K for the VM, 372 in all"),
        ("verify", "nothing was changed since it was written"),
    ];
    for (command, expected) in words {
        let shown =
            program(&folder, &format!("image {command} sealed --key key")).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(expected), "{shown}");
    }
}

#[test]
fn a_kill_at_any_time_costs_nothing_but_time() {
    let (folder, content) = folder("kill", 1000);
    let start = Instant::now();
    assert_eq!(image(&folder, "seal plain whole --key key").0, 0);
    let whole = start.elapsed();
    let mut interrupted = 0;
    for at in 0..6_u32 {
        fs::remove_file(folder.path("sealed")).unwrap_or_default();
        // Twice, so that what goes on is interrupted, too. Both kills hit before the end, or after it.
        for _ in 0..2 {
            let words = "image seal plain sealed --key key --resume";
            let mut command = program(&folder, words);
            let _ = command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            sleep(whole * at / 6);
            child.kill().unwrap();
            let _ = child.wait().unwrap();
        }
        if !folder.path("sealed").exists() {
            interrupted += u32::from(folder.path("sealed.partial").exists());
            assert_eq!(image(&folder, "seal plain sealed --key key --resume").0, 0);
        }
        assert!(!folder.path("sealed.partial").exists());
        assert_eq!(image(&folder, "verify sealed --key key").0, 0);
        fs::remove_file(folder.path("again")).unwrap_or_default();
        assert_eq!(image(&folder, "unseal sealed again --key key").0, 0);
        assert!(fs::read(folder.path("again")).unwrap() == content);
    }
    assert!(interrupted > 0, "no run was interrupted");
    assert!(fs::read(folder.path("plain")).unwrap() == content);
}

#[test]
fn programs_are_told_how_far_it_is() {
    let (folder, _) = folder("progress", 600);
    let words = "image seal plain sealed --key key --progress-json";
    let output = program(&folder, words).output().unwrap();
    let lines = String::from_utf8(output.stderr).unwrap();
    let steps: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = |phase: &str| {
        let mut of = steps.iter().filter(|step| step["phase"] == phase).peekable();
        let numbers = of.clone().map(|step| step["done"].as_u64().unwrap());
        assert!(of.peek().is_some() && numbers.is_sorted(), "{phase}");
        of.last().unwrap().clone()
    };
    for phase in ["write", "verify"] {
        assert_eq!(last(phase)["done"], last(phase)["total"], "{phase}");
    }
    // Nobody is there to look at a bar.
    let quiet = program(&folder, "image unseal sealed again --key key").output().unwrap();
    assert!(quiet.status.success() && quiet.stderr.is_empty());
}

/// As [`folder`], with the sealed disk, and another key.
fn sealed(name: &str) -> Folder {
    let (folder, _) = folder(name, 300);
    assert_eq!(image(&folder, "key other").0, 0);
    assert_eq!(image(&folder, "seal plain sealed --key key").0, 0);
    folder
}

#[test]
fn what_is_not_what_was_written_ends_with_1() {
    let folder = sealed("forged");
    let path = |name: &str| folder.path(name);
    let good = fs::read(path("sealed")).unwrap();
    fs::write(path("bad"), &good).unwrap();
    flip(&path("bad"), 5 * BLOCK);
    fs::write(path("short"), &good[..good.len() - 7]).unwrap();
    let (code, said) = image(&folder, "verify bad --key key");
    assert_eq!((code, &said["answer"]["broken"]), (1, &json!([{"level": 0, "index": 5}])));
    fs::write(path("new.partial"), &good).unwrap();
    flip(&path("plain"), BLOCK + 100);
    let commands = [
        ("info sealed --key other", "disk"),
        ("unseal bad again --key key", "disk"),
        ("info short --key key", "disk"),
        ("info plain --key key", "disk"),
        ("seal plain new --key key --resume", "disks-differ"),
    ];
    refused(&folder, 1, commands);
}

#[test]
fn words_sizes_and_keys_that_are_none_end_with_2() {
    let folder = sealed("usage");
    for words in ["image create new --key key --size 5000", "image verify sealed", "image resize"] {
        assert_eq!(program(&folder, words).output().unwrap().status.code(), Some(2));
    }
    fs::write(folder.path("empty"), []).unwrap();
    let key = r#"{"format":"visor-disk-key-1","key":"00"}"#;
    fs::write(folder.path("short-key"), key).unwrap();
    let commands = [
        ("resize sealed --size 8K --key key", "disk-size"),
        ("seal empty none --key key", "disk-size"),
        ("seal plain none --key key --size 8K", "disk-size"),
        ("info sealed --key short-key", "disk-key"),
    ];
    refused(&folder, 2, commands);
}

#[test]
fn formats_that_are_not_known_end_with_4() {
    let folder = sealed("unknown");
    let key = r#"{"format":"visor-disk-key-2","key":"00"}"#;
    fs::write(folder.path("later-key"), key).unwrap();
    let path = folder.path("sealed");
    let bytes = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
    for header in 1..=2 {
        flip(&path, bytes - header * BLOCK + 9);
    }
    fs::write(folder.path("odd"), b"QFI\xfb and no more").unwrap();
    let commands = [
        ("info sealed --key later-key", "document"),
        ("info sealed --key key", "disk"),
        ("seal odd new --key key", "plain-disk"),
    ];
    refused(&folder, 4, commands);
}

#[test]
fn files_that_are_not_there_or_in_the_way_end_with_5() {
    let folder = sealed("files");
    let _ = fs::copy(folder.path("sealed"), folder.path("new.partial")).unwrap();
    let _ = fs::copy(folder.path("sealed"), folder.path("used")).unwrap();
    let used = fs::File::open(folder.path("used")).unwrap();
    used.lock().unwrap();
    let commands = [
        ("info nothing --key key", "file"),
        ("info sealed --key nothing", "document"),
        ("create sealed --size 4K --key key", "file"),
        ("key key", "document"),
        ("info sealed --key plain", "document"),
        ("seal plain new --key key", "in-the-way"),
        ("info used --key key", "in-the-way"),
    ];
    refused(&folder, 5, commands);
}

#[test]
fn a_disk_is_put_under_another_key_and_made_larger() {
    let (folder, mut content) = folder("anew", 300);
    assert_eq!(image(&folder, "key other").0, 0);
    let (_, sealed) = image(&folder, "seal plain sealed --key key");
    let (_, rekeyed) = image(&folder, "rekey sealed --key key --new-key other");
    assert_eq!(rekeyed["answer"]["id"], sealed["answer"]["id"]);
    assert_eq!(image(&folder, "info sealed --key key").0, 1);
    let (_, anew) = image(&folder, "rekey sealed --key other --new-key key --data");
    assert_ne!(anew["answer"]["id"], sealed["answer"]["id"]);
    let (_, grown) = image(&folder, "resize sealed --size 2M --key key");
    assert_eq!(grown["answer"]["capacity_blocks"], 512);
    assert_eq!(image(&folder, "unseal sealed again --key key").0, 0);
    content.resize(2 << 20, 0);
    assert!(fs::read(folder.path("again")).unwrap() == content);
}
