// lora_expand: y[m, n] += sum_i B[n, i] u[m, i]    for every row's own adapters       Hu et al. 2021, arXiv:2106.09685
//   0 y  f32  read_write  [M, N]      LORA_B  the B factors      LORA_U  u  f32  read  [M, u_rows]
// Rows below end0 of N are module 0's, those below end1 module 1's, the rest module 2's.
// Grid: (ceil(N / 64), M, 1).
// Host: runtime/kernels/lora.rs    Oracle: tests/kernels/lora.rs
struct Params {
    n: u32,
    x_row: u32,
    y_row: u32,
    site: u32,
    u_rows: u32,
    end0: u32,
    end1: u32,
    pad: u32,
}
@group(0) @binding(0) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.n {
        return;
    }
    let which = select(0u, 1u, id.x >= p.end0) + select(0u, 1u, id.x >= p.end1);
    let at = (p.y_row + id.y) * p.n + id.x;
    y[at] += expand_row(p.x_row + id.y, p.site, which, id.x, p.u_rows);
}
