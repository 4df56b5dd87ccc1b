//! Runs: repeated, resumed, cancelled, gone wrong, refused, and beside a conversation. "The same"
//! is bit by bit.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration as Time;

use epiphyte::adapter::Adapter;
use epiphyte::train::buffers::Optimizer;
use epiphyte::train::data::{Dataset, TrainLength};
use epiphyte::train::{TrainOptions, Trainer};
use epiphyte::{CancelToken, Engine, EngineOptions, Error, GenerateOptions};
use safetensors::tensor::{SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use super::trainer::{ENGINE, examples, options};
use crate::common::golden;

const STEPS: u64 = 6;

pub(super) fn six_steps() -> TrainOptions {
    TrainOptions { duration: TrainLength::Steps(STEPS), batch_size: 4, ..options() }
}

pub(super) fn finish(trainer: &mut Trainer) -> Adapter {
    while trainer.step().unwrap().is_some() {}
    trainer.adapter().unwrap()
}

pub(super) fn undisturbed(data: &Arc<Dataset>) -> Adapter {
    finish(&mut Trainer::new(&ENGINE, Arc::clone(data), six_steps(), None).unwrap())
}

/// Equal numbers, and no -0.0 for 0.0.
pub(super) fn assert_same(one: &Adapter, other: &Adapter, what: &str) {
    let bits = |adapter: &Adapter| -> Vec<u32> {
        adapter
            .modules
            .iter()
            .flat_map(|module| module.a.iter().chain(&module.b))
            .map(|v| v.to_bits())
            .collect()
    };
    assert!(bits(one) == bits(other), "{what}");
}

#[test]
fn one_seed_gives_one_adapter() {
    let data = examples(21, 9);
    let (one, other) = (undisturbed(&data), undisturbed(&data));
    assert_same(&one, &other, "two runs");
    let seeded = TrainOptions { seed: 1, ..six_steps() };
    let third = finish(&mut Trainer::new(&ENGINE, Arc::clone(&data), seeded, None).unwrap());
    assert_ne!(one.modules[0].a, third.modules[0].a);
}

#[test]
fn a_run_goes_on_from_every_step_as_if_it_had_not_stopped() {
    let (data, dir) = (examples(22, 9), tempfile::tempdir().unwrap());
    let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), six_steps(), None).unwrap();
    let path = |step: u64| dir.path().join(format!("step-{step}.safetensors"));
    trainer.save(&path(0)).unwrap();
    for step in 1..=STEPS {
        trainer.step().unwrap().unwrap();
        trainer.save(&path(step)).unwrap();
    }
    assert!(trainer.step().unwrap().is_none());
    let whole = trainer.adapter().unwrap();
    for step in 0..=STEPS {
        let mut resumed =
            Trainer::resume(&ENGINE, Arc::clone(&data), six_steps(), &path(step)).unwrap();
        assert_eq!(resumed.cursor().step, step);
        assert_same(&whole, &finish(&mut resumed), &format!("resumed after step {step}"));
    }
    // And a run that is over goes back.
    trainer.restore(&path(2)).unwrap();
    assert_same(&whole, &finish(&mut trainer), "restored");
}

