//! What goes wrong, and how it is told.

use std::io;

use clap::Parser;
use ticket::audit::Kind;
use ticket::error::Error;
use ticket::port::{ABSENT, INDEX_BEGIN, INDEX_CANCEL, INDEX_MAGIC, INDEX_WORD, VMS};

use super::{Folder, json, schema, submit, text, ticket, visorctl, with_open, written};
use crate::cli::Cli;
use crate::failure::{Exit, Failure};
use crate::fake::{Access, Fake};
use crate::reply;

/// A machine without a visor: every port reads ones.
fn bare() -> Fake {
    let fake = Fake::new();
    let _ = fake.0.borrow_mut().fixed.insert(INDEX_MAGIC, ABSENT);
    fake
}

#[test]
fn without_a_visor_every_command_says_unprotected_and_writes_nothing() {
    let folder = Folder::new("bare");
    let ticket = folder.write("ticket", &ticket(1, 0).bytes().unwrap());
    let commands: [&[&str]; 7] = [
        &["status"],
        &["status", "--require-protected"],
        &["vms"],
        &["audit"],
        &["check"],
        &["destroy", "0"],
        &["submit", text(&ticket)],
    ];
    for words in commands {
        let fake = bare();
        let answer = json(&fake, words.iter().copied());
        assert_eq!((&answer["error"]["code"], &answer["exit"]), (&"no-visor".into(), &3.into()));
        let people = visorctl(&fake, words.iter().copied());
        assert_eq!((people.exit, people.out.as_str()), (Exit::Unprotected, ""));
        assert!(people.err.starts_with("visorctl: UNPROTECTED: "), "{}", people.err);
        let is_data = |access: &Access| matches!(access, Access::Write(..));
        assert!(!fake.0.borrow().history.iter().any(is_data), "{words:?}");
    }
}

#[test]
fn a_visor_without_tickets_can_be_asked_for_its_status_only() {
    let fake = Fake::new();
    fake.0.borrow_mut().version = 0x0001_0000;
    let all = ["vms", "audit", "check", "destroy 0", "status --require-protected"];
    for words in all.map(|words| words.split(' ').collect::<Vec<_>>()) {
        let answer = json(&fake, words.iter().copied());
        assert_eq!((&answer["error"]["code"], &answer["exit"]), (&"old-visor".into(), &1.into()));
    }
}

#[test]
fn another_major_version_is_not_talked_to() {
    let fake = Fake::new();
    fake.0.borrow_mut().version = 0x0002_0001;
    assert_eq!(json(&fake, ["status"])["error"]["code"], "protocol");
}

#[test]
fn a_refused_ticket_is_told_with_the_visors_reason() {
    let folder = Folder::new("refused");
    let fake = Fake::new();
    assert_eq!(submit(&fake, &folder, &ticket(1, 2))["exit"], 0);
    let again = submit(&fake, &folder, &ticket(1, 2));
    assert_eq!(
        (&again["error"]["code"], &again["error"]["refusal"]),
        (&"refused".into(), &68.into())
    );
    let people = visorctl(&fake, ["submit", text(&folder.path("submitted"))]);
    let line = "visorctl: the visor refused the ticket: a VM with this id exists already\n";
    assert_eq!((people.exit, people.err.as_str()), (Exit::Failed, line));
    fake.0.borrow_mut().clear = false;
    let clear = submit(&fake, &folder, &ticket(2, 2));
    assert_eq!(clear["error"]["refusal"], Error::ClearTickets.number());
}

#[test]
fn no_word_goes_to_a_visor_that_refuses_the_beginning() {
    let fake = Fake::new();
    fake.0.borrow_mut().clear = false;
    let _ = submit(&fake, &Folder::new("closed"), &ticket(2, 2));
    assert!(written(&fake, INDEX_WORD).is_empty());
}

#[test]
fn a_large_ticket_that_is_refused_on_the_way_is_not_sent_to_its_end() {
    let folder = Folder::new("large");
    let fake = Fake::new();
    fake.0.borrow_mut().room = 1000;
    let large = ticket(1, 10_000);
    let answer = submit(&fake, &folder, &large);
    assert_eq!(answer["error"]["refusal"], Error::Memory.number());
    let words = large.bytes().unwrap().len() / 4;
    assert!(written(&fake, INDEX_WORD).len() < words / 2);
    assert_eq!(written(&fake, INDEX_CANCEL).len(), 1);
}

#[test]
fn a_damaged_ticket_is_refused_by_the_visor() {
    let folder = Folder::new("damaged");
    let fake = Fake::new();
    let mut bytes = ticket(1, 2).bytes().unwrap();
    bytes[40] ^= 1;
    let path = folder.write("ticket", &bytes);
    let answer = json(&fake, ["submit", text(&path)]);
    assert_eq!(answer["error"]["refusal"], Error::Checksum.number());
    assert!(fake.0.borrow().vms.is_empty());
}

#[test]
fn when_all_slots_are_taken_a_ticket_is_refused() {
    let folder = Folder::new("slots");
    let fake = Fake::new();
    for id in 0..u8::try_from(VMS).unwrap() {
        assert_eq!(submit(&fake, &folder, &ticket(id, 0))["answer"]["vm"], id);
    }
    assert_eq!(submit(&fake, &folder, &ticket(99, 0))["error"]["refusal"], Error::Slots.number());
}

