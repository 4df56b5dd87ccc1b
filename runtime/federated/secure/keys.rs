//! Keys of a round, and the masks that come from them.

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use curve25519_dalek::Scalar;
use x25519_dalek::{PublicKey, StaticSecret};

use super::{Cohort, MemberId};
use crate::error::Result;
use crate::federated::invalid;
use crate::identity::{self, Hash};

/// Adds a mask to values, or takes it off again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Add,
    Subtract,
}

/// The key of pairwise masks that a shared seed stands for: a seed is a number modulo the group's
/// order, an X25519 key is not.
pub(super) fn masking_key(cohort: &Cohort, seed: &Scalar) -> StaticSecret {
    StaticSecret::from(derive(cohort, "masking", &[seed.as_bytes()]))
}

/// What a member and another one share by X25519, for one purpose.
///
/// Errors: `InvalidDelta` for a public key that shares nothing.
pub(super) fn agree(
    cohort: &Cohort,
    purpose: &str,
    mine: &StaticSecret,
    theirs: [u8; 32],
) -> Result<Hash> {
    let theirs = PublicKey::from(theirs);
    let shared = mine.diffie_hellman(&theirs);
    if !shared.was_contributory() {
        return Err(invalid("public key", "it is of low order; the member must be left out"));
    }
    Ok(derive(cohort, purpose, &[shared.as_bytes()]))
}

/// A key for one purpose in this round.
pub(super) fn derive(cohort: &Cohort, purpose: &str, secrets: &[&[u8; 32]]) -> Hash {
    let said = cohort.said("epiphyte.secure-key.1", &[("purpose", purpose.to_string())]);
    let parts = secrets.iter().map(|secret| &secret[..]);
    identity::sha256(std::iter::once(said.as_bytes()).chain(parts))
}

/// Adds the stream of a key to values, modulo 2^32.
pub(super) fn mask(values: &mut [u32], key: &Hash, sign: Sign) {
    let mut stream = ChaCha20::new(&(*key).into(), &[0; 12].into());
    let mut words = [0_u8; 4096];
    for part in values.chunks_mut(words.len() / 4) {
        words.fill(0);
        stream.apply_keystream(&mut words);
        for (value, word) in part.iter_mut().zip(words.as_chunks::<4>().0) {
            let word = u32::from_le_bytes(*word);
            *value = match sign {
                Sign::Add => value.wrapping_add(word),
                Sign::Subtract => value.wrapping_sub(word),
            };
        }
    }
}

/// Of two members the one with the lower number adds what the other one subtracts.
pub(super) fn sign(member: MemberId, other: MemberId) -> Sign {
    if member < other { Sign::Add } else { Sign::Subtract }
}

/// From whom to whom; a direction has a key of its own, so that a nonce is used once.
pub(super) struct Envelope {
    cipher: ChaCha20Poly1305,
    about: String,
}

impl Envelope {
    pub(super) fn new(
        cohort: &Cohort,
        mine: &StaticSecret,
        theirs: [u8; 32],
        from: MemberId,
        to: MemberId,
    ) -> Result<Self> {
        let about = format!("share {from} to {to}");
        let key = agree(cohort, &about, mine, theirs)?;
        Ok(Self { cipher: ChaCha20Poly1305::new(&Key::from(key)), about })
    }

    pub(super) fn seal(&self, message: &[u8]) -> Result<Vec<u8>> {
        let payload = Payload { msg: message, aad: self.about.as_bytes() };
        let sealed = self.cipher.encrypt(&Nonce::default(), payload);
        sealed.map_err(|_| invalid(&self.about, "it can't be encrypted"))
    }

    pub(super) fn open(&self, sealed: &[u8]) -> Result<Vec<u8>> {
        let payload = Payload { msg: sealed, aad: self.about.as_bytes() };
        let opened = self.cipher.decrypt(&Nonce::default(), payload);
        let reason = "it was not encrypted by that member, or changed on its way";
        opened.map_err(|_| invalid(&self.about, reason))
    }
}
