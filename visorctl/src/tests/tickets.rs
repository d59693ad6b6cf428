//! Tickets on their way to the visor, and tickets that are made here.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use ticket::build::{Ticket, parse};
use ticket::port::{INDEX_BEGIN, INDEX_WORD, VmState};
use ticket::{Class, Range, State};

use super::{Folder, json, submit, text, ticket, visorctl, written};
use crate::failure::Exit;
use crate::fake::Fake;
use crate::hex;

#[test]
fn the_visor_gets_a_ticket_word_by_word_and_gives_it_a_slot() {
    let folder = Folder::new("words");
    let fake = Fake::new();
    let _ = submit(&fake, &folder, &ticket(1, 0));
    fake.0.borrow_mut().history.clear();
    let second = ticket(2, 9000);
    let answer = submit(&fake, &folder, &second)["answer"].clone();
    let bytes = second.bytes().unwrap();
    assert_eq!(answer["vm"], 1);
    assert_eq!(answer["id"], "02".repeat(16));
    assert_eq!(answer["bytes"], bytes.len());
    assert_eq!(written(&fake, INDEX_BEGIN), [u32::try_from(bytes.len()).unwrap()]);
    let words: Vec<u32> = bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect();
    assert_eq!(written(&fake, INDEX_WORD), words);
    let vm = fake.0.borrow().vms[&1].clone();
    assert_eq!((vm.state, vm.pages), (VmState::Waiting, 9000));
}

#[test]
fn people_are_told_which_vm_has_the_ticket() {
    let folder = Folder::new("told");
    let path = folder.write("ticket", &ticket(1, 0).bytes().unwrap());
    let ran = visorctl(&Fake::new(), ["submit", text(&path)]);
    assert!(ran.out.starts_with("VM 0 has its ticket"), "{}", ran.out);
    assert_eq!((ran.exit, ran.err.as_str()), (Exit::Good, ""));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_ticket_cut_short_or_changed_is_never_accepted(
        cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bits in any::<u8>(),
    ) {
        let folder = Folder::new("changed");
        let whole = ticket(1, 3).bytes().unwrap();
        let mut bytes = whole[..cut.index(whole.len() + 1)].to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        let fake = Fake::new();
        let path = folder.write("ticket", &bytes);
        let exit = json(&fake, ["submit", text(&path)])["exit"].clone();
        prop_assert_eq!(exit, i32::from(bytes != whole));
        prop_assert_eq!(fake.0.borrow().vms.len(), usize::from(bytes == whole));
    }
}

const GOOD: &str = r#"
vm = "000102030405060708090a0b0c0d0e0f"
secret = "1111111111111111111111111111111111111111111111111111111111111111"
state = "reset"
processors = 3
restarts = 9

[[range]]
start = 0xf000_0000
length = 0x2000
class = "window"

[[range]]
start = 0
length = 0x10_0000
class = "private"

[[image]]
file = "firmware.bin"
address = 0xff000
"#;

/// Makes a ticket of a description and an image with `image` bytes.
fn make(folder: &Folder, description: &str, image: &[u8]) -> serde_json::Value {
    let _ = folder.write("firmware.bin", image);
    let path = folder.write("vm.toml", description.as_bytes());
    let ticket = folder.path("ticket");
    let _ = fs::remove_file(&ticket);
    json(&Fake::new(), ["ticket", "make", text(&path), text(&ticket)])
}

fn made(folder: &Folder) -> Ticket {
    let mut ticket = Ticket::new([0; 16], [0; 32]);
    parse(&fs::read(folder.path("ticket")).unwrap(), &mut ticket).unwrap();
    ticket
}

