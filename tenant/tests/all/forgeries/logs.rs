//! Forgeries of logs.

use evidence::Bytes;

use super::super::boot::{self, Event, IPL, Visor, event, log, tagged};
use super::{Case, Forgeries, boot_log, other_key};

/// What breaks where the firmware's log cannot be read.
const UNREAD: &[&str] = &[
    "boot-log",
    "pcr-explained 0",
    "pcr-explained 1",
    "pcr-explained 2",
    "pcr-explained 3",
    "pcr-explained 4",
    "pcr-explained 5",
    "pcr-explained 6",
    "pcr-explained 7",
    "pcr-explained 8",
    "pcr-explained 9",
    "visor-build",
];

/// The visor's log, made of other events.
fn visor_log(change: impl FnOnce(&mut Vec<Event>)) -> Case {
    Case::of("plain").with(|case| {
        let mut events = Visor::new("plain").events();
        change(&mut events);
        case.evidence.visor.log = Bytes(log(&events));
    })
}

pub(super) fn by_boot_log() -> Forgeries {
    let plain = || Case::of("plain");
    let old_format = |case: &mut Case| case.evidence.firmware.as_mut().unwrap().log.0[35] ^= 1;
    vec![
        ("no log of the firmware's", plain().with(|case| case.evidence.firmware = None), UNREAD),
        ("a log in the format without banks", plain().with(old_format), UNREAD),
        (
            "a log that ends before its last event",
            boot_log(|log| drop(log.pop())),
            &["pcr-explained 9"],
        ),
        (
            "a log with an event more",
            boot_log(|log| log.push(event(9, IPL, boot::VISOR, b"/visor.elf\0"))),
            &["pcr-explained 9"],
        ),
        (
            "a log with two events exchanged",
            boot_log(|log| {
                let last = log.len() - 1;
                log.swap(last - 1, last);
            }),
            &["pcr-explained 9"],
        ),
        (
            "a log in which an evil kernel was a good one",
            boot_log(|log| log.last_mut().unwrap().measured = boot::VISOR.to_vec()),
            &["pcr-explained 9"],
        ),
        (
            "a log in which an event of one PCR's is another's",
            boot_log(|log| log.last_mut().unwrap().pcr = 4),
            &["pcr-explained 4", "pcr-accepted 4", "pcr-explained 9"],
        ),
        (
            "a log in which an event extends nothing",
            boot_log(|log| log.last_mut().unwrap().kind = 3),
            &["pcr-explained 9"],
        ),
        (
            "a log that says that the firmware started the TPM from locality 3",
            boot_log(|log| log.insert(0, event(0, 3, b"", b"StartupLocality\0\x03"))),
            &["pcr-explained 0"],
        ),
    ]
}

pub(super) fn by_visor_log() -> Forgeries {
    vec![
        (
            "a visor's log that is cut off",
            Case::of("plain").with(|case| case.evidence.visor.log.0.truncate(200)),
            &[
                "visor-log",
                "pcr-explained 17",
                "pcr-explained 18",
                "pcr-explained 19",
                "visor-build",
                "visor-alive",
            ],
        ),
        (
            "a visor's log without the key",
            visor_log(|log| drop(log.pop())),
            &["visor-events", "pcr-explained 19", "visor-build", "visor-alive"],
        ),
        (
            "a visor's log whose key extends nothing",
            visor_log(|log| log[2].kind = 3),
            &["visor-events", "pcr-explained 19", "visor-build", "visor-alive"],
        ),
        (
            "a visor's log with an event of the host's",
            visor_log(|log| log.push(event(19, 6, b"host", &tagged(1, b"host")))),
            &["visor-events", "pcr-explained 19", "visor-build", "visor-alive"],
        ),
        (
            "a command line that looks like the hash of another",
            visor_log(|log| {
                let line = "sha256:00".to_owned();
                *log = Visor { command_line: line, ..Visor::new("plain") }.events();
            }),
            &["visor-events", "pcr-explained 19", "visor-build", "visor-alive"],
        ),
        (
            "a visor's log with two events exchanged",
            visor_log(|log| log.swap(0, 1)),
            &["visor-events", "pcr-explained 19", "visor-build", "visor-alive"],
        ),
        (
            "a visor's log whose text is not what was measured",
            visor_log(|log| {
                let other = Visor { dev_tickets: "yes", ..Visor::new("plain") };
                log[0].told = tagged(0x5653_0001, other.configuration().as_bytes());
            }),
            &["visor-events", "visor-build", "visor-alive"],
        ),
        (
            "a visor's log with a key that was made in software",
            visor_log(|log| log[2] = other_key().events()[2].clone()),
            &["pcr-explained 19", "visor-key", "visor-alive"],
        ),
    ]
}

pub(super) fn by_launch() -> Forgeries {
    let launched = |change: &dyn Fn(&mut Vec<Event>)| {
        Case::of("txt").with(|case| {
            let mut events = boot::launch();
            events.extend(Visor::new("txt").events());
            change(&mut events);
            case.evidence.visor.log = Bytes(log(&events));
        })
    };
    vec![
        (
            "a launch whose log does not say what is in PCR 18",
            launched(&|events| drop(events.remove(1))),
            &["pcr-explained 18"],
        ),
        (
            "a launch whose log has another visor",
            launched(&|events| events[0].measured = b"another".to_vec()),
            &["pcr-explained 17", "visor-build"],
        ),
        (
            "no launch, and a visor's log that says so of one",
            Case::of("liar").policy(r#"launches = ["plain"]"#, r#"launches = ["plain", "txt"]"#),
            &[
                "launch-measured",
                "pcr-explained 17",
                "pcr-accepted 17",
                "pcr-explained 18",
                "pcr-accepted 18",
                "pcr-explained 19",
                "visor-build",
            ],
        ),
    ]
}
