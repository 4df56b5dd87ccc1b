//! `y = x Wᵀ` for many rows of x: see `shaders/matmul.wgsl` and `shaders/matmul_coop.wgsl`.

use super::matvec::{BINDINGS, Epilogue, LinearParams};
use crate::dtype::DType;
use crate::gpu::shader::Source;
use crate::gpu::{Caps, Commands, Kernel, KernelSpec};

/// Fragments a subgroup of `matmul_coop` makes, down and across: more need more registers than pay.
const FRAGMENTS: (u32, u32) = (4, 2);

/// The variant on cooperative matrices where there are any else the tiled one.
pub fn spec(caps: &Caps, dtype: DType, epilogue: Epilogue) -> KernelSpec {
    let source = match caps.cooperative_matrix.zip(caps.subgroup_size) {
        Some((side, subgroup)) => cooperative(side, subgroup, dtype, epilogue),
        None => Source {
            name: "matmul",
            consts: vec![("EPILOGUE", epilogue as u32)],
            quant: Some(dtype),
            ..Default::default()
        },
    };
    KernelSpec { source, bindings: BINDINGS, params_bytes: size_of::<LinearParams>() as u32 }
}

fn cooperative(side: u32, subgroup: u32, dtype: DType, epilogue: Epilogue) -> Source {
    let (fm, fn_) = FRAGMENTS;
    let ty = |scalar: &str, role: &str| format!("coop_mat{side}x{side}<{scalar}, {role}>");
    Source {
        name: "matmul_coop",
        consts: vec![
            ("WG", 4 * subgroup),
            ("S", side),
            ("FM", fm),
            ("FN", fn_),
            ("FRAGMENTS", fm * fn_),
            ("EPILOGUE", epilogue as u32),
        ],
        aliases: vec![("coop_a", ty("f16", "A")), ("coop_b", ty("f16", "B")), ("coop_c", ty("f32", "C"))],
        imports: vec![],
        quant: Some(dtype),
        f16: true,
        cooperative_matrix: true,
    }
}

/// Records one product; `weight_bytes` is the size of W.
pub fn record(
    commands: &mut Commands<'_>,
    caps: &Caps,
    (kernel, group): (&Kernel, &wgpu::BindGroup),
    params: &LinearParams,
    weight_bytes: u64,
) {
    let (tile_m, tile_n) = match caps.cooperative_matrix {
        Some(side) => (2 * FRAGMENTS.0 * side, 2 * FRAGMENTS.1 * side),
        None => (64, 64),
    };
    let grid = [params.n.div_ceil(tile_n), params.m.div_ceil(tile_m), 1];
    commands.dispatch(kernel, group, params, grid, weight_bytes);
}
