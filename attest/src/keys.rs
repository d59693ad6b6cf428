//! The visor's keys: made at each boot, never stored, and gone with it.

use core::fmt;

use ed25519_compact::{KeyPair, PublicKey, SecretKey, Seed, Signature};
use hkdf::HkdfExtract;
use hpke::aead::{AeadCtxR, ChaCha20Poly1305};
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, Serializable, setup_receiver};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of both public keys: X25519, then Ed25519.
pub const PUBLIC_BYTES: usize = 64;
/// Bytes of a signature (RFC 8032, 5.1.6).
pub const SIGNATURE_BYTES: usize = 64;

/// DHKEM(X25519, HKDF-SHA256) (RFC 9180, 4.1).
pub(crate) type TicketKem = X25519HkdfSha256;
/// An HPKE context that opens messages (RFC 9180, 5.2).
pub(crate) type Opener = AeadCtxR<ChaCha20Poly1305, HkdfSha256, TicketKem>;

/// One key to which tickets are sealed, and one by which statements are signed.
pub struct Keys {
    tickets: <TicketKem as Kem>::PrivateKey,
    statements: SecretKey,
    public: [u8; PUBLIC_BYTES],
}

impl Keys {
    /// Keys from `random` bytes of the processor's and such of a TPM's, if there is one: who knows only one of
    /// both knows nothing. `None` in one of 2^256 cases.
    #[must_use]
    pub fn new(random: &[u8; 64], tpm: Option<&[u8; 32]>) -> Option<Self> {
        let mut seeds = Zeroizing::new([0; 64]);
        let mut extract = HkdfExtract::<Sha256>::new(Some(b"visor keys 1"));
        extract.input_ikm(random);
        extract.input_ikm(tpm.map_or(&[], <[u8; 32]>::as_slice));
        let (_, extracted) = extract.finalize();
        extracted.expand(b"", seeds.as_mut_slice()).ok()?;
        let (for_tickets, for_statements) = seeds.split_first_chunk::<32>()?;
        let (tickets, public) = TicketKem::derive_keypair(for_tickets);
        let pair = KeyPair::try_from_seed(Seed::new(*for_statements.first_chunk()?)).ok()?;
        let mut both = [0; PUBLIC_BYTES];
        let (first, second) = both.split_at_mut_checked(32)?;
        first.copy_from_slice(&public.to_bytes());
        second.copy_from_slice(pair.pk.as_slice());
        Some(Self { tickets, statements: pair.sk, public: both })
    }

    /// X25519 public key, then Ed25519 public key: what a TPM is told of.
    #[must_use]
    pub const fn public(&self) -> &[u8; PUBLIC_BYTES] {
        &self.public
    }

    /// The SHA-256 of [`Self::public`], by which sealed tickets name the visor that they are for.
    #[must_use]
    pub fn name(&self) -> [u8; 32] {
        Sha256::digest(self.public).into()
    }

    pub(crate) fn opener(&self, encapsulated: &[u8; 32], info: &[u8]) -> Option<Opener> {
        let encapsulated = <TicketKem as Kem>::EncappedKey::from_bytes(encapsulated).ok()?;
        setup_receiver(&OpModeR::Base, &self.tickets, &encapsulated, info).ok()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        *self.statements.sign(message, None)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Whether `signature` is that of `message` by the owner of the Ed25519 key `key`.
pub(crate) fn is_signed(key: &[u8; 32], message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
    PublicKey::new(*key).verify(message, &Signature::new(*signature)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpke::aead::AeadTag;
    use hpke::inout::InOutBuf;
    use std::vec::Vec;

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |digit: u8| u8::try_from(char::from(digit).to_digit(16).unwrap()).unwrap();
        hex.as_bytes()
            .as_chunks()
            .0
            .iter()
            .map(|[high, low]| digit(*high) << 4 | digit(*low))
            .collect()
    }

    fn array<const N: usize>(hex: &str) -> [u8; N] {
        bytes(hex).try_into().unwrap()
    }

    #[test]
    fn tickets_are_opened_as_in_rfc_9180_appendix_a_2_1() {
        let (tickets, public) = TicketKem::derive_keypair(&bytes(
            "1ac01f181fdf9f352797655161c58b75c656a6cc2716dcb66372da835542e1df",
        ));
        let expected = "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a";
        assert_eq!(public.to_bytes().as_slice(), bytes(expected));
        let keys = Keys { tickets, statements: SecretKey::new([1; 64]), public: [0; 64] };
        let encapsulated = "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a";
        let mut opener = keys.opener(&array(encapsulated), b"Ode on a Grecian Urn").unwrap();
        let messages = [
            (
                b"Count-0",
                "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
            ),
            (
                b"Count-1",
                "6b53c051e4199c518de79594e1c4ab18b96f081549d45ce015be002090bb119e85285337cc95ba5f59992dc98c",
            ),
        ];
        for (bound, message) in messages {
            let mut message = bytes(message);
            let (sealed, tag) = message.split_last_chunk_mut::<16>().unwrap();
            let tag = AeadTag::from_bytes(tag).unwrap();
            opener.open_inout_detached(InOutBuf::from(&mut *sealed), bound, &tag).unwrap();
            assert_eq!(sealed, b"Beauty is truth, truth beauty");
        }
    }

    #[test]
    fn signatures_are_those_of_rfc_8032() {
        let vectors = [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
            ),
        ];
        for (private, public, message, signature) in vectors {
            let pair = KeyPair::from_seed(Seed::new(array(private)));
            assert_eq!(pair.pk.as_slice(), bytes(public));
            let signed = *pair.sk.sign(bytes(message), None);
            assert_eq!(signed.as_slice(), bytes(signature));
            assert!(is_signed(&array(public), &bytes(message), &signed));
            assert!(!is_signed(&array(public), b"other", &signed));
        }
    }

    #[test]
    fn keys_depend_on_all_that_they_are_made_from() {
        let one = Keys::new(&[1; 64], None).unwrap();
        let mut other = [1; 64];
        other[63] = 2;
        for keys in [
            Keys::new(&other, None),
            Keys::new(&[1; 64], Some(&[0; 32])),
            Keys::new(&[1; 64], Some(&[1; 32])),
        ] {
            let keys = keys.unwrap();
            assert_ne!(keys.public()[..32], one.public()[..32]);
            assert_ne!(keys.public()[32..], one.public()[32..]);
            assert_ne!(keys.name(), one.name());
        }
        assert_eq!(Keys::new(&[1; 64], None).unwrap().public(), one.public());
        assert!(!std::format!("{one:?}").contains("statements"));
    }

    #[test]
    fn a_key_of_small_order_signs_nothing() {
        // The neutral element, and R = the same, S = 0: it would fit any message.
        let mut signature = [0; 64];
        signature[0] = 1;
        let mut key = [0; 32];
        key[0] = 1;
        assert!(!is_signed(&key, b"anything", &signature));
    }
}
