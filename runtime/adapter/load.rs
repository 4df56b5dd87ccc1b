//! An adapter: LoRA on some modules of one base, read from files and written to them.

use std::io::{Cursor, Read as _, Seek};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::config::LoraConfig;
use super::copies::AdaptedBase;
use super::module::LoraModule;
use super::parts::{Found, Origin};
use super::report::LoadReport;
use super::{gguf_lora, peft};
use crate::base::{BaseShape, ModulePath, fingerprint};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format;
use crate::format::gguf::Gguf;
use crate::format::safetensors::{self, SafetensorsFile};
use crate::identity::{self, Identity};
use crate::parallel;

/// The first bytes of a GGUF file.
const MAGIC: &[u8] = b"GGUF";
/// Letters of a file's name for something, in an error.
const MAX_NAME: usize = 128;
/// In place of a path in errors.
const MEMORY: &str = "<memory>";

/// LoRA on some modules of one base, in host memory as f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// What the files say beside the tensors.
    pub config: LoraConfig,
    /// Sorted by path, each path once.
    pub modules: Vec<LoraModule>,
    /// The base it was made for; `None` for a foreign adapter, which does not say.
    pub base_fingerprint: Option<String>,
    /// What it was merged from and how, as [`crate::merge::Manifest`] reads it; `None` for an adapter
    /// that was trained.
    pub manifest: Option<String>,
    /// What became of each key and tensor of the file; empty for an adapter made here.
    pub report: LoadReport,
}

impl Adapter {
    /// An adapter made here, of modules in any order.
    ///
    /// Errors: [`Error::InvalidAdapter`] naming a module that does not fit the base or is given
    /// twice.
    pub fn new(
        config: LoraConfig,
        mut modules: Vec<LoraModule>,
        base_fingerprint: Option<String>,
        shape: &BaseShape,
    ) -> Result<Self> {
        modules.sort_by_key(|module| module.path);
        for pair in modules.windows(2) {
            if pair[0].path == pair[1].path {
                let (what, reason) = (pair[0].path.to_string(), "given twice".into());
                return Err(Error::InvalidAdapter { what, reason });
            }
        }
        modules.iter().try_for_each(|module| module.check(shape))?;
        let report = LoadReport::default();
        Ok(Self { config, modules, base_fingerprint, manifest: None, report })
    }

    /// The module's factors, if it has any.
    pub fn module(&self, path: ModulePath) -> Option<&LoraModule> {
        let found = self.modules.binary_search_by_key(&path, |module| module.path);
        found.ok().and_then(|i| self.modules.get(i))
    }

    /// Names what it computes: `epiphyte.factors.1` and a hash of each module's f32 factors and
    /// scaling by path. The type of numbers in the file, padding and what else the config says
    /// leave it alone.
    pub fn digest(&self) -> String {
        digest(&self.modules)
    }

    /// That it was made for the base of this fingerprint, or does not say for which.
    ///
    /// Errors: [`Error::BaseMismatch`]; [`Error::FingerprintVersion`] when it can't be told.
    pub fn check_base(&self, fingerprint: &str) -> Result<()> {
        let made_for = self.base_fingerprint.as_deref();
        made_for.map_or(Ok(()), |made_for| fingerprint::check(made_for, fingerprint))
    }

