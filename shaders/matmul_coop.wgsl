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
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

const TM: u32 = 2u * FM * S;
const TN: u32 = 2u * FN * S;
const STRIDE: u32 = 40u; // 32 of K and 8 halves of padding against bank conflicts
var<workgroup> tile_x: array<f16, TM * STRIDE>;
var<workgroup> tile_w: array<f16, TN * STRIDE>;
var<workgroup> edge: array<f32, 4u * S * S>;

fn stage_x(at: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) { tile_x[at + j] = f16(v[j]); }
}

fn stage_w(at: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) { tile_w[at + j] = f16(v[j]); }
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
    for (var kb = 0u; kb < p.k_blocks; kb++) {
        workgroupBarrier();
        for (var i = index; i < TM * 4u; i += WG) {
            let line = i / 4u;
            let part = i % 4u;
            let at = ((p.x_row + min(m0 + line, p.m - 1u)) * p.k_blocks + kb) * 8u + part;
            stage_x(line * STRIDE + part * 4u, x[at]);
            stage_x(line * STRIDE + part * 4u + 16u, x[at + 4u]);
        }
        for (var i = index; i < TN * 4u; i += WG) {
            let line = i / 4u;
            let part = i % 4u;
            let w = dequant(min(n0 + line, p.n - 1u) * p.k_blocks + kb, part);
            stage_w(line * STRIDE + part * 4u, w[0]);
            stage_w(line * STRIDE + part * 4u + 16u, w[1]);
        }
        workgroupBarrier();
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
