//! What federated rounds ask of the trainer: one factor frozen, a pull to where the run began, and
//! what training changed as a delta.

use epiphyte::Error;
use epiphyte::adapter::{Adapter, Factor};
use epiphyte::federated::{
    Delta, DeltaOptions, Factors, KeyKind, Published, Quantisation, Residual, RoundPlan,
    SigningKey, make, start,
};
use epiphyte::train::buffers::Optimizer;
use epiphyte::train::data::TrainLength;
use epiphyte::train::{TrainOptions, Trainer};
use safetensors::SafeTensors;

use super::runs::{assert_same, finish, six_steps};
use super::trainer::{ENGINE, examples};

fn trainer(options: TrainOptions, init: Option<&Adapter>) -> Result<Trainer, Error> {
    Trainer::new(&ENGINE, examples(41, 9), options, init)
}

/// An adapter of which neither factor is zero.
fn trained() -> Adapter {
    finish(&mut trainer(six_steps(), None).unwrap())
}

fn freezing(factor: Factor) -> TrainOptions {
    TrainOptions { freeze: Some(factor), ..six_steps() }
}

#[test]
fn a_frozen_factor_stays_bit_for_bit_and_the_run_is_resumed_with_it() {
    let (init, dir) = (trained(), tempfile::tempdir().unwrap());
    let path = dir.path().join("step-3.safetensors");
    for frozen in [Factor::A, Factor::B] {
        let mut run = trainer(freezing(frozen), Some(&init)).unwrap();
        for _ in 0..3 {
            run.step().unwrap().unwrap();
        }
        run.save(&path).unwrap();
        let whole = finish(&mut run);
        for (before, after) in init.modules.iter().zip(&whole.modules) {
            assert_eq!(before.a == after.a, frozen == Factor::A, "{}", before.path);
            assert_eq!(before.b == after.b, frozen == Factor::B, "{}", before.path);
        }
        let numbers = |factors: fn(&Adapter) -> Vec<usize>| factors(&init).iter().sum::<usize>();
        let trained = match frozen {
            Factor::A => numbers(|of| of.modules.iter().map(|module| module.b.len()).collect()),
            Factor::B => numbers(|of| of.modules.iter().map(|module| module.a.len()).collect()),
        };
        assert_eq!(run.parameters(), trained);
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("adapter.m").unwrap().shape(), [trained]);

        let resume = |options| Trainer::resume(&ENGINE, examples(41, 9), options, &path);
        assert_same(&whole, &finish(&mut resume(freezing(frozen)).unwrap()), "resumed");
        for other in [None, Some(frozen.other())] {
            let error = resume(TrainOptions { freeze: other, ..six_steps() }).err().unwrap();
            let says =
                format!("`freeze` {}, not {}", frozen.name(), other.map_or("none", |of| of.name()));
            assert!(error.to_string().contains(&says), "{error}");
        }
    }
}

#[test]
fn to_freeze_a_factor_of_zeros_is_refused() {
    // A fresh B is zeros, and so would be the gradient of A.
    let error = trainer(freezing(Factor::B), None).err().unwrap();
    assert!(matches!(error, Error::InvalidArgument { name: "freeze", .. }), "{error}");
    assert!(error.to_string().contains("--init"), "{error}");
    let ffa = finish(&mut trainer(freezing(Factor::A), None).unwrap());
    assert!(ffa.modules.iter().any(|module| module.b.iter().any(|value| *value != 0.0)));
}

/// Mean distance that the factors moved.
fn moved(from: &Adapter, to: &Adapter) -> f64 {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    let modules = from.modules.iter().zip(&to.modules);
    let squares = modules.map(|(from, to)| {
        from.a.iter().zip(&to.a).map(square).sum::<f64>()
            + from.b.iter().zip(&to.b).map(square).sum::<f64>()
    });
    squares.sum::<f64>().sqrt()
}

