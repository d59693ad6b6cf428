//! What a visor that is well is asked, and what is told of it.

use serde_json::json as value;
use ticket::audit::{GENESIS, Kind, NO_VM, extend};
use ticket::port::{
    INDEX_DESPITE_LEAKS, INDEX_IOMMU, INDEX_LEAKS, INDEX_MAGIC, INDEX_TPM, INDEX_VM_DESTROY,
    INDEX_WITHOUT_IOMMU, Iommu, Tpm, VmState, WITH_IOMMU, WITH_TICKETS, WITH_TPM,
};

use super::{Folder, json, submit, text, ticket, visorctl};
use crate::failure::Exit;
use crate::fake::{Access, Fake, FakeVm};
use crate::hex;

/// A visor with three VMs, of which one is stopped.
fn busy() -> Fake {
    let fake = Fake::new();
    let states = [(0, VmState::Running, 0), (5, VmState::Stopped, 6), (63, VmState::Waiting, 0)];
    for (slot, state, cause) in states {
        let id = [u8::try_from(slot).unwrap(); 16];
        let _ = fake.0.borrow_mut().vms.insert(slot, FakeVm { id, state, cause, pages: 12 });
    }
    fake
}

#[test]
fn the_status_has_everything_in_it() {
    let answer = json(&busy(), ["status"])["answer"].clone();
    assert_eq!(
        answer,
        value!({
            "version": {"major": 1, "minor": 5},
            "memory": {"base": 1000_u64 << 20, "length": 24 << 20, "free_pages": 500},
            "processors": 2,
            "refused_accesses": 3,
            "vm_tables": 17,
            "exits": 300,
            "ticks": 0x1_0000_0005_u64,
            "protection": {
                "clear_tickets": true,
                "refuses_unprotected": false,
                "waiting_tickets": 1,
                "running": 1,
                "stopped": 1,
                "unprotected": 0,
                "audit_events": 0,
                "iommu": {"state": "on", "tickets_without": false, "refused": 4},
                "processor": {"leaks": false, "tickets_despite": false}
            },
            "tpm": {"state": "measured", "log": 626}
        })
    );
}

#[test]
fn people_see_in_the_status_what_is_insecure() {
    let fake = busy();
    let good = visorctl(&fake, ["status"]);
    assert_eq!(good.exit, Exit::Good);
    assert!(good.out.contains("INSECURE:    tickets are taken in clear"), "{}", good.out);
    assert!(!good.out.contains("UNPROTECTED"), "{}", good.out);
    fake.0.borrow_mut().refuses = true;
    let strict = visorctl(&fake, ["status"]);
    assert!(
        strict.out.contains("\nothers:      VMs without a ticket are refused\n"),
        "{}",
        strict.out
    );
    assert!(!good.out.contains("refused\n"), "{}", good.out);
    fake.0.borrow_mut().clear = false;
    fake.0.borrow_mut().unprotected = 2;
    let bad = visorctl(&fake, ["status"]);
    assert_eq!(bad.exit, Exit::Good, "nobody asked for more");
    assert!(!bad.out.contains("INSECURE"), "{}", bad.out);
    assert!(bad.out.contains("\nUNPROTECTED: 2 VMs ran without a ticket\n"), "{}", bad.out);
}

#[test]
fn the_status_says_whether_tenants_can_tell_what_runs() {
    let fake = busy();
    for (state, name, line) in [
        (
            Tpm::Measured,
            "measured",
            "TPM:         PCR 19 holds what the visor is, log of 626 bytes",
        ),
        (Tpm::Absent, "absent", "TPM:         none: no tenant can tell what runs here"),
        (Tpm::Broken, "broken", "TPM:         not used: no tenant can tell what runs here"),
    ] {
        let _ = fake.0.borrow_mut().fixed.insert(INDEX_TPM, state.word());
        let text = visorctl(&fake, ["status"]).out;
        assert!(text.lines().any(|found| found == line), "{text}");
        let tpm = &json(&fake, ["status"])["answer"]["tpm"];
        assert_eq!((&tpm["state"], &tpm["log"]), (&value!(name), &value!(626)));
    }
    let _ = fake.0.borrow_mut().fixed.insert(INDEX_TPM, 3);
    assert_eq!(visorctl(&fake, ["status"]).exit, Exit::Failed);
    fake.0.borrow_mut().version = WITH_IOMMU;
    assert!(json(&fake, ["status"])["answer"]["tpm"].is_null());
}

