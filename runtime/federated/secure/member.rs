//! A member of a cohort: a type an exchange, each of which becomes the next one, so that no step can
//! be taken twice.

use std::collections::{BTreeMap, BTreeSet};

use curve25519_dalek::Scalar;
use x25519_dalek::{PublicKey, StaticSecret};

use super::keys::{Envelope, Sign, agree, derive, mask, masking_key, sign};
use super::shamir::{self, Polynomial};
use super::{Advert, Cohort, Consent, MaskedInput, MemberId, Share, Unmasking};
use crate::error::Result;
use crate::federated::sign::Signer;
use crate::federated::{invalid, random};

/// What a member never tells.
struct Secrets {
    transport: StaticSecret,
    masking: Scalar,
    own: Scalar,
}

/// A member that has said its keys.
pub struct Joining {
    cohort: Cohort,
    member: MemberId,
    secrets: Secrets,
}

/// A member that has given away its shares.
pub struct Sharing {
    joined: Joining,
    keys: BTreeMap<MemberId, Advert>,
    /// Its own share of what its own mask comes from.
    own_share: [u8; 32],
}

/// A member that has sent its input.
pub struct Masking {
    cohort: Cohort,
    member: MemberId,
    /// What others gave: of their pairwise masks, of their own ones.
    shares: BTreeMap<MemberId, [[u8; 32]; 2]>,
    own_share: [u8; 32],
}

/// A member that has agreed to a list of those whose input came.
pub struct Confirming {
    masked: Masking,
    survivors: Vec<MemberId>,
}

impl Joining {
    /// First exchange: keys for this round, signed by the device's key.
    ///
    /// Errors: `InvalidDelta` for a number or key that is not in the cohort; those of the signer.
    pub fn new(cohort: &Cohort, member: MemberId, signer: &dyn Signer) -> Result<(Self, Advert)> {
        if cohort.key(member)? != &signer.public_key() {
            return Err(invalid(format!("member {member}"), "the cohort has another key for it"));
        }
        let secrets = Secrets {
            transport: StaticSecret::from(random::system_seed()?),
            masking: shamir::secret()?,
            own: shamir::secret()?,
        };
        let mut advert = Advert {
            member,
            transport: PublicKey::from(&secrets.transport).to_bytes(),
            masking: PublicKey::from(&masking_key(cohort, &secrets.masking)).to_bytes(),
            signature: Vec::new(),
        };
        advert.signature = signer.sign(advert.text(cohort).as_bytes())?;
        Ok((Self { cohort: cohort.clone(), member, secrets }, advert))
    }

    /// Second exchange: shares for each of those whose keys came.
    ///
    /// Errors: `InvalidDelta` for keys that are not signed by their member's device, twice the same
    /// member, too few, or without this one's.
    pub fn share(self, adverts: &[Advert]) -> Result<(Sharing, Vec<Share>)> {
        let mut keys = BTreeMap::new();
        for advert in adverts {
            advert.check(&self.cohort)?;
            if keys.insert(advert.member, advert.clone()).is_some() {
                return Err(invalid(format!("member {}", advert.member), "its keys came twice"));
            }
        }
        self.cohort.check_enough(keys.len())?;
        if !keys.contains_key(&self.member) {
            return Err(invalid(format!("member {}", self.member), "its own keys are left out"));
        }
        let threshold = self.cohort.threshold;
        let masking = Polynomial::new(self.secrets.masking, threshold)?;
        let own = Polynomial::new(self.secrets.own, threshold)?;
        let others = keys.values().filter(|advert| advert.member != self.member);
        let shares = others.map(|advert| {
            let (from, to) = (self.member, advert.member);
            let transport = &self.secrets.transport;
            let envelope = Envelope::new(&self.cohort, transport, advert.transport, from, to)?;
            let both = [masking.share(to), own.share(to)].concat();
            Ok(Share { from, to, sealed: envelope.seal(&both)? })
        });
        let shares = shares.collect::<Result<_>>()?;
        let own_share = own.share(self.member);
        Ok((Sharing { joined: self, keys, own_share }, shares))
    }
}

