//! `SwiGLU`: see `shaders/swiglu.wgsl`.

use bytemuck::{Pod, Zeroable};

use super::lora::{Directory, Entry, Joined};
use super::reduction;
use crate::gpu::pipeline::Access::{self, Read, Write};
use crate::gpu::shader::Source;
use crate::gpu::{Caps, Commands, KernelSpec, Op};

/// Mirror of `Params` in the shader.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct SwiGluParams {
    /// F, `intermediate_size`.
    pub f: u32,
    /// With adapters: the site of gate and up.
    pub gate_up_site: u32,
    /// With adapters: elements of a row of its u.
    pub gate_up_rows: u32,
    /// With adapters: the site of down.
    pub down_site: u32,
    /// With adapters: elements of a row of its u.
    pub down_rows: u32,
    /// Unused.
    pub pad: [u32; 3],
    /// With adapters: the rows' only one of gate and up, see [`super::lora::Entry`].
    pub gate_up_lora: Entry,
    /// With adapters: the rows' only one of down.
    pub down_lora: Entry,
}

/// Elements of h that a workgroup makes. Barriers of many lanes are slow in software.
fn workgroup(caps: &Caps) -> u32 {
    if caps.software { 64 } else { 256 }
}

/// Parts in which the u of what follows comes.
pub fn parts(caps: &Caps, intermediate_size: u32) -> u32 {
    intermediate_size.div_ceil(workgroup(caps))
}

/// Bindings: `gu [T, 2 F]`, `h [T, F]`; with `lora` then A, B, `u` of gate and up, and the parts of
/// u of what follows.
pub fn spec(caps: &Caps, lora: Option<Directory>) -> KernelSpec {
    let (reduce, lanes) = reduction(caps);
    let wg = workgroup(caps);
    let consts = vec![("WG", wg), ("L", lanes), ("TILE", wg)];
    let mut source = Source { name: "swiglu", consts, ..Default::default() };
    let all: &[Access] = &[Read, Write, Read, Read, Read, Write];
    let bindings = match lora {
        None => {
            source.imports.extend(["lora/no_two", "lora/no_tile"]);
            &all[..2]
        }
        Some(directory) => {
            source.imports.extend([reduce, "lora/expand_two", "lora/shrink_tile"]);
            Joined { directory, a: true, b: true, u: true, parts: true }.join(&mut source, 2);
            all
        }
    };
    KernelSpec { source, bindings, params_bytes: size_of::<SwiGluParams>() as u32 }
}

/// Records `rows` rows.
pub fn record(commands: &mut Commands<'_>, caps: &Caps, op: &Op, params: &SwiGluParams, rows: u32) {
    op.record(commands, params, [parts(caps, params.f), rows, 1], 0);
}
