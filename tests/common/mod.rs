//! What several tests need.

pub(crate) mod odd_llama;
pub(crate) mod skip;
pub(crate) mod writer;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use epiphyte::chat::ChatTemplate;
use epiphyte::tokenizer::{Tokenizer, TokenizerSpec};

/// No work takes as long, on however slow a machine.
const FAR_TOO_LONG: Duration = Duration::from_secs(60);

/// The default model: `EPIPHYTE_TEST_MODEL`, else the cache. `None` only when
/// `EPIPHYTE_SKIP_MODEL=1` allows it; the test is skipped then.
#[track_caller]
pub(crate) fn model_path() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let path = var("EPIPHYTE_TEST_MODEL").or_else(epiphyte::default_model);
    let found = path.filter(|path| path.exists());
    let allowed = std::env::var("EPIPHYTE_SKIP_MODEL").is_ok_and(|value| value == "1");
    assert!(
        found.is_some() || allowed,
        "{} is not there: run `make model`, or set EPIPHYTE_SKIP_MODEL=1",
        epiphyte::DEFAULT_MODEL
    );
    if found.is_none() {
        skip::skip("the default model is not there");
    }
    found
}

/// A file of `tests/golden`.
pub(crate) fn golden(name: &str) -> PathBuf {
    root().join("tests").join("golden").join(name)
}

/// The repository: this file belongs to packages in it and in folders of it.
fn root() -> &'static Path {
    let mut folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    folders.find(|folder| folder.join("Cargo.lock").exists()).unwrap()
}

/// SplitMix64 (Steele et al. 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u32) -> u32 {
        (self.bits() % u64::from(n)) as u32
    }

    /// Uniform in [-size, size).
    pub(crate) fn signed(&mut self, size: f32) -> f32 {
        ((self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
    }
}

/// What `work` gives. Work that a file can make endless ends the tests after a minute, and they say
/// which it was. This is no measure of speed, which a busy machine would spoil.
pub(crate) fn ends<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, waiting) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(FAR_TOO_LONG) == Err(RecvTimeoutError::Timeout) {
                eprintln!("no end after {FAR_TOO_LONG:?}: {what}");
                std::process::abort();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// Ids of the control tokens below.
pub(crate) const EOS: u32 = 0;
pub(crate) const BOS: u32 = 1;
pub(crate) const END: u32 = 3;

/// Byte-level BPE over printable ASCII, space and newline, with one merge ("ab") and `extra`
/// control tokens at the end.
pub(crate) fn tokenizer_with(extra: &[&str], add_bos: bool) -> Tokenizer {
    let mut tokens = ["</s>", "<s>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
    let mut token_types = vec![3; tokens.len()];
    tokens.extend((33_u8..127).map(|byte| char::from(byte).to_string()));
    tokens.extend(["Ġ", "Ċ", "ab"].map(String::from));
    token_types.resize(tokens.len(), 1);
    tokens.extend(extra.iter().map(|&token| token.to_string()));
    token_types.resize(tokens.len(), 3);
    Tokenizer::from_spec(TokenizerSpec {
        model: "gpt2".into(),
        tokens,
        token_types: Some(token_types),
        merges: vec!["a b".into()],
        bos: Some(BOS),
        eos: Some(EOS),
        add_bos: Some(add_bos),
        ..Default::default()
    })
    .unwrap()
}

pub(crate) fn chatml() -> ChatTemplate {
    ChatTemplate::new(None, "", "").unwrap()
}
