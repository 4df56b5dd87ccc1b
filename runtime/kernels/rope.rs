//! Rotary position embedding and the append to the KV cache: see `shaders/rope.wgsl`.

use super::kv;
use super::lora::{Directory, Entry};
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Commands, KernelSpec, Op};

/// Positions whose rotations are tabulated one by one; beyond, multiples of it.
pub const FINE: usize = 256;

params! {
    /// What a dispatch says.
    pub struct RopeParams {
        /// H, query heads.
        pub heads: u32,
        /// G, key and value heads.
        pub kv_heads: u32,
        /// Length of a page table.
        pub max_pages: u32,
        /// With adapters: the site of q, k and v.
        pub site: u32,
        /// With adapters: elements of a row of u.
        pub u_width: u32,
        /// With [`HeadInput::norm`]: added to the mean square.
        pub eps: f32,
        /// Dimensions of a head that are rotated, its first: with NEOX, else all are.
        pub rotary_dim: u32,
        /// Unused.
        pub pad: u32,
        /// With adapters: the rows' only one, see [`super::lora::Entry`].
        pub alone: Entry,
    }
}

/// What is done to q, k and v before they are rotated, by what lies beside their linears: a vector
/// of biases `[(H + 2 G) E]`, if any, then gains of q and of k `[E]`, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadInput {
    /// Biases are added.
    pub bias: bool,
    /// Each head of q and k is RMS-normalised.
    pub norm: bool,
}

impl HeadInput {
    /// Nothing is.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }

    /// Lanes of a workgroup: those of one head, where a norm needs them together.
    pub(super) fn lanes(self, head_dim: u32) -> u32 {
        if self.norm { head_dim / 2 } else { 64 }
    }

    /// Workgroups of a row of `heads`, a lane a pair.
    pub(super) fn groups(self, head_dim: u32, heads: u32) -> u32 {
        (heads * head_dim / 2).div_ceil(self.lanes(head_dim))
    }

    /// Joins a kernel with what does it; `bound` is the number of the vector's binding.
    pub(super) fn join(self, spec: &mut KernelSpec, head_dim: u32, bound: u32) {
        spec.consts.extend([("WG", self.lanes(head_dim)), ("E", head_dim)]);
        if self.is_plain() {
            spec.fills.push("heads/plain");
        } else {
            spec.fills.push("heads/beside");
            spec.consts.extend([
                ("BESIDE", bound),
                ("HEAD_BIAS", u32::from(self.bias)),
                ("HEAD_NORM", u32::from(self.norm)),
            ]);
        }
    }
}

/// Bindings: `rows [M]`, `pages`, `rotations`, `qkv [M, (H + 2 G) E]`, `keys`, `values [pages, G,
/// page_len, E]`; with `directory` then B and `u`, whose product is added to qkv first.
pub fn spec(
    head_dim: u32,
    page_len: u32,
    neox: bool,
    kv_f16: bool,
    directory: Option<Directory>,
) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "rope",
        consts: vec![("PAGE", page_len), ("NEOX", u32::from(neox))],
        fills: vec![kv(kv_f16)],
        params: RopeParams::LAYOUT,
        ..Default::default()
    };
    HeadInput::default().join(&mut spec, head_dim, 0);
    match directory {
        None => {
            spec.fills.push("lora/no_two");
            spec.bindings = &[Read, Read, Read, Write, Write, Write];
        }
        Some(directory) => {
            spec.fills.push("lora/expand_two");
            spec.bindings = &[Read, Read, Read, Write, Write, Write, Read, Read];
            directory.bind(&mut spec, 6, &["LORA_B", "LORA_U"]);
        }
    }
    spec
}

/// As [`spec`], of heads that go through `input`: the vector is bound after the others.
pub fn beside_spec(head_dim: u32, page_len: u32, kv_f16: bool, input: HeadInput) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "rope",
        consts: vec![("PAGE", page_len), ("NEOX", 1)],
        fills: vec![kv(kv_f16), "lora/no_two"],
        bindings: &[Read, Read, Read, Write, Write, Write, Read],
        params: RopeParams::LAYOUT,
    };
    input.join(&mut spec, head_dim, 6);
    spec
}

/// Of the [`rotations`] for positions below `max_positions`.
pub(crate) fn rotations_shape(max_positions: usize, head_dim: usize) -> [usize; 2] {
    [FINE + coarse(max_positions), head_dim]
}

fn coarse(max_positions: usize) -> usize {
    max_positions.div_ceil(FINE).max(1)
}

/// Cosines and sines, `[256 + coarse, head_dim / 2, 2]`, for positions below `max_positions`,
/// computed in f64. What is rotated by them is multiplied by `scale`, which is in the fine ones;
/// what does not turn is not.
pub fn rotations(frequencies: &[f32], scale: f32, max_positions: usize) -> Vec<[f32; 2]> {
    let fine = (0..FINE).map(|position| (position, f64::from(scale)));
    let coarse = (0..coarse(max_positions)).map(|i| (i * FINE, 1.0));
    fine.chain(coarse)
        .flat_map(|(position, scale)| {
            frequencies.iter().map(move |&frequency| {
                let scale = if frequency == 0.0 { 1.0 } else { scale };
                let angle = position as f64 * f64::from(frequency);
                [(scale * angle.cos()) as f32, (scale * angle.sin()) as f32]
            })
        })
        .collect()
}

/// Records `rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, head_dim: u32, params: RopeParams, rows: u32) {
    record_beside(commands, op, (head_dim, HeadInput::default()), params, rows);
}

/// Records `rows` rows of heads that go through an input.
pub fn record_beside(
    commands: &mut Commands<'_>,
    op: &Op,
    (head_dim, input): (u32, HeadInput),
    params: RopeParams,
    rows: u32,
) {
    let groups = input.groups(head_dim, params.heads + 2 * params.kv_heads);
    op.record(commands, &params, [groups, rows, 1], 0);
}
