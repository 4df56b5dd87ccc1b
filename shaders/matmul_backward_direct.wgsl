// matmul_backward_direct: dx[m, k] (=, +=) sum_n dy[m, n] W[n, k]
//   in registers, for devices where barriers are slow
// Grid: (ceil(K / 8 / WG), ceil(M / 4), 1); a lane sums 4 rows of dx at 8 columns, a quarter of a
// block: the weights are read once for 4 rows. Sums in f32.
// Bindings and `add`: shared/backward.wgsl
// Host: runtime/kernels/matmul_backward.rs    Oracle: tests/kernels/matmul_backward.rs
//import shared/backward, backward/dy_ones
//needs quant
//const WG
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let unit = group.x * WG + index;
    if unit >= p.k_blocks * 4u {
        return;
    }
    let kb = unit / 4u;
    let part = unit % 4u;
    let m = group.y * 4u;
    let rows = p.dy_row + min(vec4<u32>(m, m + 1u, m + 2u, m + 3u), vec4<u32>(p.m - 1u));
    let first = rows * p.dy_stride + p.dy_offset;
    var lo = mat4x4<f32>();
    var hi = mat4x4<f32>();
    for (var n = 0u; n < p.n; n++) {
        let w = dequant(n * p.k_blocks + kb, part);
        let d = vec4<f32>(dy[first.x + n], dy[first.y + n], dy[first.z + n], dy[first.w + n]);
        lo = mat4x4<f32>(
            lo[0] + d.x * w[0], lo[1] + d.y * w[0], lo[2] + d.z * w[0], lo[3] + d.w * w[0]);
        hi = mat4x4<f32>(
            hi[0] + d.x * w[1], hi[1] + d.y * w[1], hi[2] + d.z * w[1], hi[3] + d.w * w[1]);
    }
    for (var i = 0u; i < 4u; i++) {
        if m + i < p.m {
            let at = ((p.dx_row + m + i) * p.k_blocks + kb) * 8u + part;
            dx[at] = lo[i] + select(vec4<f32>(), dx[at], p.add == 1u);
            dx[at + 4u] = hi[i] + select(vec4<f32>(), dx[at + 4u], p.add == 1u);
        }
    }
}
