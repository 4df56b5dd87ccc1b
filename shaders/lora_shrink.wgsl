// lora_shrink: u[m, i] = weight * sum_k A[i, k] x[m, k]    for every row's own adapters       Hu et al. 2021, arXiv:2106.09685
//   0 x  f32  read  [M, K]      LORA_A  the A factors      LORA_U  u  f32  read_write  [M, u_rows]
// Grid: (ceil(u_rows / 4 / (WG / L)), M, 1); L lanes make four rows. What no adapter of the row makes is left alone.
// Host: runtime/kernels/lora.rs    Oracle: tests/kernels/lora.rs
struct Params {
    k4s: u32,
    x_row: u32,
    site: u32,
    u_rows: u32,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let m = p.x_row + group.y;
    let i = (group.x * (WG / L) + index / L) * 4u;
    var f = FactorA();
    if i < p.u_rows { f = rows_of_a(m, p.site, i); }
    var v = vec4<f32>(0.0);
    if f.rows > 0u {
        for (var k = index % L; k < p.k4s; k += L) {
            v += four_rows(f, i, k, p.k4s, x[m * p.k4s + k]);
        }
    }
    v = vec4<f32>(reduce_add(v.x, index), reduce_add(v.y, index), reduce_add(v.z, index), reduce_add(v.w, index));
    if index % L == 0u && f.rows > 0u {
        store_u(m * p.u_rows + i, f.weight * v);
    }
}
