use std::string::String;
use std::vec::Vec;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256, Sha384};

use super::{Before, Configuration, Event, Launch, Recorder};
use crate::log::{CAPACITY, Log};
use crate::tpm::fake::{Fake, Flaw, Kind};
use crate::tpm::{Error, Tpm};

fn configuration(command_line: &[u8]) -> Configuration<'_> {
    Configuration {
        version: "0.1.0",
        launch: Launch::Plain,
        for_tests: [false; 2],
        command_line,
        dev_tickets: false,
        unprotected_vms: true,
    }
}

/// Measures three events by a TPM with `flaw`, which shows once the log was begun.
fn measured(kind: Kind, flaw: Option<Flaw>, log: &mut Log) -> (Fake, Result<(), Error>) {
    let fake = Fake::new(kind, None);
    let mut tpm = Tpm::find(fake.clone()).unwrap();
    let mut recorder = Recorder::start(&mut tpm, log).unwrap();
    fake.0.borrow_mut().flaw = flaw;
    let mut event = Event::empty();
    let done = (|| {
        recorder.record(event.configuration(&configuration(b"visor log=debug"))?)?;
        recorder.record(event.iommu("on", 3)?)?;
        recorder.record(event.key(&[0x5c; 64])?)?;
        recorder.finish()
    })();
    (fake, done)
}

/// What is in a log: each event's PCR, type, digests and data. As strict as whoever verifies must be.
type Noted = (u32, u32, Vec<(u16, Vec<u8>)>, Vec<u8>);

struct Parser<'a>(&'a [u8]);

impl<'a> Parser<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }
    fn number(&mut self, len: usize) -> u32 {
        self.take(len).iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }
    fn sized(&mut self) -> &'a [u8] {
        let len = self.number(4);
        self.take(usize::try_from(len).unwrap())
    }
}

fn parsed(log: &Log) -> Vec<Noted> {
    let mut parser = Parser(log.bytes());
    assert_eq!((parser.number(4), parser.number(4)), (0, 3));
    assert_eq!(parser.take(20), [0; 20]);
    let mut header = Parser(parser.sized());
    assert_eq!(header.take(16), b"Spec ID Event03\0");
    assert_eq!(header.take(8), [0, 0, 0, 0, 0, 2, 0, 2]);
    let banks: Vec<_> =
        (0..header.number(4)).map(|_| [header.number(2), header.number(2)]).collect();
    assert_eq!(banks, [[0xb, 32], [0xc, 48]]);
    assert_eq!(header.0, [0]);
    let mut events = Vec::new();
    while !parser.0.is_empty() {
        let (pcr, kind) = (parser.number(4), parser.number(4));
        let digests = (0..parser.number(4)).map(|_| {
            let bank = parser.number(2);
            let size = banks.iter().find(|known| known[0] == bank).unwrap()[1];
            (u16::try_from(bank).unwrap(), parser.take(usize::try_from(size).unwrap()).to_vec())
        });
        let digests = digests.collect();
        events.push((pcr, kind, digests, parser.sized().to_vec()));
    }
    events
}

#[test]
fn the_log_explains_the_register_in_every_bank() {
    for kind in [Kind::Fifo, Kind::Crb] {
        let mut log = Log::empty();
        let (fake, done) = measured(kind, None, &mut log);
        assert_eq!(done, Ok(()));
        let (mut short, mut long) = (std::vec![0xff; 32], std::vec![0xff; 48]);
        for (pcr, kind, digests, data) in parsed(&log) {
            assert_eq!((pcr, kind), (19, 6));
            assert_eq!(digests[0], (0xb, Sha256::digest(&data).to_vec()));
            assert_eq!(digests[1], (0xc, Sha384::digest(&data).to_vec()));
            short = Sha256::digest([&short[..], &digests[0].1].concat()).to_vec();
            long = Sha384::digest([&long[..], &digests[1].1].concat()).to_vec();
        }
        let state = fake.0.borrow();
        assert_eq!((short, long), state.pcr);
        assert_eq!(state.active, None, "the locality is given up");
    }
}

#[test]
fn the_events_are_what_is_written_down_for_those_who_verify() {
    let mut log = Log::empty();
    measured(Kind::Fifo, None, &mut log).1.unwrap();
    let data: Vec<_> = parsed(&log).into_iter().map(|(.., data)| data).collect();
    let text = "format=1\nvisor=0.1.0\nlaunch=plain\ncommand-line=visor log=debug\ndev-tickets=no\nunprotected-vms=run\n";
    let tagged = |id: u32, data: &[u8]| {
        let len = u32::try_from(data.len()).unwrap();
        [&id.to_le_bytes()[..], &len.to_le_bytes(), data].concat()
    };
    assert_eq!(data[0], tagged(0x5653_0001, text.as_bytes()));
    assert_eq!(data[1], tagged(0x5653_0002, b"iommu=on\nunits=3\n"));
    assert_eq!(data[2], tagged(0x5653_0003, &[0x5c; 64]));
    assert_eq!(data.len(), 3);
}

/// The text of the configuration with this command line.
fn text(command_line: &[u8]) -> String {
    let mut event = Event::empty();
    let event = event.configuration(&configuration(command_line)).unwrap();
    let (head, text) = event.bytes.split_at(8);
    assert_eq!(head[4..], u32::try_from(text.len()).unwrap().to_le_bytes());
    String::from_utf8(text.to_vec()).unwrap()
}

