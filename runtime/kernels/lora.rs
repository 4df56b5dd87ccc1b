//! The LoRA path, `y += B A x`, for rows with adapters of their own: see `shaders/lora_*.wgsl` and
//! `shaders/lora/`.

use bytemuck::{Pod, Zeroable};

use super::reduction;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::shader::Source;
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

    fn consts(&self) -> [(&'static str, u32); 3] {
        [("LORA_ROWS", self.rows), ("SITES", self.sites), ("ENTRIES", ENTRIES)]
    }
}

/// Which of the LoRA files a kernel is joined with, and where they are bound: after its own `bound`
/// bindings come, in this order, A, B, u and the parts of u, as far as it has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) directory: Directory,
    pub(crate) a: bool,
    pub(crate) b: bool,
    pub(crate) u: bool,
    pub(crate) parts: bool,
}

impl Joined {
    /// Adds the bindings' numbers and the files of the factors to `source`.
    pub(crate) fn join(self, source: &mut Source, bound: u32) {
        source.consts.extend(self.directory.consts());
        let names = [
            ("LORA_A", self.a),
            ("LORA_B", self.b),
            ("LORA_U", self.u),
            ("LORA_PARTS", self.parts),
        ];
        let own = names.into_iter().filter(|(_, has)| *has).map(|(name, _)| name);
        source.consts.extend(own.zip(bound..));
        source.imports.extend(self.a.then_some("lora/a"));
        source.imports.extend(self.b.then_some("lora/b"));
    }
}

/// Mirror of `Params` in `lora_shrink.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct ShrinkParams {
    /// K / 8.
    pub k8s: u32,
    /// First row of x and u.
    pub x_row: u32,
    /// Which group of linears.
    pub site: u32,
    /// Elements of a row of u.
    pub u_rows: u32,
}

/// Mirror of `Params` in `lora_expand.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
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
    pub u_rows: u32,
    /// Where the first module's rows of N end.
    pub end0: u32,
    /// Where the second one's end.
    pub end1: u32,
    /// Unused.
    pub pad: u32,
}

/// Mirror of `Params` in `lora_embedding.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct EmbeddingParams {
    /// D.
    pub d: u32,
    /// Which group of linears.
    pub site: u32,
    /// Unused.
    pub pad: [u32; 2],
}

/// Bindings: `x [M, K]`, A, `u [M, u_rows]`.
pub fn shrink_spec(caps: &Caps, directory: Directory) -> KernelSpec {
    let (reduce, lanes) = reduction(caps);
    let mut source = Source { name: "lora_shrink", ..Default::default() };
    source.consts = vec![("WG", WG), ("L", lanes)];
    source.imports = vec![reduce, "lora/shrink_rows"];
    Joined { directory, a: true, b: false, u: true, parts: false }.join(&mut source, 1);
    KernelSpec {
        source,
        bindings: &[Read, Read, Write],
        params_bytes: size_of::<ShrinkParams>() as u32,
    }
}

/// Bindings: `y [M, N]`, B, `u [M, u_rows]`.
pub fn expand_spec(directory: Directory) -> KernelSpec {
    let mut source =
        Source { name: "lora_expand", imports: vec!["lora/expand_two"], ..Default::default() };
    Joined { directory, a: false, b: true, u: true, parts: false }.join(&mut source, 1);
    KernelSpec {
        source,
        bindings: &[Write, Read, Read],
        params_bytes: size_of::<ExpandParams>() as u32,
    }
}

/// Bindings: `token_ids [T]`, `x [T, D]`, A, B.
pub fn embedding_spec(directory: Directory) -> KernelSpec {
    let mut source = Source { name: "lora_embedding", ..Default::default() };
    Joined { directory, a: true, b: true, u: false, parts: false }.join(&mut source, 2);
    KernelSpec {
        source,
        bindings: &[Read, Write, Read, Read],
        params_bytes: size_of::<EmbeddingParams>() as u32,
    }
}

/// Records u of `rows` rows.
pub fn record_shrink(
    commands: &mut Commands<'_>,
    caps: &Caps,
    op: &Op,
    params: &ShrinkParams,
    rows: u32,
) {
    let (_, lanes) = reduction(caps);
    op.record(commands, params, [(params.u_rows / 4).div_ceil(WG / lanes), rows, 1], 0);
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