#[test]
fn the_status_says_loudly_that_devices_are_not_kept_out() {
    let fake = busy();
    let look = |state: Iommu, without: u32| {
        let _ = fake.0.borrow_mut().fixed.insert(INDEX_IOMMU, state.word());
        let _ = fake.0.borrow_mut().fixed.insert(INDEX_WITHOUT_IOMMU, without);
        (visorctl(&fake, ["status"]).out, json(&fake, ["status"])["answer"].clone())
    };
    for (state, without, line) in [
        (Iommu::On, 0, "IOMMU:       on, refused 4 accesses of devices"),
        (Iommu::On, 1, "IOMMU:       on, refused 4 accesses of devices"),
        (
            Iommu::Late,
            0,
            "IOMMU:       on, but devices could reach the visor while it started, refused 4 accesses of \
             devices",
        ),
        (Iommu::Absent, 0, "NO IOMMU:    there is no IOMMU: tickets are refused"),
        (Iommu::Broken, 0, "NO IOMMU:    the IOMMU is not used: tickets are refused"),
        (
            Iommu::Absent,
            1,
            "INSECURE:    there is no IOMMU: devices reach VMs' memory (insecure-no-iommu)",
        ),
    ] {
        let (text, answer) = look(state, without);
        assert!(text.lines().any(|found| found == line), "{text}");
        let iommu = &answer["protection"]["iommu"];
        assert_eq!(iommu["tickets_without"], without == 1);
        assert_eq!(iommu["state"] == "on", state == Iommu::On);
        assert_eq!(iommu["state"] == "late", state == Iommu::Late);
    }
    let _ = fake.0.borrow_mut().fixed.insert(INDEX_IOMMU, 4);
    assert_eq!(visorctl(&fake, ["status"]).exit, Exit::Failed);
    // A visor of 1.2 knows nothing of it.
    fake.0.borrow_mut().version = WITH_TICKETS + 1;
    let old = json(&fake, ["status"]);
    assert!(old["answer"]["protection"]["iommu"].is_null(), "{old}");
}

#[test]
fn the_status_says_loudly_that_the_processor_leaks() {
    const LEAKY: &str = "the processor does not keep VMs' memory from the host";
    let fake = busy();
    assert!(!visorctl(&fake, ["status"]).out.contains(LEAKY));
    let _ = fake.0.borrow_mut().fixed.insert(INDEX_LEAKS, 1);
    for (despite, line) in [
        (0, format!("LEAKS:       {LEAKY}: tickets are refused")),
        (1, format!("INSECURE:    {LEAKY} (insecure-processor)")),
    ] {
        let _ = fake.0.borrow_mut().fixed.insert(INDEX_DESPITE_LEAKS, despite);
        let text = visorctl(&fake, ["status"]).out;
        assert!(text.lines().any(|found| found == line), "{text}");
        let processor = &json(&fake, ["status"])["answer"]["protection"]["processor"];
        assert_eq!(*processor, value!({"leaks": true, "tickets_despite": despite == 1}));
    }
    // A visor of 1.4 knows nothing of it.
    fake.0.borrow_mut().version = WITH_TPM;
    let old = json(&fake, ["status"]);
    assert!(old["answer"]["protection"]["processor"].is_null(), "{old}");
}

#[test]
fn who_requires_protection_learns_of_a_vm_without_a_ticket() {
    let fake = busy();
    let words = ["status", "--require-protected"];
    assert_eq!(visorctl(&fake, words).exit, Exit::Good);
    fake.0.borrow_mut().unprotected = 1;
    assert_eq!(visorctl(&fake, words).exit, Exit::Unprotected);
}

