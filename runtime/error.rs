//! One error type for the whole runtime: a variant a cause, each naming the thing and the remedy.
//!
//! Prompts, examples and adapter contents never appear in a message.

use std::path::PathBuf;

/// What the runtime returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by cause. Messages are lower-case, name the thing, then give a
/// hint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it claims to be, or is cut short.
    #[error("{}: {reason}", path.display())]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, where, and what to do.
        reason: String,
    },
    /// A metadata key is missing or holds something unusable.
    #[error("metadata key `{key}`: {reason}")]
    InvalidMetadata {
        /// The key as the file spells it.
        key: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A tensor's entry is unusable: its type, shape, offset or contents.
    #[error("tensor `{name}`: {reason}")]
    InvalidTensor {
        /// The tensor as the file spells it.
        name: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The model needs a tensor that the file lacks.
    #[error("tensor `{name}` is missing; the file is incomplete or of another architecture")]
    MissingTensor {
        /// The tensor's Hugging Face module path.
        name: String,
    },
    /// Known, but not supported.
    #[error("{what} is not supported; {hint}")]
    Unsupported {
        /// The architecture, format or feature.
        what: String,
        /// What is supported instead.
        hint: String,
    },
    /// An argument is out of range.
    #[error("`{name}`: {reason}")]
    InvalidArgument {
        /// The argument.
        name: &'static str,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// The tokenizer can't be built or can't encode.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template does not parse, loops, or rejects the conversation.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// No usable GPU.
    #[error("no GPU: {0}")]
    NoGpu(String),
    /// The driver refused something, named by the operation.
    #[error("gpu: {op}: {reason}")]
    Gpu {
        /// What was being done.
        op: String,
        /// What the driver said.
        reason: String,
    },
    /// The device disappeared: a driver reset, an unplugged GPU, an app in the background.
    #[error("the GPU device was lost ({0}); open the engine again, saved sessions can be restored")]
    DeviceLost(String),
    /// The app is in the background, where the system allows no work on the GPU.
    #[error(
        "the app is in the background, where the GPU must not be used; tell the engine when it is \
        in the foreground and call again"
    )]
    Background,
    /// The device has no memory for this.
    #[error(
        "out of device memory: {what} needs {needed_bytes} bytes; use a smaller model or context"
    )]
    OutOfMemory {
        /// What was being allocated.
        what: String,
        /// Its size.
        needed_bytes: u64,
    },
    /// A memory plan exceeds its budget; nothing was allocated.
    #[error("{needed} of memory are needed and {budget} are allowed: {sum}; {remedy}")]
    OverBudget {
        /// Bytes in all, for people.
        needed: String,
        /// Bytes allowed, for people.
        budget: String,
        /// The sum by class.
        sum: String,
        /// The nearest setting that fits, or what the smallest one takes.
        remedy: String,
    },
    /// The context or the KV cache has no room; nothing was lost.
    #[error(
        "the context is full: {needed} tokens are needed and {capacity} fit; shorten the prompt, \
        or start a new session"
    )]
    ContextFull {
        /// Tokens after the call.
        needed: usize,
        /// Tokens that fit.
        capacity: usize,
    },
    /// An adapter can't be used as it is: a key, a tensor or a module of it.
    #[error("adapter: `{what}`: {reason}")]
    InvalidAdapter {
        /// The key, tensor or module.
        what: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// An adapter does not fit the bytes set aside for adapters.
    #[error(
        "adapter `{id}` needs {needed_bytes} bytes and the budget of {budget_bytes} has no room \
        beside those in use; \
         raise it as far as the device lets, or use fewer at once"
    )]
    AdapterBudget {
        /// Its id.
        id: String,
        /// Its size.
        needed_bytes: u64,
        /// For all adapters together.
        budget_bytes: u64,
    },
    /// An adapter is asked for, by a call or by a saved session, under an id that names none.
    #[error("adapter `{id}` is not loaded; load it under that id first")]
    AdapterNotLoaded {
        /// Its id.
        id: String,
    },
    /// An adapter can't go while a session uses it.
    #[error("adapter `{id}` is in use by a session; change that session's adapters first")]
    AdapterInUse {
        /// Its id.
        id: String,
    },
    /// Sessions use as many different sets of adapters as the engine keeps.
    #[error("{most} different sets of adapters are in use; close a session, or share a set")]
    AdapterSets {
        /// Sets that may be in use at once.
        most: usize,
    },
    /// A saved session was made with another adapter than the one that is loaded under its id.
    #[error(
        "the session was saved with adapter `{id}`, and the one loaded under that id differs (its \
        factors hash to {}, not {}); load the one it was saved with",
        short(got),
        short(expected)
    )]
    AdapterMismatch {
        /// Its id.
        id: String,
        /// The digest in the file.
        expected: String,
        /// The digest of the loaded adapter.
        got: String,
    },
    /// A delta, a version of an adapter or a key can't be used: a field or tensor of it.
    #[error("`{what}`: {reason}")]
    InvalidDelta {
        /// The field, tensor or module.
        what: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Flower's server gives no usable answer; what the node has is kept.
    #[error("SuperLink, {call}: {reason}")]
    SuperLink {
        /// What was asked for, as the API has it.
        call: &'static str,
        /// What came of it and what to do.
        reason: String,
    },
    /// A training run can't go on; what it had learned is kept.
    #[error("training: {0}")]
    Training(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// A saved session or adapter belongs to another base model.
    #[error(
        "made for base model {}, but {} is loaded; open it with the model it was made with",
        short(expected),
        short(got)
    )]
    BaseMismatch {
        /// The fingerprint in the file.
        expected: String,
        /// The fingerprint of the loaded base.
        got: String,
    },
    /// A file names its base by a fingerprint of another version than is computed here, so nobody
    /// can tell whether it is the one that is loaded.
    #[error(
        "it names its base model by a fingerprint of another version ({}; the one that is loaded \
        is {}), so it can't be told whether it is for this one; if you know that it is, load it \
        with --force, or write it again with `adapter convert --force`",
        short(found),
        short(own)
    )]
    FingerprintVersion {
        /// The fingerprint in the file.
        found: String,
        /// The fingerprint of the loaded base.
        own: String,
    },
    /// A file of another version of its format than is read here.
    #[error(
        "{}: it is of format `{found}`, and this version reads `{reads}`; {}",
        path.display(),
        if is_newer(found, reads) {
            "update Epiphyte"
        } else {
            "open it with the version that wrote it, or make it again"
        }
    )]
    FormatVersion {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        found: String,
        /// What is read here.
        reads: &'static str,
    },
}

