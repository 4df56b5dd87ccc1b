//! What holds for any adapters.

use epiphyte::DType;
use epiphyte::adapter::{Adapter, LoraModule, ModulePath, Target};
use epiphyte::merge::{Manifest, Method, Parent, Rank, Recipe, merge, relations};
use proptest::prelude::*;
use serde_json::json;

use super::{
    FULL, SHAPE, adapter, added, apart, distance, merged, method, norm, parents, random_adapter,
    report,
};

/// Two to four adapters of ranks from 0, which is none, and their weights.
fn some() -> impl Strategy<Value = (Vec<Adapter>, Vec<f64>)> {
    let ranks = [1..6_usize, 0..6, 0..4, 0..9];
    prop::collection::vec((ranks, any::<u64>(), -2.0..2.0), 2..5).prop_map(|all| {
        all.into_iter().map(|(ranks, seed, weight)| (random_adapter(ranks, seed), weight)).unzip()
    })
}

/// The weighted sum in f64.
fn sum(adapters: &[Adapter], weights: &[f64], path: ModulePath) -> Vec<f64> {
    let mut sum = vec![0.0; SHAPE.shape(path.target).iter().product()];
    for (adapter, weight) in adapters.iter().zip(weights) {
        let added = added(adapter, path);
        sum.iter_mut().zip(added).for_each(|(sum, added)| *sum += weight * added);
    }
    sum
}

/// The largest error of an adapter over its modules, in what parents weigh together: a sum may be
/// small where they cancel.
fn error(found: &Adapter, adapters: &[Adapter], weights: &[f64]) -> f64 {
    let error = |path| {
        let expected = sum(adapters, weights, path);
        let size: f64 =
            adapters.iter().zip(weights).map(|(a, w)| (norm(&added(a, path)) * w).abs()).sum();
        distance(&added(found, path), &expected) * norm(&expected).max(1e-12) / size.max(1e-12)
    };
    SHAPE.modules().map(error).fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn cat_is_the_sum((adapters, weights) in some()) {
        let result = merged(&parents(&adapters, &weights), method("cat", json!({})), None).adapter;
        prop_assert!(error(&result, &adapters, &weights) < 1e-6);
    }

    #[test]
    fn svd_at_full_rank_is_cat((adapters, weights) in some()) {
        let parents = parents(&adapters, &weights);
        let svd = merged(&parents, method("svd", json!({})), FULL);
        prop_assert!(error(&svd.adapter, &adapters, &weights) < 1e-6);
        prop_assert!(svd.report.lost < 1e-6, "{}", svd.report.lost);
    }

    #[test]
    fn plain_sums_are_linear_in_their_weights((adapters, weights) in some(), scale in -3.0..3.0) {
        for name in ["cat", "linear", "task_arithmetic"] {
            let scaled: Vec<_> = weights.iter().map(|weight| weight * scale).collect();
            let plain = method(name, json!({}));
            let result = merged(&parents(&adapters, &scaled), plain, None).adapter;
            prop_assert!(error(&result, &adapters, &scaled) < 1e-6, "{name}");
        }
    }

    #[test]
    fn ties_of_one_at_density_1_is_itself(ranks in [1..6_usize, 1..6, 1..4, 1..9], seed: u64) {
        let one = [random_adapter(ranks, seed)];
        for semantics in ["peft", "mergekit"] {
            let ties = method("ties", json!({"density": 1.0, "semantics": semantics}));
            let result = merged(&parents(&one, &[1.0]), ties, None).adapter;
            prop_assert!(apart(&result, &one[0]) < 2e-6, "{semantics}");
        }
    }

    #[test]
    fn a_smaller_rank_loses_what_is_told((adapters, weights) in some(), rank in 1..5_usize) {
        let parents = parents(&adapters, &weights);
        let cut = merged(&parents, method("svd", json!({})), Some(Rank::Fixed(rank)));
        let (mut lost, mut all) = (0.0, 0.0);
        for path in SHAPE.modules() {
            let (found, sum) = (added(&cut.adapter, path), sum(&adapters, &weights, path));
            lost += (distance(&found, &sum) * norm(&sum).max(1e-12)).powi(2);
            all += norm(&sum).powi(2);
        }
        prop_assert!((cut.report.lost - (lost / all).sqrt()).abs() < 1e-5);
    }
}

