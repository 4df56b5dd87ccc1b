// matmul_backward: dx[m, k] (=, +=) sum_n dy[m, n] W[n, k]
// Grid: (ceil(K / 64), ceil(M / 64), 1); 256 lanes make a 64 x 64 tile, 4 x 4 each, in steps of 32
// rows of W. 16 KiB of workgroup memory: WebGPU's default limit. Sums in f32.
// Bindings and `add`: shared/backward.wgsl
// Host: runtime/kernels/matmul_backward.rs    Oracle: tests/kernels/matmul_backward.rs
//import shared/backward, backward/dy_ones
//needs quant
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;

var<workgroup> tile_dy: array<vec4<f32>, 512>; // [64 m][32 n]
var<workgroup> tile_w: array<vec4<f32>, 512>; // [32 n][64 k]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let m0 = group.y * 64u;
    // Staging: a lane brings 8 weights of a row and 8 gradients of a column; neighbours take
    // neighbouring addresses.
    let w_row = index / 8u;
    let w_block = group.x * 2u + index / 4u % 2u;
    let part = index % 4u;
    let column = index % 32u;
    let tk = index % 16u;
    let tm = index / 16u;
    var acc = mat4x4<f32>();
    for (var n0 = 0u; n0 < p.n; n0 += 32u) {
        let w_line = min(n0 + w_row, p.n - 1u) * p.k_blocks;
        let w = dequant(w_line + min(w_block, p.k_blocks - 1u), part);
        let n = min(n0 + column, p.n - 1u);
        workgroupBarrier();
        let to = w_row * 16u + index / 4u % 2u * 8u + part;
        tile_w[to] = w[0];
        tile_w[to + 4u] = w[1];
        for (var m = index / 32u; m < 64u; m += 8u) {
            let v = dy[(p.dy_row + min(m0 + m, p.m - 1u)) * p.dy_stride + p.dy_offset + n];
            // Past the last row of W there is nothing to add.
            tile_dy[m * 8u + column / 4u][column % 4u] = select(0.0, v, n0 + column < p.n);
        }
        workgroupBarrier();
        for (var i = 0u; i < 8u; i++) {
            let at = i * 64u + tk;
            let b = mat4x4<f32>(tile_w[at], tile_w[at + 16u], tile_w[at + 32u], tile_w[at + 48u]);
            let row = tm * 32u + i;
            acc = mat4x4<f32>(
                acc[0] + b * tile_dy[row],
                acc[1] + b * tile_dy[row + 8u],
                acc[2] + b * tile_dy[row + 16u],
                acc[3] + b * tile_dy[row + 24u],
            );
        }
    }
    let k = group.x * 16u + tk;
    for (var i = 0u; i < 4u; i++) {
        let m = m0 + tm * 4u + i;
        if m < p.m && k < p.k_blocks * 8u {
            let at = (p.dx_row + m) * p.k_blocks * 8u + k;
            if p.add == 1u {
                dx[at] += acc[i];
            } else {
                dx[at] = acc[i];
            }
        }
    }
}
