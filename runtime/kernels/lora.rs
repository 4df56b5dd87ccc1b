//! The LoRA path, `y += B A x`, for rows with adapters of their own: see `shaders/lora_*.wgsl` and
//! `shaders/lora/`.

use super::{lanes, reduce};
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Caps, Commands, KernelSpec, Op};

/// Most adapters that a row may use at once.
pub const ENTRIES: u32 = 8;
/// Lanes of a workgroup of `lora_shrink`.
const WG: u32 = 32;

/// An adapter at a site, as a kernel finds it in the directory: the first element of A or B, rows
/// of A or rank of B, the bits of the weight, the elements of u before its own.
///
/// Where all rows of a pass have the same adapter and no other, the kernel gets it with its
/// parameters and looks nothing up; zeros stand for any other case.
pub type Entry = [u32; 4];
/// In an entry's second word: another one follows.
pub const MORE: u32 = 1 << 31;

/// The shape of the directory in front of the factors: who uses what. A row names a set; a set has,
/// for every site (a group of linears with the same input), up to [`ENTRIES`] entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Most rows of a pass; a multiple of 4.
    pub rows: u32,
    /// Most sets; the first stays empty.
    pub sets: u32,
    /// Sites of the model.
    pub sites: u32,
}

impl Directory {
    /// Words of a set.
    pub fn set_words(&self) -> u32 {
        self.sites * ENTRIES * 4
    }

    /// Words in all.
    pub fn words(&self) -> u32 {
        self.rows + self.sets * self.set_words()
    }

    /// Tells a kernel joined with files of `shaders/lora/` the shape, and the numbers of the
    /// bindings that they have after the kernel's own `bound`: of A, B, u and the parts of u.
    pub(super) fn bind(self, spec: &mut KernelSpec, bound: u32, names: &[&'static str]) {
        let shape = [("LORA_ROWS", self.rows), ("SITES", self.sites), ("ENTRIES", ENTRIES)];
        spec.consts.extend(shape);
        spec.consts.extend(names.iter().copied().zip(bound..));
    }
}

params! {
    /// What a dispatch of `lora_shrink` says.
    pub struct ShrinkParams {
        /// K / 8.
        pub k8s: u32,
        /// First row of x and u.
        pub x_row: u32,
        /// Which group of linears.
        pub site: u32,
        /// Elements of a row of u.
        pub u_width: u32,
    }
}

params! {
    /// What a dispatch of `lora_expand` says.
    pub struct ExpandParams {
        /// N, also the stride of y.
        pub n: u32,
        /// First row of u.
        pub x_row: u32,
        /// First row of y.
        pub y_row: u32,
        /// Which group of linears.
        pub site: u32,
        /// Elements of a row of u.
        pub u_width: u32,
        /// Where the first module's rows of N end.
        pub end0: u32,
        /// Where the second one's end.
        pub end1: u32,
    }
}

params! {
    /// What a dispatch of `lora_embedding` says.
    pub struct EmbeddingParams {
        /// D.
        pub d: u32,
        /// Which group of linears.
        pub site: u32,
        /// On what is added.
        pub scale: f32,
    }
}

/// Bindings: `x [M, K]`, A, `u [M, u_width]`.
pub fn shrink_spec(caps: &Caps, directory: Directory) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "lora_shrink",
        consts: vec![("WG", WG), ("L", lanes(caps))],
        fills: vec![reduce(caps)],
        bindings: &[Read, Read, Write],
        params: ShrinkParams::LAYOUT,
    };
    directory.bind(&mut spec, 1, &["LORA_A", "LORA_U"]);
    spec
}

/// Bindings: `y [M, N]`, B, `u [M, u_width]`.
pub fn expand_spec(directory: Directory) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "lora_expand",
        bindings: &[Write, Read, Read],
        params: ExpandParams::LAYOUT,
        ..Default::default()
    };
    directory.bind(&mut spec, 1, &["LORA_B", "LORA_U"]);
    spec
}

/// Bindings: `token_ids [T]`, `x [T, D]`, A, B.
pub fn embedding_spec(directory: Directory) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "lora_embedding",
        bindings: &[Read, Write, Read, Read],
        params: EmbeddingParams::LAYOUT,
        ..Default::default()
    };
    directory.bind(&mut spec, 2, &["LORA_A", "LORA_B"]);
    spec
}

/// Records u of `rows` rows.
pub fn record_shrink(commands: &mut Commands<'_>, op: &Op, params: &ShrinkParams, rows: u32) {
    let fours = WG / lanes(commands.caps());
    op.record(commands, params, [(params.u_width / 4).div_ceil(fours), rows, 1], 0);
}

/// Records what u adds to `rows` rows.
pub fn record_expand(commands: &mut Commands<'_>, op: &Op, params: &ExpandParams, rows: u32) {
    op.record(commands, params, [params.n.div_ceil(128), rows, 1], 0);
}

/// Records what the adapters add to `tokens` embeddings.
pub fn record_embedding(
    commands: &mut Commands<'_>,
    op: &Op,
    params: &EmbeddingParams,
    tokens: u32,
) {
    op.record(commands, params, [params.d.div_ceil(64), tokens, 1], 0);
}
