// matvec: y[m, n] (=, +=) sum_k x[m, k] W[n, k]    for few rows m: the weights are read once for COLS of them
//   0 x     f32  read  [M, K]          1 gain  f32  read  [K], with NORM
//   2 words, 3 scales  read  W [N, K] in the format's blocks of 32
//   4 y     f32  read_write  [M, y_stride], columns from y_offset
// NORM 1: x is RMS-normalised on the way: the squares are summed beside the products and applied at the end.
// EPILOGUE 0: y = .  1: y += .  2: y[m, i] = silu(W x)[i] * (W x)[i + pair]   (SwiGLU, Shazeer 2020, arXiv:2002.05202)
// Grid: (ceil(N / (WG / L * R)), ceil(M / COLS), 1), N = pair for SwiGLU; L lanes a row, R rows a lane.
// Host: runtime/kernels/matvec.rs    Oracle: tests/kernels/matvec.rs
struct Params {
    m: u32,
    n: u32,
    k_blocks: u32,
    x_row: u32,
    y_stride: u32,
    y_offset: u32,
    pair: u32,
    eps: f32,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const UNITS: u32 = select(R, R / 2u, EPILOGUE == 2u); // output columns a lane group makes

fn weight_row(unit: u32, r: u32) -> u32 {
    if EPILOGUE == 2u {
        return min(unit + r % UNITS, p.pair - 1u) + r / UNITS * p.pair;
    }
    return min(unit + r, p.n - 1u);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let lane = index % L;
    let unit = (group.x * (WG / L) + index / L) * UNITS;
    let col = group.y * COLS;
    var acc: array<f32, ACC>;
    var squares: array<f32, COLS>;
    for (var i = 0u; i < ACC; i++) { acc[i] = 0.0; }
    for (var c = 0u; c < COLS; c++) { squares[c] = 0.0; }

    for (var kb = lane; kb < p.k_blocks; kb += L) {
        for (var c = 0u; c < COLS; c++) {
            let at = ((p.x_row + min(col + c, p.m - 1u)) * p.k_blocks + kb) * 8u;
            var lo = mat4x4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
            var hi = mat4x4<f32>(x[at + 4u], x[at + 5u], x[at + 6u], x[at + 7u]);
            if NORM == 1u {
                squares[c] += dot(lo[0], lo[0]) + dot(lo[1], lo[1]) + dot(lo[2], lo[2]) + dot(lo[3], lo[3])
                    + dot(hi[0], hi[0]) + dot(hi[1], hi[1]) + dot(hi[2], hi[2]) + dot(hi[3], hi[3]);
                let g = kb * 8u;
                lo = mat4x4<f32>(lo[0] * gain[g], lo[1] * gain[g + 1u], lo[2] * gain[g + 2u], lo[3] * gain[g + 3u]);
                hi = mat4x4<f32>(hi[0] * gain[g + 4u], hi[1] * gain[g + 5u], hi[2] * gain[g + 6u], hi[3] * gain[g + 7u]);
            }
            let sum = dot(lo[0] + lo[1] + lo[2] + lo[3] + hi[0] + hi[1] + hi[2] + hi[3], vec4<f32>(1.0));
            for (var r = 0u; r < R; r++) {
                acc[r * COLS + c] += dot_block(weight_row(unit, r) * p.k_blocks + kb, lo, hi, sum);
            }
        }
    }

    for (var c = 0u; c < COLS; c++) {
        var scale = 1.0;
        if NORM == 1u {
            scale = 1.0 / sqrt(reduce_add(squares[c], index) / f32(32u * p.k_blocks) + p.eps);
        }
        for (var r = 0u; r < R; r++) {
            acc[r * COLS + c] = reduce_add(acc[r * COLS + c], index) * scale;
        }
        if lane == 0u && col + c < p.m {
            store(col + c, c, unit, &acc);
        }
    }
}

fn store(m: u32, c: u32, unit: u32, acc: ptr<function, array<f32, ACC>>) {
    for (var r = 0u; r < UNITS; r++) {
        let n = unit + r;
        let at = m * p.y_stride + p.y_offset + n;
        let v = (*acc)[r * COLS + c];
        if EPILOGUE == 2u {
            if n < p.pair {
                y[at] = v / (1.0 + exp(-v)) * (*acc)[(r + UNITS) * COLS + c];
            }
        } else if n < p.n {
            if EPILOGUE == 1u {
                y[at] += v;
            } else {
                y[at] = v;
            }
        }
    }
}
