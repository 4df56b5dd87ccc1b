//! What holds for the public face as a whole.

/// README's and the documentation's Rust, compiled as a dependent's would be.
#[cfg(all(doctest, feature = "gpu"))]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/training.md")]
    struct Training;
}

/// What programs hand from thread to thread.
#[cfg(feature = "gpu")]
const _: () = {
    const fn crosses_threads<T: Send + Sync>() {}
    crosses_threads::<crate::Engine>();
    crosses_threads::<crate::Session>();
    crosses_threads::<crate::CancelToken>();
    crosses_threads::<crate::Error>();
    crosses_threads::<crate::adapter::Adapter>();
    crosses_threads::<crate::format::gguf::Gguf>();
    crosses_threads::<crate::tokenizer::Tokenizer>();
    crosses_threads::<crate::train::TrainControl>();
    crosses_threads::<crate::train::TrainRun>();
    crosses_threads::<crate::train::Trainer>();
};
