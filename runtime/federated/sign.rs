//! Signatures by Ed25519 or P-256. The key may be held outside the process: whoever has it
//! implements [`Signer`].

use std::fmt;
use std::str::FromStr;

use base64ct::{Base64, Encoding};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey};
use p256::ecdsa::signature::{Signer as _, Verifier as _};

use super::{invalid, random};
use crate::error::{Error, Result};

/// The kinds of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// Ed25519; signatures of 64 bytes.
    Ed25519,
    /// ECDSA with SHA-256 on P-256, what the Secure Enclave and Android's Keystore hold;
    /// signatures in DER.
    P256,
}

/// Whoever can sign: a key in this process, or a callback into a platform's key store.
pub trait Signer {
    /// The key that signatures are checked with.
    fn public_key(&self) -> PublicKey;

    /// Signs a message; for P-256, its SHA-256 by ECDSA, in DER.
    ///
    /// Errors: whatever keeps the key from being used.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>>;
}

/// A public key. Displays as `ed25519:` and 32 bytes in hexadecimal, or `p256:` and the 65 bytes of
/// the uncompressed point (X9.63).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey {
    kind: KeyKind,
    bytes: Vec<u8>,
}

impl PublicKey {
    /// A key from its 32 bytes (Ed25519), or from its point (P-256, compressed or not).
    ///
    /// Errors: `InvalidDelta` when they are no key.
    pub fn new(kind: KeyKind, bytes: &[u8]) -> Result<Self> {
        let no_key = || invalid("public key", "the bytes are no point of its curve");
        let bytes = match kind {
            KeyKind::Ed25519 => {
                let bytes = bytes.try_into().map_err(|_| no_key())?;
                let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes).map_err(|_| no_key())?;
                key.to_bytes().to_vec()
            }
            KeyKind::P256 => {
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(bytes);
                point(&key.map_err(|_| no_key())?)
            }
        };
        Ok(Self { kind, bytes })
    }

    /// A key from PEM (`PUBLIC KEY`), as `openssl pkey -pubout` writes it.
    ///
    /// Errors: `InvalidDelta` for anything but an Ed25519 or P-256 key.
    pub fn from_pem(text: &str) -> Result<Self> {
        if let Ok(key) = ed25519_dalek::VerifyingKey::from_public_key_pem(text) {
            return Self::new(KeyKind::Ed25519, key.as_bytes());
        }
        p256::ecdsa::VerifyingKey::from_public_key_pem(text)
            .map(|key| Self { kind: KeyKind::P256, bytes: point(&key) })
            .map_err(|_| invalid("public key", "no PEM of an Ed25519 or P-256 public key"))
    }

    /// Its kind.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The key as PEM (`PUBLIC KEY`), as `openssl pkey -pubout` writes it.
    ///
    /// Errors: `InvalidDelta` when it can't be written, which no key is known to do.
    pub fn to_pem(&self) -> Result<String> {
        let refused = |reason: String| invalid("public key", reason);
        let pem = match self.kind {
            KeyKind::Ed25519 => {
                let bytes = self.bytes.as_slice().try_into();
                let bytes = bytes.map_err(|_| refused("not 32 bytes".into()))?;
                let key = ed25519_dalek::VerifyingKey::from_bytes(&bytes);
                key.map_err(|e| refused(e.to_string()))?.to_public_key_pem(LineEnding::LF)
            }
            KeyKind::P256 => {
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&self.bytes);
                let key = p256::PublicKey::from(key.map_err(|e| refused(e.to_string()))?);
                key.to_public_key_pem(LineEnding::LF)
            }
        };
        pem.map_err(|e| refused(e.to_string()))
    }

    /// The key as OpenSSH writes it (RFC 5656, RFC 8709): `ecdsa-sha2-nistp256 …` or
    /// `ssh-ed25519 …`.
    pub fn to_openssh(&self) -> String {
        let (name, curve) = match self.kind {
            KeyKind::Ed25519 => ("ssh-ed25519", None),
            KeyKind::P256 => ("ecdsa-sha2-nistp256", Some("nistp256")),
        };
        let fields = [Some(name.as_bytes()), curve.map(str::as_bytes), Some(&self.bytes)];
        let field = |field: &[u8]| [&(field.len() as u32).to_be_bytes(), field].concat();
        let blob: Vec<u8> = fields.into_iter().flatten().flat_map(field).collect();
        format!("{name} {}", Base64::encode_string(&blob))
    }

    /// 32 bytes for Ed25519, the 65 of the uncompressed point for P-256.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// That a signature is this key's over the message.
    ///
    /// Errors: `InvalidDelta` when it is not.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<()> {
        self.verifies(message, signature).then_some(()).ok_or_else(|| {
            invalid("signature", format!("not of key {self}, or something was changed after it"))
        })
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self.kind {
            KeyKind::Ed25519 => {
                let bytes: Result<[u8; 32], _> = self.bytes.as_slice().try_into();
                let key = bytes.ok().and_then(|b| ed25519_dalek::VerifyingKey::from_bytes(&b).ok());
                let signature = ed25519_dalek::Signature::from_slice(signature);
                key.zip(signature.ok()).is_some_and(|(k, s)| k.verify_strict(message, &s).is_ok())
            }
            KeyKind::P256 => {
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(&self.bytes);
                let signature = p256::ecdsa::Signature::from_der(signature);
                key.ok().zip(signature.ok()).is_some_and(|(k, s)| k.verify(message, &s).is_ok())
            }
        }
    }
}

