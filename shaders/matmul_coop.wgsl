// matmul_coop: y[m, n] (=, +=) sum_k x[m, k] W[n, k]    on cooperative matrices, f16 x f16 -> f32
//   0 x     f32  read  [M, K]          1 gain  unused: one layout serves matvec, matmul and matmul_coop
//   2 words, 3 scales  read  W [N, K] in the format's blocks of 32
//   4 y     f32  read_write  [M, y_stride], columns from y_offset
// EPILOGUE 0: y = .  1: y += .    S: side of a fragment, 8 or 16.  WG: 4 subgroups.
// Grid: (ceil(N / TN), ceil(M / TM), 1); 2 x 2 subgroups make a TM x TN tile, FM x FN fragments each, in steps of 32 of K.
// x and W are rounded to f16 on staging; sums in f32.
// Host: runtime/kernels/matmul.rs    Oracle: tests/kernels/matmul.rs
struct Params {
    m: u32,
    n: u32,
    k_blocks: u32,
    x_row: u32,
    y_stride: u32,
    y_offset: u32,
    pair: u32,
    eps: f32,
    row0: u32,
    site: u32,
    u_rows: u32,
    lora_groups: u32,
    parts: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
    lora: vec4<u32>,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const TM: u32 = 2u * FM * S;
const TN: u32 = 2u * FN * S;
const X_PARTS: u32 = TM * 4u / WG; // parts of x that a lane stages
const W_PARTS: u32 = TN * 4u / WG;
const STRIDE: u32 = 40u; // 32 of K and 8 halves of padding against bank conflicts
var<workgroup> tile_x: array<f16, TM * STRIDE>;
var<workgroup> tile_w: array<f16, TN * STRIDE>;
var<workgroup> edge: array<f32, 4u * S * S>;

// A part is 8 values of a line: 4 at 4 * part and 4 at 16 + 4 * part.
fn load_x(m0: u32, i: u32, kb: u32) -> mat2x4<f32> {
    let at = ((p.x_row + min(m0 + i / 4u, p.m - 1u)) * p.k_blocks + kb) * 8u + i % 4u;
    return mat2x4<f32>(x[at], x[at + 4u]);
}

fn load_w(n0: u32, i: u32, kb: u32) -> mat2x4<f32> {
    return dequant(min(n0 + i / 4u, p.n - 1u) * p.k_blocks + kb, i % 4u);
}

fn stage_x(i: u32, v: mat2x4<f32>) {
    let at = i / 4u * STRIDE + i % 4u * 4u;
    for (var j = 0u; j < 4u; j++) {
        tile_x[at + j] = f16(v[0][j]);
        tile_x[at + 16u + j] = f16(v[1][j]);
    }
}

fn stage_w(i: u32, v: mat2x4<f32>) {
    let at = i / 4u * STRIDE + i % 4u * 4u;
    for (var j = 0u; j < 4u; j++) {
        tile_w[at + j] = f16(v[0][j]);
        tile_w[at + 16u + j] = f16(v[1][j]);
    }
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let m0 = group.y * TM;
    let n0 = group.x * TN;
    let sm = subgroup / 2u * FM * S;
    let sn = subgroup % 2u * FN * S;
    var acc: array<coop_c, FRAGMENTS>;
    for (var i = 0u; i < FRAGMENTS; i++) { acc[i] = coop_c(); }
    // The next step's x and W travel while this step's are multiplied.
    var next_x: array<mat2x4<f32>, X_PARTS>;
    var next_w: array<mat2x4<f32>, W_PARTS>;
    for (var i = 0u; i < X_PARTS; i++) { next_x[i] = load_x(m0, index + i * WG, 0u); }
    for (var i = 0u; i < W_PARTS; i++) { next_w[i] = load_w(n0, index + i * WG, 0u); }
    for (var kb = 0u; kb < p.k_blocks; kb++) {
        workgroupBarrier();
        for (var i = 0u; i < X_PARTS; i++) { stage_x(index + i * WG, next_x[i]); }
        for (var i = 0u; i < W_PARTS; i++) { stage_w(index + i * WG, next_w[i]); }
        workgroupBarrier();
        let ahead = min(kb + 1u, p.k_blocks - 1u);
        for (var i = 0u; i < X_PARTS; i++) { next_x[i] = load_x(m0, index + i * WG, ahead); }
        for (var i = 0u; i < W_PARTS; i++) { next_w[i] = load_w(n0, index + i * WG, ahead); }
        for (var k = 0u; k < 32u; k += S) {
            var b: array<coop_b, FN>;
            for (var j = 0u; j < FN; j++) {
                b[j] = coopLoad<coop_b>(&tile_w[(sn + j * S) * STRIDE + k], STRIDE);
            }
            for (var i = 0u; i < FM; i++) {
                let a = coopLoadT<coop_a>(&tile_x[(sm + i * S) * STRIDE + k], STRIDE);
                for (var j = 0u; j < FN; j++) {
                    acc[i * FN + j] = coopMultiplyAdd(a, b[j], acc[i * FN + j]);
                }
            }
        }
    }
    // Through an edge patch of workgroup memory, since a fragment may hang over the edge of y.
    let base = subgroup * S * S;
    for (var f = 0u; f < FRAGMENTS; f++) {
        workgroupBarrier();
        let c = acc[f];
        coopStoreT(c, &edge[base], S);
        workgroupBarrier();
        for (var e = lane; e < S * S; e += WG / 4u) {
            let m = m0 + sm + f / FN * S + e / S;
            let n = n0 + sn + f % FN * S + e % S;
            if m < p.m && n < p.n {
                let at = m * p.y_stride + p.y_offset + n;
                if EPILOGUE == 1u {
                    y[at] += edge[base + e];
                } else {
                    y[at] = edge[base + e];
                }
            }
        }
    }
}
