use std::vec::Vec;

use proptest::prelude::*;

use super::fake::{Did, Fake, Flaw, Kind, answer};
use super::{Bank, Banks, Error, Registers, SIZE, Step, Tpm};

const KINDS: [Kind; 2] = [Kind::Fifo, Kind::Crb];
const SHORT: Bank = Bank { algorithm: 0xb, size: 32 };
const LONG: Bank = Bank { algorithm: 0xc, size: 48 };

/// A TPM with `flaw`, and what drives it.
fn tpm(kind: Kind, flaw: Option<Flaw>) -> (Fake, Tpm<Fake>) {
    let fake = Fake::new(kind, flaw);
    let tpm = Tpm::find(fake.clone()).unwrap();
    (fake, tpm)
}

/// A TPM whose locality 2 is the visor's before `flaw` shows.
fn claimed(kind: Kind, flaw: Option<Flaw>) -> (Fake, Tpm<Fake>) {
    let (fake, mut tpm) = tpm(kind, None);
    tpm.claim(2).unwrap();
    fake.0.borrow_mut().flaw = flaw;
    (fake, tpm)
}

fn banks() -> Banks {
    let mut banks = Banks::new(SHORT);
    banks.push(SHORT).unwrap();
    banks.push(LONG).unwrap();
    banks
}

#[test]
fn every_command_works_over_both_interfaces_at_the_locality_that_was_claimed() {
    for kind in KINDS {
        let (fake, mut tpm) = tpm(kind, None);
        tpm.claim(2).unwrap();
        assert_eq!(tpm.banks(19).unwrap(), banks());
        let mut random = [0; 32];
        tpm.random(&mut random).unwrap();
        assert_eq!(random[..3], [0x5a, 0x5b, 0x58]);
        assert_eq!(tpm.value(19, LONG).unwrap().bytes(), [0xff; 48]);
        let event = [7; 1024];
        let digests = tpm.event(19, &event, &banks()).unwrap();
        let lengths: Vec<_> = digests.iter().map(|digest| digest.bytes().len()).collect();
        assert_eq!(lengths, [32, 48]);
        assert_eq!(tpm.value(19, SHORT).unwrap().bytes(), fake.0.borrow().pcr.0);
        tpm.release().unwrap();
        let history = &fake.0.borrow().history;
        assert_eq!((&history[0], history.last()), (&Did::Claim(2), Some(&Did::Release(2))));
        let at_two = |did: &&Did| matches!(did, Did::Command(2, _));
        assert_eq!(history.iter().filter(at_two).count(), 5, "{kind:?}");
    }
}

#[test]
fn what_firmware_had_is_given_up_first() {
    for kind in KINDS {
        let (fake, mut tpm) = tpm(kind, None);
        fake.0.borrow_mut().active = Some(0);
        tpm.claim(2).unwrap();
        assert_eq!(fake.0.borrow().history, [Did::Release(0), Did::Claim(2)], "{kind:?}");
    }
}

#[test]
fn no_command_is_sent_without_a_locality() {
    for kind in KINDS {
        let (_, mut tpm) = tpm(kind, None);
        assert_eq!(tpm.banks(19), Err(Error::NoLocality));
        tpm.claim(2).unwrap();
        tpm.release().unwrap();
        assert_eq!(tpm.banks(19), Err(Error::NoLocality));
    }
}

#[test]
fn a_tpm_refuses_to_extend_at_a_locality_that_may_not() {
    let (_, mut tpm) = tpm(Kind::Fifo, None);
    tpm.claim(0).unwrap();
    assert_eq!(tpm.event(19, b"x", &banks()), Err(Error::Refused(0x907)));
}

