// matmul: y[m, n] (=, +=) sum_k x[m, k] W[n, k]    for many rows m, staged in workgroup memory
// EPILOGUE 0: y = .  1: y += .
// Grid: (ceil(N / 64), ceil(M / 64), 1); 256 lanes make a 64 x 64 tile, 4 x 4 each, in steps of one
// block of K. 16 KiB of workgroup memory: WebGPU's default limit. Sums in f32.
// Bindings: shared/linear.wgsl
// Host: runtime/kernels/matmul.rs    Oracle: tests/kernels/matmul.rs
//import shared/linear
//needs quant
//const EPILOGUE

var<workgroup> tile_x: array<vec4<f32>, 512>; // [32 k][64 m]
var<workgroup> tile_w: array<vec4<f32>, 512>; // [32 k][64 n]

fn stage_x(k: u32, m: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) {
        tile_x[(k + j) * 16u + m / 4u][m % 4u] = v[j];
    }
}

fn stage_w(k: u32, n: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) {
        tile_w[(k + j) * 16u + n / 4u][n % 4u] = v[j];
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let n0 = group.x * 64u;
    let m0 = group.y * 64u;
    // Staging: a lane brings 8 weights and 8 activations. Neighbours take neighbouring rows: no
    // bank conflicts.
    let line = index % 64u;
    let part = index / 64u;
    let w_block = min(n0 + line, p.n - 1u) * p.k_blocks;
    let x_block = (p.x_row + min(m0 + line, p.m - 1u)) * p.k_blocks;
    let tn = index % 16u;
    let tm = index / 16u;
    var acc = mat4x4<f32>();
    for (var kb = 0u; kb < p.k_blocks; kb++) {
        let w = dequant(w_block + kb, part);
        let at = (x_block + kb) * 8u + part;
        let x_lo = x[at];
        let x_hi = x[at + 4u];
        workgroupBarrier();
        stage_w(part * 4u, line, w[0]);
        stage_w(part * 4u + 16u, line, w[1]);
        stage_x(part * 4u, line, x_lo);
        stage_x(part * 4u + 16u, line, x_hi);
        workgroupBarrier();
        for (var k = 0u; k < 32u; k++) {
            let a = tile_x[k * 16u + tm];
            let b = tile_w[k * 16u + tn];
            acc = mat4x4<f32>(
                acc[0] + a.x * b, acc[1] + a.y * b, acc[2] + a.z * b, acc[3] + a.w * b);
        }
    }
    for (var i = 0u; i < 4u; i++) {
        let m = m0 + tm * 4u + i;
        for (var j = 0u; j < 4u; j++) {
            let n = n0 + tn * 4u + j;
            if m < p.m && n < p.n {
                let at = m * p.y_stride + p.y_offset + n;
                if EPILOGUE == 1u {
                    y[at] += acc[i][j];
                } else {
                    y[at] = acc[i][j];
                }
            }
        }
    }
}