#[test]
fn a_cancelled_step_never_was() {
    let data = examples(23, 9);
    let whole = undisturbed(&data);
    let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), six_steps(), None).unwrap();
    trainer.step().unwrap();
    let mut cancelled = 0;
    for wait in 0..8 {
        let before = trainer.adapter().unwrap();
        let (cancel, cursor) = (CancelToken::default(), trainer.cursor());
        trainer.cancel = cancel.clone();
        let taken = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Time::from_millis(4 * wait));
                cancel.cancel();
            });
            trainer.step()
        });
        trainer.cancel = CancelToken::default();
        match taken {
            Err(Error::Cancelled) => {
                cancelled += 1;
                assert_eq!(trainer.cursor(), cursor);
                assert_same(&before, &trainer.adapter().unwrap(), "cancelled");
            }
            // It was done before that.
            taken => drop(taken.unwrap()),
        }
    }
    println!("{cancelled} of 8 steps were cancelled");
    assert!(cancelled > 0);
    assert_same(&whole, &finish(&mut trainer), "cancelled and repeated");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_before_it_spoils_the_factors() {
    let data = examples(24, 6);
    let options = TrainOptions { learning_rate: Some(1e30), ..six_steps() };
    let mut trainer = Trainer::new(&ENGINE, data, options, None).unwrap();
    trainer.step().unwrap().unwrap();
    let before = trainer.adapter().unwrap();
    assert!(
        before.modules.iter().all(|module| module
            .a
            .iter()
            .chain(&module.b)
            .all(|value| value.is_finite()))
    );
    for _ in 0..2 {
        let error = trainer.step().unwrap_err();
        assert!(matches!(&error, Error::Training(reason) if reason.contains("step 2")), "{error}");
        assert_eq!(trainer.cursor().step, 1);
        assert_same(&before, &trainer.adapter().unwrap(), "after the failure");
    }
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let (data, dir) = (examples(25, 6), tempfile::tempdir().unwrap());
    let path = dir.path().join("step-1.safetensors");
    let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), six_steps(), None).unwrap();
    trainer.step().unwrap();
    trainer.save(&path).unwrap();
    let resume = |engine: &Arc<Engine>, data: &Arc<Dataset>, options: TrainOptions, path: &Path| {
        Trainer::resume(engine, Arc::clone(data), options, path).map(drop)
    };
    assert!(resume(&ENGINE, &data, six_steps(), &path).is_ok());
    let other = Engine::open(golden("tiny_llama_linear.gguf"), EngineOptions::default()).unwrap();
    assert!(matches!(resume(&other, &data, six_steps(), &path), Err(Error::BaseMismatch { .. })));
    let reason = |result: Result<(), Error>| match result {
        Err(Error::InvalidFile { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(
        reason(resume(&ENGINE, &examples(26, 6), six_steps(), &path)).contains("other examples")
    );
    let rank = TrainOptions { rank: 8, max_grad_norm: None, ..six_steps() };
    let says = reason(resume(&ENGINE, &data, rank, &path));
    assert!(
        says.contains("other settings: `rank` 4, not 8; `max_grad_norm` 1.0, not none;"),
        "{says}"
    );
    let rate = TrainOptions { learning_rate: Some(1e-3), ..six_steps() };
    assert!(reason(resume(&ENGINE, &data, rate, &path)).contains("other settings"));
    let whole = std::fs::read(&path).unwrap();
    let damaged = dir.path().join("damaged.safetensors");
    for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&damaged, &whole[..len]).unwrap();
        reason(resume(&ENGINE, &data, six_steps(), &damaged));
    }
    let mut nan = whole.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&damaged, nan).unwrap();
    assert!(reason(resume(&ENGINE, &data, six_steps(), &damaged)).contains("NaN"));
    let before = trainer.adapter().unwrap();
    reason(trainer.restore(&damaged));
    assert_same(&before, &trainer.adapter().unwrap(), "refused to restore");
}

/// Another length is no other run.
#[test]
fn a_run_is_made_longer_from_a_checkpoint_or_from_its_adapter() {
    let (data, dir) = (examples(28, 9), tempfile::tempdir().unwrap());
    let [path, end] = ["step-6.safetensors", "end.safetensors"].map(|name| dir.path().join(name));
    let of = |optimizer, steps| TrainOptions {
        duration: TrainLength::Steps(steps),
        optimizer,
        ..six_steps()
    };
    for optimizer in [Optimizer::AdamW, Optimizer::Sgd] {
        let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), of(optimizer, 6), None).unwrap();
        let adapter = finish(&mut trainer);
        trainer.save(&path).unwrap();
        trainer.save_position(&end).unwrap();
        let whole =
            finish(&mut Trainer::new(&ENGINE, Arc::clone(&data), of(optimizer, 9), None).unwrap());
        let mut longer =
            Trainer::resume(&ENGINE, Arc::clone(&data), of(optimizer, 9), &path).unwrap();
        assert_same(&whole, &finish(&mut longer), "the rate is constant");
        let extend = |steps| {
            Trainer::extend(&ENGINE, Arc::clone(&data), of(optimizer, steps), &end, &adapter)
        };
        let mut longer = extend(9).unwrap();
        assert_eq!(longer.cursor().step, 6);
        let from_adapter = if optimizer == Optimizer::Sgd {
            finish(&mut longer)
        } else {
            // Its moments began with the seventh step; a checkpoint knows.
            longer.step().unwrap();
            longer.save(&path).unwrap();
            let from_adapter = finish(&mut longer);
            let mut resumed =
                Trainer::resume(&ENGINE, Arc::clone(&data), of(optimizer, 9), &path).unwrap();
            assert_same(&from_adapter, &finish(&mut resumed), "resumed after it was made longer");
            from_adapter
        };
        if optimizer == Optimizer::Sgd {
            assert_same(&whole, &from_adapter, "without moments the adapter is all there is");
        }
        assert!(matches!(extend(5), Err(Error::InvalidArgument { name: "steps", .. })));
    }
}