#[test]
fn a_description_becomes_the_ticket_that_it_describes() {
    let folder = Folder::new("make");
    let answer = make(&folder, GOOD, &[5; 100])["answer"].clone();
    assert_eq!((&answer["ranges"], &answer["pages"]), (&2.into(), &1.into()));
    let mut expected =
        Ticket::new(*b"\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f", [0x11; 32])
            .range(0, 0x10_0000, Class::Private)
            .range(0xf000_0000, 0x2000, Class::Window);
    expected.processors = 3;
    expected.restarts = 9;
    expected.image(0xff000, &[5; 100]).unwrap();
    assert_eq!(made(&folder), expected);
    let mode = fs::metadata(folder.path("ticket")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds a secret");
}

#[test]
fn a_description_may_give_the_hash_of_a_state_and_leave_the_secret_to_chance() {
    let folder = Folder::new("hash");
    let digits = "ab".repeat(32);
    let text = GOOD.replace("\"reset\"", &format!("\"{digits}\""));
    let secret = text.lines().find(|line| line.starts_with("secret")).unwrap();
    let text = text.replace(secret, "").replace("processors = 3\nrestarts = 9\n", "");
    let _ = make(&folder, &text, &[]);
    let first = made(&folder);
    assert_eq!(first.state, State::Hashed(hex::decode(&digits).unwrap()));
    assert_eq!((first.processors, first.restarts), (1, 0));
    let _ = make(&folder, &text, &[]);
    assert_ne!(made(&folder).secret, first.secret);
}

#[test]
fn a_description_that_makes_no_ticket_is_refused_with_its_fault() {
    let folder = Folder::new("faults");
    let cases = [
        ("vm = \"00", "vm = \"", "vm: 32 hexadecimal digits are needed"),
        ("secret = \"11", "secret = \"1", "secret: 64 hexadecimal digits are needed"),
        ("\"reset\"", "\"warm\"", "state: \"reset\", or 64 hexadecimal digits are needed"),
        ("\"private\"", "\"secret\"", "unknown variant `secret`"),
        ("\"private\"", "\"shared\"", "no private memory"),
        ("processors = 3", "processors = 0", "no processor, or more than 64"),
        ("processors = 3", "processors = 65", "no processor, or more than 64"),
        ("length = 0x2000", "length = 0x2001", "not in whole pages"),
        ("start = 0xf000_0000", "start = 0x1000", "ranges that overlap"),
        ("start = 0xf000_0000", "start = -4096", "line 9, column 9"),
        ("address = 0xff000", "address = 0xff010", "no page of a VM begins at 0xff010"),
        ("address = 0xff000", "address = 0x100000", "a page outside of private memory"),
        ("address", "place", "unknown field `place`"),
        ("[[image]]", "[[images]]", "unknown field `images`"),
    ];
    for (from, to, why) in cases {
        assert!(GOOD.contains(from), "{from}");
        let error = make(&folder, &GOOD.replacen(from, to, 1), &[1])["error"].clone();
        assert_eq!(error["code"], "description", "{why}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(why) && message.lines().count() == 1, "{message}, not {why}");
        assert!(!folder.path("ticket").exists());
    }
    let twice = GOOD.to_owned() + "[[image]]\nfile = \"firmware.bin\"\naddress = 0xff000\n";
    let message = make(&folder, &twice, &[1])["error"]["message"].clone();
    assert!(message.as_str().unwrap().ends_with("two images share the page at 0xff000"));
}

#[test]
fn an_image_that_is_not_there_and_a_ticket_that_is_are_file_errors() {
    let folder = Folder::new("missing");
    let error = make(&folder, &GOOD.replace("firmware", "software"), &[1])["error"].clone();
    assert_eq!(error["code"], "file");
    assert!(error["message"].as_str().unwrap().contains("software.bin"));
    let _ = make(&folder, GOOD, &[1]);
    let before = fs::read(folder.path("ticket")).unwrap();
    let (description, ticket) = (folder.path("vm.toml"), folder.path("ticket"));
    let words = ["ticket", "make", text(&description), text(&ticket)];
    assert_eq!(json(&Fake::new(), words)["error"]["code"], "file");
    assert_eq!(fs::read(folder.path("ticket")).unwrap(), before);
}

#[test]
fn completions_and_manual_pages_know_all_commands() {
    let folder = Folder::new("man");
    let fake = Fake::new();
    let script = visorctl(&fake, ["completions", "bash"]).out;
    assert_eq!(json(&fake, ["completions", "bash"])["answer"]["script"], script);
    assert_eq!(json(&fake, ["man", text(&folder.path("pages"))])["exit"], 0);
    for name in [
        "status",
        "vms",
        "submit",
        "audit",
        "destroy",
        "ticket-make",
        "ticket-linux",
        "completions",
        "man",
    ] {
        assert!(folder.path(&format!("pages/visorctl-{name}.1")).exists(), "{name}");
        assert!(script.contains(name.rsplit('-').next().unwrap()), "{name}");
    }
    let page = fs::read_to_string(folder.path("pages/visorctl.1")).unwrap();
    assert!(page.contains("UNPROTECTED"));
}

#[test]
fn ranges_of_a_made_ticket_ascend_whatever_the_order_of_the_description() {
    let folder = Folder::new("order");
    let _ = make(&folder, GOOD, &[]);
    let starts: Vec<u64> = made(&folder).ranges.iter().map(|range: &Range| range.start).collect();
    assert_eq!(starts, [0, 0xf000_0000]);
}
