//! Secure aggregation in memory: a whole cohort and a server, with members that vanish at any
//! exchange and messages that are not what they should be.

use std::collections::BTreeMap;

use epiphyte::federated::secure::{
    Advert, Cohort, Confirming, Consent, FixedPoint, Joining, MaskedInput, Masking, MemberId,
    SecureSum, Share, Sharing, Unmasking,
};
use epiphyte::federated::{KeyKind, Signer, SigningKey};

use crate::common::Random;

const BOUND: f64 = 2.0;
const MOST_WEIGHT: u32 = 16;

fn key(member: MemberId) -> SigningKey {
    super::key(member as u8)
}

fn cohort(members: MemberId) -> Cohort {
    Cohort::new("round 7", (1..=members).map(|id| (id, key(id).public_key()))).unwrap()
}

fn fixed(members: MemberId) -> FixedPoint {
    FixedPoint::new(BOUND, MOST_WEIGHT, members.into()).unwrap()
}

/// After which exchange members are gone.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gone {
    Keys,
    Shares,
    Input,
    Consent,
}

/// What each member has said so far, and what each server step made of it.
struct Round {
    cohort: Cohort,
    adverts: Vec<Advert>,
    sharing: BTreeMap<MemberId, Sharing>,
    shares: Vec<Share>,
}

impl Round {
    /// Up to the shares; those whom `vanishes` names come no further than their keys.
    fn new(members: MemberId, vanishes: impl Fn(MemberId) -> Option<Gone>) -> Self {
        let cohort = cohort(members);
        let joined = (1..=members).map(|id| Joining::new(&cohort, id, &key(id)).unwrap());
        let (joined, adverts): (Vec<_>, Vec<_>) = joined.unzip();
        let (mut sharing, mut shares) = (BTreeMap::new(), Vec::new());
        for (id, joining) in (1..).zip(joined) {
            if vanishes(id) != Some(Gone::Keys) {
                let (next, given) = joining.share(&adverts).unwrap();
                sharing.insert(id, next);
                shares.extend(given);
            }
        }
        Self { cohort, adverts, sharing, shares }
    }

    fn sum(&self, n_values: usize) -> SecureSum {
        let sharers = self.sharing.keys().copied();
        SecureSum::new(&self.cohort, &self.adverts, sharers, n_values).unwrap()
    }

    fn for_member(&self, id: MemberId) -> Vec<Share> {
        self.shares.iter().filter(|share| share.to == id).cloned().collect()
    }

    /// The input of a member and what it becomes.
    fn mask(&mut self, id: MemberId, values: Vec<u32>) -> (Masking, MaskedInput) {
        let shares = self.for_member(id);
        self.sharing.remove(&id).unwrap().mask(values, &shares).unwrap()
    }
}

/// Values of a member, and their weight.
fn input(member: MemberId, n_values: usize) -> (Vec<f32>, u32) {
    let mut random = Random::new(member.into());
    let values = (0..n_values).map(|_| random.signed(BOUND as f32)).collect();
    (values, 1 + random.below(MOST_WEIGHT))
}

#[test]
fn the_sum_is_that_of_those_who_stayed() {
    for (members, gone) in [
        (5, None),
        (5, Some(Gone::Keys)),
        (7, Some(Gone::Input)),
        (20, Some(Gone::Shares)),
        (50, Some(Gone::Keys)),
        (50, Some(Gone::Shares)),
        (50, Some(Gone::Input)),
        (50, Some(Gone::Consent)),
    ] {
        let vanishes = |id: MemberId| gone.filter(|_| id.is_multiple_of(5));
        let is_there = |id: MemberId, after: Gone| vanishes(id) != Some(after);
        let (fixed, n_values) = (fixed(members), 1001);
        let mut round = Round::new(members, vanishes);
        let mut sum = round.sum(n_values + 1);
        let (mut masked, mut expected) = (Vec::new(), vec![0_u32; n_values + 1]);
        for id in round.sharing.keys().copied().collect::<Vec<_>>() {
            if is_there(id, Gone::Shares) {
                let (values, weight) = input(id, n_values);
                let words = fixed.encode(&values, weight).unwrap();
                expected.iter_mut().zip(&words).for_each(|(a, b)| *a = a.wrapping_add(*b));
                let (next, sent) = round.mask(id, words);
                sum.add(&sent).unwrap();
                masked.push((id, next));
            }
        }
        let survivors = sum.survivors();
        let agree = |(id, masking): (MemberId, Masking)| {
            let (next, consent) = masking.consent(&survivors, &key(id)).unwrap();
            sum.check_consent(&consent).unwrap();
            (id, next, consent)
        };
        let agreed: Vec<_> =
            masked.into_iter().filter(|(id, _)| is_there(*id, Gone::Input)).map(agree).collect();
        let consents: Vec<Consent> = agreed.iter().map(|(.., consent)| consent.clone()).collect();
        let unmask = |(_, confirming, _): (MemberId, Confirming, Consent)| {
            confirming.unmask(&consents).unwrap()
        };
        let unmaskings: Vec<Unmasking> = agreed
            .into_iter()
            .filter(|(id, ..)| is_there(*id, Gone::Consent))
            .map(unmask)
            .collect();
        for one in &unmaskings {
            let both = one.own.iter().filter(|(id, _)| one.pairwise.iter().any(|(o, _)| o == id));
            assert_eq!(both.count(), 0, "both shares of one member were told");
        }
        let unmasked = sum.finish(&unmaskings).unwrap();
        assert_eq!(unmasked, expected, "{members} members, gone after {gone:?}");
        close_to_f64(&fixed, &unmasked, &survivors, n_values);
        println!("{members} members, gone after {gone:?}: {} in the sum, exact", survivors.len());
    }
}