/// A checkpoint with some of its metadata changed, and a digest that is right again.
fn rewritten(path: &Path, change: impl FnOnce(&mut HashMap<String, String>)) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    change(&mut metadata);
    metadata.remove("digest");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let sha256 = |bytes: &[u8]| -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    // As docs/formats.md has it.
    let pairs = metadata.iter().map(|(key, value)| (format!("metadata.{key}"), value.clone()));
    let tensor = |(name, tensor): (String, TensorView<'_>)| {
        let (len, hash) = (tensor.data().len() / 4, sha256(tensor.data()));
        (format!("tensor.{name}"), format!("F32 {len} {hash}"))
    };
    let pairs: BTreeMap<_, _> = pairs.chain(file.tensors().into_iter().map(tensor)).collect();
    let texts = pairs.iter().flat_map(|(key, value)| [key.as_str(), value]);
    let form: Vec<u8> = std::iter::once("epiphyte.checkpoint.3")
        .chain(texts)
        .flat_map(|text| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat())
        .collect();
    metadata.insert("digest".into(), format!("epiphyte.checkpoint.3:{}", sha256(&form)));
    std::fs::write(path, safetensors::serialize(file.tensors(), Some(metadata)).unwrap()).unwrap();
}

#[test]
fn a_checkpoint_of_another_version_is_refused_by_that_name() {
    let (data, dir) = (examples(29, 9), tempfile::tempdir().unwrap());
    let path = dir.path().join("step-1.safetensors");
    let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), six_steps(), None).unwrap();
    trainer.step().unwrap().unwrap();
    for (version, remedy) in [(1, "wrote it"), (2, "wrote it"), (4, "update"), (99, "update")] {
        trainer.save(&path).unwrap();
        let format = format!("epiphyte.checkpoint.{version}");
        rewritten(&path, |metadata| drop(metadata.insert("format".into(), format.clone())));
        let error = Trainer::resume(&ENGINE, Arc::clone(&data), six_steps(), &path).err().unwrap();
        assert!(
            matches!(&error, Error::FormatVersion { found, .. } if *found == format)
                && error.to_string().contains(remedy),
            "{error}"
        );
    }
}

/// A version before a setting did not write it, and one after it may leave it out.
#[test]
fn a_setting_that_changes_nothing_may_be_missing_and_no_other() {
    let (data, dir) = (examples(29, 9), tempfile::tempdir().unwrap());
    let path = dir.path().join("step-2.safetensors");
    let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), six_steps(), None).unwrap();
    for _ in 0..2 {
        trainer.step().unwrap().unwrap();
    }
    trainer.save(&path).unwrap();
    let settings = || -> serde_json::Map<String, serde_json::Value> {
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        serde_json::from_str(&header.metadata().as_ref().unwrap()["options"]).unwrap()
    };
    let written = settings();
    assert!(!written.contains_key("use_rslora") && !written.contains_key("lora_plus_ratio"));
    let with = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut settings = written.clone();
        change(&mut settings);
        let options = serde_json::Value::Object(settings).to_string();
        rewritten(&path, |metadata| drop(metadata.insert("options".into(), options)));
        Trainer::resume(&ENGINE, Arc::clone(&data), six_steps(), &path)
    };
    // Said, or not, and in any order.
    let mut resumed = with(&|settings| {
        settings.insert("use_rslora".into(), false.into());
        settings.insert("weight_decay".into(), 0.0.into());
        let rank = settings.shift_remove("rank").unwrap();
        settings.insert("rank".into(), rank);
    })
    .unwrap();
    assert_same(&finish(&mut trainer), &finish(&mut resumed), "neutral settings are said");
    let differ = |result: Result<Trainer, Error>, key: &str| match result.err() {
        Some(Error::InvalidFile { reason, .. }) => assert!(reason.contains(key), "{reason}"),
        other => panic!("{key}: {other:?}"),
    };
    differ(
        with(&|settings| drop(settings.insert("use_rslora".into(), true.into()))),
        "`use_rslora`",
    );
    differ(with(&|settings| drop(settings.insert("of_later".into(), 1.into()))), "`of_later`");
    for key in written.keys().filter(|key| *key != "duration") {
        differ(with(&|settings| drop(settings.shift_remove(key))), &format!("`{key}`"));
    }
}

#[test]
fn a_conversation_and_a_run_do_not_disturb_each_other() {
    let data = examples(27, 9);
    let whole = undisturbed(&data);
    let answer = || -> Vec<u32> {
        let mut session = ENGINE.session();
        session.push_tokens(&[5, 80, 7, 120, 33]).unwrap();
        let options =
            GenerateOptions { max_tokens: 24, ignore_eos: true, ..GenerateOptions::default() };
        session.generate(options).unwrap().map(|token| token.unwrap().id).collect()
    };
    let alone = answer();
    let mut trainer = Trainer::new(&ENGINE, Arc::clone(&data), six_steps(), None).unwrap();
    let (trained, answers) = std::thread::scope(|scope| {
        let training = scope.spawn(|| finish(&mut trainer));
        let mut answers = Vec::new();
        while !training.is_finished() || answers.len() < 2 {
            answers.push(answer());
        }
        (training.join().unwrap(), answers)
    });
    println!("{} answers meanwhile", answers.len());
    assert!(answers.iter().all(|answer| *answer == alone));
    assert_same(&whole, &trained, "beside a conversation");
}
