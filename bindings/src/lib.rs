//! Kotlin and Swift see this crate: thin wrappers around `epiphyte`, which knows nothing of them.
//!
//! Names are the runtime's own. Paths are strings, counts are `u32`. Every call blocks: call from a
//! background thread.

mod engine;
mod error;
mod session;

pub use engine::{Engine, EngineOptions, LoadListener, LoadPhase, LoadProgress};
pub use error::{EpiphyteError, ErrorKind};
pub use session::{
    AnswerStats, FinishReason, GenerateOptions, Message, Sampling, Session, Token, TokenSink,
};

uniffi::setup_scaffolding!();