#[test]
fn vms_are_listed_with_their_slots() {
    let fake = busy();
    let vm = |vm: u32, id: &str, state, cause: Option<u32>| {
        let reason = cause.map(|_| "the visor has no memory left for the VM");
        value!({"vm": vm, "id": id.repeat(16), "state": state, "cause": cause, "reason": reason,
                "vcpus": 2, "resident_pages": 12, "sealed_pages": 7, "waits_for": null})
    };
    let answer = json(&fake, ["vms"])["answer"].clone();
    let vms = [
        vm(0, "00", "running", None),
        vm(5, "05", "stopped", Some(6)),
        vm(63, "3f", "waiting", None),
    ];
    assert_eq!(answer, value!({"vms": vms, "unprotected": 0}));
    let lines = visorctl(&fake, ["vms"]).out;
    let stopped = format!(
        " 5  stopped      2         12          7  {}  cause 6: the visor has no memory left for the VM",
        "05".repeat(16)
    );
    assert!(lines.lines().any(|line| line == stopped), "{lines}");
}

#[test]
fn a_vm_that_waits_for_a_page_very_often_is_said_to() {
    let fake = busy();
    for (asked, is_said) in [(0, false), (63, false), (64, true), (4711, true), (u32::MAX, false)] {
        fake.0.borrow_mut().asked = asked;
        let answer = json(&fake, ["vms"])["answer"]["vms"].clone();
        let page = value!({"page": "0x1234000", "asked": asked});
        assert_eq!(answer[0]["waits_for"], if is_said { page } else { value!(null) });
        assert!(answer[1]["waits_for"].is_null() && answer[2]["waits_for"].is_null());
        let words = format!("  waits for page 0x1234000, asked for {asked} times\n");
        assert_eq!(visorctl(&fake, ["vms"]).out.matches(&words).count(), usize::from(is_said));
    }
}

#[test]
fn a_list_of_vms_ends_unprotected_if_one_ran_without_a_ticket() {
    let fake = busy();
    fake.0.borrow_mut().unprotected = 1;
    assert_eq!(json(&fake, ["vms"])["exit"], 3);
    let people = visorctl(&fake, ["vms"]);
    assert_eq!(people.exit, Exit::Unprotected);
    assert!(people.out.ends_with("UNPROTECTED: 1 VMs ran without a ticket\n"), "{}", people.out);
}

#[test]
fn all_memory_is_checked_and_what_is_wrong_is_named() {
    let fake = busy();
    let good = visorctl(&fake, ["check"]);
    assert_eq!((good.exit, fake.0.borrow().checked.as_slice()), (Exit::Good, &[0, 1, 2][..]));
    assert!(good.out.starts_with("3 GiB checked"), "{}", good.out);
    assert_eq!(json(&fake, ["check"])["answer"], value!({"gib": 3}));
    fake.0.borrow_mut().wrong = 0x8_0001;
    let bad = json(&fake, ["check"]);
    assert_eq!((&bad["exit"], &bad["error"]["code"]), (&value!(1), &value!("disagreement")));
    let text = visorctl(&fake, ["check"]).err;
    assert!(text.contains("the memory at 0x80000000"), "{text}");
}

#[test]
fn a_destroyed_vm_is_gone_and_no_other() {
    let fake = busy();
    assert_eq!(json(&fake, ["destroy", "5"])["answer"], value!({"vm": 5}));
    let left: Vec<u32> = fake.0.borrow().vms.keys().copied().collect();
    assert_eq!(left, [0, 63]);
    assert_eq!(super::written(&fake, INDEX_VM_DESTROY), [1]);
}

#[test]
fn every_command_leaves_an_index_selected_that_nothing_can_be_written_to() {
    let folder = Folder::new("parked");
    let ticket = folder.write("ticket", &ticket(1, 0).bytes().unwrap());
    for words in [
        vec!["status"],
        vec!["vms"],
        vec!["audit"],
        vec!["destroy", "9"],
        vec!["submit", super::text(&ticket)],
    ] {
        let fake = Fake::new();
        let _ = visorctl(&fake, words);
        assert_eq!(fake.0.borrow().history.last(), Some(&Access::Select(INDEX_MAGIC)));
    }
}

