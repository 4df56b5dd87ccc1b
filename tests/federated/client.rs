//! The device's part: clip, noise, quantise, sign; and taking what comes back.

use epiphyte::Error;
use epiphyte::adapter::Adapter;
use epiphyte::federated::{
    Accept, Delta, DeltaOptions, Factors, KeyKind, PublicKey, Published, Quantisation, Residual,
    RoundPlan, Signer, SigningKey, bucket, make,
};

use super::{BASE, Folder, RANK, SHAPE, delta, key, options, parent, plan, run, server, trained};

const ALL: [Quantisation; 5] = [
    Quantisation::F32,
    Quantisation::F16,
    Quantisation::Int8,
    Quantisation::Ternary,
    Quantisation::TopK { fraction: 0.1 },
];

fn made(parent: &Published, trained: &Adapter, quantisation: Quantisation, seed: u8) -> Delta {
    let options = DeltaOptions {
        examples: 100,
        quantisation: Some(quantisation),
        seed: Some([seed; 32]),
        ..DeltaOptions::default()
    };
    let bytes = make(parent, trained, &options, None, &key(1)).unwrap();
    Delta::from_bytes(bytes).unwrap()
}

/// All numbers, in the order of modules.
fn numbers(delta: &Delta) -> Vec<f32> {
    delta.modules().into_iter().flat_map(|path| delta.module(path)).flatten().flatten().collect()
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>())
}

#[test]
fn a_delta_is_the_difference_and_says_what_it_is() {
    let parent = parent(plan(Factors::Both));
    let trained = trained(&parent, 3, RANK, 0.05);
    let delta = made(&parent, &trained, Quantisation::F32, 1);
    let old = parent.adapter(&SHAPE).unwrap();
    for (old, new) in old.modules.iter().zip(&trained.modules) {
        let [a, b] = delta.module(old.path).map(Option::unwrap);
        let differs = |new: &[f32], old: &[f32]| new.iter().zip(old).map(|(n, o)| n - o).collect();
        assert_eq!((a, b), (differs(&new.a, &old.a), differs(&new.b, &old.b)));
    }
    let manifest = &delta.manifest;
    assert_eq!((manifest.examples, manifest.round, manifest.parent.version), (64, 1, 1));
    assert_eq!(manifest.parent.digest, old.digest());
    assert_eq!((manifest.base_fingerprint.as_str(), manifest.adapter.as_str()), (BASE, "demo"));
    assert_eq!([0, 1, 2, 3, 1000].map(bucket), [1, 1, 2, 2, 512]);
}

#[test]
fn quantised_deltas_are_close_small_and_unbiased() {
    let parent = parent(plan(Factors::Both));
    let trained = trained(&parent, 3, RANK, 0.05);
    let exact = numbers(&made(&parent, &trained, Quantisation::F32, 1));
    let bounds = [0.0, 3e-4, 0.006, 0.6, 0.95];
    let mut before = usize::MAX;
    for (quantisation, bound) in ALL.into_iter().zip(bounds) {
        let delta = made(&parent, &trained, quantisation, 1);
        let error = distance(&numbers(&delta), &exact) / norm(&exact);
        println!("{}: {} bytes, error {error:.5}", quantisation.name(), delta.n_bytes());
        assert!(error <= bound, "{}: {error}", quantisation.name());
        assert!(delta.n_bytes() < before || quantisation.name() == "top_k");
        before = delta.n_bytes();
    }
    // The mean of many roundings of int8 is the number.
    let mut mean = vec![0.0; exact.len()];
    for seed in 0..100 {
        let got = numbers(&made(&parent, &trained, Quantisation::Int8, seed));
        mean.iter_mut().zip(got).for_each(|(mean, v)| *mean += v / 100.0);
    }
    let one = distance(&numbers(&made(&parent, &trained, Quantisation::Int8, 200)), &exact);
    let many = distance(&mean, &exact);
    assert!(many < one / 7.0, "{many:e} is not a tenth of {one:e}");
}

#[test]
fn a_tiny_delta_keeps_its_digits_and_none_at_all_is_zero() {
    let parent = parent(plan(Factors::B));
    let mut tiny = parent.adapter(&SHAPE).unwrap();
    for quantisation in ALL {
        let delta = made(&parent, &tiny, quantisation, 1);
        assert!(numbers(&delta).iter().all(|v| *v == 0.0), "{}", quantisation.name());
    }
    // Far below what f16 can hold.
    tiny.modules.iter_mut().flat_map(|m| &mut m.b).for_each(|v| *v += 3e-8);
    let exact = numbers(&made(&parent, &tiny, Quantisation::F32, 1));
    for quantisation in [Quantisation::F16, Quantisation::Int8] {
        let error = distance(&numbers(&made(&parent, &tiny, quantisation, 1)), &exact);
        assert!(error <= 0.01 * norm(&exact), "{}", quantisation.name());
    }
}

