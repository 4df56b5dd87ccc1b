//! The server's side: it carries messages, adds up what comes and takes the masks off the sum.

use std::collections::{BTreeMap, BTreeSet};

use x25519_dalek::PublicKey;

use super::keys::{Sign, agree, derive, mask, masking_key, sign};
use super::{Advert, Cohort, Consent, MaskedInput, MemberId, Unmasking, shamir};
use crate::error::Result;
use crate::federated::invalid;

/// The sum of a cohort, one input at a time: memory for one.
pub struct SecureSum {
    cohort: Cohort,
    keys: BTreeMap<MemberId, [u8; 32]>,
    /// Whose shares went out.
    sharers: BTreeSet<MemberId>,
    survivors: BTreeSet<MemberId>,
    sum: Vec<u32>,
}

impl SecureSum {
    /// Of inputs of `n_values` each, by those whose keys came (`adverts`) and whose shares went out
    /// to everyone (`sharers`).
    ///
    /// Errors: `InvalidDelta` for keys that are not signed by their member's device, sharers without
    /// keys, or too few.
    pub fn new(
        cohort: &Cohort,
        adverts: &[Advert],
        sharers: impl IntoIterator<Item = MemberId>,
        n_values: usize,
    ) -> Result<Self> {
        adverts.iter().try_for_each(|advert| advert.check(cohort))?;
        let keys: BTreeMap<_, _> =
            adverts.iter().map(|advert| (advert.member, advert.masking)).collect();
        let sharers: BTreeSet<_> = sharers.into_iter().collect();
        if let Some(id) = sharers.iter().find(|id| !keys.contains_key(id)) {
            return Err(invalid(format!("member {id}"), "it shared without having sent keys"));
        }
        cohort.check_enough(sharers.len())?;
        let (survivors, sum) = (BTreeSet::new(), vec![0; n_values]);
        Ok(Self { cohort: cohort.clone(), keys, sharers, survivors, sum })
    }

    /// Adds an input.
    ///
    /// Errors: `InvalidDelta` for a member without shares, one that comes twice, or another number
    /// of values; the sum is then as it was.
    pub fn add(&mut self, input: &MaskedInput) -> Result<()> {
        let bad = |reason: String| Err(invalid(format!("member {}", input.member), reason));
        if !self.sharers.contains(&input.member) {
            return bad("it sends an input and has shared no masks".into());
        }
        if input.values.len() != self.sum.len() {
            let (got, wanted) = (input.values.len(), self.sum.len());
            return bad(format!("{got} values, not the round's {wanted}"));
        }
        if !self.survivors.insert(input.member) {
            return bad("its input came already".into());
        }
        let pairs = self.sum.iter_mut().zip(&input.values);
        pairs.for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
        Ok(())
    }

    /// Those whose input came: what members are asked to agree to.
    pub fn survivors(&self) -> Vec<MemberId> {
        self.survivors.iter().copied().collect()
    }

    /// That a member's consent is to [`SecureSum::survivors`].
    ///
    /// Errors: `InvalidDelta`.
    pub fn check_consent(&self, consent: &Consent) -> Result<()> {
        let text = self.cohort.consent(&self.survivors());
        self.cohort.key(consent.member)?.verify(text.as_bytes(), &consent.signature)
    }

    /// The sum of the survivors' values, modulo 2^32.
    ///
    /// Errors: `InvalidDelta` for too few, a member twice, or shares that do not fit together.
    pub fn finish(mut self, unmaskings: &[Unmasking]) -> Result<Vec<u32>> {
        self.cohort.check_enough(self.survivors.len())?;
        let mut seen = BTreeSet::new();
        let (mut own, mut pairwise) = (BTreeMap::new(), BTreeMap::new());
        for unmasking in unmaskings {
            let by = unmasking.member;
            if !self.survivors.contains(&by) || !seen.insert(by) {
                return Err(invalid(format!("member {by}"), "it unmasks twice, or sent no input"));
            }
            for (of, share) in &unmasking.own {
                own.entry(*of).or_insert_with(Vec::new).push((by, *share));
            }
            for (of, share) in &unmasking.pairwise {
                pairwise.entry(*of).or_insert_with(Vec::new).push((by, *share));
            }
        }
        for id in self.survivors.clone() {
            let seed = self.reconstruct(id, &own)?;
            let key = derive(&self.cohort, "own", &[seed.as_bytes()]);
            mask(&mut self.sum, &key, Sign::Subtract);
        }
        let gone: Vec<_> = self.sharers.difference(&self.survivors).copied().collect();
        for id in gone {
            let key = masking_key(&self.cohort, &self.reconstruct(id, &pairwise)?);
            if PublicKey::from(&key).to_bytes() != self.keys[&id] {
                let reason = "the shares of its masks do not fit its keys; begin another round";
                return Err(invalid(format!("member {id}"), reason));
            }
            for &other in &self.survivors {
                let shared = agree(&self.cohort, "pairwise", &key, self.keys[&other])?;
                // What the other one did with it is what it would do to undo its own.
                mask(&mut self.sum, &shared, sign(id, other));
            }
        }
        Ok(self.sum)
    }

    fn reconstruct(
        &self,
        of: MemberId,
        shares: &BTreeMap<MemberId, Vec<(MemberId, [u8; 32])>>,
    ) -> Result<curve25519_dalek::Scalar> {
        let shares = shares.get(&of).map(Vec::as_slice).unwrap_or_default();
        let threshold = self.cohort.threshold;
        if shares.len() < threshold {
            let reason =
                format!("{} shares of its masks came and {threshold} are needed", shares.len());
            return Err(invalid(format!("member {of}"), reason));
        }
        shamir::reconstruct(&shares[..threshold])
    }
}