#[test]
fn the_audit_log_is_shown_in_order_and_checked() {
    let fake = Fake::new();
    let _ = submit(&fake, &Folder::new("audit"), &ticket(1, 0));
    fake.0.borrow_mut().record(Kind::Touched, 0, 0x5000);
    fake.0.borrow_mut().record(Kind::Unprotected, NO_VM, 0);
    let answer = json(&fake, ["audit"])["answer"].clone();
    let event = |sequence: u32, kind: &str, number: u32, vm: Option<u32>, a: &str| value!({"sequence": sequence, "kind": kind, "kind_number": number, "vm": vm, "cpu": 1, "a": a, "b": "0x0", "reason": null});
    let events = [
        event(0, "ticket-accepted", 1, Some(0), "0x0"),
        event(1, "host-touched-page", 8, Some(0), "0x5000"),
        event(2, "unprotected-vm", 9, None, "0x0"),
    ];
    let chain = hex::encode(&fake.0.borrow().chain);
    let expected =
        value!({"events": events, "end": 3, "lost": 0, "chain": chain, "verified": true});
    assert_eq!(answer, expected);
    let people = visorctl(&fake, ["audit", "--since", "1"]).out;
    let lines = [
        "     1  cpu 1    VM 0   host-touched-page  0x5000 0x0",
        "     2  cpu 1           unprotected-vm  0x0 0x0",
        &format!("chain value before event 3: {chain}, checked"),
    ];
    assert_eq!(people.lines().collect::<Vec<_>>(), lines);
}

#[test]
fn the_log_says_in_words_why_a_ticket_was_refused_and_a_vm_stopped() {
    let fake = Fake::new();
    let why = |number: usize| json(&fake, ["audit"])["answer"]["events"][number]["reason"].clone();
    fake.0.borrow_mut().record(Kind::Refused, NO_VM, 19);
    fake.0.borrow_mut().record(Kind::Stopped, 0, 1);
    fake.0.borrow_mut().record(Kind::Stopped, 0, 0x105);
    fake.0.borrow_mut().record(Kind::Stopped, 0, 99);
    assert_eq!(why(0), "the checksum is wrong: damaged on the way");
    assert_eq!(why(1), "a page did not come back as it left");
    assert_eq!(why(2), "one of its processors did what has no rule");
    assert_eq!(why(3), value!(null));
    fake.0.borrow_mut().record(Kind::Dma, NO_VM, 3 << 16 | 0x00fa);
    assert_eq!(why(4), "the device may not write there");
    let people = visorctl(&fake, ["audit"]).out;
    assert!(
        people.contains("vm-stopped  0x1 0x0  a page did not come back as it left\n"),
        "{people}"
    );
}

#[test]
fn an_empty_log_has_the_first_chain_value() {
    let answer = json(&Fake::new(), ["audit"])["answer"].clone();
    let chain = hex::encode(&GENESIS);
    assert_eq!(
        answer,
        value!({"events": [], "end": 0, "lost": 0, "chain": chain, "verified": true})
    );
}

#[test]
fn a_kind_of_a_newer_visor_is_shown_by_its_number() {
    let fake = Fake::new();
    fake.0.borrow_mut().record(Kind::Launched, 0, 0);
    {
        let mut machine = fake.0.borrow_mut();
        machine.events[0][8] = 77;
        machine.chain = extend(&GENESIS, &machine.events[0]);
    }
    let event = json(&fake, ["audit"])["answer"]["events"][0].clone();
    assert_eq!((&event["kind"], &event["kind_number"]), (&value!(null), &value!(77)));
    assert!(visorctl(&fake, ["audit"]).out.contains("  kind-77  "));
}

#[test]
fn a_log_whose_beginning_is_gone_is_checked_only_from_a_known_value_on() {
    let fake = Fake::new();
    let mut before = Vec::new();
    for number in 0..10 {
        before.push(hex::encode(&fake.0.borrow().chain));
        fake.0.borrow_mut().record(Kind::Touched, 0, number);
    }
    fake.0.borrow_mut().oldest = 4;
    let all = json(&fake, ["audit"])["answer"].clone();
    assert_eq!((&all["lost"], &all["verified"]), (&value!(4), &value!(false)));
    assert_eq!(all["events"].as_array().unwrap().len(), 6);
    let known = json(&fake, ["audit", "--since", "6", "--chain", &before[6]])["answer"].clone();
    assert_eq!((&known["lost"], &known["verified"]), (&value!(0), &value!(true)));
    assert_eq!(known["events"].as_array().unwrap().len(), 4);
    let wrong = json(&fake, ["audit", "--since", "6", "--chain", &before[5]]);
    assert_eq!(wrong["error"]["code"], "chain");
    // The value before an event that is gone says nothing of those that are left.
    let gone = json(&fake, ["audit", "--since", "3", "--chain", &before[3]])["answer"].clone();
    assert_eq!((&gone["lost"], &gone["verified"]), (&value!(1), &value!(false)));
}