#[test]
fn a_proximal_term_pulls_to_where_the_run_began_however_it_goes_on() {
    let (init, dir) = (trained(), tempfile::tempdir().unwrap());
    let [path, end] = ["step-6.safetensors", "end.safetensors"].map(|name| dir.path().join(name));
    let with = |mu, steps| TrainOptions {
        proximal_mu: mu,
        optimizer: Optimizer::Sgd,
        max_grad_norm: None,
        duration: TrainLength::Steps(steps),
        ..six_steps()
    };
    let free = finish(&mut trainer(with(0.0, 9), Some(&init)).unwrap());
    let whole = finish(&mut trainer(with(50.0, 9), Some(&init)).unwrap());
    assert!(moved(&init, &whole) < 0.8 * moved(&init, &free), "it does not pull");
    let mut run = trainer(with(50.0, 6), Some(&init)).unwrap();
    let adapter = finish(&mut run);
    run.save(&path).unwrap();
    run.save_position(&end).unwrap();
    let mut resumed = Trainer::resume(&ENGINE, examples(41, 9), with(50.0, 9), &path).unwrap();
    assert_same(&whole, &finish(&mut resumed), "from a checkpoint");
    // SGD has no moments: the adapter and where it began are all there is.
    let mut longer =
        Trainer::extend(&ENGINE, examples(41, 9), with(50.0, 9), &end, &adapter).unwrap();
    assert_same(&whole, &finish(&mut longer), "from the adapter");
    let error = Trainer::resume(&ENGINE, examples(41, 9), with(40.0, 9), &path).err().unwrap();
    assert!(error.to_string().contains("`proximal_mu` 50.0, not 40.0"), "{error}");
    let negative = trainer(with(-1.0, 6), None).err().unwrap();
    assert!(matches!(negative, Error::InvalidArgument { name: "proximal_mu", .. }), "{negative}");
}

fn key() -> SigningKey {
    SigningKey::from_bytes(KeyKind::P256, &[9; 32]).unwrap()
}

fn published(adapter: &Adapter, factors: Factors) -> Published {
    let plan = RoundPlan {
        round: 1,
        factors,
        clip_norm: Some(0.05),
        sigma: 0.0,
        quantisation: Quantisation::Int8,
        expires: 1000,
    };
    start("demo", adapter, plan, &key()).unwrap()
}

#[test]
fn a_trainer_makes_the_delta_that_the_version_plans() {
    let init = trained();
    let seeded = DeltaOptions { seed: Some([3; 32]), ..DeltaOptions::default() };
    for factors in [Factors::A, Factors::B, Factors::Both] {
        let parent = published(&init, factors);
        let begins = parent.adapter(&ENGINE.base().adapter_shape()).unwrap();
        let freeze = parent.manifest.next.factors.frozen();
        let mut run = trainer(TrainOptions { freeze, ..six_steps() }, Some(&begins)).unwrap();
        let trained = finish(&mut run);
        let mut residual = Residual::new();
        let bytes = run.delta(&parent, &seeded, Some(&mut residual), &key()).unwrap();
        let told = DeltaOptions { examples: 9, ..seeded };
        assert_eq!(bytes, make(&parent, &trained, &told, None, &key()).unwrap());
        assert!(!residual.is_empty());
        let delta = Delta::from_bytes(bytes).unwrap();
        let manifest = &delta.manifest;
        assert_eq!((manifest.factors, manifest.examples), (factors, 8));
        assert!(manifest.clip.unwrap().was_clipped && delta.norm() < 0.06, "{}", delta.norm());
        // Both were trained, and one is asked for.
        if freeze.is_some() {
            let mut both = trainer(six_steps(), Some(&begins)).unwrap();
            both.step().unwrap().unwrap();
            let error = both.delta(&parent, &seeded, None, &key()).unwrap_err();
            assert!(error.to_string().contains("--freeze"), "{error}");
        }
    }
}
