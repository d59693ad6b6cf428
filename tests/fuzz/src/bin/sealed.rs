//! Sealed tickets: a first byte that says what is right in spite of the rest, then a submission, or what is
//! sealed in one.
#![no_main]

use std::sync::LazyLock;

use attest::envelope::Visor;
use attest::keys::Keys;
use attest::policy::{Policy, Weaknesses};
use attest::seal::{Tenant, seal_unchecked};
use attest::submission::Submission;
use ticket::build::Ticket;
use ticket::error::Error;
use ticket::parse::Progress;

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys::new(&[7; 64], None).expect("keys"));

/// The content is the tenant's.
const SEALED: u8 = 1;
/// Magic, length and the visor's name are right.
const REPAIRED: u8 = 2;
/// The visor takes tickets in clear.
const DEVELOPMENT: u8 = 4;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&control, data)) = data.split_first() else {
        return;
    };
    let development = control & DEVELOPMENT != 0;
    let permits = Weaknesses { plain_launch: true, no_iommu: true, development: true };
    let mut bytes = data.to_vec();
    bytes.truncate(bytes.len() & !7);
    if control & SEALED != 0 {
        let tenant = Tenant::new(&[8; 32]).expect("a tenant");
        let policy = Policy { tenant: tenant.public(), serial: 1, not_after: 2, permits };
        bytes = seal_unchecked(&bytes, &policy, &tenant, KEYS.public()).expect("sealed");
    } else if control & REPAIRED != 0 {
        repair(&mut bytes);
    }
    let mut read = Ticket::new([0; 16], [0; 32]);
    let weaknesses = Weaknesses { development, ..Weaknesses::default() };
    let taken = submit(&bytes, weaknesses, &mut read);
    match taken {
        Ok(()) if control & SEALED != 0 => {
            assert_eq!(read.bytes_unchecked(), data[..data.len() & !7])
        }
        // Nobody else seals and signs.
        Ok(()) => assert!(development && read.bytes_unchecked() == bytes),
        Err(error) => {
            fuzz::one_line(&error.to_string());
            let leaks = control & SEALED != 0 && error.is_of_ticket() && error != Error::Length;
            assert!(!leaks, "{error:?} tells of what is sealed");
        }
    }
});

/// Gives the bytes the beginning that they would have as a sealed ticket.
fn repair(bytes: &mut [u8]) {
    let length = u32::try_from(bytes.len()).expect("inputs are short").to_le_bytes();
    let head = [b"VISRTKS1".as_slice(), &length, &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]].concat();
    let head = [head, KEYS.name().to_vec()].concat();
    for (place, byte) in bytes.iter_mut().zip(head) {
        *place = byte;
    }
}

fn submit(bytes: &[u8], weaknesses: Weaknesses, sink: &mut Ticket) -> Result<(), Error> {
    let visor = Visor { keys: &KEYS, weaknesses, age: 1 };
    let mut submission = Submission::new();
    submission.begin(u32::try_from(bytes.len()).expect("inputs are short"))?;
    let mut progress = Progress::More;
    for word in bytes.as_chunks().0 {
        assert_eq!(progress, Progress::More, "nothing is taken after the end");
        progress =
            submission.word(u32::from_le_bytes(*word), &visor, sink).inspect_err(|error| {
                assert!(submission.origin().is_none(), "{error:?}");
            })?;
    }
    assert_eq!(progress == Progress::Complete, submission.origin().is_some());
    if progress == Progress::Complete { Ok(()) } else { Err(Error::Length) }
}
