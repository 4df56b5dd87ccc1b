//! Every mode against numpy in f64, in any order of deltas.

use epiphyte::adapter::{Adapter, LoraModule};
use epiphyte::federated::Factors;
use epiphyte::federated::aggregate::{
    AggregateOptions, Mode, OptimizerState, Robust, ServerOptimizer,
};
use safetensors::SafeTensors;

use super::{Folder, RANK, SHAPE, delta, delta_of, options, parent, plan, run, run_with, trained};
use crate::common::{Random, golden};

fn expected(name: &str) -> Vec<f64> {
    let bytes = std::fs::read(golden("federated.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(name).unwrap().data();
    data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// `B A`, in f64.
fn product(module: &LoraModule) -> Vec<f64> {
    let (r, k) = (module.rank, module.a.len() / module.rank);
    let element = |row: &[f32], j: usize| {
        (0..r).map(|c| f64::from(row[c]) * f64::from(module.a[c * k + j])).sum()
    };
    module.b.chunks(r).flat_map(|row| (0..k).map(move |j| element(row, j))).collect()
}

#[track_caller]
fn close(got: &[f64], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error =
        norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied());
    assert!(error <= 1e-6, "{what}: relative error {error:e}");
    let most = want.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
    let worst = got.iter().zip(want).fold(0.0_f64, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(worst <= 1e-6 * most, "{what}: largest error {worst:e} beside {most:e}");
}

fn check_factors(made: &Adapter, case: &str) {
    for (module, name) in made.modules.iter().zip(["q", "v"]) {
        close(&wide(&module.a), &expected(&format!("{case}.{name}.A")), case);
        close(&wide(&module.b), &expected(&format!("{case}.{name}.B")), case);
    }
}

fn check_products(made: &Adapter, case: &str) {
    for (module, name) in made.modules.iter().zip(["q", "v"]) {
        close(&product(module), &expected(&format!("{case}.{name}")), case);
    }
}

const CASES: [(Mode, Factors); 5] = [
    (Mode::FedAvg, Factors::Both),
    (Mode::RoLora, Factors::A),
    (Mode::Ffa, Factors::B),
    (Mode::Svd, Factors::Both),
    (Mode::Stack, Factors::Both),
];

fn ranks_differ(mode: Mode) -> bool {
    matches!(mode, Mode::Svd | Mode::Stack)
}

#[test]
fn every_mode_equals_numpy_at_2_7_and_100_clients() {
    for (mode, factors) in CASES {
        let parent = parent(plan(factors));
        for clients in [2, 7, 100] {
            let rank = |client: u8| match ranks_differ(mode) {
                true => 1 + usize::from(client) % RANK,
                false => RANK,
            };
            let deltas = (0..clients).map(|client| delta(&parent, client, rank(client), 0.05));
            let folder = Folder::new(deltas);
            let outcome = run(&parent, &options(mode), &folder.files());
            let report = outcome.report;
            assert_eq!((report.taken, report.refused), (clients.into(), 0), "{report:?}");
            let version = outcome.version.unwrap();
            assert_eq!((version.manifest.version, version.manifest.next.round), (2, 2));
            let made = version.adapter(&SHAPE).unwrap();
            let case = format!("{}.{clients}", mode.name());
            match ranks_differ(mode) {
                true => check_products(&made, &case),
                false => check_factors(&made, &case),
            }
            if mode == Mode::FedAvg {
                let error = report.mode_error.unwrap();
                let exact = expected(&format!("cross.{clients}"))[0];
                assert!(error.is_estimate);
                assert!((0.6..1.6).contains(&(error.relative() / exact)), "{error:?}, {exact}");
            }
        }
    }
}

#[test]
fn no_order_changes_a_bit() {
    let mut random = Random::new(7);
    for (mode, factors) in CASES {
        let parent = parent(plan(factors));
        // More than the widths take, for svd's other way.
        let folder = Folder::new((0..30).map(|client| delta(&parent, client, RANK, 0.05)));
        let mut files = folder.files();
        let first = run(&parent, &options(mode), &files).version.unwrap();
        for _ in 0..3 {
            for i in (1..files.len()).rev() {
                files.swap(i, random.below(i as u32 + 1) as usize);
            }
            let again = run(&parent, &options(mode), &files).version.unwrap();
            assert_eq!(again.bytes(), first.bytes(), "{}", mode.name());
        }
    }
}

#[test]
fn robust_means_equal_numpy() {
    let parent = parent(plan(Factors::B));
    let folder = Folder::new((0..7).map(|client| delta(&parent, client, RANK, 0.05)));
    let robust =
        [("trimmed.7", Robust::TrimmedMean { fraction: 0.2 }), ("median.7", Robust::Median)];
    for (case, robust) in robust {
        let options = AggregateOptions { robust, ..options(Mode::Ffa) };
        let version = run(&parent, &options, &folder.files()).version.unwrap();
        check_factors(&version.adapter(&SHAPE).unwrap(), case);
    }
}

#[test]
fn server_optimizers_equal_numpy_over_two_rounds() {
    let adam = ServerOptimizer::Adam { lr: 0.1, b1: 0.9, b2: 0.99, tau: 1e-3 };
    let momentum = ServerOptimizer::Momentum { lr: 1.0, momentum: 0.9 };
    for (case, optimizer) in [("momentum.7", momentum), ("adam.7", adam)] {
        let options = AggregateOptions { optimizer, ..options(Mode::Ffa) };
        let mut version = parent(plan(Factors::B));
        let dir = tempfile::tempdir().unwrap();
        let state_file = dir.path().join("state.safetensors");
        for offset in [0, 500] {
            // Through a file, as rounds that are days apart.
            let mut state = OptimizerState::open(&state_file).unwrap();
            let deltas = (0..7).map(|client| {
                let seed = 1000 + 10 * u64::from(client) + offset;
                delta_of(&version, &trained(&version, seed, RANK, 0.05), client)
            });
            let folder = Folder::new(deltas);
            let outcome = run_with(&version, &options, &folder.files(), &mut state);
            version = outcome.version.unwrap();
            state.save(&state_file).unwrap();
        }
        check_factors(&version.adapter(&SHAPE).unwrap(), case);
    }
}

#[test]
fn rounds_of_rolora_alternate() {
    let first = parent(plan(Factors::B));
    let folder = Folder::new((0..3).map(|client| delta(&first, client, RANK, 0.05)));
    let second = run(&first, &options(Mode::RoLora), &folder.files()).version.unwrap();
    assert_eq!(second.manifest.next.factors, Factors::A);
    let (old, new) = (first.adapter(&SHAPE).unwrap(), second.adapter(&SHAPE).unwrap());
    for (old, new) in old.modules.iter().zip(&new.modules) {
        assert_eq!(old.a, new.a, "the frozen factor is left alone");
        assert_ne!(old.b, new.b);
    }
}