/// The decoded mean is off by no more than half a step for each member, and one rounding to f32.
fn close_to_f64(fixed: &FixedPoint, sum: &[u32], survivors: &[MemberId], n_values: usize) {
    let mean = fixed.decode(sum).unwrap();
    let inputs: Vec<_> = survivors.iter().map(|id| input(*id, n_values)).collect();
    let weight: u64 = inputs.iter().map(|(_, weight)| u64::from(*weight)).sum();
    assert_eq!(mean.weight, weight);
    for (i, got) in mean.values.iter().enumerate() {
        let total: f64 = inputs.iter().map(|(v, w)| f64::from(v[i]) * f64::from(*w)).sum();
        let want = total / weight as f64;
        let steps = 0.5 * survivors.len() as f64 * fixed.step() / weight as f64;
        let bound = steps + want.abs() * f64::from(f32::EPSILON);
        assert!((f64::from(*got) - want).abs() <= bound, "{got} is not {want} within {bound:e}");
    }
}

/// All that a server gets of one member before unmasking is its input under masks: it must look the
/// same whatever the values are. 65,536 words of zeros, by the bytes' frequencies: chi squared of
/// 255 degrees of freedom has the mean 255 and a deviation of 22.6, and stays within six of those.
#[test]
fn masked_inputs_are_uniform() {
    let (members, n) = (5, 1 << 16);
    let mut round = Round::new(members, |_| None);
    let mut seen: Vec<Vec<u32>> = Vec::new();
    for id in 1..=members {
        let values = vec![if id.is_multiple_of(2) { 0 } else { 12_345 }; n];
        let (_, sent) = round.mask(id, values.clone());
        assert_ne!(sent.values, values);
        seen.push(sent.values);
    }
    // Also what differences of two members say: masks have no common part.
    let differences = |a: &[u32], b: &[u32]| -> Vec<u32> {
        a.iter().zip(b).map(|(a, b)| a.wrapping_sub(*b)).collect()
    };
    let pairs: Vec<_> = seen.windows(2).map(|pair| differences(&pair[0], &pair[1])).collect();
    for values in seen.iter().chain(&pairs) {
        let mut counts = [0_u32; 256];
        let bytes = values.iter().flat_map(|word| word.to_le_bytes());
        bytes.for_each(|byte| counts[byte as usize] += 1);
        let each = (4 * n) as f64 / 256.0;
        let chi: f64 = counts.iter().map(|c| (f64::from(*c) - each).powi(2) / each).sum();
        let sigma = (2.0 * 255.0_f64).sqrt();
        assert!((chi - 255.0).abs() < 6.0 * sigma, "chi squared {chi}");
    }
    // With every pairwise mask gone, the sum still has the own masks on.
    let sum = seen.iter().fold(vec![0_u32; n], |mut sum, values| {
        sum.iter_mut().zip(values).for_each(|(sum, v)| *sum = sum.wrapping_add(*v));
        sum
    });
    assert!(sum.iter().filter(|word| **word == 3 * 12_345).count() < 8);
}

fn refused<T>(result: epiphyte::Result<T>, part: &str) {
    let error = result.map(drop).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
}

#[test]
fn keys_that_a_server_made_up_are_refused() {
    let cohort = cohort(5);
    let make = |id| Joining::new(&cohort, id, &key(id)).unwrap();
    let (first, mut adverts) = (make(1), (2..=5).map(|id| make(id).1).collect::<Vec<_>>());
    refused(Joining::new(&cohort, 6, &key(6)), "no member");
    refused(Joining::new(&cohort, 1, &key(2)), "another key");
    adverts.push(first.1.clone());
    // One of the server's own in place of a member's.
    let mut forged = adverts.clone();
    forged[2].masking = [9; 32];
    refused(make(1).0.share(&forged), "signature");
    // Signed by its member, but in another round.
    let other = Cohort::new("round 8", (1..=5).map(|id| (id, key(id).public_key()))).unwrap();
    let mut replayed = adverts.clone();
    replayed[0] = Joining::new(&other, 2, &key(2)).unwrap().1;
    refused(make(1).0.share(&replayed), "signature");
    let twice = [&adverts[..], &adverts[..1]].concat();
    refused(make(1).0.share(&twice), "twice");
    refused(make(1).0.share(&adverts[..3]), "3 of 5 are left and 4 are needed");
    refused(make(1).0.share(&adverts[..4]), "left out");
    assert!(first.0.share(&adverts).is_ok());
    let p256 = SigningKey::from_bytes(KeyKind::P256, &[77; 32]).unwrap();
    refused(Cohort::new("r", (1..=3).map(|id| (id, p256.public_key()))), "key of its own");
    refused(Cohort::new("r", (0..=3).map(|id| (id, key(id).public_key()))), "numbered from 1");
}

