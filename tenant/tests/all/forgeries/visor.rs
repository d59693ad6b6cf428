//! Visors that a policy does not accept, and keys that are not theirs.

use evidence::{Bytes, Statement};

use super::super::boot::{self, Visor};
use super::{Case, Forgeries, other_key};

pub(super) fn by_policy() -> Forgeries {
    let plain = || Case::of("plain");
    let digest = |bytes: &[u8]| Bytes(tenant::bank::Bank::Sha256.hash(&[bytes])).to_string();
    let visor = digest(boot::VISOR);
    vec![
        (
            "a visor with one bit changed",
            plain().policy(&visor, &digest(b"the visor's imagd")),
            &["pcr-accepted 9", "visor-build"],
        ),
        (
            "another command line",
            plain().policy(r#"["console=com1"]"#, r#"["console=com1 ", "console=com2"]"#),
            &["command-line"],
        ),
        (
            "a boot loader that the policy does not know",
            plain().policy(&digest(b"GRUB's image"), &digest(b"another")),
            &["pcr-accepted 4"],
        ),
        (
            "a PCR that the policy says nothing of",
            plain().policy("\n[[pcr]]\nindex = 3\nexplained = true\n", ""),
            &["pcr-accepted 3"],
        ),
        (
            "a launch of another kind",
            plain().policy(r#"["plain"]"#, r#"["txt"]"#),
            &["launch-accepted"],
        ),
        (
            "a visor that permits what it should not",
            Case::of("lax"),
            &["command-line", "iommu", "vmx", "dev-tickets"],
        ),
        ("a visor whose TPM is not the machine's", Case::of("serial"), &["tpm"]),
        (
            "a visor that refuses VMs where it should run them",
            plain().policy(r#"unprotected-vms = ["run"]"#, r#"unprotected-vms = ["refuse"]"#),
            &["unprotected-vms"],
        ),
    ]
}

pub(super) fn by_visor_key() -> Forgeries {
    let plain = || Case::of("plain");
    let signed = |visor: &Visor, nonce: &[u8]| {
        let (body, signature) = visor.alive(nonce);
        Some(Statement { body: Bytes(body), signature: Bytes(signature) })
    };
    let own = Visor::new("plain");
    vec![
        (
            "a key that is not in the log",
            plain().with(|case| case.evidence.visor.key = Bytes(other_key().key().to_vec())),
            &["visor-key"],
        ),
        (
            "a visor that does not answer",
            plain().with(|case| case.evidence.visor.alive = None),
            &["visor-alive"],
        ),
        (
            "an answer signed with another key",
            plain().with(|case| {
                case.evidence.visor.alive = signed(&other_key(), &case.challenge.nonce.0)
            }),
            &["visor-alive"],
        ),
        (
            "an answer to another nonce",
            plain().with(|case| case.evidence.visor.alive = signed(&own, &[7; 32])),
            &["visor-alive"],
        ),
        (
            "an answer whose age was changed",
            plain().with(|case| case.evidence.visor.alive.as_mut().unwrap().body.0[32] ^= 1),
            &["visor-alive"],
        ),
    ]
}
