//! Federated averaging, the phone's part: a published version comes in, a signed delta goes out.
//! The app moves the files, and its key store signs.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use epiphyte::adapter::{Adapter, Factor as F};
use epiphyte::dtype::DType;
use epiphyte::evaluate::{self, Examples, try_adapter};
use epiphyte::federated::{self, Accept, DeltaOptions as Made, Published, Residual, Signer as _};

use crate::cancel::Awaited;
use crate::error::{bytes, count, path as given};
use crate::held::Lease;
use crate::train_options::records;
use crate::worker::{self, lock};
use crate::{Engine, EpiphyteError, TrainData, Trainer};

/// The kinds of key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum KeyKind {
    /// Signatures of 64 bytes.
    Ed25519,
    /// ECDSA with SHA-256 on P-256, what the Secure Enclave and Android's Keystore hold; signatures
    /// in DER.
    P256,
}

impl From<KeyKind> for federated::KeyKind {
    fn from(kind: KeyKind) -> Self {
        match kind {
            KeyKind::Ed25519 => Self::Ed25519,
            KeyKind::P256 => Self::P256,
        }
    }
}

/// What signatures are checked with.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct PublicKey {
    /// Its kind.
    pub kind: KeyKind,
    /// 32 bytes for Ed25519; the point for P-256 (X9.63), compressed or not.
    pub bytes: Vec<u8>,
}

impl PublicKey {
    fn of(key: &federated::PublicKey) -> Self {
        let kind = match key.kind() {
            federated::KeyKind::Ed25519 => KeyKind::Ed25519,
            federated::KeyKind::P256 => KeyKind::P256,
        };
        Self { kind, bytes: key.bytes().to_vec() }
    }

    pub(crate) fn key(&self) -> Result<federated::PublicKey, EpiphyteError> {
        Ok(federated::PublicKey::new(self.kind.into(), &self.bytes)?)
    }
}

/// A public key as `epiphyte delta key` prints it (`ed25519:…`, `p256:…`), or a PEM.
#[uniffi::export]
pub fn parse_public_key(text: String) -> Result<PublicKey, EpiphyteError> {
    let pem = text.trim_start().starts_with("-----BEGIN");
    let key = if pem { federated::PublicKey::from_pem(&text)? } else { text.trim().parse()? };
    Ok(PublicKey::of(&key))
}

/// Signs with a key that the library never sees, on a thread of the library's.
#[uniffi::export(with_foreign)]
pub trait SigningCallback: Send + Sync {
    /// The key that signatures are checked with.
    fn public_key(&self) -> Result<PublicKey, EpiphyteError>;

    /// The signature of a message: 64 bytes for Ed25519; for P-256 that of its SHA-256, in DER.
    fn sign(&self, message: Vec<u8>) -> Result<Vec<u8>, EpiphyteError>;
}

/// A key in the app's own memory, for tests and for devices without a key store.
#[derive(uniffi::Object)]
pub struct SigningKey(federated::SigningKey);

#[uniffi::export]
impl SigningKey {
    /// A new one, from the system's randomness.
    #[uniffi::constructor]
    pub fn generate(kind: KeyKind) -> Result<Arc<Self>, EpiphyteError> {
        Ok(Arc::new(Self(federated::SigningKey::generate(kind.into())?)))
    }

    /// One that was kept (PEM, PKCS#8).
    #[uniffi::constructor]
    pub fn from_pem(text: String) -> Result<Arc<Self>, EpiphyteError> {
        Ok(Arc::new(Self(federated::SigningKey::from_pem(&text)?)))
    }

    /// To keep it (PEM, PKCS#8), as safe as what it signs for.
    pub fn to_pem(&self) -> Result<String, EpiphyteError> {
        Ok(self.0.to_pem()?)
    }

    /// Its public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.0.public_key())
    }

    /// As [`SigningCallback::sign`].
    pub fn sign(&self, message: Vec<u8>) -> Result<Vec<u8>, EpiphyteError> {
        Ok(self.0.sign(&message)?)
    }
}

/// A callback as the runtime has signers, which keeps what was thrown.
pub(crate) struct Signing<'a> {
    callback: &'a dyn SigningCallback,
    key: federated::PublicKey,
    pub(crate) thrown: RefCell<Option<EpiphyteError>>,
}

impl<'a> Signing<'a> {
    /// By the callback, whose key was asked for.
    pub(crate) fn of(callback: &'a dyn SigningCallback, key: federated::PublicKey) -> Self {
        Self { callback, key, thrown: RefCell::default() }
    }
}

impl federated::Signer for Signing<'_> {
    fn public_key(&self) -> federated::PublicKey {
        self.key.clone()
    }

    fn sign(&self, message: &[u8]) -> epiphyte::Result<Vec<u8>> {
        self.callback.sign(message.to_vec()).map_err(|error| {
            *self.thrown.borrow_mut() = Some(error);
            epiphyte::Error::InvalidArgument { name: "signer", reason: "it threw".into() }
        })
    }
}

