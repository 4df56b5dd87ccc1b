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
        /// Unused.
        pub pad: [u32; 3],
        /// With adapters: the rows' only one, see [`super::lora::Entry`].
        pub alone: Entry,
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
        consts: vec![("E", head_dim), ("PAGE", page_len), ("NEOX", u32::from(neox))],
        fills: vec![kv(kv_f16)],
        params: RopeParams::LAYOUT,
        ..Default::default()
    };
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

/// Of the [`rotations`] for positions below `max_positions`.
pub(crate) fn rotations_shape(max_positions: usize, head_dim: usize) -> [usize; 2] {
    [FINE + coarse(max_positions), head_dim]
}

fn coarse(max_positions: usize) -> usize {
    max_positions.div_ceil(FINE).max(1)
}

/// Cosines and sines, `[256 + coarse, head_dim / 2, 2]`, for positions below `max_positions`,
/// computed in f64.
pub fn rotations(frequencies: &[f32], max_positions: usize) -> Vec<[f32; 2]> {
    let positions = (0..FINE).chain((0..coarse(max_positions)).map(|i| i * FINE));
    positions
        .flat_map(|position| {
            frequencies.iter().map(move |&frequency| {
                let angle = position as f64 * f64::from(frequency);
                [angle.cos() as f32, angle.sin() as f32]
            })
        })
        .collect()
}

/// Records `rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, head_dim: u32, params: RopeParams, rows: u32) {
    let pairs = (params.heads + 2 * params.kv_heads) * head_dim / 2;
    op.record(commands, &params, [pairs.div_ceil(64), rows, 1], 0);
}