#[test]
fn whatever_does_not_happen_is_given_up_in_time() {
    use Flaw::{Full, Grants, Greedy, Keeps, Ready, Sated, Works};
    let claim = [
        (Grants, Step::Locality),
        (Flaw::One(0), Step::Locality),
        (Flaw::One(0xff), Step::Locality),
    ];
    for kind in KINDS {
        for (flaw, step) in claim {
            let (fake, mut tpm) = tpm(kind, Some(flaw));
            assert_eq!(tpm.claim(2), Err(Error::Timeout(step)), "{kind:?} {flaw:?}");
            assert!(fake.0.borrow().pauses <= 1_000_000);
        }
        for (flaw, step) in [(Ready, Step::Ready), (Works, Step::Command)] {
            let (_, mut tpm) = claimed(kind, Some(flaw));
            assert_eq!(tpm.banks(19), Err(Error::Timeout(step)), "{kind:?} {flaw:?}");
        }
        let (_, mut tpm) = claimed(kind, Some(Keeps));
        assert_eq!(tpm.release(), Err(Error::Timeout(Step::Release)));
    }
    for flaw in [Full, Sated, Greedy] {
        let (_, mut tpm) = claimed(Kind::Fifo, Some(flaw));
        assert_eq!(tpm.banks(19), Err(Error::Timeout(Step::Bytes)), "{flaw:?}");
    }
}

#[test]
fn an_answer_that_came_badly_is_asked_for_again() {
    let (fake, mut tpm) = claimed(Kind::Fifo, Some(Flaw::Short));
    assert_eq!(tpm.banks(19).unwrap(), banks());
    assert_eq!(fake.0.borrow().history.len(), 2, "the command was sent once");
}

#[test]
fn an_answer_of_another_length_is_none() {
    for flaw in [
        Flaw::Shorter,
        Flaw::Long,
        Flaw::Says(9),
        Flaw::Says(0),
        Flaw::Says(1025),
        Flaw::Says(u32::MAX),
    ] {
        let (_, mut tpm) = claimed(Kind::Fifo, Some(flaw));
        assert_eq!(tpm.banks(19), Err(Error::Reply), "{flaw:?}");
    }
    for flaw in [Flaw::Says(9), Flaw::Says(0xf81), Flaw::Says(u32::MAX)] {
        let (_, mut tpm) = claimed(Kind::Crb, Some(flaw));
        assert_eq!(tpm.banks(19), Err(Error::Reply), "{flaw:?}");
    }
}

#[test]
fn a_command_buffer_that_fails_or_lies_elsewhere_is_an_error() {
    let (_, mut tpm) = claimed(Kind::Crb, Some(Flaw::Fails));
    assert_eq!(tpm.banks(19), Err(Error::Failed));
    let (_, mut tpm) = claimed(Kind::Crb, Some(Flaw::Elsewhere));
    assert_eq!(tpm.banks(19), Err(Error::Buffer));
}

#[test]
fn a_tpm_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    for kind in KINDS {
        for code in [0x908, 0x90a, 0x922] {
            let (_, mut tpm) = claimed(kind, Some(Flaw::Refuses(code, 200)));
            assert_eq!(tpm.banks(19).unwrap(), banks(), "{code:#x}");
            let (_, mut tpm) = claimed(kind, Some(Flaw::Refuses(code, 201)));
            assert_eq!(tpm.banks(19), Err(Error::Refused(code)));
        }
        let (fake, mut tpm) = claimed(kind, Some(Flaw::Refuses(0x100, 1)));
        assert_eq!(tpm.banks(19), Err(Error::Refused(0x100)));
        assert_eq!(fake.0.borrow().history.len(), 2);
    }
}

/// What `ask` makes of the answer `bytes`.
fn told<T>(
    bytes: Vec<u8>,
    ask: impl FnOnce(&mut Tpm<Fake>) -> Result<T, Error>,
) -> Result<T, Error> {
    let (fake, mut tpm) = claimed(Kind::Fifo, None);
    fake.0.borrow_mut().answer = Some(bytes);
    ask(&mut tpm)
}

