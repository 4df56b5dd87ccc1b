// lora_shrink: u[m, i] = weight * sum_k A[i, k] x[m, k]
//   for every row's own adapters
//   Hu et al. 2021, arXiv:2106.09685
//   0 x  f32  read  [M, K]
//   LORA_A  the A factors
//   LORA_U  u  f32  read_write  [M, u_width]
// Grid: (ceil(u_width / 4 / (WG / L)), M, 1); L lanes make four rows. What no adapter of the row
// makes is left alone.
// Host: runtime/kernels/lora.rs    Oracle: tests/kernels/lora.rs
//import lora/shrink_rows
//needs reduce
//const WG, L
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let m = p.x_row + group.y;
    let i = (group.x * (WG / L) + index / L) * 4u;
    var f = FactorA();
    if i < p.u_width { f = factor_of(m, p.site, i, vec4<u32>(0u)); }
    var v = vec4<f32>(0.0);
    if f.rows > 0u {
        let a = f.at + (i - f.before) * p.k8s;
        for (var k = index % L; k < p.k8s; k += L) {
            let lo = x[(m * p.k8s + k) * 2u];
            let hi = x[(m * p.k8s + k) * 2u + 1u];
            v += vec4<f32>(
                dot_a(lora_a[a + k], lo, hi),
                dot_a(lora_a[a + p.k8s + k], lo, hi),
                dot_a(lora_a[a + 2u * p.k8s + k], lo, hi),
                dot_a(lora_a[a + 3u * p.k8s + k], lo, hi),
            );
        }
    }
    v = vec4<f32>(reduce_add(v.x, index), reduce_add(v.y, index), reduce_add(v.z, index),
        reduce_add(v.w, index));
    if index % L == 0u && f.rows > 0u {
        for (var r = 0u; r < 4u; r++) { lora_u[m * p.u_width + i + r] = f.weight * v[r]; }
    }
}