#[test]
fn the_last_known_value_is_checked_even_if_nothing_came_after_it() {
    let fake = Fake::new();
    fake.0.borrow_mut().record(Kind::Touched, 0, 0);
    fake.0.borrow_mut().oldest = 1;
    let chain = hex::encode(&fake.0.borrow().chain);
    assert_eq!(
        json(&fake, ["audit", "--since", "1", "--chain", &chain])["answer"]["verified"],
        true
    );
    let other = hex::encode(&GENESIS);
    assert_eq!(json(&fake, ["audit", "--since", "1", "--chain", &other])["error"]["code"], "chain");
}

#[test]
fn a_log_that_grows_while_it_is_read_is_read_again() {
    let fake = Fake::new();
    fake.0.borrow_mut().record(Kind::Touched, 0, 0);
    fake.0.borrow_mut().coming = 3;
    let answer = json(&fake, ["audit"])["answer"].clone();
    assert_eq!((&answer["end"], &answer["verified"]), (&value!(4), &value!(true)));
}

#[test]
fn a_visor_without_tickets_still_has_a_status() {
    let fake = Fake::new();
    fake.0.borrow_mut().version = 0x0001_0000;
    let answer = json(&fake, ["status"])["answer"].clone();
    assert_eq!((&answer["exits"], &answer["protection"]), (&value!(300), &value!(null)));
    assert!(
        visorctl(&fake, ["status"]).out.ends_with("protection:  none: this visor has no tickets\n")
    );
    let known = |access: &Access| !matches!(access, Access::Read(0x400..) | Access::Write(..));
    assert!(fake.0.borrow().history.iter().all(known));
}

#[test]
fn a_receipt_is_what_the_visor_has_signed_about_the_nonce() {
    let (fake, folder, nonce) = (busy(), Folder::new("receipt"), "ab".repeat(32));
    let out = folder.path("receipt");
    let words = ["receipt", "5", "--nonce", &nonce, "--out", text(&out)];
    let answer = json(&fake, words)["answer"].clone();
    assert_eq!(answer["body"].as_str().unwrap(), nonce.clone() + &"07".repeat(136));
    let signature = answer["signature"].as_str().unwrap();
    assert!(signature.starts_with("9004000091040000"), "{signature}");
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!(written, answer);
    // What is there is not written over.
    assert_eq!(json(&fake, words)["error"]["code"], "file");
    assert_eq!(json(&fake, ["receipt", "6", "--nonce", &nonce])["error"]["code"], "no-vm");
    fake.0.borrow_mut().version = ticket::port::WITH_KEYS - 1;
    assert_eq!(json(&fake, ["receipt", "5", "--nonce", &nonce])["error"]["code"], "old-visor");
}

#[test]
fn the_chain_value_that_is_shown_is_the_one_that_is_signed() {
    let (fake, nonce) = (busy(), "cd".repeat(32));
    fake.0.borrow_mut().record(Kind::Launched, 0, 0);
    // One event more while the log is read.
    fake.0.borrow_mut().coming = 1;
    let answer = json(&fake, ["audit", "--nonce", &nonce])["answer"].clone();
    assert_eq!(answer["end"], 2);
    let head = format!("{nonce}0200000000000000{}", answer["chain"].as_str().unwrap());
    assert_eq!(answer["signed"]["body"], head);
    assert!(json(&fake, ["audit"])["answer"]["signed"].is_null());
    assert!(visorctl(&fake, ["audit", "--nonce", &nonce]).out.contains("\nsigned: cdcd"));
}