#[test]
fn the_banks_must_be_known_distinct_and_told_once_and_whole() {
    let asked = |body: &[u8]| told(answer(0x8001, 0, body), |tpm| tpm.banks(19));
    let one = [0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0xb, 3, 0, 0, 8];
    assert_eq!(asked(&one).unwrap().len(), 1);
    assert_eq!(asked(&one[..14]), Err(Error::Reply), "cut short");
    assert_eq!(asked(&[&one[..], &[0]].concat()), Err(Error::Reply), "one byte more");
    for (at, value, error, why) in [
        (0, 1, Error::Reply, "more would follow"),
        (4, 6, Error::Reply, "another capability"),
        (8, 2, Error::Reply, "two were promised"),
        (10, 0x99, Error::Banks, "an unknown algorithm"),
        (14, 4, Error::Banks, "PCR 18 only"),
        (11, 2, Error::Banks, "a selection of two bytes"),
        (11, 4, Error::Reply, "a selection of four"),
    ] {
        let mut body = one;
        body[at] = value;
        assert_eq!(asked(&body), Err(error), "{why}");
    }
    let mut twice = one.to_vec();
    twice[8] = 2;
    twice.extend([0, 0xb, 3, 0, 0, 8]);
    assert_eq!(asked(&twice), Err(Error::Banks), "one bank twice");
    // A bank without the register may be of any algorithm.
    twice[16] = 0x99;
    twice[20] = 0;
    assert_eq!(asked(&twice).unwrap().len(), 1);
    let none = [0, 0, 0, 0, 5, 0, 0, 0, 0];
    assert_eq!(asked(&none), Err(Error::Banks));
}

#[test]
fn an_event_must_be_answered_with_one_digest_for_each_bank() {
    let mut only = Banks::new(SHORT);
    only.push(SHORT).unwrap();
    let asked = |list: &[u8]| {
        let len = u32::try_from(list.len()).unwrap().to_be_bytes();
        let body = [&len[..], list, &[0, 0, 1, 0, 0]].concat();
        told(answer(0x8002, 0, &body), |tpm| tpm.event(19, b"x", &only))
    };
    let digest = |algorithm: u8| {
        let mut digest = std::vec![0, algorithm];
        digest.extend([algorithm; 32]);
        digest
    };
    let list = |count: u8, digests: &[Vec<u8>]| [&[0, 0, 0, count][..], &digests.concat()].concat();
    assert_eq!(asked(&list(2, &[digest(0x12), digest(0xb)])).unwrap()[0].bytes(), [0xb; 32]);
    assert_eq!(asked(&list(1, &[digest(0x12)])), Err(Error::Reply), "of another bank");
    assert_eq!(asked(&list(2, &[digest(0xb), digest(0xb)])), Err(Error::Reply), "twice");
    assert_eq!(asked(&list(2, &[digest(0xb)])), Err(Error::Reply), "one of two");
    assert_eq!(asked(&list(1, &[digest(0xb), digest(0x12)])), Err(Error::Reply), "two of one");
    assert_eq!(asked(&list(1, &[digest(0x99)])), Err(Error::Reply), "of an unknown algorithm");
    let plain = answer(0x8001, 0, &[0; 50]);
    assert_eq!(told(plain, |tpm| tpm.event(19, b"x", &only)), Err(Error::Reply), "not authorized");
}

#[test]
fn random_bytes_and_values_must_be_as_many_as_were_asked_for() {
    let random = |body: &[u8]| told(answer(0x8001, 0, body), |tpm| tpm.random(&mut [0; 2]));
    assert_eq!(random(&[0, 2, 7, 8]), Ok(()));
    for body in [&[0, 1, 7][..], &[0, 3, 7, 8, 9], &[0, 2, 7], &[0, 2, 7, 8, 9], &[]] {
        assert_eq!(random(body), Err(Error::Reply), "{body:?}");
    }
    let value = |bank: u8, digests: u8, size: u8| {
        let head = [0, 0, 0, 1, 0, 0, 0, 1, 0, bank, 3, 0, 0, 8, 0, 0, 0, digests, 0, size];
        let body = [&head[..], &[9; 32]].concat();
        told(answer(0x8001, 0, &body), |tpm| tpm.value(19, SHORT))
    };
    assert_eq!(value(0xb, 1, 32).unwrap().bytes(), [9; 32]);
    for (bank, digests, size) in [(0xc, 1, 32), (0xb, 0, 32), (0xb, 2, 32), (0xb, 1, 31)] {
        assert_eq!(value(bank, digests, size), Err(Error::Reply));
    }
}

