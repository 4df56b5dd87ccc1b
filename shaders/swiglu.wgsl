// swiglu: h[t, i] = activate(gu[t, i]) * gu[t, i + F]       Shazeer 2020, arXiv:2002.05202
//   0 gu  f32  read  [T, 2 F]
//   1 h  f32  read_write  [T, F]
// With adapters, lora/expand_two.wgsl adds to gate and up first and lora/shrink_tile.wgsl makes h's
// share of what follows.
// Grid: (ceil(F / WG), T, 1).
// Host: runtime/kernels/swiglu.rs    Oracle: tests/kernels/swiglu.rs
//needs expand_two, shrink_tile, activation
//const WG
@group(0) @binding(0) var<storage, read> gu: array<f32>;
@group(0) @binding(1) var<storage, read_write> h: array<f32>;

const TILE: u32 = WG; // of lora/shrink_tile.wgsl

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = group.x * WG + index;
    let t = group.y;
    let parts = (p.f + WG - 1u) / WG;
    let count = min(WG, p.f - group.x * WG);
    let share = Share(
        p.down_alone, p.down_site, t * parts + group.x, p.down_width,
        group.x * WG, count, p.f / 8u);
    let ahead = shrink_ahead(t, share, index);
    if i < p.f {
        let own = vec2<f32>(gu[t * 2u * p.f + i], gu[(t * 2u + 1u) * p.f + i]);
        let n = vec2<u32>(i, p.f + i);
        let gate_up = own
            + expand_two(t, p.gate_up_site, p.gate_up_alone, p.gate_up_width, vec2<u32>(0u, 1u), n);
        let v = activate(gate_up.x) * gate_up.y;
        h[t * p.f + i] = v;
        tile_put(index, v);
    }
    shrink_tile(t, share, ahead, index);
}
