//! Other kinds of keys than the usual ones: endorsement keys on P-256 and P-384 with attestation keys of the
//! same, and an attestation key that signs by RSAPSS.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use evidence::eat::Token;
use evidence::{Activated, Challenge, Identity};
use tenant::machine::{Machine, Pending};
use tenant::policy::Binding;
use tenant::tpm::certificate;
use tenant::tpm::public::{Key, Public};
use tenant::tpm::quote::{Kind, Signature};

use x509_cert::Certificate;
use x509_cert::der::Encode;

use super::authority::Authority;
use super::boot::{Visor, firmware, log};
use super::forgeries::Case;
use super::record::{enroll, extend, fixtures, policy, quote};
use super::swtpm::{Swtpm, run, visorctl};

fn tool(tpm: &Swtpm, folder: &Path, words: &str) {
    let (program, words) = words.split_once(' ').unwrap();
    run(Command::new(program)
        .env("TPM2TOOLS_TCTI", tpm.tools())
        .args(words.split(' '))
        .current_dir(folder));
    run(Command::new("tpm2_flushcontext").env("TPM2TOOLS_TCTI", tpm.tools()).arg("-t"));
}

/// Gives the TPM a certificate for its endorsement key on P-256, which swtpm's own tools do not.
fn certify(tpm: &Swtpm, folder: &Path, authority: &Authority) {
    tool(tpm, folder, "tpm2_createek -c ek.ctx -G ecc256 -f pem -u ek.pem");
    let certificate = authority.certify(&folder.join("ek.pem"));
    let bytes = fs::metadata(&certificate).unwrap().len();
    let attributes = "ownerread|ownerwrite|authread|authwrite";
    tool(tpm, folder, &format!("tpm2_nvdefine 0x01c0000a -C o -s {bytes} -a {attributes}"));
    tool(tpm, folder, &format!("tpm2_nvwrite 0x01c0000a -C o -i {}", certificate.display()));
}

/// `cargo build -p visorctl && cargo test -p tenant --test all record_kinds -- --ignored`
#[test]
#[ignore = "writes fixtures; needs swtpm, tpm2-tools, OpenSSL, and visorctl to be built"]
fn record_kinds() {
    let folder = env::temp_dir().join(format!("tenant-kinds-{}", std::process::id()));
    let (boot, visor) = (firmware(), Visor::new("plain"));
    for name in ["ecc256", "ecc384", "pss"] {
        let (out, at) = (fixtures().join(name), folder.join(name));
        fs::create_dir_all(&out).unwrap();
        let tpm = Swtpm::make(&at, &folder.join("authority"));
        let certificates = ["issuercert.pem", "swtpm-localca-rootca-cert.pem"];
        let mut roots = certificates
            .map(|name| fs::read_to_string(folder.join("authority").join(name)).unwrap())
            .concat();
        if name == "ecc256" {
            let authority = Authority::make(&at.join("authority"));
            certify(&tpm, &at, &authority);
            authority.write_lists(&out);
            roots = authority.certificates();
        }
        if name == "ecc384" {
            Authority::write_list_of_swtpm(&folder.join("authority"), &out);
        }
        if name == "pss" {
            tool(&tpm, &at, "tpm2_createek -c ek.ctx -G rsa -u ek.pub");
            let words = "-C ek.ctx -c ak.ctx -G rsa -g sha256 -s rsapss -u ak.pub";
            tool(&tpm, &at, &format!("tpm2_createak {words}"));
            tool(&tpm, &at, "tpm2_evictcontrol -C o -c ak.ctx 0x81005653");
        }
        fs::write(out.join("root.pem"), roots).unwrap();
        enroll(&tpm, &out, &out.join("root.pem"), if name == "pss" { "rsa" } else { name });
        extend(&tpm, 0, &boot);
        extend(&tpm, 2, &visor.events());
        fs::write(out.join("policy.toml"), policy("plain", &boot)).unwrap();
        quote(&tpm, &out, (&boot, &visor.events()), &visor);
    }
    check_token(&folder);
    fs::remove_dir_all(&folder).unwrap();
}