fn three() -> Vec<Adapter> {
    vec![
        random_adapter([3, 3, 2, 3], 1),
        random_adapter([2, 5, 0, 1], 2),
        random_adapter([0, 1, 4, 3], 3),
    ]
}

#[test]
fn an_energy_share_takes_as_few_as_hold_it() {
    let adapters = three();
    let parents = parents(&adapters, &[1.0, 0.7, -1.2]);
    let svd = method("svd", json!({}));
    for share in [0.3, 0.8, 0.999] {
        let energy = merged(&parents, svd, Some(Rank::Energy(share)));
        for module in &energy.report.modules {
            assert!(module.lost.powi(2) <= 1.0 - share + 1e-9, "{share}: {module:?}");
            if module.rank > 1 {
                let less = report(&parents, svd, Some(Rank::Fixed(module.rank - 1)));
                let less = less.modules.iter().find(|less| less.path == module.path).unwrap();
                assert!(less.lost.powi(2) > 1.0 - share, "{share}: {less:?}");
            }
        }
    }
}

/// The products of a big module, at sizes where only some eigenvalues are found.
#[test]
fn large_modules_lose_no_more_than_small_ones() {
    use epiphyte::adapter::{BaseShape, LoraConfig};
    let shape =
        BaseShape { hidden_size: 520, intermediate_size: 700, num_hidden_layers: 1, ..SHAPE };
    let path = ModulePath::in_layer(0, Target::UpProj);
    let adapters: Vec<_> = (0..2)
        .map(|seed| {
            let mut random = crate::common::Random::new(seed);
            let mut fill = |len: usize| (0..len).map(|_| random.signed(0.5)).collect();
            let (a, b) = (fill(4 * 520), fill(700 * 4));
            let module = LoraModule { path, rank: 4, a, b, scaling: 1.0 };
            Adapter::new(LoraConfig::default(), vec![module], None, &shape).unwrap()
        })
        .collect();
    let parents = parents(&adapters, &[1.0, 1.0]);
    let run = |rank| {
        let ties = method("ties", json!({"density": 0.3}));
        let recipe = Recipe { method: ties, rank: Some(rank) };
        merge(&parents, &recipe, &shape, &mut |_, _| {}).unwrap()
    };
    // Of rank 12 by iteration; of nearly all the energy by the direct way, cut to 12 afterwards.
    let some = run(Rank::Fixed(12));
    let whole = run(Rank::Energy(1.0 - 1e-9)).adapter;
    let (path, of_12) = (whole.modules[0].path, &some.adapter.modules[0]);
    assert_eq!((of_12.path, of_12.rank), (path, 12));
    let whole = Parent { id: "whole", adapter: &whole, weight: 1.0, density: None };
    let recipe = Recipe { method: method("svd", json!({})), rank: Some(Rank::Fixed(12)) };
    let direct = merge(&[whole], &recipe, &shape, &mut |_, _| {}).unwrap();
    let product = |m: &LoraModule| -> Vec<f64> {
        let element = |at: usize| -> f64 {
            let (i, j) = (at / 520, at % 520);
            (0..m.rank).map(|r| f64::from(m.b[i * m.rank + r]) * f64::from(m.a[r * 520 + j])).sum()
        };
        (0..700 * 520).map(element).collect()
    };
    let apart = distance(&product(of_12), &product(&direct.adapter.modules[0]));
    assert!(apart < 1e-5, "{apart:e}");
    assert!((0.2..0.95).contains(&some.report.lost), "{}", some.report.lost);
}

#[test]
fn chance_is_a_function_of_the_seed() {
    let adapters = three();
    let parents = parents(&adapters, &[1.0, 0.7, -1.2]);
    for name in ["dare_linear", "dare_ties"] {
        let run = |seed: u64| {
            merged(&parents, method(name, json!({"density": 0.5, "seed": seed})), FULL).adapter
        };
        assert_eq!(run(1).modules, run(1).modules, "{name}");
        assert!(apart(&run(1), &run(2)) > 0.05, "{name}");
    }
}