#[test]
fn shares_and_inputs_that_do_not_fit_are_refused() {
    let fresh = || Round::new(5, |_| None);
    let mut round = fresh();
    let shares = round.for_member(1);
    let mut changed = shares.clone();
    changed[0].sealed[3] ^= 1;
    refused(round.sharing.remove(&1).unwrap().mask(vec![0], &changed), "changed on its way");
    let mut round = fresh();
    let of_two = round.for_member(2);
    refused(round.sharing.remove(&1).unwrap().mask(vec![0], &of_two), "not for this member");
    let mut round = fresh();
    let mut twice = round.for_member(1);
    twice.push(twice[0].clone());
    refused(round.sharing.remove(&1).unwrap().mask(vec![0], &twice), "twice");
    let mut round = fresh();
    let few = round.for_member(1)[..2].to_vec();
    refused(round.sharing.remove(&1).unwrap().mask(vec![0], &few), "3 of 5");
    let mut round = fresh();
    let mut sum = round.sum(4);
    let (_, sent) = round.mask(1, vec![1; 4]);
    sum.add(&sent).unwrap();
    refused(sum.add(&sent), "came already");
    refused(sum.add(&MaskedInput { member: 9, ..sent.clone() }), "shared no masks");
    refused(sum.add(&MaskedInput { member: 2, values: vec![0; 3] }), "3 values, not the round's 4");
    refused(sum.finish(&[]), "1 of 5 are left");
}

/// A server that tells different lists, or asks too few, gets no shares.
#[test]
fn no_one_unmasks_for_a_list_that_others_do_not_know() {
    let mut round = Round::new(5, |_| None);
    let mut sum = round.sum(2);
    let mut masked: BTreeMap<MemberId, Masking> = BTreeMap::new();
    for id in 1..=5 {
        let (next, sent) = round.mask(id, vec![id.into(); 2]);
        sum.add(&sent).unwrap();
        masked.insert(id, next);
    }
    let mut agree =
        |id: MemberId, list: &[MemberId]| masked.remove(&id).unwrap().consent(list, &key(id));
    let (one, consent_one) = agree(1, &[1, 2, 3, 4, 5]).unwrap();
    let (_, consent_two) = agree(2, &[1, 2, 3, 4, 5]).unwrap();
    // The third is told another list.
    let (three, consent_three) = agree(3, &[1, 2, 3, 4]).unwrap();
    refused(agree(4, &[1, 2, 3]), "3 of 5 are left");
    refused(agree(5, &[1, 2, 3, 4]), "left out");
    refused(sum.check_consent(&consent_three), "signature");
    let consents = [consent_one.clone(), consent_two.clone(), consent_three];
    refused(one.unmask(&consents), "signature");
    let same = [consent_one.clone(), consent_one, consent_two];
    refused(three.unmask(&same), "signature");
}

#[test]
fn numbers_beyond_the_bound_are_refused() {
    let fixed = fixed(50);
    assert!(fixed.step() < 1e-6);
    for bad in [2.1, -2.1, f32::NAN, f32::INFINITY] {
        refused(fixed.encode(&[0.5, bad], 1), "beyond the bound");
    }
    refused(fixed.encode(&[0.5], 0), "weight");
    refused(fixed.encode(&[0.5], 17), "weight");
    refused(FixedPoint::new(0.0, 1, 3), "bound");
    refused(FixedPoint::new(1.0, 1 << 20, 50), "most_weight");
    refused(fixed.decode(&[5, 0]), "no weight");
    refused(fixed.decode(&[]), "no weight");
    // All at the bound, with the most weight: the sum does not turn over.
    let words = fixed.encode(&[2.0, -2.0], 16).unwrap();
    let sum: Vec<u32> = words.iter().map(|word| word.wrapping_mul(50)).collect();
    let mean = fixed.decode(&sum).unwrap();
    assert_eq!(mean.weight, 800);
    assert!((f64::from(mean.values[0]) - 2.0).abs() < 1e-6, "{mean:?}");
    assert!((f64::from(mean.values[1]) + 2.0).abs() < 1e-6, "{mean:?}");
}
