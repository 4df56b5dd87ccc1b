//! Packing, order and resumption.

use std::collections::BTreeSet;
use std::sync::Arc;

use epiphyte::Error;
use epiphyte::train::data::batch::{in_order, pack};
use epiphyte::train::data::{
    BatchOptions, Cursor, Dataset, Encoder, Example, Loader, MicroBatch, Record, Step, TrainLength,
};
use proptest::prelude::*;

use super::{chatml, options, tokenizer};

const OPTIONS: BatchOptions = BatchOptions {
    batch_size: 6,
    seq_len: 16,
    micro_batch: 2,
    seed: 7,
    duration: TrainLength::Epochs(3),
};

/// Examples of the given lengths, each of another letter.
fn data(lens: &[usize]) -> Arc<Dataset> {
    let (tokenizer, template) = (tokenizer(), chatml());
    let encoder = Encoder::new(&tokenizer, &template, 4096, options(16)).unwrap();
    let mut data = Dataset::default();
    for (letter, &len) in ('A'..='Z').cycle().zip(lens) {
        let completion = letter.to_string().repeat(len - 2);
        data.push(&Record::Pair { prompt: ":".into(), completion }, &encoder).unwrap();
    }
    Arc::new(data)
}

fn lens() -> Vec<usize> {
    (0..40).map(|i| 3 + i * 7 % 13).collect()
}

fn steps(loader: &mut Loader) -> Vec<Step> {
    std::iter::from_fn(|| loader.next_step()).collect()
}

fn examples_of(batch: &MicroBatch) -> usize {
    batch.rows.iter().map(|[first, _]| first).collect::<BTreeSet<_>>().len()
}

/// The ids of each example of a step, sorted.
fn contents(step: &Step) -> Vec<Vec<u32>> {
    let of = |batch: &MicroBatch| {
        let ends = batch.rows.iter().copied().collect::<BTreeSet<_>>();
        ends.into_iter()
            .map(|[first, end]| batch.ids[first as usize..end as usize].to_vec())
            .collect::<Vec<_>>()
    };
    let mut all = step.micro_batches.iter().flat_map(of).collect::<Vec<_>>();
    all.sort();
    all
}

#[test]
fn packing_is_first_fit_in_order() {
    let rows = pack([6, 5, 4, 6, 1, 10, 4].into_iter().enumerate(), 10);
    assert_eq!(rows, [vec![0, 2], vec![1, 4, 6], vec![3], vec![5]]);
}

proptest! {
    #[test]
    fn packing_keeps_every_example_whole_and_once(lens in proptest::collection::vec(1_usize..=50, 0..400)) {
        let rows = pack(lens.iter().copied().enumerate(), 50);
        let mut seen = rows.concat();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lens.len()).collect::<Vec<_>>());
        let filled = rows.iter().map(|row| row.iter().map(|&i| lens[i]).sum::<usize>()).collect::<Vec<_>>();
        prop_assert!(filled.iter().all(|&len| len > 0 && len <= 50));
        // First-fit leaves at most one of the rows that are open together half empty.
        for window in filled.chunks(32) {
            prop_assert!(window.iter().filter(|&&len| len <= 25).count() <= 1);
        }
    }
}

#[test]
fn a_micro_batch_says_what_follows_each_token_of_an_example() {
    let data = data(&[5, 4, 16]);
    let batches = in_order(&data, 32);
    assert_eq!(batches.len(), 1);
    let batch = &batches[0];
    assert_eq!(
        (batch.len(), batch.targets.len(), batch.weights.len(), batch.rows.len()),
        (25, 25, 25, 25)
    );
    let mut t = 0;
    for example in &data.examples {
        let (first, end) = (t as u32, (t + example.ids.len()) as u32);
        for i in 0..example.ids.len() {
            assert_eq!((batch.ids[t], batch.rows[t]), (example.ids[i], [first, end]));
            let next = example
                .ids
                .get(i + 1)
                .zip(example.weights.get(i + 1))
                .map_or((0, 0.0), |(id, w)| (*id, *w));
            assert_eq!((batch.targets[t], batch.weights[t]), next);
            t += 1;
        }
    }
    let weights = data
        .examples
        .iter()
        .flat_map(|example| &example.weights)
        .map(|&w| f64::from(w))
        .sum::<f64>();
    assert_eq!(batch.weight(), weights);
}

