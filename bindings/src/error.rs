//! One error across the border, a case a cause: each with its data, a message for people, and what
//! to do about it.

use std::path::PathBuf;

use epiphyte::Error;

/// The enum, with `text` and `hint` in every case, and what reads them.
macro_rules! errors {
    ($($(#[$about:meta])* $case:ident {
        $($(#[$what:meta])* $field:ident: $type:ty,)*
    })*) => {
        /// What every call throws. No case quotes a prompt, an example or an answer.
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, uniffi::Error)]
        pub enum EpiphyteError {
            $(
                $(#[$about])*
                #[error("{text}")]
                $case {
                    /// The thing and the remedy, on a line.
                    text: String,
                    /// The remedy.
                    hint: String,
                    $($(#[$what])* $field: $type,)*
                },
            )*
        }

        #[uniffi::export]
        impl EpiphyteError {
            /// The thing and the remedy, on a line for people.
            pub fn message(&self) -> String {
                match self { $(Self::$case { text, .. })|* => text.clone() }
            }

            /// The remedy alone.
            pub fn hint(&self) -> String {
                match self { $(Self::$case { hint, .. })|* => hint.clone() }
            }
        }
    };
}

errors! {
    /// The operating system refused a file operation.
    Io {
        /// The file.
        path: String,
    }
    /// The file is not what it claims to be, or is cut short.
    InvalidFile {
        /// The file.
        path: String,
    }
    /// A metadata key of a model is missing or holds something unusable.
    InvalidMetadata {
        /// The key.
        key: String,
    }
    /// A tensor's entry in a model is unusable.
    InvalidTensor {
        /// The tensor.
        name: String,
    }
    /// The model needs a tensor that the file lacks.
    MissingTensor {
        /// The tensor.
        name: String,
    }
    /// Known, but not supported.
    Unsupported {
        /// The architecture, format or feature.
        what: String,
    }
    /// An argument is out of range.
    InvalidArgument {
        /// The argument.
        name: String,
    }
    /// The tokenizer can't be built or can't encode.
    Tokenizer {}
    /// The chat template does not parse, loops, or rejects the conversation.
    ChatTemplate {}
    /// No usable GPU.
    NoGpu {}
    /// The driver refused something.
    Gpu {
        /// What was being done.
        op: String,
    }
    /// The device disappeared.
    DeviceLost {}
    /// The app is in the background, where the GPU must not be used; call again in the foreground.
    Background {}
    /// The device has no memory for this.
    OutOfMemory {
        /// What was being allocated.
        what: String,
        /// Its size.
        needed_bytes: i64,
    }
    /// More memory would be needed than is allowed; nothing was allocated.
    OverBudget {}
    /// The context has no room; nothing was lost.
    ContextFull {
        /// Tokens after the call.
        needed: i32,
        /// Tokens that fit.
        capacity: i32,
    }
    /// An adapter can't be used as it is.
    InvalidAdapter {
        /// The key, tensor or module.
        what: String,
    }
    /// An adapter does not fit the bytes set aside for adapters.
    AdapterBudget {
        /// Its id.
        id: String,
        /// Its size.
        needed_bytes: i64,
        /// For all adapters together.
        budget_bytes: i64,
    }
    /// An adapter can't go while sessions use it.
    AdapterInUse {
        /// Its id.
        id: String,
    }
    /// More sets of adapters are in use at once than there is room for.
    AdapterSets {
        /// Sets that may be in use at once.
        most: i32,
    }
    /// A saved session was made with an adapter that is not loaded.
    AdapterNotLoaded {
        /// Its id.
        id: String,
    }
    /// A saved session was made with another adapter than the one that is loaded under its id.
    AdapterMismatch {
        /// Its id.
        id: String,
    }
    /// A delta, a version of an adapter or a key can't be used.
    InvalidDelta {
        /// The field, tensor or module.
        what: String,
    }
    /// Flower's server gives no usable answer; what the node has is kept.
    SuperLink {
        /// What was asked for, as Flower's API has it.
        call: String,
    }
    /// A training run can't go on; what it had learned is kept.
    Training {}
    /// The caller asked to stop.
    Cancelled {}
    /// A saved session or adapter belongs to another base model.
    BaseMismatch {
        /// The fingerprint in the file.
        expected: String,
        /// The fingerprint of the loaded base.
        got: String,
    }
    /// A file names its base by a fingerprint of another version than is computed here.
    FingerprintVersion {
        /// The fingerprint in the file.
        found: String,
        /// The fingerprint of the loaded base.
        own: String,
    }
    /// A file of another version of its format than is read here.
    FormatVersion {
        /// The file.
        path: String,
        /// What it says it is.
        found: String,
        /// What is read here.
        reads: String,
    }
    /// The engine, session or other handle was closed.
    Closed {
        /// Which.
        what: String,
    }
    /// Something else is going on with it that has to end first.
    Busy {
        /// What is busy.
        what: String,
    }
    /// A listener of the app's own threw.
    Callback {}
    /// A fault of this library. What it happened to is closed; the rest goes on.
    Internal {}
}

impl EpiphyteError {
    pub(crate) fn closed(what: &str) -> Self {
        let hint = "open it again".to_string();
        Self::Closed { text: format!("the {what} is closed; {hint}"), hint, what: what.into() }
    }

    pub(crate) fn busy(what: &str, with: &str, hint: &str) -> Self {
        let text = format!("the {what} is busy with {with}; {hint}");
        Self::Busy { text, hint: hint.into(), what: what.into() }
    }

    pub(crate) fn internal(what: &str) -> Self {
        let hint = "this is a fault of Epiphyte: report it with what was called".to_string();
        Self::Internal { text: format!("{what}: failed unexpectedly; {hint}"), hint }
    }

    pub(crate) fn invalid(name: &'static str, reason: String) -> Self {
        Error::InvalidArgument { name, reason }.into()
    }
}

impl From<Error> for EpiphyteError {
    fn from(error: Error) -> Self {
        let (text, hint) = (error.to_string(), error.hint());
        match error {
            Error::Io { path, .. } => Self::Io { text, hint, path: path.display().to_string() },
            Error::InvalidFile { path, .. } => {
                Self::InvalidFile { text, hint, path: path.display().to_string() }
            }
            Error::InvalidMetadata { key, .. } => Self::InvalidMetadata { text, hint, key },
            Error::InvalidTensor { name, .. } => Self::InvalidTensor { text, hint, name },
            Error::MissingTensor { name } => Self::MissingTensor { text, hint, name },
            Error::Unsupported { what, .. } => Self::Unsupported { text, hint, what },
            Error::InvalidArgument { name, .. } => {
                Self::InvalidArgument { text, hint, name: name.into() }
            }
            Error::Tokenizer(_) => Self::Tokenizer { text, hint },
            Error::ChatTemplate(_) => Self::ChatTemplate { text, hint },
            Error::NoGpu(_) => Self::NoGpu { text, hint },
            Error::Gpu { op, .. } => Self::Gpu { text, hint, op },
            Error::DeviceLost(_) => Self::DeviceLost { text, hint },
            Error::Background => Self::Background { text, hint },
            Error::OutOfMemory { what, needed_bytes } => {
                Self::OutOfMemory { text, hint, what, needed_bytes: bytes(needed_bytes) }
            }
            Error::OverBudget { .. } => Self::OverBudget { text, hint },
            Error::ContextFull { needed, capacity } => {
                Self::ContextFull { text, hint, needed: number(needed), capacity: number(capacity) }
            }
            Error::InvalidAdapter { what, .. } => Self::InvalidAdapter { text, hint, what },
            Error::AdapterBudget { id, needed_bytes, budget_bytes } => Self::AdapterBudget {
                text,
                hint,
                id,
                needed_bytes: bytes(needed_bytes),
                budget_bytes: bytes(budget_bytes),
            },
            Error::AdapterInUse { id } => Self::AdapterInUse { text, hint, id },
            Error::AdapterSets { most } => Self::AdapterSets { text, hint, most: number(most) },
            Error::AdapterNotLoaded { id } => Self::AdapterNotLoaded { text, hint, id },
            Error::AdapterMismatch { id, .. } => Self::AdapterMismatch { text, hint, id },
            Error::InvalidDelta { what, .. } => Self::InvalidDelta { text, hint, what },
            Error::SuperLink { call, .. } => Self::SuperLink { text, hint, call: call.into() },
            Error::Training(_) => Self::Training { text, hint },
            Error::Cancelled => Self::Cancelled { text, hint },
            Error::BaseMismatch { expected, got } => {
                Self::BaseMismatch { text, hint, expected, got }
            }
            Error::FingerprintVersion { found, own } => {
                Self::FingerprintVersion { text, hint, found, own }
            }
            Error::FormatVersion { path, found, reads } => Self::FormatVersion {
                text,
                hint,
                path: path.display().to_string(),
                found,
                reads: reads.into(),
            },
            _ => Self::Internal { text, hint },
        }
    }
}

impl From<uniffi::UnexpectedUniFFICallbackError> for EpiphyteError {
    fn from(thrown: uniffi::UnexpectedUniFFICallbackError) -> Self {
        let hint = "catch it in the listener".to_string();
        Self::Callback { text: format!("a listener threw: {}; {hint}", thrown.reason), hint }
    }
}

/// A count as the languages of phones have it; one beyond it is the largest there is.
pub(crate) fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// As [`number`], of bytes and steps.
pub(crate) fn bytes(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A count that the caller gave.
///
/// Errors: [`EpiphyteError::InvalidArgument`] for one below 0.
pub(crate) fn count<T: TryFrom<i64>>(
    name: &'static str,
    value: impl Into<i64>,
) -> Result<T, EpiphyteError> {
    let value = value.into();
    T::try_from(value).map_err(|_| EpiphyteError::invalid(name, format!("{value}; 0 or more")))
}

/// A path that the caller gave.
///
/// Errors: [`EpiphyteError::InvalidArgument`] for an empty one, which the system would take for the
/// folder that the process happens to be in.
pub(crate) fn path(name: &'static str, path: String) -> Result<PathBuf, EpiphyteError> {
    match path.is_empty() {
        true => Err(EpiphyteError::invalid(name, "empty; give a path".into())),
        false => Ok(path.into()),
    }
}