#[test]
fn a_build_for_tests_never_passes_for_the_visor() {
    let mut event = Event::empty();
    let build = Configuration { for_tests: [true; 2], ..configuration(b"") };
    let told = event.configuration(&build).unwrap().bytes.to_vec();
    let wanted = b"launch=plain\nvmx=no\ntpm=serial\ncommand-line=\n";
    assert!(told.windows(wanted.len()).any(|part| part == wanted));
    assert!(text(b"").contains("launch=plain\ncommand-line=\n"));
}

#[test]
fn no_command_line_passes_for_another_line() {
    assert!(text(b"a\ndev-tickets=no").contains("\ncommand-line=a\\ndev-tickets=no\n"));
    assert!(text(b"\\n\0\xff").contains("\ncommand-line=\\\\n\\x00\\xff\n"));
}

#[test]
fn a_command_line_without_room_is_told_by_its_digest() {
    let rest = text(b"").len();
    let fits = std::vec![b'x'; 1016 - rest];
    assert!(text(&fits).contains("command-line=xxx"));
    let long = std::vec![b'x'; 1017 - rest];
    let digest: String =
        Sha256::digest(&long).iter().map(|byte| std::format!("{byte:02x}")).collect();
    assert!(
        text(&long).contains(&std::format!("launch=plain\ncommand-line-sha256={digest}\ndev-"))
    );
}

#[test]
fn a_log_that_the_register_does_not_bear_out_is_forgotten() {
    for flaw in [Flaw::Refuses(0x101, 1), Flaw::Says(0)] {
        let mut log = Log::empty();
        let (_, done) = measured(Kind::Fifo, Some(flaw), &mut log);
        assert!(done.is_err(), "{flaw:?}");
        assert!(log.bytes().is_empty(), "{flaw:?}");
    }
}

#[test]
fn a_tpm_that_fails_at_the_start_gets_its_locality_back() {
    let fake = Fake::new(Kind::Crb, Some(Flaw::Refuses(0x100, 1)));
    let (mut tpm, mut log) = (Tpm::find(fake.clone()).unwrap(), Log::empty());
    let started = Recorder::start(&mut tpm, &mut log);
    assert_eq!(started.map(drop), Err(Error::Refused(0x100)));
    assert_eq!(fake.0.borrow().active, None);
}

#[test]
fn it_is_told_what_the_register_held_before() {
    let fake = Fake::new(Kind::Crb, None);
    let (mut tpm, mut log) = (Tpm::find(fake.clone()).unwrap(), Log::empty());
    let mut recorder = Recorder::start(&mut tpm, &mut log).unwrap();
    assert_eq!(recorder.before(), Ok(Before::Ones));
    assert_eq!(recorder.random().unwrap()[..2], [0x5a, 0x5b]);
    fake.0.borrow_mut().pcr.0 = std::vec![0; 32];
    assert_eq!(recorder.before(), Ok(Before::Zeros));
    recorder.record(Event::empty().key(&[0; 64]).unwrap()).unwrap();
    assert_eq!(recorder.before(), Ok(Before::Extended));
}

#[test]
fn a_launch_is_one_only_if_both_of_its_registers_say_so() {
    let fake = Fake::new(Kind::Fifo, None);
    let (mut tpm, mut log) = (Tpm::find(fake.clone()).unwrap(), Log::empty());
    let mut recorder = Recorder::start(&mut tpm, &mut log).unwrap();
    // All ones, as no launch was; all zeros, as one was, and has measured nothing; almost so.
    let (ones, zeros, measured) = ((0xff, 0xff), (0, 0), [(0, 0xff), (1, 0), (0xff, 0)]);
    assert_eq!(recorder.holds_launch(), Ok(false));
    for good in measured {
        for bad in [ones, zeros] {
            for launch in [[good, bad], [bad, good], [bad, bad]] {
                fake.0.borrow_mut().launch = launch;
                assert_eq!(recorder.holds_launch(), Ok(false), "{launch:x?}");
            }
        }
        fake.0.borrow_mut().launch = [good, measured[0]];
        assert_eq!(recorder.holds_launch(), Ok(true));
    }
    fake.0.borrow_mut().flaw = Some(Flaw::Refuses(0x101, 1));
    assert_eq!(recorder.holds_launch(), Err(Error::Refused(0x101)));
}

#[test]
fn a_launch_in_no_bank_that_tenants_look_at_is_none() {
    let fake = Fake::new(Kind::Fifo, None);
    let (mut tpm, mut log) = (Tpm::find(fake.clone()).unwrap(), Log::empty());
    let mut recorder = Recorder::start(&mut tpm, &mut log).unwrap();
    fake.0.borrow_mut().launch = [(1, 0); 2];
    assert_eq!(recorder.holds_launch(), Ok(true));
    let _ = recorder.banks.swap_remove(0);
    assert_eq!(recorder.holds_launch(), Ok(false));
}

proptest! {
    #[test]
    fn any_configuration_fits_and_its_log_too(line in prop::collection::vec(any::<u8>(), 0..2000)) {
        let text = text(&line);
        prop_assert!(text.len() <= 1016);
        prop_assert_eq!(text.lines().count(), 6);
        // Eight banks of the longest digests, three events of which one is as long as can be.
        prop_assert!(8 * 66 * 3 + 16 * 3 + 1024 + 72 + 64 + 100 < CAPACITY);
    }
}
