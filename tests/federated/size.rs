//! Bytes of a round, and the memory and speed of many, on the shape of SmolLM2-135M.

use std::path::PathBuf;
use std::time::Instant;

use epiphyte::adapter::{Adapter, BaseShape, LoraConfig, LoraModule};
use epiphyte::federated::aggregate::{
    AggregateOptions, Inputs, Mode, OptimizerState, Trust, aggregate,
};
use epiphyte::federated::{
    DeltaOptions, Factors, KeyKind, Published, Quantisation, RoundPlan, SigningKey, make, start,
};

use super::{BASE, NOW, plan, server, uniform};

const SMOLLM2_135M: BaseShape = BaseShape {
    architecture: epiphyte::base::Architecture::Llama,
    num_hidden_layers: 30,
    hidden_size: 576,
    intermediate_size: 1536,
    q_size: 576,
    kv_size: 192,
    vocab_size: 49152,
    num_attention_heads: 9,
    num_key_value_heads: 3,
    tie_word_embeddings: true,
};

fn adapter(seed: u64, b_size: f32) -> Adapter {
    let shape = SMOLLM2_135M;
    let config = LoraConfig::default();
    let modules = config.modules(&shape).unwrap().into_iter().enumerate().map(|(i, target)| {
        let [n, k] = shape.shape(target.path.target);
        let (rank, seed) = (target.rank, seed + 2 * i as u64);
        let (a, b) = (uniform(1 + 2 * i as u64, rank * k, 0.05), uniform(seed, n * rank, b_size));
        LoraModule { path: target.path, rank, a, b, scaling: target.scaling }
    });
    Adapter::new(config.clone(), modules.collect(), Some(BASE.into()), &shape).unwrap()
}

fn parent(factors: Factors, quantisation: Quantisation) -> Published {
    let next = RoundPlan { quantisation, ..plan(factors) };
    start("demo", &adapter(0, 0.0), next, &server()).unwrap()
}

fn delta(parent: &Published, trained: &Adapter, client: u32) -> Vec<u8> {
    let mut secret = [1; 32];
    secret[..4].copy_from_slice(&client.to_le_bytes());
    let key = SigningKey::from_bytes(KeyKind::P256, &secret).unwrap();
    make(parent, trained, &DeltaOptions::default(), None, &key).unwrap()
}

#[test]
fn a_round_of_one_factor_in_int8_is_a_quarter_megabyte() {
    let sizes = [Factors::A, Factors::B].map(|factors| {
        let parent = parent(factors, Quantisation::Int8);
        let old = parent.adapter(&SMOLLM2_135M).unwrap();
        let mut trained = old.clone();
        for module in &mut trained.modules {
            let factor = if factors == Factors::A { &mut module.a } else { &mut module.b };
            let changes = uniform(7, factor.len(), 1e-3);
            factor.iter_mut().zip(changes).for_each(|(value, change)| *value += change);
        }
        delta(&parent, &trained, 1).len()
    });
    println!("A {} bytes, B {}, mean {}", sizes[0], sizes[1], (sizes[0] + sizes[1]) / 2);
    assert!(sizes[0] + sizes[1] <= 500_000, "{sizes:?}");
}

/// The most memory this process ever had, and a fresh start of that count.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap();
    // Writable where the kernel lets a process forget its peak.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    kib * 1024
}

/// A thousand deltas of 1.85 MB: `EPIPHYTE_DELTAS=1000 cargo test --release --no-default-features
/// --test main federated::size -- --ignored --nocapture`
#[test]
#[ignore = "measures; writes gigabytes"]
fn memory_stays_flat_over_many_deltas() {
    let count: u32 = std::env::var("EPIPHYTE_DELTAS").map_or(200, |count| count.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let parent = parent(Factors::Both, Quantisation::F32);
    let files: Vec<PathBuf> = (0..count)
        .map(|client| {
            let trained = adapter(1000 * u64::from(client % 5), 1e-3);
            let path = dir.path().join(format!("{client}.delta"));
            std::fs::write(&path, delta(&parent, &trained, client)).unwrap();
            path
        })
        .collect();
    let size = std::fs::metadata(&files[0]).unwrap().len();
    let read = Instant::now();
    let n_bytes: usize = files.iter().map(|file| std::fs::read(file).unwrap().len()).sum();
    let gigabytes = n_bytes as f64 / 1e9;
    println!(
        "{count} deltas of {size} bytes; reading alone {:.2} GB/s",
        gigabytes / read.elapsed().as_secs_f64()
    );
    for mode in [Mode::FedAvg] {
        let options = AggregateOptions {
            mode,
            min_clients: 1,
            cosines: false,
            ..AggregateOptions::default()
        };
        let trust = Trust { devices: None, workers: Vec::new(), now: NOW };
        let mut peaks = Vec::new();
        for files in [&files[..10], &files[..]] {
            peak();
            let begin = Instant::now();
            let inputs = Inputs { parent: &parent, options: &options, trust: &trust, files };
            let next = parent.manifest.next.clone();
            let outcome = aggregate(&inputs, next, &mut OptimizerState::new(), &server()).unwrap();
            assert_eq!(outcome.report.taken, files.len(), "{}", outcome.report.to_json());
            let seconds = begin.elapsed().as_secs_f64();
            peaks.push(peak());
            let speed = outcome.report.n_bytes as f64 / 1e9 / seconds;
            println!(
                "{} of {}: {seconds:.2} s, {speed:.3} GB/s, peak {} MB",
                files.len(),
                mode.name(),
                peaks[peaks.len() - 1] / 1_000_000
            );
        }
        assert!(peaks[1] < peaks[0] + 3 * size, "{peaks:?}");
    }
}
