//! What a liar can send, and what becomes of it.

use epiphyte::adapter::{Adapter, LoraModule};
use epiphyte::federated::aggregate::{
    AggregateOptions, CentralNoise, Inputs, Mode, OptimizerState, Outcome, OverNorm, Refusal,
    Robust, Trust, Weights, aggregate,
};
use epiphyte::federated::{Factors, Published, RoundPlan, Signer, start};

use super::{
    Folder, NOW, RANK, SHAPE, delta, delta_of, key, options, parent, parent_adapter, plan, run,
    server, trained,
};

const HONEST: u8 = 9;

fn clipped() -> RoundPlan {
    RoundPlan { clip_norm: Some(1.0), ..plan(Factors::B) }
}

/// What `make` would not do: the clip norm and the plan are the liar's own.
fn free(parent: &Published) -> Published {
    let next = RoundPlan { clip_norm: None, ..parent.manifest.next.clone() };
    start("demo", &parent.adapter(&SHAPE).unwrap(), next, &server()).unwrap()
}

/// The honest change, times `factor`.
fn scaled(parent: &Published, client: u8, factor: f32) -> Vec<u8> {
    let old = parent.adapter(&SHAPE).unwrap();
    let mut new = trained(parent, 1000 + 10 * u64::from(client), RANK, 0.05);
    for (new, old) in new.modules.iter_mut().zip(&old.modules) {
        new.b.iter_mut().zip(&old.b).for_each(|(new, old)| *new = old + factor * (*new - old));
    }
    delta_of(&free(parent), &new, client)
}

/// Honest deltas that agree for the most part, which `liar`'s is put among.
fn folder(parent: &Published, liar: Vec<u8>) -> Folder {
    let folder = Folder::new((0..HONEST).map(|client| agreeing(parent, client, 1.0)));
    folder.put("liar.delta", &liar);
    folder
}

/// A common direction with a little of each client's own; times `sign`.
fn agreeing(parent: &Published, client: u8, sign: f32) -> Vec<u8> {
    let [common, own] = [(1, 0.05), (1000 + 10 * u64::from(client), 0.01)]
        .map(|(seed, size)| trained(parent, seed, RANK, size));
    let old = parent.adapter(&SHAPE).unwrap();
    let modules = old.modules.iter().zip(common.modules.iter().zip(&own.modules));
    let mix = |(old, (common, own)): (&LoraModule, (&LoraModule, &LoraModule))| {
        let b = old.b.iter().zip(common.b.iter().zip(&own.b));
        let b = b.map(|(old, (c, o))| old + sign * ((c - old) + (o - old))).collect();
        LoraModule { b, ..old.clone() }
    };
    delta_of(&free(parent), &super::adapter(RANK, modules.map(mix).collect()), client)
}

fn reason(outcome: &Outcome) -> (Option<Refusal>, f64) {
    let entry = outcome.report.entries.iter().find(|e| e.file == "liar.delta").unwrap();
    println!("{}", entry.reason.as_deref().unwrap_or("taken"));
    (entry.refusal.clone(), entry.shrunk_to.unwrap_or_default())
}

