//! Published answers, for the crates that are used and for the second implementation.

use aegis::aegis128l::Aegis128L;
use hkdf::Hkdf;
use sha2::Sha256;

use crate::reference;

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(digit).collect()
}

fn word(hex: &str) -> [u8; 16] {
    bytes(hex).try_into().unwrap()
}

const KEY: &str = "10010000000000000000000000000000";
const NONCE: &str = "10000200000000000000000000000000";
const COUNT: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// RFC 10032, appendix A.2, test vectors 1 to 5: associated data, message, ciphertext, tag of 128 bits.
fn sealed() -> [(String, String, &'static str, &'static str); 5] {
    [
        (
            String::new(),
            "00".repeat(16),
            "c1c0e58bd913006feba00f4b3cc3594e",
            "abe0ece80c24868a226a35d16bdae37a",
        ),
        (String::new(), String::new(), "", "c2b879a67def9d74e6c14f708bbcc9b4"),
        (
            COUNT[..16].to_owned(),
            COUNT.to_owned(),
            "79d94593d8c2119d7e8fd9b8fc77845c5c077a05b2528b6ac54b563aed8efe84",
            "cc6f3372f6aa1bb82388d695c3962d9a",
        ),
        (
            COUNT[..16].to_owned(),
            COUNT[..28].to_owned(),
            "79d94593d8c2119d7e8fd9b8fc77",
            "5c04b3dba849b2701effbe32c7f0fab7",
        ),
        (
            format!("{COUNT}20212223242526272829"),
            format!("{}202122232425262728292a2b2c2d2e2f3031323334353637", &COUNT[32..]),
            "b31052ad1cca4e291abcf2df3502e6bdb1bfd6db36798be3607b1f94d34478aa7ede7f7a990fec10",
            "7542a745733014f9474417b337399507",
        ),
    ]
}

#[test]
fn both_implementations_of_aegis_give_the_published_answers() {
    for (ad, message, ciphertext, tag) in sealed() {
        let expected = (bytes(ciphertext), word(tag));
        let second = reference::aegis(word(KEY), word(NONCE), &bytes(&ad), &bytes(&message));
        assert_eq!(second, expected);
        let mut text = bytes(&message);
        let first = Aegis128L::<16>::new(&word(KEY), &word(NONCE));
        let tag = first.encrypt_in_place(&mut text, &bytes(&ad));
        assert_eq!((text, tag), expected);
    }
}

#[test]
fn what_the_published_vectors_refuse_is_refused() {
    let (short, tag) = ("79d94593d8c2119d7e8fd9b8fc77", "5c04b3dba849b2701effbe32c7f0fab7");
    let (forged, other) = ("79d94593d8c2119d7e8fd9b8fc78", "6c04b3dba849b2701effbe32c7f0fab8");
    let ad = &COUNT[..16];
    // Test vectors 6 to 9.
    for (key, nonce, ad, text, tag) in [
        (NONCE, KEY, ad, short, tag),
        (KEY, NONCE, ad, forged, tag),
        (KEY, NONCE, "0001020304050608", short, tag),
        (KEY, NONCE, ad, short, other),
    ] {
        let cipher = Aegis128L::<16>::new(&word(key), &word(nonce));
        assert!(cipher.decrypt_in_place(&mut bytes(text), &word(tag), &bytes(ad)).is_err());
    }
    let cipher = Aegis128L::<16>::new(&word(KEY), &word(NONCE));
    assert!(cipher.decrypt_in_place(&mut bytes(short), &word(tag), &bytes(ad)).is_ok());
}

#[test]
fn both_implementations_of_hkdf_give_the_published_answers() {
    // RFC 5869, appendix A.1 and A.3.
    for (salt, secret, info, expected) in [
        (
            &COUNT[..26],
            "0b".repeat(22),
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            "",
            "0b".repeat(22),
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ] {
        let second = reference::hkdf(&bytes(salt), &bytes(&secret), &bytes(info), 42);
        assert_eq!(second, bytes(expected));
        let mut first = [0; 42];
        let root = Hkdf::<Sha256>::new(Some(&bytes(salt)), &bytes(&secret));
        root.expand(&bytes(info), &mut first).unwrap();
        assert_eq!(first[..], bytes(expected));
    }
}
