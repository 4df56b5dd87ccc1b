//! What an engine has on the device beside weights and adapters, whoever's turn it is.

use crate::base::ModelConfig;
use crate::error::Result;
use crate::gpu::{Caps, Class, Memory, Tensor};
use crate::kernels::matvec::MAX_COLS;
use crate::kernels::sample::{self, Sampler};
use crate::kernels::sample_mask::mask_words;
use crate::model::activations::{Activations, LOGIT_ROWS, Limits, Scratch};
use crate::model::kv_cache::KvCache;

/// Biases that all rows together may have.
pub(crate) const MAX_BIASES: usize = 4096;
/// Steps whose tokens may be on their way to the host.
pub(crate) const RING_SLOTS: usize = 4;

/// Most rows of a pass on such a device.
pub fn pass_rows(caps: &Caps) -> usize {
    if caps.software { 64 } else { 512 }
}

/// What a device runs at a time.
pub(crate) struct Spaces {
    /// Decode steps, and a few rows of a prompt.
    pub(crate) steps: Limits,
    /// Many rows of a prompt.
    pub(crate) prompts: Limits,
}

impl Spaces {
    /// For sessions of up to `context` tokens.
    pub(crate) fn new(caps: &Caps, context: usize, kv_f32: bool) -> Self {
        let (rows, kv_f16) = (LOGIT_ROWS, caps.f16 && !kv_f32);
        let steps = Limits { rows, tables: rows, logits: rows, positions: context, kv_f16 };
        let (rows, logits) = (pass_rows(caps), MAX_COLS as usize);
        Self { steps, prompts: Limits { rows, tables: 1, logits, ..steps } }
    }

    /// Of a pass of either kind.
    pub(crate) fn most_rows(&self) -> usize {
        self.steps.rows.max(self.prompts.rows)
    }
}

/// See the module's documentation.
pub(crate) struct Working<T = Tensor> {
    pub(crate) cache: KvCache<T>,
    pub(crate) steps: Activations<T>,
    pub(crate) prompts: Activations<T>,
    pub(crate) sampling: Sampling<T>,
}

/// What tokens are chosen with, for [`LOGIT_ROWS`] rows.
pub(crate) struct Sampling<T = Tensor> {
    pub(crate) samplers: T,
    /// A bit for each token of the vocabulary.
    pub(crate) seen: T,
    pub(crate) biases: T,
    /// Of `sample_threshold`, beside its thresholds.
    pub(crate) tallies: T,
    pub(crate) found: T,
    /// What grammars allow, a bit for each token of the vocabulary.
    pub(crate) masks: T,
    pub(crate) thresholds: T,
    pub(crate) partials: T,
    pub(crate) ring: T,
}

impl<T> Working<T> {
    /// Errors: [`crate::Error::OutOfMemory`].
    pub(crate) fn new(
        memory: &impl Memory<Tensor = T>,
        config: &ModelConfig,
        Spaces { steps, prompts }: &Spaces,
    ) -> Result<Self> {
        let cache = KvCache::new(memory, config, steps)?;
        let scratch = Scratch::new(memory, config, steps)?;
        Ok(Self {
            cache,
            steps: Activations::new(memory, config, &scratch, steps)?,
            prompts: Activations::new(memory, config, &scratch, prompts)?,
            sampling: Sampling::new(memory, config.vocab_size as u32)?,
        })
    }
}

impl<T> Sampling<T> {
    fn new(memory: &impl Memory<Tensor = T>, vocab: u32) -> Result<Self> {
        let words = |name: &str, shape: &[usize]| memory.words(Class::Activations, name, shape);
        let (rows, runs) = (LOGIT_ROWS, vocab.div_ceil(sample::RUN) as usize);
        let tallied = sample::TALLIED_ROWS as usize;
        Ok(Self {
            samplers: words("samplers", &[rows, size_of::<Sampler>() / 4])?,
            seen: words("seen", &[rows, sample::seen_words(vocab) as usize])?,
            biases: words("biases", &[MAX_BIASES, 2])?,
            tallies: words("tallies", &[tallied, sample::TALLIES as usize])?,
            found: words("found", &[tallied, sample::FOUND as usize])?,
            masks: words("masks", &[rows, mask_words(vocab) as usize])?,
            thresholds: words("thresholds", &[rows])?,
            partials: words("partials", &[rows, runs, 2])?,
            ring: words("ring", &[RING_SLOTS, rows])?,
        })
    }
}