/// A factor of LoRA's `B A`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum Factor {
    /// `lora_A`, `[rank, in]`.
    A,
    /// `lora_B`, `[out, rank]`.
    B,
}

impl Factor {
    fn of(factor: F) -> Self {
        match factor {
            F::A => Self::A,
            F::B => Self::B,
        }
    }
}

impl From<Factor> for F {
    fn from(factor: Factor) -> Self {
        match factor {
            Factor::A => Self::A,
            Factor::B => Self::B,
        }
    }
}

/// What a version is tried on before it is used.
#[derive(Clone, Debug, uniffi::Record)]
pub struct Canary {
    /// Examples of the app's own.
    pub examples: TrainData,
    /// The largest loss, in nats a token; none asks only that it is a number.
    #[uniffi(default = None)]
    pub max_loss: Option<f64>,
    /// All answers are exact.
    #[uniffi(default = false)]
    pub exact: bool,
}

/// What a version must be to be used.
#[derive(Clone, Debug, uniffi::Record)]
pub struct AcceptOptions {
    /// The adapter that it is a version of.
    pub adapter: String,
    /// Keys that may publish.
    pub trusted: Vec<PublicKey>,
    /// The version in use: only a higher one is taken. None takes any.
    #[uniffi(default = None)]
    pub current: Option<i64>,
    /// The largest norm of what it adds to the base, `scaling B A` over all modules.
    #[uniffi(default = None)]
    pub max_norm: Option<f64>,
    /// What it is tried on; none leaves that out.
    #[uniffi(default = None)]
    pub canary: Option<Canary>,
}

/// A version that was accepted, and the round that it asks for.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct AdapterVersion {
    /// Where it lies as PEFT's folder: for `load_adapter`, and for `init` of `TrainOptions`.
    pub folder: String,
    /// The adapter's id, the same over all versions.
    pub adapter: String,
    /// Its number.
    pub version: i64,
    /// Of what it adds to the base.
    pub norm: f64,
    /// Deltas in it.
    pub clients: i64,
    /// The number of the round that follows.
    pub round: i64,
    /// The factor that the round freezes: for `freeze` of `TrainOptions`.
    pub freeze: Option<Factor>,
    /// The largest norm of a delta; a larger one is shrunk to it.
    pub clip_norm: Option<f64>,
    /// Seconds since 1970 until which deltas are taken.
    pub expires: i64,
}

impl AdapterVersion {
    fn new(folder: String, version: &Published) -> Self {
        let (manifest, plan) = (&version.manifest, &version.manifest.next);
        Self {
            folder,
            adapter: manifest.adapter.clone(),
            version: bytes(manifest.version),
            norm: version.norm(),
            clients: bytes(manifest.clients),
            round: bytes(plan.round),
            freeze: plan.factors.frozen().map(Factor::of),
            clip_norm: plan.clip_norm,
            expires: bytes(plan.expires),
        }
    }
}

#[uniffi::export]
impl Engine {
    /// Checks a published version and writes it as an adapter's folder: its signature and who made
    /// it, that it is newer, of this base and no larger than allowed, and what the canary says. A
    /// version that is refused leaves the folder as it was.
    pub async fn apply_version(
        &self,
        version: String,
        folder: String,
        options: AcceptOptions,
    ) -> Result<AdapterVersion, EpiphyteError> {
        let lease = self.lease()?;
        let awaited = Awaited::new(None);
        let cancel = awaited.token();
        worker::run("apply_version", move || apply(&lease, version, folder, options, &cancel)).await
    }
}

fn apply(
    engine: &Lease,
    version: String,
    folder: String,
    options: AcceptOptions,
    cancel: &epiphyte::CancelToken,
) -> Result<AdapterVersion, EpiphyteError> {
    let version = Published::open(given("version", version)?)?;
    let out = given("folder", folder.clone())?;
    let trusted: Vec<_> = options.trusted.iter().map(PublicKey::key).collect::<Result<_, _>>()?;
    version.accept(&Accept {
        trusted: &trusted,
        base_fingerprint: &engine.base().fingerprint,
        adapter: &options.adapter,
        current: options.current.map(|current| count("current", current)).transpose()?,
        max_norm: options.max_norm,
    })?;
    let shape = engine.base().adapter_shape();
    let adapter = version.adapter(&shape)?;
    if let Some(canary) = options.canary {
        try_out(engine, &adapter, canary, cancel)?;
    }
    adapter.save_peft(out, DType::F32, &shape)?;
    Ok(AdapterVersion::new(folder, &version))
}

