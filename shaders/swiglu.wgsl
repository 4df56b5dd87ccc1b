// swiglu: h[t, i] = silu(gu[t, i]) * gu[t, i + F]       Shazeer 2020, arXiv:2002.05202
//   0 gu  f32  read  [T, 2 F]      1 h  f32  read_write  [T, F]
// With adapters, lora/expand_row.wgsl adds to gate and up first and lora/shrink_tile.wgsl makes h's share of what follows.
// Grid: (ceil(F / WG), T, 1).
// Host: runtime/kernels/swiglu.rs    Oracle: tests/kernels/swiglu.rs
struct Params {
    f: u32,
    gate_up_site: u32,
    gate_up_rows: u32,
    down_site: u32,
    down_rows: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<storage, read> gu: array<f32>;
@group(0) @binding(1) var<storage, read_write> h: array<f32>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = group.x * WG + index;
    let t = group.y;
    if i < p.f {
        let gate = gu[t * 2u * p.f + i] + expand_row(t, p.gate_up_site, 0u, i, p.gate_up_rows);
        let up = gu[(t * 2u + 1u) * p.f + i] + expand_row(t, p.gate_up_site, 1u, p.f + i, p.gate_up_rows);
        let v = gate / (1.0 + exp(-gate)) * up;
        h[t * p.f + i] = v;
        tile_put(index, v);
    }
    let parts = (p.f + WG - 1u) / WG;
    let count = min(WG, p.f - group.x * WG);
    let share = Share(p.down_site, t * parts + group.x, p.down_rows, group.x * WG, count, p.f / 4u);
    shrink_tile(t, share, index);
}