fn point(key: &p256::ecdsa::VerifyingKey) -> Vec<u8> {
    key.to_sec1_point(false).as_bytes().to_vec()
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            KeyKind::Ed25519 => "ed25519",
            KeyKind::P256 => "p256",
        };
        write!(f, "{kind}:{}", to_hex(&self.bytes))
    }
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            let reason = "no key; give `ed25519:` or `p256:` and its bytes in hexadecimal";
            invalid("public key", reason)
        };
        let (kind, hex) = text.split_once(':').ok_or_else(unknown)?;
        let kind = match kind {
            "ed25519" => KeyKind::Ed25519,
            "p256" => KeyKind::P256,
            _ => return Err(unknown()),
        };
        Self::new(kind, &from_hex(hex).ok_or_else(unknown)?)
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A private key in this process.
#[derive(Clone)]
pub struct SigningKey(Kept);

#[derive(Clone)]
enum Kept {
    Ed25519(Box<ed25519_dalek::SigningKey>),
    P256(Box<p256::ecdsa::SigningKey>),
}

impl SigningKey {
    /// A new key, by the system's randomness.
    ///
    /// Errors: [`Error::Unsupported`] where the system gives none.
    pub fn generate(kind: KeyKind) -> Result<Self> {
        loop {
            // One draw in 2^32 is no P-256 key.
            if let Ok(key) = Self::from_bytes(kind, &random::system_seed()?) {
                return Ok(key);
            }
        }
    }

    /// A key from its 32 bytes.
    ///
    /// Errors: `InvalidDelta` when they are no key of its curve.
    pub fn from_bytes(kind: KeyKind, bytes: &[u8; 32]) -> Result<Self> {
        Ok(Self(match kind {
            KeyKind::Ed25519 => {
                Kept::Ed25519(Box::new(ed25519_dalek::SigningKey::from_bytes(bytes)))
            }
            KeyKind::P256 => {
                let key = p256::ecdsa::SigningKey::from_slice(bytes);
                let no_key = |_| invalid("private key", "the bytes are no key of its curve");
                Kept::P256(Box::new(key.map_err(no_key)?))
            }
        }))
    }

    /// A key from PEM (`PRIVATE KEY`, PKCS#8), as `openssl genpkey` writes it.
    ///
    /// Errors: `InvalidDelta` for anything but an Ed25519 or P-256 key.
    pub fn from_pem(text: &str) -> Result<Self> {
        if let Ok(key) = ed25519_dalek::SigningKey::from_pkcs8_pem(text) {
            return Ok(Self(Kept::Ed25519(Box::new(key))));
        }
        p256::ecdsa::SigningKey::from_pkcs8_pem(text)
            .map(|key| Self(Kept::P256(Box::new(key))))
            .map_err(|_| invalid("private key", "no PEM (PKCS#8) of an Ed25519 or P-256 key"))
    }

    /// The key as PEM (`PRIVATE KEY`, PKCS#8).
    ///
    /// Errors: `InvalidDelta` when it can't be written, which no key is known to do.
    pub fn to_pem(&self) -> Result<String> {
        let text = match &self.0 {
            Kept::Ed25519(key) => key.to_pkcs8_pem(LineEnding::LF),
            Kept::P256(key) => {
                p256::SecretKey::from(key.as_nonzero_scalar()).to_pkcs8_pem(LineEnding::LF)
            }
        };
        text.map(|text| text.to_string()).map_err(|e| invalid("private key", e.to_string()))
    }
}

impl Signer for SigningKey {
    fn public_key(&self) -> PublicKey {
        match &self.0 {
            Kept::Ed25519(key) => {
                PublicKey { kind: KeyKind::Ed25519, bytes: key.verifying_key().to_bytes().into() }
            }
            Kept::P256(key) => PublicKey { kind: KeyKind::P256, bytes: point(key.verifying_key()) },
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        Ok(match &self.0 {
            Kept::Ed25519(key) => key.sign(message).to_bytes().to_vec(),
            Kept::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_der().as_bytes().to_vec()
            }
        })
    }
}

impl fmt::Debug for SigningKey {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public_key())
    }
}

/// Bytes in hexadecimal.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hexadecimal digits.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| (*byte as char).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some((digit(high)? * 16 + digit(low)?) as u8);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}