/// Norm of the change of B that a version makes.
fn moved(parent: &Published, version: &Published) -> Vec<f64> {
    let [old, new] = [parent, version].map(|version| version.adapter(&SHAPE).unwrap());
    let pairs = old.modules.iter().zip(&new.modules).flat_map(|(o, n)| o.b.iter().zip(&n.b));
    pairs.map(|(old, new)| f64::from(*new) - f64::from(*old)).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn ten_times_the_norm_is_refused_or_shrunk() {
    let parent = parent(clipped());
    let folder = folder(&parent, scaled(&parent, 20, 10.0));
    let outcome = run(&parent, &options(Mode::RoLora), &folder.files());
    assert!(matches!(reason(&outcome).0, Some(Refusal::TooLarge { norm, .. }) if norm > 3.0));
    assert_eq!(outcome.report.taken, usize::from(HONEST));
    let shrink = AggregateOptions { over_norm: OverNorm::Shrink, ..options(Mode::RoLora) };
    let outcome = run(&parent, &shrink, &folder.files());
    let (refusal, shrunk_to) = reason(&outcome);
    assert!(refusal.is_none() && (shrunk_to - 1.0).abs() < 1e-9, "{shrunk_to}");
}

#[test]
fn a_flipped_sign_is_refused_by_cosine_left_out_by_krum_or_outvoted() {
    let parent = parent(clipped());
    let flipped = agreeing(&parent, 20, -1.0);
    let folder = folder(&parent, flipped);
    let honest = Folder::new((0..HONEST).map(|client| agreeing(&parent, client, 1.0)));
    let mode = Mode::RoLora;
    let clean = run(&parent, &options(mode), &honest.files()).version.unwrap();
    let by_cosine = AggregateOptions { min_cosine: Some(0.0), ..options(mode) };
    let outcome = run(&parent, &by_cosine, &folder.files());
    assert!(matches!(reason(&outcome).0, Some(Refusal::Cosine { cosine, .. }) if cosine < -0.5));
    assert_eq!(outcome.version.unwrap().bytes(), clean.bytes(), "as if it had not come");
    let by_krum = AggregateOptions { robust: Robust::Krum { byzantine: 1 }, ..options(mode) };
    let outcome = run(&parent, &by_krum, &folder.files());
    assert_eq!(reason(&outcome).0, Some(Refusal::FarFromOthers));
    let clean = moved(&parent, &clean);
    for robust in [Robust::Median, Robust::TrimmedMean { fraction: 0.2 }] {
        let options = AggregateOptions { robust, ..options(mode) };
        let version = run(&parent, &options, &folder.files()).version.unwrap();
        let got = moved(&parent, &version);
        assert!(cosine(&got, &clean) > 0.98, "{}", cosine(&got, &clean));
    }
}

#[test]
fn another_base_an_old_round_a_forged_key_and_nan_are_refused() {
    let parent = parent(clipped());
    let judged = |liar: Vec<u8>| {
        let outcome = run(&parent, &options(Mode::RoLora), &folder(&parent, liar).files());
        assert_eq!(outcome.report.taken, usize::from(HONEST));
        reason(&outcome).0.unwrap()
    };
    let mut other = parent_adapter();
    other.base_fingerprint = Some("epiphyte.base.1:other".into());
    let with =
        |id: &str, adapter: &Adapter, plan: RoundPlan| start(id, adapter, plan, &server()).unwrap();
    let elsewhere = with("demo", &other, clipped());
    let mut foreign = trained(&elsewhere, 5, RANK, 0.05);
    foreign.base_fingerprint = None;
    assert_eq!(judged(delta_of(&elsewhere, &foreign, 20)), Refusal::OtherBase);
    let elsewhere = with("other", &parent_adapter(), clipped());
    assert_eq!(judged(delta(&elsewhere, 20, RANK, 0.05)), Refusal::OtherAdapter);
    let later = with("demo", &parent_adapter(), RoundPlan { round: 2, ..clipped() });
    let refusal = judged(delta(&later, 20, RANK, 0.05));
    assert_eq!(refusal, Refusal::OtherRound { round: 2, parent_version: 1 });
    let late = with("demo", &parent_adapter(), RoundPlan { expires: NOW - 1, ..clipped() });
    assert_eq!(judged(delta(&late, 20, RANK, 0.05)), Refusal::Expired { expires: NOW - 1 });
    let both = with("demo", &parent_adapter(), RoundPlan { factors: Factors::Both, ..clipped() });
    let refusal = judged(delta(&both, 20, RANK, 0.05));
    assert_eq!(refusal, Refusal::OtherFactors { factors: Factors::Both });
    let mut moved = parent_adapter();
    moved.modules[0].a[0] += 1.0;
    let refusal = judged(delta(&with("demo", &moved, clipped()), 20, RANK, 0.05));
    assert_eq!(refusal, Refusal::OtherParent);
    let refusal = judged(delta(&parent, 20, RANK - 1, 0.05));
    assert!(matches!(refusal, Refusal::OtherModules { .. }), "{refusal}");

    // A number changed after signing, and one that is none, signed.
    let mut changed = delta(&parent, 20, RANK, 0.05);
    *changed.last_mut().unwrap() ^= 1;
    assert!(judged(changed).to_string().contains("signature"));
    assert!(judged(super::hostile::with_nan(&parent, 20)).to_string().contains("NaN"));
    assert!(judged(b"no delta at all".to_vec()).to_string().contains("damaged"));
}

#[test]
fn only_listed_devices_take_part_each_once_a_round() {
    let parent = parent(clipped());
    let folder = folder(&parent, delta(&parent, 21, RANK, 0.05));
    folder.put("copy.delta", &agreeing(&parent, 0, 1.0));
    let second = delta_of(&parent, &trained(&parent, 77, RANK, 0.05), 1);
    folder.put("second.delta", &second);
    let trust = Trust {
        devices: Some((0..HONEST).map(|client| key(client).public_key()).collect()),
        workers: Vec::new(),
        now: NOW,
    };
    let options = options(Mode::RoLora);
    let mut files = folder.files();
    let run = |files: &[std::path::PathBuf]| {
        let inputs = Inputs { parent: &parent, options: &options, trust: &trust, files };
        let next = parent.manifest.next.clone();
        aggregate(&inputs, next, &mut OptimizerState::new(), &server()).unwrap()
    };
    let outcome = run(&files);
    assert_eq!(reason(&outcome).0, Some(Refusal::UntrustedKey));
    let of = |why: Refusal| {
        outcome.report.entries.iter().filter(|e| e.refusal.as_ref() == Some(&why)).count()
    };
    assert_eq!((of(Refusal::Duplicate), of(Refusal::SecondOfKey)), (1, 1));
    assert_eq!(outcome.report.taken, usize::from(HONEST));
    files.reverse();
    assert_eq!(run(&files).version.unwrap().bytes(), outcome.version.unwrap().bytes());
}

#[test]
fn a_small_cohort_publishes_nothing() {
    let parent = parent(clipped());
    let folder = Folder::new((0..4).map(|client| delta(&parent, client, RANK, 0.05)));
    let options = AggregateOptions { min_clients: 5, ..options(Mode::RoLora) };
    let outcome = run(&parent, &options, &folder.files());
    assert!(outcome.version.is_none());
    assert_eq!(outcome.report.not_published.as_deref(), Some("4 deltas were taken; 5 are needed"));
    assert!(outcome.report.to_html().contains("No version was made"));
}

#[test]
fn a_late_delta_counts_less_where_it_may_come_at_all() {
    let first = parent(plan(Factors::B));
    let mode = Mode::Ffa;
    let folder = Folder::new((0..4).map(|client| delta(&first, client, RANK, 0.05)));
    let second = run(&first, &options(mode), &folder.files()).version.unwrap();
    let late = delta(&first, 8, RANK, 0.05);
    let folder = Folder::new((0..4).map(|client| delta(&second, client, RANK, 0.05)));
    folder.put("liar.delta", &late);
    let outcome = run(&second, &options(mode), &folder.files());
    assert_eq!(reason(&outcome).0, Some(Refusal::OtherRound { round: 1, parent_version: 1 }));
    let patient = AggregateOptions { max_staleness: 1, ..options(mode) };
    let outcome = run(&second, &patient, &folder.files());
    let entry = outcome.report.entries.iter().find(|e| e.file == "liar.delta").unwrap();
    assert!(entry.is_taken());
    assert_eq!((entry.staleness, entry.weight), (1, 8.0 / 2.0_f64.sqrt()));
}

#[test]
fn central_noise_needs_bounds_and_has_the_size_it_says() {
    let parent = parent(RoundPlan { clip_norm: Some(0.1), ..plan(Factors::B) });
    let folder = Folder::new((0..20).map(|client| delta(&parent, client, RANK, 0.05)));
    let noise = Some(CentralNoise { sigma: 2.0, expected: 20 });
    let bounded = AggregateOptions {
        weights: Weights::Uniform,
        over_norm: OverNorm::Shrink,
        ..options(Mode::RoLora)
    };
    let noisy = AggregateOptions { noise, ..bounded };
    let [without, with] = [bounded, noisy]
        .map(|options| moved(&parent, &run(&parent, &options, &folder.files()).version.unwrap()));
    let squares = without.iter().zip(&with).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let deviation = (squares / without.len() as f64).sqrt();
    let n = without.len() as f64;
    assert!((deviation / (2.0 * 0.1 / 20.0) - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{deviation}");
    for unbounded in [
        AggregateOptions { noise, ..options(Mode::RoLora) },
        AggregateOptions { over_norm: OverNorm::Refuse, ..noisy },
        AggregateOptions { robust: Robust::Median, ..noisy },
    ] {
        let trust = super::trust();
        let files = folder.files();
        let inputs = Inputs { parent: &parent, options: &unbounded, trust: &trust, files: &files };
        let next = parent.manifest.next.clone();
        assert!(aggregate(&inputs, next, &mut OptimizerState::new(), &server()).is_err());
    }
}

#[test]
fn robust_means_of_factors_that_both_change_are_refused() {
    let parent = parent(plan(Factors::Both));
    let folder = Folder::new((0..5).map(|client| delta(&parent, client, RANK, 0.05)));
    for mode in [Mode::FedAvg, Mode::Svd, Mode::Stack] {
        let options = AggregateOptions { robust: Robust::Median, ..options(mode) };
        let trust = super::trust();
        let files = folder.files();
        let inputs = Inputs { parent: &parent, options: &options, trust: &trust, files: &files };
        let next = parent.manifest.next.clone();
        match aggregate(&inputs, next, &mut OptimizerState::new(), &server()) {
            Ok(_) => panic!("{} took it", mode.name()),
            Err(e) => assert!(e.to_string().contains("product"), "{e}"),
        }
    }
}

/// `parent`, changed by numbers of this size in the factors of the round.
fn changed_by(parent: &Published, size: f32, client: u8) -> Vec<u8> {
    let mut adapter = parent.adapter(&SHAPE).unwrap();
    for module in &mut adapter.modules {
        module.a.iter_mut().chain(&mut module.b).for_each(|v| *v += size);
    }
    delta_of(&free(parent), &adapter, client)
}

#[test]
fn numbers_as_large_as_f32_gets_spoil_neither_version_nor_report() {
    let both = RoundPlan { clip_norm: Some(1.0), ..plan(Factors::Both) };
    let shrink = AggregateOptions { over_norm: OverNorm::Shrink, ..options(Mode::FedAvg) };
    // A clip norm beyond what sums have room for is no invitation.
    for (clip, most) in [(1.0, 1.0), (1e30, 16_384.0)] {
        let parent = parent(RoundPlan { clip_norm: Some(clip), ..both.clone() });
        let folder = Folder::new((0..HONEST).map(|client| {
            delta_of(&free(&parent), &trained(&parent, 7 + u64::from(client), RANK, 0.01), client)
        }));
        folder.put("liar.delta", &changed_by(&parent, 3e38, 24));
        let outcome = run(&parent, &shrink, &folder.files());
        let (refusal, shrunk_to) = reason(&outcome);
        assert!(refusal.is_none() && (shrunk_to / most - 1.0).abs() < 1e-9, "{shrunk_to}");
        let mut report = outcome.report.clone();
        report.keep_worst(0);
        assert_eq!(report.shrunk, 1, "of all, whatever is shown");
        let version = outcome.version.unwrap();
        let [old, new] = [&parent, &version].map(|version| version.adapter(&SHAPE).unwrap());
        let pairs = old.modules.iter().zip(&new.modules).flat_map(|(o, n)| o.b.iter().zip(&n.b));
        let moved = pairs.map(|(old, new)| f64::from(new - old).powi(2)).sum::<f64>().sqrt();
        assert!(moved <= most, "{moved}");
        match outcome.report.mode_error {
            Some(error) => assert!(clip == 1.0 && error.norm < 1.0 && error.exact_norm > 0.0),
            // Products of such numbers have no room in the probes: the report says nothing.
            None => assert!(clip > 1.0),
        }
    }
}
