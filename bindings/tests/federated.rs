//! The phone's part of a federated round: a version is accepted and trained on, a delta leaves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use epiphyte::adapter::Adapter;
use epiphyte::federated::{
    self, Factors, Published, Quantisation, RoundPlan, Signer as _, VersionManifest,
};
use epiphyte_bindings::{
    AcceptOptions, Canary, Delta, DeltaOptions, Engine, EpiphyteError, Factor, KeyKind, PublicKey,
    SigningCallback, SigningKey, TrainDuration, TrainOptions, Trainer, parse_public_key,
};
use pollster::block_on;

use super::{RUNTIME, engine, examples, golden, text};

const ID: &str = "replies";

fn server() -> federated::SigningKey {
    federated::SigningKey::from_bytes(federated::KeyKind::Ed25519, &[7; 32]).unwrap()
}

fn trusted() -> Vec<PublicKey> {
    vec![parse_public_key(server().public_key().to_string()).unwrap()]
}

/// The one in the repository: version 1, whose round is of B.
fn version() -> PathBuf {
    golden("delta/tiny.version")
}

/// What [`version`] holds; deltas are taken until the year 2100.
fn published() -> Published {
    let base = RUNTIME.base();
    let mut adapter = Adapter::load(golden("peft_logits/plain"), base.adapted()).unwrap();
    adapter.base_fingerprint = Some(base.fingerprint.clone());
    let next = RoundPlan {
        round: 1,
        factors: Factors::B,
        clip_norm: Some(1.0),
        sigma: 0.0,
        quantisation: Quantisation::Int8,
        expires: 4_102_444_800,
    };
    federated::start(ID, &adapter, next, &server()).unwrap()
}

#[test]
#[ignore = "writes a golden file"]
fn write_golden_version() {
    std::fs::write(version(), published().bytes()).unwrap();
}

/// A reader of today reads it, and a writer of today writes the same but for its own name.
#[test]
fn the_golden_version_is_what_is_published_today() {
    let (kept, today) = (Published::open(version()).unwrap().manifest, published().manifest);
    assert_eq!(VersionManifest { runtime: today.runtime.clone(), ..kept }, today);
}

fn accept() -> AcceptOptions {
    AcceptOptions {
        adapter: ID.into(),
        trusted: trusted(),
        current: None,
        max_norm: None,
        canary: None,
    }
}

fn apply(engine: &Engine, folder: &Path, options: AcceptOptions) -> Result<(), EpiphyteError> {
    block_on(engine.apply_version(text(version()), text(folder), options)).map(drop)
}

/// Two steps from `version`, of the factor that its round asks for.
fn trained(engine: &Engine, dir: &Path, freeze: Option<Factor>) -> Arc<Trainer> {
    let (start, folder) = (dir.join("version"), dir.join("run"));
    apply(engine, &start, accept()).unwrap();
    let data = examples(5);
    let trainer = engine.trainer(TrainOptions {
        duration: Some(TrainDuration::Steps { steps: 2 }),
        seq_len: Some(64),
        init: Some(text(start)),
        freeze,
        ..TrainOptions::new(text(folder), data)
    });
    let trainer = trainer.unwrap();
    block_on(trainer.run(None)).unwrap();
    trainer
}

/// A key store: signs, or throws, or signs with another key than it names.
struct Store {
    key: Arc<SigningKey>,
    named: PublicKey,
    thrown: Option<EpiphyteError>,
}

impl Store {
    fn new(kind: KeyKind) -> Self {
        let key = SigningKey::generate(kind).unwrap();
        Self { named: key.public_key(), key, thrown: None }
    }
}

impl SigningCallback for Store {
    fn public_key(&self) -> Result<PublicKey, EpiphyteError> {
        Ok(self.named.clone())
    }

    fn sign(&self, message: Vec<u8>) -> Result<Vec<u8>, EpiphyteError> {
        self.thrown.clone().map_or_else(|| self.key.sign(message), Err)
    }
}

fn delta(
    trainer: &Trainer,
    store: Store,
    options: DeltaOptions,
) -> Result<Arc<Delta>, EpiphyteError> {
    block_on(trainer.delta(text(version()), Arc::new(store), options))
}

