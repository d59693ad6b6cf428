//! The format once more: AEGIS-128L as RFC 10032 writes it over single AES rounds, HKDF as RFC 5869
//! writes it over SHA-256. Clear, not fast, and without a line or a crate of what it checks, but for
//! SHA-256.

use aes::Block;
use aes::hazmat::cipher_round;
use sha2::{Digest, Sha256};

type Word = [u8; 16];

const C0: Word = 0x0001_0102_0305_080d_1522_3759_90e9_7962_u128.to_be_bytes();
const C1: Word = 0xdb3d_1855_6dc2_2ff1_2011_3142_73b5_28dd_u128.to_be_bytes();

fn xor(a: Word, b: Word) -> Word {
    (u128::from_ne_bytes(a) ^ u128::from_ne_bytes(b)).to_ne_bytes()
}

fn and(a: Word, b: Word) -> Word {
    (u128::from_ne_bytes(a) & u128::from_ne_bytes(b)).to_ne_bytes()
}

fn round(input: Word, key: Word) -> Word {
    let mut block = Block::from(input);
    cipher_round(&mut block, &Block::from(key));
    block.into()
}

fn word(bytes: &[u8]) -> Word {
    bytes.try_into().expect("16 bytes")
}

struct State([Word; 8]);

impl State {
    /// Section 2.3.
    fn new(key: Word, nonce: Word) -> Self {
        let both = xor(key, nonce);
        let (k0, k1) = (xor(key, C0), xor(key, C1));
        let mut state = Self([both, C1, C0, C1, both, k0, k1, k0]);
        for _ in 0..10 {
            state.update(nonce, key);
        }
        state
    }

    /// Section 2.4.
    fn update(&mut self, m0: Word, m1: Word) {
        let s = self.0;
        self.0 = [
            round(s[7], xor(s[0], m0)),
            round(s[0], s[1]),
            round(s[1], s[2]),
            round(s[2], s[3]),
            round(s[3], xor(s[4], m1)),
            round(s[4], s[5]),
            round(s[5], s[6]),
            round(s[6], s[7]),
        ];
    }

    fn absorb(&mut self, block: &[u8]) {
        let mut padded = [0; 32];
        padded[..block.len()].copy_from_slice(block);
        self.update(word(&padded[..16]), word(&padded[16..]));
    }

    /// Section 2.6: encrypts up to 32 bytes.
    fn encrypt(&mut self, block: &[u8]) -> Vec<u8> {
        let s = self.0;
        let z0 = xor(xor(s[6], s[1]), and(s[2], s[3]));
        let z1 = xor(xor(s[2], s[5]), and(s[6], s[7]));
        self.absorb(block);
        block.iter().zip([z0, z1].concat()).map(|(byte, z)| byte ^ z).collect()
    }

    /// Section 2.9, 128 bits.
    fn finish(mut self, ad: usize, message: usize) -> Word {
        let bits = |bytes: usize| u64::try_from(bytes * 8).expect("short").to_le_bytes();
        let lengths = word(&[bits(ad), bits(message)].concat());
        let t = xor(self.0[2], lengths);
        for _ in 0..7 {
            self.update(t, t);
        }
        self.0[..7].iter().fold([0; 16], |sum, word| xor(sum, *word))
    }
}

/// Encrypts; ciphertext and tag.
pub(crate) fn aegis(key: Word, nonce: Word, ad: &[u8], message: &[u8]) -> (Vec<u8>, Word) {
    let mut state = State::new(key, nonce);
    ad.chunks(32).for_each(|block| state.absorb(block));
    let sealed = message.chunks(32).flat_map(|block| state.encrypt(block)).collect();
    (sealed, state.finish(ad.len(), message.len()))
}

/// HMAC-SHA256, RFC 2104, for keys up to a block.
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(to, from)| *to ^= from);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

/// HKDF-SHA256, RFC 5869: `length` bytes.
pub(crate) fn hkdf(salt: &[u8], secret: &[u8], info: &[u8], length: usize) -> Vec<u8> {
    let root = hmac(salt, secret);
    let mut out = Vec::new();
    let mut last = Vec::new();
    for number in 1.. {
        if out.len() >= length {
            break;
        }
        last = hmac(&root, &[&last, info, &[number]].concat()).to_vec();
        out.extend_from_slice(&last);
    }
    out.truncate(length);
    out
}

/// What a VM's pages are sealed with.
pub(crate) struct Reference {
    key: Word,
    mask: Word,
}

impl Reference {
    /// A launch, as [`seal::key::VmKey::launch`] takes it.
    pub(crate) fn new(vm: [u8; 16], secret: [u8; 32], launch: [u8; 32]) -> Self {
        let info = [&b"visor seal 1"[..], &[1, 1], &vm].concat();
        let both = hkdf(&launch, &secret, &info, 32);
        Self { key: word(&both[..16]), mask: word(&both[16..]) }
    }

    /// Seals `page` at guest-physical `address` as `version`; ciphertext and record.
    pub(crate) fn seal(&self, address: u64, version: u64, page: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut stamp = version.to_le_bytes();
        stamp[7] = 1;
        let place = [(address / 4096).to_le_bytes(), stamp].concat();
        let (sealed, tag) = aegis(self.key, xor(word(&place), self.mask), &[], page);
        (sealed, [&stamp[..], &tag].concat())
    }
}
