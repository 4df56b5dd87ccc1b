//! Federated averaging: what leaves a device, and what becomes of many.

mod canary;
mod client;
mod flower;
mod hostile;
mod modes;
mod parts;
mod poison;
mod privacy;
mod python;
mod secure;
mod simulate;
mod size;

use std::path::{Path, PathBuf};

use epiphyte::adapter::{Adapter, BaseShape, LoraConfig, LoraModule, ModulePath, Target};
use epiphyte::federated::aggregate::{
    AggregateOptions, Inputs, Mode, OptimizerState, Outcome, Trust, aggregate,
};
use epiphyte::federated::{
    DeltaOptions, Factors, KeyKind, Published, Quantisation, RoundPlan, SigningKey, make, start,
};

use crate::common::Random;

pub(crate) const SHAPE: BaseShape = BaseShape {
    architecture: epiphyte::base::Architecture::Llama,
    num_hidden_layers: 1,
    hidden_size: 32,
    intermediate_size: 64,
    q_size: 48,
    kv_size: 16,
    vocab_size: 64,
    num_attention_heads: 3,
    num_key_value_heads: 1,
    tie_word_embeddings: false,
};

pub(crate) const RANK: usize = 4;
pub(crate) const NOW: u64 = 500;
const BASE: &str = "epiphyte.base.1:0123";
const TARGETS: [Target; 2] = [Target::QProj, Target::VProj];

pub(crate) fn key(number: u8) -> SigningKey {
    let kind = if number.is_multiple_of(2) { KeyKind::Ed25519 } else { KeyKind::P256 };
    SigningKey::from_bytes(kind, &[number + 1; 32]).unwrap()
}

/// The server's.
pub(crate) fn server() -> SigningKey {
    key(200)
}

pub(crate) fn plan(factors: Factors) -> RoundPlan {
    RoundPlan {
        round: 1,
        factors,
        clip_norm: None,
        sigma: 0.0,
        quantisation: Quantisation::F32,
        expires: NOW + 100,
    }
}

pub(crate) fn uniform(seed: u64, n: usize, size: f32) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.signed(size)).collect()
}

/// As `parent` of tests/golden/federated.py has it.
pub(crate) fn parent_adapter() -> Adapter {
    let module = |(i, target): (usize, Target)| {
        let [n, k] = SHAPE.shape(target);
        let seed = 10 + 2 * i as u64;
        LoraModule {
            path: ModulePath::in_layer(0, target),
            rank: RANK,
            a: uniform(seed, RANK * k, 0.5),
            b: uniform(seed + 1, n * RANK, 0.2),
            scaling: 2.0,
        }
    };
    adapter(RANK, TARGETS.into_iter().enumerate().map(module).collect())
}

pub(crate) fn adapter(rank: usize, modules: Vec<LoraModule>) -> Adapter {
    let config = LoraConfig { r: rank, lora_alpha: 2.0 * rank as f64, ..LoraConfig::default() };
    Adapter::new(config, modules, Some(BASE.into()), &SHAPE).unwrap()
}

pub(crate) fn parent(plan: RoundPlan) -> Published {
    start("demo", &parent_adapter(), plan, &server()).unwrap()
}

/// What a client has after training: the first components of the parent, each number changed by up
/// to `size`. As `delta` of tests/golden/federated.py has it.
pub(crate) fn trained(parent: &Published, seed: u64, rank: usize, size: f32) -> Adapter {
    let factors = parent.manifest.next.factors;
    let old = parent.adapter(&SHAPE).unwrap();
    let modules = old.modules.iter().enumerate().map(|(i, old)| {
        let width = old.a.len() / old.rank;
        let mut a = old.a[..rank * width].to_vec();
        let mut b: Vec<f32> = old.b.chunks(old.rank).flat_map(|row| row[..rank].to_vec()).collect();
        let change = |values: &mut [f32], seed: u64| {
            let changes = uniform(seed, values.len(), size);
            values.iter_mut().zip(changes).for_each(|(value, change)| *value += change);
        };
        let seed = seed + 2 * i as u64;
        if factors != Factors::B {
            change(&mut a, seed);
        }
        if factors != Factors::A {
            change(&mut b, seed + 1);
        }
        LoraModule { path: old.path, rank, a, b, scaling: old.scaling }
    });
    adapter(rank, modules.collect())
}

pub(crate) fn delta(parent: &Published, client: u8, rank: usize, size: f32) -> Vec<u8> {
    delta_of(parent, &trained(parent, 1000 + 10 * u64::from(client), rank, size), client)
}

pub(crate) fn delta_of(parent: &Published, trained: &Adapter, client: u8) -> Vec<u8> {
    let seed = Some([client; 32]);
    let options = DeltaOptions { examples: 1 << (client % 5), seed, ..DeltaOptions::default() };
    make(parent, trained, &options, None, &key(client)).unwrap()
}

/// Deltas in a folder.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new(deltas: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        for (i, bytes) in deltas.into_iter().enumerate() {
            dir.put(&format!("{i:03}.delta"), &bytes);
        }
        dir
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

pub(crate) fn options(mode: Mode) -> AggregateOptions {
    use epiphyte::federated::aggregate::Weights;
    let weights = Weights::Examples { cap: 8 };
    AggregateOptions { mode, weights, min_clients: 2, ..AggregateOptions::default() }
}

pub(crate) fn trust() -> Trust {
    use epiphyte::federated::Signer;
    Trust { devices: None, workers: vec![server().public_key()], now: NOW }
}

pub(crate) fn run(parent: &Published, options: &AggregateOptions, files: &[PathBuf]) -> Outcome {
    run_with(parent, options, files, &mut OptimizerState::new())
}

pub(crate) fn run_with(
    parent: &Published,
    options: &AggregateOptions,
    files: &[PathBuf],
    state: &mut OptimizerState,
) -> Outcome {
    let trust = trust();
    let inputs = Inputs { parent, options, trust: &trust, files };
    aggregate(&inputs, parent.manifest.next.clone(), state, &server()).unwrap()
}