#[test]
fn an_epoch_holds_every_example_once_in_an_order_of_its_own() {
    let data = data(&lens());
    let mut loader = Loader::new(Arc::clone(&data), OPTIONS, Cursor::default()).unwrap();
    let all = steps(&mut loader);
    assert_eq!(all.len() as u64, loader.total_steps());
    assert_eq!(loader.cursor().step, loader.total_steps());
    assert_eq!(loader.next_step(), None);
    let mut orders = BTreeSet::new();
    for epoch in 0..3 {
        let of_epoch = all.iter().filter(|step| step.epoch == epoch).collect::<Vec<_>>();
        let micro = of_epoch.iter().flat_map(|step| &step.micro_batches).collect::<Vec<_>>();
        assert!(micro.iter().all(|batch| batch.len() <= 32));
        let examples = |step: &&Step| step.micro_batches.iter().map(examples_of).sum::<usize>();
        assert_eq!(of_epoch.iter().map(examples).collect::<Vec<_>>(), [6, 6, 6, 6, 6, 6, 4]);
        let mut ids = micro.iter().flat_map(|batch| batch.ids.clone()).collect::<Vec<_>>();
        assert!(orders.insert(ids.clone()), "epochs differ");
        ids.sort_unstable();
        let mut expected =
            data.examples.iter().flat_map(|example| example.ids.clone()).collect::<Vec<_>>();
        expected.sort_unstable();
        assert_eq!(ids, expected);
    }
}

#[test]
fn training_resumes_exactly_where_it_stood() {
    let data = data(&lens());
    for duration in [TrainLength::Epochs(3), TrainLength::Steps(11)] {
        let options = BatchOptions { duration, ..OPTIONS };
        let whole = steps(&mut Loader::new(Arc::clone(&data), options, Cursor::default()).unwrap());
        for stop in 0..=whole.len() {
            let mut first = Loader::new(Arc::clone(&data), options, Cursor::default()).unwrap();
            let mut got = (0..stop).map(|_| first.next_step().unwrap()).collect::<Vec<_>>();
            let saved = serde_json::to_string(&first.cursor()).unwrap();
            let mut second =
                Loader::new(Arc::clone(&data), options, serde_json::from_str(&saved).unwrap())
                    .unwrap();
            got.extend(steps(&mut second));
            assert_eq!(got, whole, "{duration:?} stopped after {stop}");
        }
    }
}

#[test]
fn the_order_of_an_epoch_depends_on_seed_and_epoch_alone() {
    let data = data(&lens());
    let at = |epoch, seed, micro_batch| {
        let options = BatchOptions { seed, micro_batch, ..OPTIONS };
        let cursor = Cursor { epoch, ..Cursor::default() };
        let mut loader = Loader::new(Arc::clone(&data), options, cursor).unwrap();
        let steps = std::iter::from_fn(|| loader.next_step().filter(|step| step.epoch == epoch));
        steps.map(|step| contents(&step)).collect::<Vec<_>>()
    };
    let one = at(1, 7, 2);
    assert_eq!(at(1, 7, 5), one, "a step holds the same examples, however large a pass is");
    assert!(at(2, 7, 2) != one && at(1, 8, 2) != one);
}

#[test]
fn a_step_is_packed_into_as_few_passes_as_hold_it() {
    let data = data(&lens());
    for micro_batch in 1..6 {
        let options = BatchOptions { batch_size: 9, micro_batch, ..OPTIONS };
        let mut loader = Loader::new(Arc::clone(&data), options, Cursor::default()).unwrap();
        for step in steps(&mut loader) {
            let tokens = step.micro_batches.iter().map(MicroBatch::len).sum::<usize>();
            let least = tokens.div_ceil(16 * micro_batch);
            // First-fit of the longest first takes at most 11/9 of the fewest, and 6/9 (Dosa 2007).
            assert!(
                9 * step.micro_batches.len() <= 11 * least.max(1) + 6 || micro_batch == 1,
                "{step:?}"
            );
            assert!(step.micro_batches.iter().all(|batch| batch.len() <= 16 * micro_batch));
        }
    }
}