/// What visorctl writes as a token is for the challenge, and what `tenant` reads.
fn check_token(folder: &Path) {
    let tpm = Swtpm::make(&folder.join("token"), &folder.join("authority"));
    let (identity, token) = (folder.join("identity.json"), folder.join("token.eat"));
    let challenge = fixtures().join("pss/challenge.json");
    fs::write(folder.join("log"), log(&Visor::new("plain").events())).unwrap();
    run(visorctl(&tpm).args(["attest", "identity"]).arg(&identity));
    run(visorctl(&tpm)
        .args(["attest", "quote", "--eat"])
        .args([&challenge, &token])
        .arg("--visor-log")
        .arg(folder.join("log"))
        .arg("--firmware-log")
        .arg(folder.join("log")));
    let identity: Identity = evidence::read(&identity).unwrap();
    assert_eq!(tenant::eat::read(&token).unwrap().ak, identity.ak);
    let asked: Challenge = evidence::read(&challenge).unwrap();
    assert_eq!(Token::decode(&fs::read(&token).unwrap()).unwrap().nonce, asked.nonce);
}

fn key(name: &str) -> (Key, Kind) {
    let case = Case::of(name);
    let identity: Identity = evidence::read(&fixtures().join(name).join("identity.json")).unwrap();
    let ek = Public::parse(&identity.ek.public.0).unwrap().key;
    (ek, Signature::parse(&case.evidence.quote.signature.0).unwrap().kind)
}

#[test]
fn evidence_by_other_kinds_of_keys_is_trusted() {
    for name in ["ecc256", "ecc384", "pss"] {
        assert_eq!(Case::of(name).broken(), [""; 0], "{name}");
    }
    assert!(matches!(key("ecc256"), (Key::Ecc { curve: 3, .. }, Kind::Ecdsa(..))));
    assert!(matches!(key("ecc384"), (Key::Ecc { curve: 4, .. }, Kind::Ecdsa(..))));
    assert!(matches!(key("pss"), (Key::Rsa { .. }, Kind::Rsapss(_))));
}

/// The TPM gave the secret out that was made for its elliptic endorsement key: it took the credential.
#[test]
fn the_tpm_has_activated_a_credential_for_an_elliptic_key() {
    for name in ["ecc256", "ecc384", "pss"] {
        let file = |file: &str| fixtures().join(name).join(file);
        let pending: Pending = evidence::read(&file("pending.json")).unwrap();
        let activated: Activated = evidence::read(&file("activated.json")).unwrap();
        assert_eq!((pending.binding, &pending.secret), (Binding::Certificate, &activated.secret));
    }
}

/// An authority among the roots that another one of them has signed is believed for itself, but the other
/// one may have revoked it.
#[test]
fn a_machine_keeps_the_certificates_up_to_the_highest_root() {
    let file = |file: &str| fixtures().join("ecc256").join(file);
    let identity: Identity = evidence::read(&file("identity.json")).unwrap();
    let key = Public::parse(&identity.ek.public.0).unwrap().key;
    let roots = Certificate::load_pem_chain(&fs::read(file("root.pem")).unwrap()).unwrap();
    let roots: Vec<_> = roots.iter().map(|root| root.to_der().unwrap()).collect();
    let leaf = &identity.ek.certificates[0].0;
    let now = Case::of("ecc256").now;
    let path = certificate::check(&key, &[leaf], &[&roots[0], &roots[1]], now);
    assert_eq!(path, Ok(vec![leaf.clone(), roots[1].clone(), roots[0].clone()]));
    let below = certificate::check(&key, &[leaf], &[&roots[1]], now);
    assert_eq!(below, Ok(vec![leaf.clone(), roots[1].clone()]));
    let above = certificate::check(&key, &[leaf, &roots[1]], &[&roots[0]], now);
    assert_eq!(above, path);
    let machine: Machine = evidence::read(&file("machine.json")).unwrap();
    let kept: Vec<_> = machine.certificates.into_iter().map(|der| der.0).collect();
    assert_eq!(Ok(kept), path);
}

#[test]
fn a_signature_of_each_kind_with_one_bit_changed_is_refused() {
    for name in ["ecc256", "ecc384", "pss"] {
        let mut case = Case::of(name);
        *case.evidence.quote.signature.0.last_mut().unwrap() ^= 1;
        assert_eq!(case.broken(), ["quote-signature"], "{name}");
        let mut case = Case::of(name);
        *case.evidence.quote.attest.0.last_mut().unwrap() ^= 1;
        assert_eq!(case.broken(), ["quote-signature", "quote-values"], "{name}");
    }
    // RSAPSS that is said to be RSASSA.
    let mut case = Case::of("pss");
    case.evidence.quote.signature.0[1] = 0x14;
    assert_eq!(case.broken(), ["quote-signature"]);
}
