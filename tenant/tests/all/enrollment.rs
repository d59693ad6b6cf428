//! Enrolling, with recorded files: what is believed, and what is not.

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use evidence::{Activated, Bytes, Document, Identity, Readers};
use tenant::enroll::{Believed, Files, begin, finish, pin};
use tenant::failure::{Exit, Failure};
use tenant::machine::{Machine, Pending};
use tenant::policy::Binding;
use tenant::tpm::certificate::{Broken, check};
use tenant::tpm::public::Key;
use x509_cert::Certificate;
use x509_cert::der::Encode;

use super::record::fixtures;

/// A folder of a test's own, gone afterwards.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let folder = env::temp_dir().join(format!("tenant-{}-{name}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write<T: Document>(&self, name: &str, document: &T) -> PathBuf {
        let path = self.path(name);
        evidence::write(&path, document, Readers::All).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// When the fixtures were recorded, roughly: their certificates are valid.
fn now() -> u64 {
    evidence::read::<evidence::Challenge>(&fixtures().join("plain/challenge.json")).unwrap().issued
}

fn identity() -> Identity {
    evidence::read(&fixtures().join("identity.json")).unwrap()
}

/// Begins with a changed identity, root and time.
fn begin_with(
    name: &str,
    change: impl FnOnce(&mut Identity),
    (root, now): (&str, u64),
) -> Result<Binding, Failure> {
    let folder = Folder::new(name);
    let mut told = identity();
    change(&mut told);
    let path = folder.write("identity", &told);
    let files = Files { pending: &folder.path("pending"), activation: &folder.path("activation") };
    let roots = [fixtures().join(root)];
    let begun = begin(&path, &Believed::Roots(&roots), &files, now).map(|begun| begun.binding);
    assert_eq!(files.pending.exists(), begun.is_ok());
    begun
}

#[test]
fn an_endorsement_key_is_believed_for_its_certificate() {
    assert_eq!(begin_with("good", |_| {}, ("root.pem", now())).unwrap(), Binding::Certificate);
}

#[test]
fn certificates_that_prove_nothing_are_told_apart() {
    let other: Identity = evidence::read(&fixtures().join("other/identity.json")).unwrap();
    let told = |name, change: &dyn Fn(&mut Identity), root, now| match begin_with(
        name,
        change,
        (root, now),
    ) {
        Err(Failure::Endorsement(why)) => why,
        other => panic!("{name}: {other:?}"),
    };
    let none = |told: &mut Identity| told.ek.certificates.clear();
    assert_eq!(told("none", &none, "root.pem", now()), Broken::Missing);
    let others = |told: &mut Identity| told.ek.certificates = other.ek.certificates.clone();
    assert_eq!(told("others", &others, "root.pem", now()), Broken::OtherKey);
    let garbage = |told: &mut Identity| told.ek.certificates[0].0.truncate(100);
    assert_eq!(told("garbage", &garbage, "root.pem", now()), Broken::Malformed);
    let changed = |told: &mut Identity| *told.ek.certificates[0].0.last_mut().unwrap() ^= 1;
    assert_eq!(told("changed", &changed, "root.pem", now()), Broken::NoAuthority);
    assert_eq!(told("stranger", &|_| {}, "stranger.pem", now()), Broken::NoAuthority);
    assert_eq!(told("early", &|_| {}, "root.pem", 1_000_000_000), Broken::Expired);
}

#[test]
fn a_certificate_for_something_else_proves_no_endorsement_key() {
    let pem = fs::read(fixtures().join("root.pem")).unwrap();
    let authorities = Certificate::load_pem_chain(&pem).unwrap();
    let der: Vec<_> = authorities.iter().map(|authority| authority.to_der().unwrap()).collect();
    let info = authorities[0].tbs_certificate().subject_public_key_info();
    // SEQUENCE, INTEGER, and the modulus of 384 bytes behind a zero (RFC 8017, A.1.1).
    let modulus = info.subject_public_key.raw_bytes()[9..9 + 384].to_vec();
    let key = Key::Rsa { modulus, exponent: 65_537 };
    let checked = check(&key, &[&der[0]], &[&der[1]], now());
    assert_eq!(checked, Err(Broken::NotEndorsement));
}