#[test]
fn a_file_that_cannot_be_a_ticket_does_not_come_near_the_port() {
    let folder = Folder::new("files");
    let fake = Fake::new();
    for bytes in [&[0; 16][..], &[0; 33], &[]] {
        let path = folder.write("ticket", bytes);
        assert_eq!(json(&fake, ["submit", text(&path)])["error"]["code"], "no-ticket");
    }
    assert_eq!(json(&fake, ["submit", text(&folder.path("none"))])["error"]["code"], "file");
    assert!(fake.0.borrow().history.is_empty());
}

#[test]
fn a_vm_that_is_not_there_cannot_be_destroyed() {
    let fake = Fake::new();
    assert_eq!(json(&fake, ["destroy", "7"])["error"]["code"], "no-vm");
    let _ = submit(&fake, &Folder::new("stays"), &ticket(1, 0));
    fake.0.borrow_mut().destroys = false;
    assert_eq!(json(&fake, ["destroy", "0"])["error"]["code"], "not-destroyed");
}

#[test]
fn an_audit_log_that_was_changed_is_found_out() {
    let fake = Fake::new();
    for number in 0..3 {
        fake.0.borrow_mut().record(Kind::Touched, 0, number);
    }
    fake.0.borrow_mut().events[1][16] ^= 1;
    let answer = json(&fake, ["audit"]);
    assert_eq!((&answer["error"]["code"], &answer["exit"]), (&"chain".into(), &1.into()));
    assert_eq!(json(&fake, ["audit", "--since", "2"])["error"]["code"], "chain");
}

#[test]
fn events_that_are_still_to_come_cannot_be_shown() {
    assert_eq!(json(&Fake::new(), ["audit", "--since", "1"])["error"]["code"], "no-event");
}

#[test]
fn a_log_that_never_holds_still_is_given_up() {
    let fake = Fake::new();
    fake.0.borrow_mut().coming = u32::MAX;
    assert_eq!(json(&fake, ["audit"])["error"]["code"], "moving");
}

#[test]
fn an_event_with_another_number_is_against_the_protocol() {
    let fake = Fake::new();
    fake.0.borrow_mut().record(Kind::Touched, 0, 0);
    fake.0.borrow_mut().events[0][0] = 1;
    let machine = fake.0.borrow().events[0];
    fake.0.borrow_mut().chain = ticket::audit::extend(&ticket::audit::GENESIS, &machine);
    assert_eq!(json(&fake, ["audit"])["error"]["code"], "protocol");
}

#[test]
fn a_state_that_does_not_exist_is_against_the_protocol() {
    let fake = Fake::new();
    let _ = fake.0.borrow_mut().fixed.insert(ticket::port::INDEX_VM_STATE, 9);
    let message = json(&fake, ["vms"])["error"]["message"].clone();
    assert_eq!(message, "the visor answers 0x9 at index 0x411: is visorctl too old?");
    let _ = fake.0.borrow_mut().fixed.insert(INDEX_BEGIN, 9);
    let answer = submit(&fake, &Folder::new("strange"), &ticket(1, 0));
    assert_eq!(answer["error"]["code"], "protocol");
}

#[test]
fn who_may_not_use_the_port_is_told_why() {
    let denied = |_: &_| {
        Err(Failure::Denied("cannot reach the visor's port", io::Error::from_raw_os_error(1)))
    };
    let ran = with_open(["status"], denied);
    assert_eq!(ran.exit, Exit::Failed);
    assert!(ran.err.contains("needs root"), "{}", ran.err);
}

#[test]
fn every_failure_is_one_line_with_a_code_that_the_schema_knows() {
    let io = || io::Error::from_raw_os_error(1);
    let failures = [
        Failure::NoVisor(ABSENT),
        Failure::OldVisor(0x1_0000),
        Failure::Denied("cannot", io()),
        Failure::Busy("a".into()),
        Failure::Lock("a".into(), io()),
        Failure::File("a".into(), io()),
        Failure::Description("a".into(), "wrong".into()),
        Failure::NoTicket("a".into(), 3),
        Failure::Refused(Error::Magic),
        Failure::Vanished,
        Failure::NoVm(1),
        Failure::NotDestroyed(1),
        Failure::Disagreement(0x1000),
        Failure::NoEvent { since: 2, end: 1 },
        Failure::Chain,
        Failure::Moving,
        Failure::Protocol { index: 1, value: 2 },
        Failure::Tool("tpm2_quote", "failed".into()),
        Failure::Document("a".into(), evidence::Error::TooLong),
        Failure::Bank("md5\n".into()),
        Failure::Nonce,
        Failure::NoKey(0x8100_0000),
        Failure::NoLog,
        Failure::Output(io()),
    ];
    for failure in failures {
        schema::check(&serde_json::from_str(&reply::failure("vms", &failure)).unwrap());
        assert_eq!(failure.to_string().lines().count(), 1, "{failure:?}");
    }
}

#[test]
fn wrong_words_are_usage_errors() {
    for words in [
        &["destroy", "64"][..],
        &["destroy"],
        &["audit", "--chain", "00"],
        &["audit", "--since", "-1"],
        &["attack"],
        &["--json", "vms", "--loud"],
        &[],
    ] {
        let error = Cli::try_parse_from(["visorctl"].iter().chain(words)).unwrap_err();
        let reply = serde_json::from_str(&reply::usage(&error)).unwrap();
        schema::check(&reply);
        assert_eq!((&reply["error"]["code"], &reply["exit"]), (&"usage".into(), &2.into()));
    }
}