#[test]
fn the_length_of_a_run_follows_from_the_size_of_the_data() {
    let steps = |examples, duration: TrainLength| duration.steps(examples, 8);
    assert_eq!(steps(400, TrainLength::Epochs(3)), 150);
    assert_eq!(steps(401, TrainLength::Epochs(3)), 153);
    assert_eq!(steps(401, TrainLength::Steps(7)), 7);
    for (examples, epochs) in
        [(1, 50), (20, 45), (100, 20), (400, 10), (1000, 6), (2000, 4), (1_000_000, 1)]
    {
        assert_eq!(TrainLength::Auto.resolved(examples), TrainLength::Epochs(epochs));
        assert_eq!(
            steps(examples, TrainLength::Auto),
            steps(examples, TrainLength::Epochs(epochs))
        );
    }
}

#[test]
fn a_validation_counts_answers_alone() {
    let (tokenizer, template) = (tokenizer(), chatml());
    let encoder = Encoder::new(&tokenizer, &template, 64, options(64)).unwrap();
    let record: Record = serde_json::from_str(r#"{"prompt":"12","completion":"34"}"#).unwrap();
    let mut data = Dataset::default();
    // The weight that a prompt has by default is no sign of one.
    for weight in [1.0, 2.0, 0.1] {
        data.push_weighted(&record, weight, &encoder).unwrap();
    }
    let weights = |data: &Dataset| data.examples.iter().map(|e| e.weights.clone()).collect();
    let before: Vec<Vec<f32>> = weights(&data);
    assert_eq!(before, [1.0, 2.0, 0.1].map(|w| vec![0.0, 0.1 * w, w, w, w]));
    let data = data.answers_only();
    let after: Vec<Vec<f32>> = weights(&data);
    assert_eq!(after, [1.0, 2.0, 0.1].map(|w| vec![0.0, 0.0, w, w, w]));
    let report = &data.report;
    assert_eq!((report.records, report.examples, report.trained_tokens), (3, 3, 9));
    let example = Example { ids: vec![1, 2, 3], weights: vec![0.0, 0.1, 1.0] };
    let all = Dataset::of([example]);
    assert_eq!(all.clone().answers_only(), all, "all is answer");
}

#[test]
fn permutations_are_uniform() {
    // Where the first of three examples comes in 3,000 epochs: 1,000 times each, give or take 5
    // deviations of sqrt(3000 · 1/3 · 2/3) = 25.8.
    let data = data(&[16, 16, 16]);
    let options = BatchOptions { batch_size: 1, duration: TrainLength::Epochs(3000), ..OPTIONS };
    let mut loader = Loader::new(Arc::clone(&data), options, Cursor::default()).unwrap();
    let mut places = [0; 3];
    let all = steps(&mut loader);
    for epoch in all.chunks(3) {
        places[epoch
            .iter()
            .position(|step| step.micro_batches[0].ids == data.examples[0].ids)
            .unwrap()] += 1;
    }
    assert!(places.iter().all(|&n| f64::abs(f64::from(n) - 1000.0) < 129.0), "{places:?}");
}

#[test]
fn bad_batches_are_refused() {
    let data = data(&lens());
    let check = |data: &Arc<Dataset>, options, cursor, wanted: &str| {
        let error = Loader::new(Arc::clone(data), options, cursor).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { name, .. } if name == wanted), "{error}");
    };
    let start = Cursor::default();
    check(&data, BatchOptions { micro_batch: 0, ..OPTIONS }, start, "batch");
    check(&data, BatchOptions { batch_size: 0, ..OPTIONS }, start, "batch");
    check(&data, BatchOptions { seq_len: 14, ..OPTIONS }, start, "seq_len");
    check(&Arc::default(), OPTIONS, start, "data");
    check(&data, OPTIONS, Cursor { index: 1000, ..start }, "cursor");
}