#[test]
fn a_round_is_trained_and_signed_by_a_callback() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let folder = dir.path().join("version");
    let applied = engine.apply_version(text(version()), text(&folder), accept());
    let applied = block_on(applied).unwrap();
    assert_eq!((applied.version, applied.round, applied.clients), (1, 1, 0));
    assert_eq!((applied.freeze, applied.clip_norm), (Some(Factor::A), Some(1.0)));
    assert!(applied.norm > 0.0);
    let trainer = trained(&engine, dir.path(), applied.freeze);
    for kind in [KeyKind::Ed25519, KeyKind::P256] {
        let store = Store::new(kind);
        let signer = store.named.clone();
        let residual = dir.path().join("residual");
        let options = DeltaOptions { residual: Some(text(&residual)), ..DeltaOptions::default() };
        let made = delta(&trainer, store, options).unwrap();
        let read = federated::Delta::from_bytes(made.bytes()).unwrap();
        assert_eq!(parse_public_key(read.manifest.signer.to_string()).unwrap(), signer);
        // Five examples: the power of two below.
        assert_eq!((read.manifest.examples, read.manifest.round), (4, 1));
        assert_eq!(read.manifest.factors, Factors::B);
        assert_eq!((made.name(), made.norm()), (read.name().to_string(), read.norm()));
        assert!(made.norm() > 0.0 && made.norm() < 1.02, "{}", made.norm());
        // What quantising lost is kept once the upload is done, not before.
        assert!(!residual.exists());
        block_on(Arc::clone(&made).uploaded()).unwrap();
        assert!(!federated::Residual::open(&residual).unwrap().is_empty());
        std::fs::remove_file(residual).unwrap();
    }
}

#[test]
fn a_version_is_refused_by_name_and_leaves_no_folder() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let folder = dir.path().join("version");
    let stranger = SigningKey::generate(KeyKind::P256).unwrap().public_key();
    let canary = |max_loss| Canary { examples: examples(5), max_loss, exact: false };
    let refused = [
        ("signer", AcceptOptions { trusted: vec![stranger], ..accept() }),
        ("version", AcceptOptions { current: Some(1), ..accept() }),
        ("norm", AcceptOptions { max_norm: Some(1e-6), ..accept() }),
        ("adapter", AcceptOptions { adapter: "another".into(), ..accept() }),
    ];
    for (expected, options) in refused {
        match apply(&engine, &folder, options) {
            Err(EpiphyteError::InvalidDelta { what, .. }) => assert_eq!(what, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
    let options = AcceptOptions { canary: Some(canary(Some(1e-3))), ..accept() };
    match apply(&engine, &folder, options) {
        Err(EpiphyteError::InvalidAdapter { what, .. }) => assert_eq!(what, "canary"),
        other => panic!("{other:?}"),
    }
    assert!(!folder.exists());
    // Nor is anything left on the device of what was only tried.
    assert!(block_on(engine.adapters()).unwrap().is_empty());
    apply(&engine, &folder, AcceptOptions { canary: Some(canary(None)), ..accept() }).unwrap();
    assert!(folder.join("adapter_model.safetensors").exists());
}

#[test]
fn what_keeps_a_delta_from_being_made_is_told() {
    let (engine, dir) = (engine(), tempfile::tempdir().unwrap());
    let trainer = trained(&engine, dir.path(), Some(Factor::A));
    let store = || Store::new(KeyKind::P256);
    let thrown =
        EpiphyteError::Callback { text: "the store is locked".into(), hint: "wait".into() };
    let refusing = Store { thrown: Some(thrown.clone()), ..store() };
    assert_eq!(delta(&trainer, refusing, DeltaOptions::default()).err(), Some(thrown));
    let named = SigningKey::generate(KeyKind::P256).unwrap().public_key();
    let lying = Store { named, ..store() };
    match delta(&trainer, lying, DeltaOptions::default()).err() {
        Some(EpiphyteError::InvalidDelta { what, .. }) => assert_eq!(what, "signature"),
        other => panic!("{other:?}"),
    }
    let trained_both = {
        let dir = dir.path().join("both");
        std::fs::create_dir(&dir).unwrap();
        trained(&engine, &dir, None)
    };
    let refused = delta(&trained_both, store(), DeltaOptions::default()).err();
    assert!(matches!(refused, Some(EpiphyteError::InvalidDelta { .. })), "{refused:?}");
    let options = DeltaOptions { drop_frozen: true, ..DeltaOptions::default() };
    delta(&trained_both, store(), options).unwrap();
    // A trainer that has not run here knows of no examples.
    let data = examples(5);
    let folder = text(dir.path().join("run"));
    let unknown = engine.trainer(TrainOptions::new(folder, data)).unwrap();
    match delta(&unknown, store(), DeltaOptions::default()).err() {
        Some(EpiphyteError::InvalidArgument { name, .. }) => assert_eq!(name, "examples"),
        other => panic!("{other:?}"),
    }
    let options = DeltaOptions { examples: Some(9), ..DeltaOptions::default() };
    let made = delta(&unknown, store(), options).unwrap();
    assert_eq!(federated::Delta::from_bytes(made.bytes()).unwrap().manifest.examples, 8);
}

#[test]
fn keys_are_kept_as_pem_and_told_as_text() {
    for kind in [KeyKind::Ed25519, KeyKind::P256] {
        let key = SigningKey::generate(kind).unwrap();
        let again = SigningKey::from_pem(key.to_pem().unwrap()).unwrap();
        assert_eq!(again.public_key(), key.public_key());
    }
    let unusable = parse_public_key("ed25519:00".into());
    assert!(matches!(unusable, Err(EpiphyteError::InvalidDelta { .. })), "{unusable:?}");
}