/// A name's tag and the first digits of its hash, which tell it apart for people.
fn short(name: &str) -> String {
    const DIGITS: usize = 16;
    match name.split_once(':') {
        Some((tag, hash)) => format!("{tag}:{}", hash.chars().take(DIGITS).collect::<String>()),
        None => name.into(),
    }
}

/// Whether the version at the end of a format's name is above that of another.
fn is_newer(found: &str, reads: &str) -> bool {
    let version = |format: &str| format.rsplit('.').next().and_then(|n| n.parse::<u32>().ok());
    version(found) > version(reads)
}

impl Error {
    /// What to do about it: the end of the message, where that gives a remedy. Never empty.
    pub fn hint(&self) -> String {
        use std::io::ErrorKind as Kind;
        let of_cause = match self {
            Self::Io { source, .. } => match source.kind() {
                Kind::NotFound => "see to it that the file is there",
                Kind::PermissionDenied => "see to it that this program may use the file",
                Kind::StorageFull | Kind::QuotaExceeded => "free some storage",
                _ => "see whether file and storage are in order",
            },
            Self::Cancelled => "call it again when it is wanted",
            _ => "",
        };
        match self.to_string().rsplit_once("; ") {
            _ if !of_cause.is_empty() => of_cause.into(),
            Some((_, remedy)) => remedy.into(),
            None => self.usual_remedy(),
        }
    }

    /// The remedy of what has none in its message.
    fn usual_remedy(&self) -> String {
        match self {
            Self::InvalidArgument { name, .. } => format!("change `{name}`"),
            Self::InvalidFile { .. }
            | Self::InvalidMetadata { .. }
            | Self::InvalidTensor { .. }
            | Self::MissingTensor { .. } => "get the file again, or make it again".into(),
            Self::InvalidAdapter { .. } | Self::InvalidDelta { .. } => {
                "make it again, for this base".into()
            }
            Self::Unsupported { .. } => "take another model, file or device".into(),
            Self::NoGpu(_) | Self::Gpu { .. } | Self::DeviceLost(_) => {
                "open the engine again, with another device where there is one".into()
            }
            _ => "change what the message names".into(),
        }
    }

    /// Wraps an I/O error with the file it happened to.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }
}