/// The same bits with one processor as with all: a child that may use one runs the same merge.
#[cfg(target_os = "linux")]
#[test]
fn threads_change_no_bit() {
    let digests = || {
        let adapters = three();
        let parents = parents(&adapters, &[1.0, 0.7, -1.2]);
        let digest =
            |name| merged(&parents, method(name, json!({})), Some(Rank::Fixed(3))).adapter.digest();
        Method::NAMES.iter().filter(|n| **n != "soup").map(|name| digest(name)).collect::<Vec<_>>()
    };
    if std::env::var_os("EPIPHYTE_TEST_ONE_THREAD").is_some() {
        assert_eq!(std::thread::available_parallelism().unwrap().get(), 1);
        println!("digests: {}", digests().join(" "));
        return;
    }
    let child = std::process::Command::new("taskset")
        .args(["-c", "0"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "merge::properties::threads_change_no_bit"])
        .env("EPIPHYTE_TEST_ONE_THREAD", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(text.contains(&format!("digests: {}", digests().join(" "))), "{text}");
}

#[test]
fn a_parent_with_a_density_of_its_own_keeps_it() {
    let adapters = three();
    let mut parents = parents(&adapters, &[1.0, 1.0, 1.0]);
    parents[1].density = Some(1.0);
    let report = report(&parents, method("magnitude_prune", json!({"density": 0.2})), FULL);
    let out: Vec<_> = report.parents.iter().map(|parent| parent.taken_out.unwrap()).collect();
    assert!(out[0] > 0.1 && out[1] == 0.0 && out[2] > 0.1, "{out:?}");
}

#[test]
fn reports_say_what_is_left_of_each() {
    let adapters = three();
    let parents = parents(&adapters, &[2.0, 0.0, 0.0]);
    let report = report(&parents, method("cat", json!({})), None);
    assert!((report.parents[0].cosine - 1.0).abs() < 1e-6, "{report:?}");
    assert!((report.parents[0].share - 2.0).abs() < 1e-6, "{report:?}");
    assert!((report.norm - 2.0 * report.parents[0].norm).abs() < 1e-5 * report.norm);
    let opposite = adapters[0].modules.iter().cloned();
    let opposite = opposite.map(|module| LoraModule { scaling: -module.scaling, ..module });
    let pair = [adapters[0].clone(), adapter(opposite.collect())];
    let found = relations(&super::parents(&pair, &[1.0, 1.0]), &SHAPE).unwrap();
    assert!((found[0].cosine + 1.0).abs() < 1e-9 && found[0].sign_conflict == 1.0, "{found:?}");
    assert_eq!(found[0].overlap, 1.0);
}

#[test]
fn a_merged_adapter_is_read_as_it_was_made() {
    let adapters = three();
    let parents = parents(&adapters, &[1.0, 0.5, -0.5]);
    let made = merged(&parents, method("ties", json!({"density": 0.4})), None).adapter;
    let folder = tempfile::tempdir().unwrap();
    made.save_peft(folder.path().join("merged"), DType::F32, &SHAPE).unwrap();
    made.save_gguf(folder.path().join("merged.gguf"), DType::F32, &SHAPE).unwrap();
    for name in ["merged", "merged.gguf"] {
        let read = Adapter::load(folder.path().join(name), &SHAPE).unwrap();
        assert!(apart(&read, &made) < 1e-6, "{name}");
        assert_eq!(read.base_fingerprint, made.base_fingerprint);
        let manifest = Manifest::parse(read.manifest.as_ref().unwrap()).unwrap();
        assert_eq!(manifest.recipe.method, method("ties", json!({"density": 0.4})));
        let digests: Vec<_> = manifest.parents.iter().map(|parent| &parent.digest).collect();
        assert_eq!(
            digests,
            adapters.iter().map(Adapter::digest).collect::<Vec<_>>().iter().collect::<Vec<_>>()
        );
        assert_eq!(manifest.parents[2].weight, -0.5);
    }
}