fn try_out(
    engine: &Lease,
    adapter: &Adapter,
    canary: Canary,
    cancel: &epiphyte::CancelToken,
) -> Result<(), EpiphyteError> {
    let Canary { examples, max_loss, exact } = canary;
    let canary = evaluate::Canary { max_loss, exact };
    let tried = match examples {
        TrainData::Examples { examples } => {
            let records = records(examples)?;
            try_adapter(engine, adapter, |to| Examples::of(records, to), &canary, cancel)
        }
        TrainData::Jsonl { path } => {
            let path = given("examples", path)?;
            try_adapter(engine, adapter, |to| Examples::read_jsonl(path, to), &canary, cancel)
        }
        TrainData::Text { .. } => {
            let reason = "a document asks nothing; give examples, or JSON records".into();
            return Err(EpiphyteError::invalid("canary", reason));
        }
    };
    Ok(tried.map(drop)?)
}

/// Losses on examples of the app's own, which the delta's manifest tells.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct DeltaLosses {
    /// Of the parent.
    pub before: f64,
    /// Of what was trained.
    pub after: f64,
}

/// How a delta is made, beside what the round's plan says.
#[derive(Clone, Debug, Default, uniffi::Record)]
pub struct DeltaOptions {
    /// Examples it was trained on; only the power of two below is told. None: those of this
    /// trainer's last run.
    #[uniffi(default = None)]
    pub examples: Option<i64>,
    /// What training did to the loss.
    #[uniffi(default = None)]
    pub losses: Option<DeltaLosses>,
    /// Leave out what changed in a factor that the round freezes, rather than refuse it.
    #[uniffi(default = false)]
    pub drop_frozen: bool,
    /// A file of this device's own in which is kept what quantising loses, to be added in the next
    /// round; none loses it.
    #[uniffi(default = None)]
    pub residual: Option<String>,
}

/// What training changed, signed and ready to be uploaded.
#[derive(uniffi::Object)]
pub struct Delta {
    bytes: Vec<u8>,
    name: String,
    norm: f64,
    was_clipped: bool,
    kept: Option<Kept>,
}

/// What quantising lost, and where that is written.
struct Kept {
    path: PathBuf,
    residual: Mutex<Residual>,
}

#[uniffi::export]
impl Delta {
    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// What its manifest and numbers are known by.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Of its numbers.
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// It was shrunk to the round's norm.
    pub fn was_clipped(&self) -> bool {
        self.was_clipped
    }

    /// To be called once the upload is done: keeps what quantising lost for the next round.
    pub async fn uploaded(self: Arc<Self>) -> Result<(), EpiphyteError> {
        let keep = move || match &self.kept {
            Some(kept) => Ok(lock(&kept.residual).save(&kept.path)?),
            None => Ok(()),
        };
        worker::run("uploaded", keep).await
    }
}

#[uniffi::export]
impl Trainer {
    /// What the run changed since the version that it began from, by the plan of the version's
    /// round, as a signed file to upload. What `signer` throws, this throws.
    pub async fn delta(
        &self,
        version: String,
        signer: Arc<dyn SigningCallback>,
        options: DeltaOptions,
    ) -> Result<Arc<Delta>, EpiphyteError> {
        let lease = self.lease()?;
        let (folder, examples) = (self.folder(), self.examples());
        let make = move || {
            let trained = Adapter::load(folder, lease.base().adapted())?;
            make(&given("version", version)?, &trained, &*signer, options, examples)
        };
        worker::run("delta", make).await
    }
}

fn make(
    version: &Path,
    trained: &Adapter,
    signer: &dyn SigningCallback,
    options: DeltaOptions,
    examples: Option<u64>,
) -> Result<Arc<Delta>, EpiphyteError> {
    let parent = Published::open(version)?;
    let told = options.examples.map(|examples| count("examples", examples)).transpose()?;
    let examples = told.or(examples).filter(|&examples: &u64| examples > 0).ok_or_else(|| {
        let reason = "none is known of a run that was not run here; say how many".into();
        EpiphyteError::invalid("examples", reason)
    })?;
    let losses =
        options.losses.map(|DeltaLosses { before, after }| federated::Losses { before, after });
    let made = Made { examples, losses, drop_frozen: options.drop_frozen, ..Made::default() };
    let path = options.residual.map(|path| given("residual", path)).transpose()?;
    let mut residual = path.as_ref().map(Residual::open).transpose()?;
    let signing = Signing::of(signer, signer.public_key()?.key()?);
    let bytes = federated::make(&parent, trained, &made, residual.as_mut(), &signing)
        .map_err(|error| signing.thrown.take().unwrap_or_else(|| error.into()))?;
    // As whoever gets it will: a signer of another kind than its key is found here.
    let read = federated::Delta::from_bytes(bytes.clone())?;
    let kept = path.zip(residual);
    Ok(Arc::new(Delta {
        bytes,
        name: read.name().into(),
        norm: read.norm(),
        was_clipped: read.manifest.clip.is_some_and(|clip| clip.was_clipped),
        kept: kept.map(|(path, residual)| Kept { path, residual: Mutex::new(residual) }),
    }))
}
