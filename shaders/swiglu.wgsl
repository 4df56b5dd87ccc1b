// swiglu: h[t, i] = silu(gu[t, i]) * gu[t, i + F]       Shazeer 2020, arXiv:2002.05202
//   0 gu  f32  read  [T, 2 F]      1 h  f32  read_write  [T, F]
// Grid: (ceil(F / 4 / 64), T, 1). Needs: F a multiple of 4.
// Host: runtime/kernels/swiglu.rs    Oracle: tests/kernels/swiglu.rs
struct Params {
    f4: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<storage, read> gu: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> h: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.f4 {
        return;
    }
    let gate = gu[id.y * 2u * p.f4 + id.x];
    let up = gu[(id.y * 2u + 1u) * p.f4 + id.x];
    h[id.y * p.f4 + id.x] = gate / (1.0 + exp(-gate)) * up;
}
