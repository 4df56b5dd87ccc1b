//! One error across the border: a coarse kind to match on and a message to read.

/// What a caller can act on; coarser than the runtime's own causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum ErrorKind {
    /// A file is missing, damaged or can't be read.
    File,
    /// The model or file is sound, but needs something that is not supported.
    Unsupported,
    /// An argument is out of range.
    InvalidArgument,
    /// The text or conversation can't be turned into tokens.
    Text,
    /// There is no usable GPU, or it failed or disappeared; open the engine again.
    Device,
    /// The device has no memory for it.
    OutOfMemory,
    /// The adapter does not fit the bytes set aside for adapters.
    AdapterBudget,
    /// The context has no room; nothing was lost.
    ContextFull,
    /// The call was cancelled; what was computed stays.
    Cancelled,
    /// A saved file belongs to another base model.
    BaseMismatch,
    /// Anything else; the message says what.
    Other,
}

/// What every call throws.
#[derive(Clone, Debug, thiserror::Error, uniffi::Error)]
pub enum EpiphyteError {
    /// The only case.
    #[error("{text}")]
    Failed {
        /// What to act on.
        kind: ErrorKind,
        /// The thing and the remedy, for a person. Never quotes a prompt or a text.
        text: String,
    },
}

impl From<epiphyte::Error> for EpiphyteError {
    fn from(error: epiphyte::Error) -> Self {
        use epiphyte::Error as E;
        let kind = match &error {
            E::Io { .. } | E::InvalidFile { .. } | E::InvalidMetadata { .. } => ErrorKind::File,
            E::FormatVersion { .. } => ErrorKind::Unsupported,
            E::InvalidTensor { .. } | E::MissingTensor { .. } | E::InvalidAdapter { .. } => {
                ErrorKind::File
            }
            E::Unsupported { .. } => ErrorKind::Unsupported,
            E::InvalidArgument { .. } => ErrorKind::InvalidArgument,
            E::Tokenizer(_) | E::ChatTemplate(_) => ErrorKind::Text,
            E::NoGpu(_) | E::Gpu { .. } | E::DeviceLost(_) => ErrorKind::Device,
            E::OutOfMemory { .. } | E::OverBudget { .. } => ErrorKind::OutOfMemory,
            E::AdapterBudget { .. } => ErrorKind::AdapterBudget,
            E::ContextFull { .. } => ErrorKind::ContextFull,
            E::Cancelled => ErrorKind::Cancelled,
            E::BaseMismatch { .. } | E::FingerprintVersion { .. } => ErrorKind::BaseMismatch,
            _ => ErrorKind::Other,
        };
        Self::Failed { kind, text: error.to_string() }
    }
}
