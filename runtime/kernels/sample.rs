//! Logits to tokens, on the device: see `shaders/sample_{adjust,threshold,partial,final}.wgsl`.

use crate::gpu::params::{Layout, params};
use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

/// Logits that one workgroup of `sample_partial` or `sample_threshold` looks at.
pub const RUN: u32 = 1024;
/// Passes of `sample_threshold`, in their order.
const THRESHOLD_PASSES: u32 = 7;
/// Rows that are tallied at a time.
pub const TALLIED_ROWS: u32 = 8;
/// Words of a row of its tallies.
pub const TALLIES: u32 = 3 * 2 * 2048 + 1;
/// Words of a row of what its passes have found.
pub const FOUND: u32 = THRESHOLD_PASSES * 4;

params! {
    /// Mirror of `Sampler` in `shaders/shared/sampler.wgsl`: one row's settings.
    #[derive(PartialEq)]
    pub struct Sampler {
        /// Divides the logits; 0 is greedy.
        pub temperature: f32,
        /// Smallest set of tokens of at least this mass; 1 is off.
        pub top_p: f32,
        /// Least probability, as a part of the largest; 0 is off.
        pub min_p: f32,
        /// Divides positive and multiplies negative logits of tokens in the context; 1 is off.
        pub repetition_penalty: f32,
        /// Most tokens; 0 is off.
        pub top_k: u32,
        /// The seed's low half.
        pub seed_lo: u32,
        /// The seed's high half.
        pub seed_hi: u32,
        /// First of this row's biases.
        pub bias_start: u32,
        /// This row's biases.
        pub bias_count: u32,
    }
}

impl Sampler {
    /// Some of the logits are shut out before drawing.
    pub fn is_restricted(&self) -> bool {
        self.temperature > 0.0 && (self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0)
    }

    /// The logits are changed before anything else.
    pub fn is_adjusted(&self) -> bool {
        self.repetition_penalty != 1.0 || self.bias_count > 0
    }
}

params! {
    /// What a dispatch of `sample_adjust` says.
    pub struct AdjustParams {
        /// V.
        pub vocab: u32,
        /// See [`seen_words`].
        pub seen_words: u32,
    }

    /// What a dispatch of `sample_threshold` says.
    pub struct ThresholdParams {
        /// V.
        pub vocab: u32,
        /// Which of the passes it is.
        pub number: u32,
        /// First row.
        pub row0: u32,
    }

    /// What a dispatch of `sample_partial` says.
    pub struct PartialParams {
        /// V.
        pub vocab: u32,
        /// Of [`RUN`] logits, the last excepted.
        pub runs: u32,
    }

    /// What a dispatch of `sample_final` says.
    pub struct FinalParams {
        /// See [`PartialParams`].
        pub runs: u32,
        /// See [`seen_words`].
        pub seen_words: u32,
        /// First of the ring's tokens to write.
        pub ring_offset: u32,
    }
}

fn kernel(name: &'static str, bindings: &'static [Access], params: Layout) -> KernelSpec {
    KernelSpec { name, bindings, params, ..Default::default() }
}

/// Bindings: `samplers`, `seen`, `biases`, `logits`.
pub fn adjust_spec() -> KernelSpec {
    kernel("sample_adjust", &[Read, Read, Read, Write], AdjustParams::LAYOUT)
}

/// Bindings: `samplers`, `logits`, `tallies [TALLIED_ROWS, TALLIES]`, zeros before the first time,
/// `found [TALLIED_ROWS, FOUND]`, `thresholds`.
pub fn threshold_spec() -> KernelSpec {
    let bindings = &[Read, Read, Write, Write, Write];
    let consts = vec![("RUN", RUN)];
    KernelSpec { consts, ..kernel("sample_threshold", bindings, ThresholdParams::LAYOUT) }
}

/// Bindings: `samplers`, `rows`, `logits`, `thresholds`, `partials`.
pub fn partial_spec() -> KernelSpec {
    kernel("sample_partial", &[Read, Read, Read, Read, Write], PartialParams::LAYOUT)
}

/// Bindings: `partials`, `token_ids`, `rows`, `seen`, `ring`.
pub fn final_spec() -> KernelSpec {
    kernel("sample_final", &[Read, Write, Write, Write, Write], FinalParams::LAYOUT)
}

/// Words of the bit set of seen tokens.
pub fn seen_words(vocab: u32) -> u32 {
    vocab.div_ceil(32)
}

/// Records the penalties and biases of `rows` rows.
pub fn record_adjust(commands: &mut Commands<'_>, op: &Op, vocab: u32, rows: u32) {
    let params = AdjustParams { vocab, seen_words: seen_words(vocab) };
    op.record(commands, &params, [vocab.div_ceil(64), rows, 1], 0);
}

/// Records the thresholds of `rows` rows.
pub fn record_threshold(commands: &mut Commands<'_>, op: &Op, vocab: u32, rows: u32) {
    for row0 in (0..rows).step_by(TALLIED_ROWS as usize) {
        let count = TALLIED_ROWS.min(rows - row0);
        for number in 0..THRESHOLD_PASSES {
            let runs = if number + 1 < THRESHOLD_PASSES { vocab.div_ceil(RUN) } else { 1 };
            op.record(commands, &ThresholdParams { vocab, number, row0 }, [runs, count, 1], 0);
        }
    }
}

/// Records the best of each run of the vocabulary, for `rows` rows.
pub fn record_partial(commands: &mut Commands<'_>, op: &Op, vocab: u32, rows: u32) {
    let runs = vocab.div_ceil(RUN);
    op.record(commands, &PartialParams { vocab, runs }, [runs, rows, 1], 0);
}

/// Records the choice; the tokens land in `ring[ring_offset..]`.
pub fn record_final(commands: &mut Commands<'_>, op: &Op, vocab: u32, rows: u32, ring_offset: u32) {
    let (runs, seen_words) = (vocab.div_ceil(RUN), seen_words(vocab));
    op.record(commands, &FinalParams { runs, seen_words, ring_offset }, [rows, 1, 1], 0);
}
