// lora_expand: y[m, n] += sum_i B[n, i] u[m, i]
//   for every row's own adapters
//   Hu et al. 2021, arXiv:2106.09685
//   0 y  f32  read_write  [M, N]
//   LORA_B  the B factors
//   LORA_U  u  f32  read  [M, u_width]
// Rows below end0 of N are module 0's, those below end1 module 1's, the rest module 2's.
// Grid: (ceil(N / 128), M, 1); a lane makes two elements, 64 apart.
// Host: runtime/kernels/lora.rs    Oracle: tests/kernels/lora.rs
//import lora/expand_two
@group(0) @binding(0) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x / 64u * 128u + id.x % 64u + vec2<u32>(0u, 64u);
    let safe = min(n, vec2<u32>(p.n - 1u));
    let which = select(vec2<u32>(0u), vec2<u32>(1u), safe >= vec2<u32>(p.end0))
        + select(vec2<u32>(0u), vec2<u32>(1u), safe >= vec2<u32>(p.end1));
    let added = expand_two(p.x_row + id.y, p.site, vec4<u32>(0u), p.u_width, which, safe);
    let row = (p.y_row + id.y) * p.n;
    if n.x < p.n { y[row + n.x] += added.x; }
    if n.y < p.n { y[row + n.y] += added.y; }
}
