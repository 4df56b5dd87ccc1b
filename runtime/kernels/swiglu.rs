//! The gate of an MLP, `SwiGLU` or `GeGLU`: see `shaders/swiglu.wgsl`.

use super::lora::{Directory, Entry};
use super::{activation, lanes, reduce};
use crate::base::layout::Activation;
use crate::gpu::params::params;
use crate::gpu::pipeline::Access::{Read, Write};
use crate::gpu::{Caps, Commands, KernelSpec, Op};

params! {
    /// What a dispatch says.
    pub struct SwiGluParams {
        /// F, `intermediate_size`.
        pub f: u32,
        /// With adapters: the site of gate and up.
        pub gate_up_site: u32,
        /// With adapters: elements of a row of its u.
        pub gate_up_width: u32,
        /// With adapters: the site of down.
        pub down_site: u32,
        /// With adapters: elements of a row of its u.
        pub down_width: u32,
        /// Unused.
        pub pad: [u32; 3],
        /// With adapters: the rows' only one of gate and up, see [`super::lora::Entry`].
        pub gate_up_alone: Entry,
        /// With adapters: the rows' only one of down.
        pub down_alone: Entry,
    }
}

/// Elements of h that a workgroup makes. Barriers of many lanes are slow in software.
fn workgroup(caps: &Caps) -> u32 {
    if caps.software { 64 } else { 256 }
}

/// Parts in which the u of what follows comes.
pub fn parts(caps: &Caps, intermediate_size: u32) -> u32 {
    intermediate_size.div_ceil(workgroup(caps))
}

/// Bindings: `gu [T, 2 F]`, `h [T, F]`; with `directory` then A, B, `u` of gate and up, and the parts of
/// u of what follows.
pub fn spec(caps: &Caps, gate: Activation, directory: Option<Directory>) -> KernelSpec {
    let mut spec = KernelSpec {
        name: "swiglu",
        consts: vec![("WG", workgroup(caps))],
        params: SwiGluParams::LAYOUT,
        ..Default::default()
    };
    match directory {
        None => {
            spec.fills.extend(["lora/no_two", "lora/no_tile"]);
            spec.bindings = &[Read, Write];
        }
        Some(directory) => {
            spec.consts.push(("L", lanes(caps)));
            spec.fills.extend([reduce(caps), "lora/expand_two", "lora/shrink_tile"]);
            spec.bindings = &[Read, Write, Read, Read, Read, Write];
            directory.bind(&mut spec, 2, &["LORA_A", "LORA_B", "LORA_U", "LORA_PARTS"]);
        }
    }
    spec.fills.push(activation(gate));
    spec
}

/// Records `rows` rows.
pub fn record(commands: &mut Commands<'_>, op: &Op, params: &SwiGluParams, rows: u32) {
    let parts = parts(commands.caps(), params.f);
    op.record(commands, params, [parts, rows, 1], 0);
}