#[test]
fn a_tpm_1_2_refuses_commands_and_is_believed() {
    let bytes = answer(0x00c4, 30, &[]);
    assert_eq!(told(bytes, |tpm| tpm.banks(19)), Err(Error::Refused(30)));
    assert_eq!(told(answer(0x00c4, 0, &[]), |tpm| tpm.banks(19)), Err(Error::Reply));
}

#[test]
fn an_event_that_no_tpm_takes_is_not_sent() {
    let (fake, mut tpm) = claimed(Kind::Fifo, None);
    assert_eq!(tpm.event(19, &[0; 1025], &banks()), Err(Error::TooLong));
    assert_eq!(fake.0.borrow().history, [Did::Claim(2)]);
}

/// Registers that read as `0`, cyclically.
#[derive(Debug)]
struct Noise(Vec<u32>, core::cell::Cell<usize>);

impl Noise {
    fn next(&self) -> u32 {
        self.1.set(self.1.get() + 1);
        self.0[self.1.get() % self.0.len()]
    }
}

impl Registers for Noise {
    fn read8(&self, offset: u64) -> u8 {
        assert!(offset < SIZE);
        self.next().to_le_bytes()[0]
    }
    fn read32(&self, offset: u64) -> u32 {
        assert!(offset < SIZE);
        self.next()
    }
    fn write8(&mut self, offset: u64, _: u8) {
        assert!(offset < SIZE);
    }
    fn write32(&mut self, offset: u64, _: u32) {
        assert!(offset < SIZE);
    }
    fn pause(&self) {}
}

#[test]
fn where_nothing_answers_there_is_no_tpm() {
    for (value, error) in [(u32::MAX, Error::Silent), (3, Error::Interface(3))] {
        let noise = Noise(std::vec![value], core::cell::Cell::new(0));
        assert_eq!(Tpm::find(noise).map(drop), Err(error));
    }
    // Zeros are what a FIFO may say.
    let mut tpm = Tpm::find(Noise(std::vec![0], core::cell::Cell::new(0))).unwrap();
    assert_eq!(tpm.claim(2), Err(Error::Timeout(Step::Locality)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_tpm_that_says_anything_at_all_is_survived(
        mut noise in prop::collection::vec(any::<u32>(), 1..40),
        is_crb: bool,
    ) {
        // What makes it answer at all.
        noise.extend([0xa0, 0x80 | 0x40 | 7 << 8, 0x98 | 7 << 8, 0x88 | 7 << 8, 0, 1, 0x8b]);
        noise.push(u32::from(is_crb));
        let first = noise.len() - 2;
        let mut tpm = Tpm::find(Noise(noise, core::cell::Cell::new(first))).unwrap();
        let _ = tpm.claim(2);
        tpm.locality = Some(2);
        let _ = tpm.banks(19);
        let _ = tpm.event(19, b"x", &banks());
        let _ = tpm.release();
    }

    #[test]
    fn an_answer_of_any_bytes_is_survived(
        body in prop::collection::vec(any::<u8>(), 0..200),
        tag in prop::sample::select(std::vec![0x8001_u16, 0x8002, 0xc4, 7]),
        is_done: bool,
    ) {
        let bytes = answer(tag, u32::from(!is_done) * 0x101, &body);
        let _ = told(bytes.clone(), |tpm| tpm.banks(19));
        let _ = told(bytes.clone(), |tpm| tpm.random(&mut [0; 32]));
        let _ = told(bytes.clone(), |tpm| tpm.value(19, LONG));
        let _ = told(bytes, |tpm| tpm.event(19, b"x", &banks()));
    }
}
