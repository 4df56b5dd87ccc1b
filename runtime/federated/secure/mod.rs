//! Secure aggregation, **experimental**: a server that sees the sum of what a fixed cohort sends,
//! and nothing of any one of them (Bonawitz et al. 2017, arXiv:1611.04482, in its form against a
//! server that does not follow the protocol).
//!
//! Each member adds to its values a mask of its own and one for every other member, which that one
//! subtracts; the sum of all inputs is then that of the values and the own masks. Four exchanges by
//! way of the server, whoever carries the messages:
//!
//! | exchange | a member sends | type |
//! |---|---|---|
//! | keys | two public keys, signed by its device's key | [`Advert`] |
//! | shares | to each other one, encrypted, shares of what both its masks come from | [`Share`] |
//! | input | its values under the masks | [`MaskedInput`] |
//! | consent | its signature on the list of those whose input came | [`Consent`] |
//! | unmasking | shares: of the own mask of those on the list, of the pairwise ones of the others | [`Unmasking`] |
//!
//! A member may vanish after any of them. As many as [`Cohort::threshold`] must stay to the end: more
//! than two thirds, so that a server can't tell two halves two lists and learn both shares of
//! anybody. For modes that add up what is sent (`fedavg`, `rolora`, `ffa`); those that look at single
//! deltas (`svd`, `stack`, medians, Krum, norm bounds at the server) can't work on sums. Clip and
//! noise come before, on the device ([`super::make`]).

mod fixed;
mod keys;
mod member;
mod server;
mod shamir;

use std::collections::BTreeMap;

pub use fixed::{FixedPoint, Mean};
pub use member::{Confirming, Joining, Masking, Sharing};
pub use server::SecureSum;

use super::invalid;
use super::sign::PublicKey;
use crate::error::Result;
use crate::identity::Identity;

/// A member's number, from 1 on.
pub type MemberId = u16;

/// Members of a round, and how many of them must stay. The same for everyone.
#[derive(Clone, Debug)]
pub struct Cohort {
    round: String,
    members: BTreeMap<MemberId, PublicKey>,
    threshold: usize,
}

impl Cohort {
    /// The cohort of a round that no other one is called like, by numbers and device keys.
    ///
    /// Errors: `InvalidDelta` for fewer than three members, the number 0, or one key twice.
    pub fn new(
        round: impl Into<String>,
        members: impl IntoIterator<Item = (MemberId, PublicKey)>,
    ) -> Result<Self> {
        let members: BTreeMap<_, _> = members.into_iter().collect();
        let mut keys: Vec<_> = members.values().collect();
        keys.sort();
        keys.dedup();
        if members.len() < 3 || members.contains_key(&0) || keys.len() < members.len() {
            let reason = "three members at least, numbered from 1, each with a key of its own";
            return Err(invalid("cohort", reason));
        }
        let threshold = 2 * members.len() / 3 + 1;
        Ok(Self { round: round.into(), members, threshold })
    }

    /// How many must stay to the end: more than two thirds.
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// How many take part.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// Errors: `InvalidDelta` for a number that is nobody's.
    fn key(&self, member: MemberId) -> Result<&PublicKey> {
        let reason = "no member of this cohort";
        self.members.get(&member).ok_or_else(|| invalid(format!("member {member}"), reason))
    }

    /// That `count` are enough to go on.
    fn check_enough(&self, count: usize) -> Result<()> {
        if count >= self.threshold {
            return Ok(());
        }
        let reason = format!(
            "{count} of {} are left and {} are needed; begin another round",
            self.members.len(),
            self.threshold
        );
        Err(invalid("cohort", reason))
    }

    /// What is said in this round, as text that is signed or hashed.
    fn said(&self, tag: &'static str, pairs: &[(&str, String)]) -> String {
        let mut identity = Identity::new(tag);
        identity.add("round", &self.round);
        pairs.iter().for_each(|(key, value)| identity.add(*key, value));
        identity.name()
    }

    /// The text that consent to a list of members signs.
    fn consent(&self, survivors: &[MemberId]) -> String {
        let list = survivors.iter().map(MemberId::to_string).collect::<Vec<_>>().join(",");
        self.said("epiphyte.secure-consent.1", &[("survivors", list)])
    }
}

/// A member's public keys for this round.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Advert {
    /// Whose.
    pub member: MemberId,
    /// X25519: shares are encrypted to it.
    pub transport: [u8; 32],
    /// X25519: pairwise masks come from it.
    pub masking: [u8; 32],
    /// Of the device's key, over both.
    pub signature: Vec<u8>,
}

impl Advert {
    fn text(&self, cohort: &Cohort) -> String {
        let hex = |bytes: &[u8; 32]| crate::identity::hex(*bytes);
        let pairs = [
            ("member", self.member.to_string()),
            ("transport", hex(&self.transport)),
            ("masking", hex(&self.masking)),
        ];
        cohort.said("epiphyte.secure-advert.1", &pairs)
    }

    /// Errors: `InvalidDelta` where the signature is not that of the member's device.
    fn check(&self, cohort: &Cohort) -> Result<()> {
        cohort.key(self.member)?.verify(self.text(cohort).as_bytes(), &self.signature)
    }
}

/// Shares of one member for another, which alone can read them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Share {
    /// Whose.
    pub from: MemberId,
    /// For whom.
    pub to: MemberId,
    /// ChaCha20-Poly1305 (RFC 8439) of both shares.
    pub sealed: Vec<u8>,
}

/// Values under masks: to anyone else, noise.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MaskedInput {
    /// Whose.
    pub member: MemberId,
    /// Modulo 2^32.
    pub values: Vec<u32>,
}

/// That a member knows a list of those whose input came, and was told no other.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Consent {
    /// Whose.
    pub member: MemberId,
    /// Of the device's key, over the list.
    pub signature: Vec<u8>,
}

/// What takes the masks off the sum: of each other member one of its two shares, never both.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Unmasking {
    /// Whose.
    pub member: MemberId,
    /// Of those whose input came: a share of what their own mask comes from.
    pub own: Vec<(MemberId, [u8; 32])>,
    /// Of those who vanished before: a share of what their pairwise masks come from.
    pub pairwise: Vec<(MemberId, [u8; 32])>,
}