    /// Reads a PEFT folder, a PEFT safetensors file with the config in its metadata, or a GGUF
    /// LoRA: by content. Either all of it is loaded or nothing. A GGUF file is mapped meanwhile: it
    /// may be replaced or deleted, but not cut short in place. `base` is its sizes, or with them
    /// where its weights are, for adapters that hold copies of some.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] for a file that is no adapter or is damaged;
    /// [`Error::InvalidMetadata`] and [`Error::InvalidTensor`] for a damaged GGUF;
    /// [`Error::InvalidAdapter`] naming the first key or tensor that can't be honoured
    /// ([`Self::inspect`] gives all of them).
    pub fn load<'a>(path: impl AsRef<Path>, base: impl Into<AdaptedBase<'a>>) -> Result<Self> {
        read(path.as_ref(), base.into())?.into_adapter()
    }

    /// Reads an adapter as [`Self::load`] does, and reports what became of everything in it,
    /// refused or not.
    ///
    /// Errors: as [`Self::load`], but for what the report says.
    pub fn inspect<'a>(
        path: impl AsRef<Path>,
        base: impl Into<AdaptedBase<'a>>,
    ) -> Result<LoadReport> {
        Ok(read(path.as_ref(), base.into())?.report)
    }

    /// As [`Self::load`], from a PEFT adapter in memory: the text of its config and its
    /// safetensors.
    ///
    /// Errors: as [`Self::load`].
    pub fn from_peft(config: &[u8], tensors: &[u8], shape: &BaseShape) -> Result<Self> {
        let file = SafetensorsFile::new(Path::new(MEMORY), Cursor::new(tensors))?;
        read_peft(config, file, shape.into())?.into_adapter()
    }

    /// As [`Self::load`], from a GGUF file in memory, or safetensors with the config in their
    /// metadata.
    ///
    /// Errors: as [`Self::load`].
    pub fn from_bytes(bytes: Vec<u8>, shape: &BaseShape) -> Result<Self> {
        if bytes.starts_with(MAGIC) {
            return read_gguf(&Gguf::from_bytes(bytes)?, shape)?.into_adapter();
        }
        let path = Path::new(MEMORY);
        let file = SafetensorsFile::new(path, Cursor::new(bytes))?;
        read_peft(&peft::config_inside(path, &file)?, file, shape.into())?.into_adapter()
    }

    /// Writes a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`), with tensors in
    /// `dtype`: F32 or F16. An adapter that is there already is replaced.
    ///
    /// Errors: [`Error::Io`]; [`Error::InvalidFile`] for a folder that holds something else;
    /// [`Error::InvalidAdapter`] for a module whose numbers are too large for F16, or which the
    /// config does not mean.
    pub fn save_peft(&self, dir: impl AsRef<Path>, dtype: DType, shape: &BaseShape) -> Result<()> {
        peft::check_folder(dir.as_ref())?;
        self.write_peft(dir.as_ref(), dtype, shape)
    }

    /// As [`Self::save_peft`], to a folder that was checked already.
    pub(crate) fn write_peft(&self, dir: &Path, dtype: DType, shape: &BaseShape) -> Result<()> {
        self.check(shape)?;
        peft::save(dir, &self.config, &self.modules, self.origin(), dtype, shape)
    }

    /// Writes a GGUF LoRA for llama.cpp, with tensors in `dtype`: F32 or F16. A file that is there
    /// is replaced.
    ///
    /// llama.cpp knows one alpha a file: where modules need several (`alpha_pattern`, `use_rslora`
    /// with several ranks), B is multiplied by the difference, to the last bit or two.
    ///
    /// Errors: as [`Self::save_peft`]; [`Error::Unsupported`] for LoRA on the embedding or the head
    /// of a base where they are one, which llama.cpp can't load.
    pub fn save_gguf(&self, path: impl AsRef<Path>, dtype: DType, shape: &BaseShape) -> Result<()> {
        self.check(shape)?;
        gguf_lora::save(
            path.as_ref(),
            &self.modules,
            self.origin(),
            (self.config.lora_alpha, shape, dtype),
        )
    }

    fn origin(&self) -> Origin<'_> {
        let (fingerprint, manifest) = (self.base_fingerprint.as_deref(), self.manifest.as_deref());
        Origin { fingerprint, manifest }
    }

    /// That the modules fit the base, and are what the config says: else readers would see another
    /// adapter.
    fn check(&self, shape: &BaseShape) -> Result<()> {
        let targets = self.config.modules(shape)?;
        for module in &self.modules {
            module.check(shape)?;
            let target = targets.iter().find(|target| target.path == module.path);
            if target.is_none_or(|t| (t.rank, t.scaling) != (module.rank, module.scaling)) {
                let (what, says) = (module.path.to_string(), target.map(|t| (t.rank, t.scaling)));
                let reason = format!(
                    "rank and scaling {:?}, but the config says {says:?}",
                    (module.rank, module.scaling)
                );
                return Err(Error::InvalidAdapter { what, reason });
            }
        }
        Ok(())
    }
}