#[test]
fn norms_are_clipped_and_noise_has_the_size_it_says() {
    let with = |clip_norm, sigma| {
        let plan = RoundPlan { clip_norm, sigma, ..plan(Factors::Both) };
        let parent = parent(plan);
        let trained = trained(&parent, 3, RANK, 0.05);
        made(&parent, &trained, Quantisation::F32, 1)
    };
    let free = with(None, 0.0);
    let loose = with(Some(100.0), 0.0);
    assert_eq!(numbers(&free), numbers(&loose));
    assert!(!loose.manifest.clip.unwrap().was_clipped);
    let tight = with(Some(0.1), 0.0);
    assert!(tight.manifest.clip.unwrap().was_clipped);
    assert!((tight.norm() - 0.1).abs() < 1e-6, "{}", tight.norm());
    let noisy = with(Some(0.1), 0.5);
    let n = numbers(&noisy).len() as f64;
    let deviation = distance(&numbers(&noisy), &numbers(&tight)) / n.sqrt();
    // 0.5 * 0.1, within five standard errors.
    assert!((deviation / 0.05 - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{deviation}");
    let plan = RoundPlan { clip_norm: None, sigma: 1.0, ..plan(Factors::Both) };
    let parent = parent(plan);
    let trained = trained(&parent, 3, RANK, 0.05);
    let e = make(&parent, &trained, &DeltaOptions::default(), None, &key(1)).unwrap_err();
    assert!(e.to_string().contains("clip_norm"), "{e}");
}

#[test]
fn what_quantising_loses_is_sent_later() {
    let parent = parent(plan(Factors::B));
    let trained = trained(&parent, 3, RANK, 0.05);
    let exact = numbers(&made(&parent, &trained, Quantisation::F32, 1));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("residual.safetensors");
    for quantisation in [Quantisation::Ternary, Quantisation::TopK { fraction: 0.1 }] {
        let mut sent = vec![0.0; exact.len()];
        let mut errors = Vec::new();
        for round in 1..=30_u8 {
            let mut residual = Residual::open(&file).unwrap();
            let options = DeltaOptions {
                quantisation: Some(quantisation),
                seed: Some([round; 32]),
                ..DeltaOptions::default()
            };
            let bytes = make(&parent, &trained, &options, Some(&mut residual), &key(1)).unwrap();
            residual.save(&file).unwrap();
            let got = numbers(&Delta::from_bytes(bytes).unwrap());
            sent.iter_mut().zip(got).for_each(|(sum, v)| *sum += v);
            let mean: Vec<_> = sent.iter().map(|v| v / f32::from(round)).collect();
            errors.push(distance(&mean, &exact) / norm(&exact));
        }
        assert!(errors[29] < errors[0] / 3.0, "{}: {errors:?}", quantisation.name());
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_residual_of_another_base_is_dropped() {
    let first = parent(plan(Factors::B));
    let mut residual = Residual::new();
    let ternary = DeltaOptions {
        quantisation: Some(Quantisation::Ternary),
        seed: Some([1; 32]),
        ..DeltaOptions::default()
    };
    let make_with = |parent: &Published, residual: &mut Residual| {
        let trained = trained(parent, 3, RANK, 0.05);
        make(parent, &trained, &ternary, Some(residual), &key(1)).unwrap()
    };
    let fresh = make_with(&first, &mut residual);
    assert!(!residual.is_empty());
    let again = make_with(&first, &mut residual.clone());
    assert_ne!(fresh, again, "what was left is in it");
    let mut adapter = super::parent_adapter();
    adapter.base_fingerprint = Some("epiphyte.base.1:other".into());
    let plan = plan(Factors::B);
    let other = epiphyte::federated::start("demo", &adapter, plan, &server()).unwrap();
    let mut trained = trained(&other, 3, RANK, 0.05);
    trained.base_fingerprint = adapter.base_fingerprint;
    let clean = make(&other, &trained, &ternary, None, &key(1)).unwrap();
    let got = make(&other, &trained, &ternary, Some(&mut residual), &key(1)).unwrap();
    assert_eq!(got, clean);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let parent = parent(plan(Factors::B));
    let refused = |trained: &Adapter| {
        make(&parent, trained, &DeltaOptions::default(), None, &key(1)).unwrap_err().to_string()
    };
    let good = trained(&parent, 3, RANK, 0.05);
    let mut frozen = good.clone();
    frozen.modules[0].a[0] += 1.0;
    assert!(refused(&frozen).contains("A was trained"), "{}", refused(&frozen));
    let drop = DeltaOptions { drop_frozen: true, ..DeltaOptions::default() };
    make(&parent, &frozen, &drop, None, &key(1)).unwrap();
    let mut scaled = good.clone();
    scaled.modules[0].scaling = 1.0;
    assert!(refused(&scaled).contains("scaling"));
    let mut fewer = good.clone();
    fewer.modules.pop();
    assert!(refused(&fewer).contains("modules"));
    let mut nan = good.clone();
    nan.modules[0].b[0] = f32::NAN;
    assert!(refused(&nan).contains("NaN"));
    let mut other = good;
    other.base_fingerprint = Some("another".into());
    let e = make(&parent, &other, &DeltaOptions::default(), None, &key(1)).unwrap_err();
    assert!(matches!(e, Error::BaseMismatch { .. }), "{e}");
}

#[test]
fn a_version_is_taken_only_from_who_may_publish_and_only_forwards() {
    let first = parent(plan(Factors::B));
    let folder = Folder::new((0..3).map(|client| delta(&first, client, RANK, 0.05)));
    let options = options(epiphyte::federated::aggregate::Mode::RoLora);
    let second = run(&first, &options, &folder.files()).version.unwrap();
    let trusted = [server().public_key()];
    let rules = Accept {
        trusted: &trusted,
        base_fingerprint: BASE,
        adapter: "demo",
        current: Some(1),
        max_norm: None,
    };
    let second = Published::from_bytes(second.bytes().to_vec()).unwrap();
    second.accept(&rules).unwrap();
    let refused =
        |version: &Published, rules: Accept<'_>| version.accept(&rules).unwrap_err().to_string();
    assert!(refused(&first, rules).contains("not above 1"));
    let strangers = [key(7).public_key()];
    assert!(refused(&second, Accept { trusted: &strangers, ..rules }).contains("trusted"));
    assert!(refused(&second, Accept { base_fingerprint: "x", ..rules }).contains("base"));
    assert!(refused(&second, Accept { adapter: "x", ..rules }).contains("demo"));
    let capped = Accept { max_norm: Some(second.norm() / 2.0), ..rules };
    assert!(refused(&second, capped).contains("norm"));
    second.accept(&Accept { max_norm: Some(second.norm() * 1.001), ..rules }).unwrap();
    // What devices get is an adapter like any other.
    let plain = Adapter::from_bytes(second.bytes().to_vec(), &SHAPE).unwrap();
    assert_eq!(plain.digest(), second.manifest.digest);
    let mut changed = second.bytes().to_vec();
    *changed.last_mut().unwrap() ^= 1;
    assert!(Published::from_bytes(changed).is_err());
}

#[test]
fn keys_survive_pem_and_a_callback_may_sign() {
    for kind in [KeyKind::Ed25519, KeyKind::P256] {
        let key = SigningKey::generate(kind).unwrap();
        let again = SigningKey::from_pem(&key.to_pem().unwrap()).unwrap();
        let public = key.public_key();
        assert_eq!(again.public_key(), public);
        assert_eq!(public.to_string().parse::<PublicKey>().unwrap(), public);
        let signature = again.sign(b"message").unwrap();
        public.verify(b"message", &signature).unwrap();
        public.verify(b"massage", &signature).unwrap_err();
        assert!(!format!("{key:?}").contains(&key.to_pem().unwrap()[40..60]));
    }
    for bad in ["", "ed25519:", "rsa:00", "p256:zz", "ed25519:0", "ed25519:\u{e9}\u{e9}"] {
        assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
    }

    struct Enclave(SigningKey, bool);
    impl Signer for Enclave {
        fn public_key(&self) -> PublicKey {
            self.0.public_key()
        }
        fn sign(&self, message: &[u8]) -> epiphyte::Result<Vec<u8>> {
            match self.1 {
                true => self.0.sign(message),
                false => Err(Error::Cancelled),
            }
        }
    }
    let parent = parent(plan(Factors::B));
    let trained = trained(&parent, 3, RANK, 0.05);
    let make = |unlocked| {
        make(&parent, &trained, &DeltaOptions::default(), None, &Enclave(key(1), unlocked))
    };
    Delta::from_bytes(make(true).unwrap()).unwrap();
    assert!(matches!(make(false), Err(Error::Cancelled)));
}