impl Sharing {
    /// Third exchange: the values ([`super::FixedPoint::encode`]), under a mask for each member
    /// whose shares came, and one of its own.
    ///
    /// Errors: `InvalidDelta` for shares of others than sent keys, for another member, twice the
    /// same, changed, or of too few.
    pub fn mask(self, mut values: Vec<u32>, shares: &[Share]) -> Result<(Masking, MaskedInput)> {
        let Self { joined: Joining { cohort, member, secrets }, keys, own_share } = self;
        let mut received = BTreeMap::new();
        let masking = masking_key(&cohort, &secrets.masking);
        for share in shares {
            let from = share.from;
            let bad = |reason: &str| invalid(format!("member {from}"), reason);
            let advert = keys.get(&from).filter(|_| share.to == member && from != member);
            let advert = advert.ok_or_else(|| bad("a share of it is not for this member"))?;
            let envelope =
                Envelope::new(&cohort, &secrets.transport, advert.transport, from, member)?;
            let both = envelope.open(&share.sealed)?;
            let (parts, []) = both.as_chunks::<32>() else { return Err(bad("no pair of shares")) };
            let pair = <[[u8; 32]; 2]>::try_from(parts).map_err(|_| bad("no pair of shares"))?;
            if received.insert(from, pair).is_some() {
                return Err(bad("its shares came twice"));
            }
            let key = agree(&cohort, "pairwise", &masking, advert.masking)?;
            mask(&mut values, &key, sign(member, from));
        }
        cohort.check_enough(received.len() + 1)?;
        let own = derive(&cohort, "own", &[secrets.own.as_bytes()]);
        mask(&mut values, &own, Sign::Add);
        let masking = Masking { cohort, member, shares: received, own_share };
        Ok((masking, MaskedInput { member, values }))
    }
}

impl Masking {
    /// Fourth exchange: agrees to the list of those whose input came.
    ///
    /// Errors: `InvalidDelta` for too few, a member that shared nothing with this one, or a list
    /// without this one; those of the signer.
    pub fn consent(
        self,
        survivors: &[MemberId],
        signer: &dyn Signer,
    ) -> Result<(Confirming, Consent)> {
        let list: BTreeSet<_> = survivors.iter().copied().collect();
        self.cohort.check_enough(list.len())?;
        if !list.contains(&self.member) {
            let reason = "its input is left out of the list";
            return Err(invalid(format!("member {}", self.member), reason));
        }
        let known = |id: &&MemberId| **id == self.member || self.shares.contains_key(id);
        if let Some(stranger) = list.iter().find(|id| !known(id)) {
            let reason = "it is on the list of inputs and has shared nothing with this member";
            return Err(invalid(format!("member {stranger}"), reason));
        }
        let survivors: Vec<_> = list.into_iter().collect();
        let signature = signer.sign(self.cohort.consent(&survivors).as_bytes())?;
        let member = self.member;
        Ok((Confirming { masked: self, survivors }, Consent { member, signature }))
    }
}

impl Confirming {
    /// Last exchange: one share of every other member, once enough have agreed to the same list.
    ///
    /// Errors: `InvalidDelta` for consent that is not signed by its member, or of too few.
    pub fn unmask(self, consents: &[Consent]) -> Result<Unmasking> {
        let Self { masked: Masking { cohort, member, shares, own_share }, survivors } = self;
        let text = cohort.consent(&survivors);
        let mut agreed = BTreeSet::new();
        for consent in consents.iter().filter(|consent| survivors.contains(&consent.member)) {
            cohort.key(consent.member)?.verify(text.as_bytes(), &consent.signature)?;
            agreed.insert(consent.member);
        }
        cohort.check_enough(agreed.len())?;
        let (stayed, gone): (Vec<_>, Vec<_>) =
            shares.into_iter().partition(|(id, _)| survivors.contains(id));
        let others = stayed.into_iter().map(|(id, [_, own])| (id, own));
        let own = others.chain([(member, own_share)]).collect();
        let pairwise = gone.into_iter().map(|(id, [masking, _])| (id, masking)).collect();
        Ok(Unmasking { member, own, pairwise })
    }
}