/// [`Adapter::digest`] of modules sorted by path.
pub(crate) fn digest(modules: &[LoraModule]) -> String {
    let hashes = parallel::map(modules.iter().collect(), |module: &LoraModule| {
        [&module.a, &module.b].map(|factor| identity::hash_floats(factor))
    });
    let mut identity = Identity::new("epiphyte.factors.1");
    for (module, [a, b]) in modules.iter().zip(hashes) {
        let (path, r) = (module.path, module.rank);
        let width = |factor: &[f32]| factor.len().checked_div(r).unwrap_or(0);
        let tensor = |shape: [usize; 2], hash| identity::tensor("F32", &shape, hash);
        identity.add(format!("{path}.lora_A"), tensor([r, width(&module.a)], a));
        identity.add(format!("{path}.lora_B"), tensor([width(&module.b), r], b));
        identity.add(format!("{path}.scaling"), identity::bits(module.scaling));
    }
    identity.name()
}

/// What [`Parts::assemble`] gives.
struct Read {
    config: LoraConfig,
    modules: Vec<LoraModule>,
    report: LoadReport,
}

impl Read {
    fn into_adapter(self) -> Result<Adapter> {
        let Self { config, modules, report } = self;
        if let Some(first) = report.refused().next() {
            let others = match report.refused().count() - 1 {
                0 => String::new(),
                n => format!(" (and {n} more)"),
            };
            let what = first.name.chars().take(MAX_NAME).collect();
            return Err(Error::InvalidAdapter {
                what,
                reason: format!("{}{others}", first.reason),
            });
        }
        let (base_fingerprint, manifest) =
            (report.base_fingerprint.clone(), report.manifest.clone());
        Ok(Adapter { config, modules, base_fingerprint, manifest, report })
    }
}

fn read(path: &Path, base: AdaptedBase<'_>) -> Result<Read> {
    if path.is_dir() {
        let (config, file) = peft::open_folder(path)?;
        return read_peft(&config, file, base);
    }
    let mut magic = [0; 4];
    let mut file = format::open(path)?;
    // A file of fewer bytes is neither; what follows says so.
    let _ = file.read_exact(&mut magic);
    if magic == MAGIC {
        return read_gguf(&Gguf::open(path)?, &base.shape);
    }
    let file = SafetensorsFile::open(path)?;
    read_peft(&peft::config_inside(path, &file)?, file, base)
}

fn read_peft<R: std::io::Read + Seek + Send>(
    config: &[u8],
    mut file: SafetensorsFile<R>,
    base: AdaptedBase<'_>,
) -> Result<Read> {
    let mut parts = peft::parts(config, &file, &base.shape)?;
    for copy in std::mem::take(&mut parts.copies) {
        parts.others.push(peft::judge_copy(&mut file, &copy, base.weights)?);
    }
    let (config, modules, report) = {
        let file = Mutex::new(file);
        let read = |found: &Found| {
            // A panic while reading would have ended the load.
            let (dtype, bytes) =
                file.lock().unwrap_or_else(PoisonError::into_inner).read(&found.name)?;
            safetensors::floats(&found.name, dtype, &bytes)
        };
        parts.assemble(&base.shape, &read)?
    };
    Ok(Read { config, modules, report })
}

fn read_gguf(gguf: &Gguf, shape: &BaseShape) -> Result<Read> {
    let parts = gguf_lora::parts(gguf, shape)?;
    let (config, modules, report) =
        parts.assemble(shape, &|found| gguf_lora::read(gguf, found, shape))?;
    Ok(Read { config, modules, report })
}