#[test]
fn keys_that_could_sign_anything_are_refused() {
    // Each attribute that an attestation key needs, and the one that it must not have.
    for bit in [1, 4, 5, 16, 17, 18] {
        let change = |told: &mut Identity| told.ak.0[7 - bit / 8] ^= 1 << (bit % 8);
        let begun = begin_with(&format!("bit-{bit}"), change, ("root.pem", now()));
        assert!(matches!(begun, Err(Failure::Unrestricted)), "{bit}: {begun:?}");
    }
    let named_by_sha1 = |told: &mut Identity| told.ak.0[3] = 4;
    let begun = begin_with("sha1", named_by_sha1, ("root.pem", now()));
    assert!(matches!(begun, Err(Failure::Unrestricted)), "{begun:?}");
    let elliptic = |told: &mut Identity| told.ek.public.0[1] = 0x25;
    let begun = begin_with("unknown", elliptic, ("root.pem", now())).unwrap_err();
    assert_eq!(begun.exit(), Exit::Unsupported, "{begun}");
}

#[test]
fn a_pinned_endorsement_key_needs_no_certificate_but_its_name() {
    let folder = Folder::new("pin-ek");
    let pending: Pending = evidence::read(&fixtures().join("pending.json")).unwrap();
    let mut told = identity();
    told.ek.certificates.clear();
    let path = folder.write("identity", &told);
    let files = Files { pending: &folder.path("pending"), activation: &folder.path("activation") };
    let mut name = pending.ek;
    let begun = begin(&path, &Believed::Name(&name), &files, now()).unwrap();
    assert_eq!((begun.binding, begun.done), (Binding::PinnedEk, false));
    name.0[5] ^= 1;
    let begun = begin(&path, &Believed::Name(&name), &files, now());
    assert!(matches!(begun, Err(Failure::OtherKey("endorsement"))));
}

#[test]
fn the_secret_of_another_machine_enrolls_nothing() {
    let folder = Folder::new("finish");
    let machine = folder.path("machine");
    let end = |activated: &Path| finish(&fixtures().join("pending.json"), activated, &machine, 1);
    let other = end(&fixtures().join("other/activated.json"));
    assert!(matches!(other, Err(Failure::NotActivated)));
    let empty = Activated { format: Activated::FORMAT.into(), secret: Bytes::default() };
    assert!(matches!(end(&folder.write("empty", &empty)), Err(Failure::NotActivated)));
    assert!(!machine.exists());
    assert!(end(&fixtures().join("activated.json")).unwrap().done);
    let written: Machine = evidence::read(&machine).unwrap();
    assert_eq!((written.binding, written.ak), (Binding::Certificate, identity().ak));
    // What is there is not written over.
    let again = end(&fixtures().join("activated.json")).unwrap_err();
    assert_eq!(again.exit(), Exit::WrongState);
}

#[test]
fn an_attestation_key_can_be_pinned_by_its_name() {
    let folder = Folder::new("pin-ak");
    let machine: Machine = evidence::read(&fixtures().join("machine.json")).unwrap();
    let mut name = Bytes(tenant::tpm::public::Public::parse(&machine.ak.0).unwrap().name);
    let path = fixtures().join("identity.json");
    let pinned = pin(&path, &name, &folder.path("machine"), 1).unwrap();
    assert_eq!((pinned.binding, pinned.done), (Binding::PinnedAk, true));
    name.0[2] ^= 1;
    let pinned = pin(&path, &name, &folder.path("other"), 1);
    assert!(matches!(pinned, Err(Failure::OtherKey("attestation"))));
}
