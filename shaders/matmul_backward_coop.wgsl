// matmul_backward_coop: dx[m, k] (=, +=) sum_n dy[m, n] W[n, k]    on cooperative matrices, f16 x f16 -> f32
//   0 dy    f32  read  [., dy_stride], rows from dy_row, columns from dy_offset
//   1 words, 2 scales  read  W [N, K] in the format's blocks of 32, the buffers of the forward pass
//   3 dx    f32  read_write  [., K], rows from dx_row
// add 0: dx = .  1: dx += .    S: side of a fragment, 8 or 16.  WG: 4 subgroups.
// Grid: (ceil(K / TK), ceil(M / TM), 1); 2 x 2 subgroups make a TM x TK tile, FM x FK fragments each, in steps of 32 of N.
// dy and W are rounded to f16 on staging; sums in f32. Gradients are small: a workgroup first finds its largest |dy| and
// scales all by a power of two, so that this one lies in [2^14, 2^15) (Micikevicius et al. 2017, arXiv:1710.03740, section 3.2,
// scale the whole loss). Off per term, with h = 2^-11 (2^-10 where f16 is cut off instead of rounded):
//   |w| (h |dy| + 2^-28 max |dy|) + |dy| (h |w| + 2^-14 if |w| < 2^-14),    as subnormal f16 may be flushed.
// Host: runtime/kernels/matmul_backward.rs    Oracle: tests/kernels/matmul_backward.rs
struct Params {
    m: u32,
    n: u32,
    k_blocks: u32,
    dy_row: u32,
    dy_stride: u32,
    dy_offset: u32,
    dx_row: u32,
    add: u32,
}
@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

const TM: u32 = 2u * FM * S;
const TK: u32 = 2u * FK * S;
const DY_LOADS: u32 = TM * 32u / WG; // elements of dy that a lane stages
const W_PARTS: u32 = TK * 4u / WG; // eighths of 32 weights that a lane stages
// 8 halves of padding against bank conflicts.
const DY_STRIDE: u32 = 40u;
const W_STRIDE: u32 = TK + 8u;
var<workgroup> tile_dy: array<f16, TM * DY_STRIDE>;
var<workgroup> tile_w: array<f16, 32u * W_STRIDE>;
var<workgroup> edge: array<f32, 4u * S * S>;

fn dy_at(m: u32, n: u32) -> f32 {
    return dy[(p.dy_row + min(m, p.m - 1u)) * p.dy_stride + p.dy_offset + min(n, p.n - 1u)];
}

fn load_dy(m0: u32, i: u32, n0: u32) -> f32 {
    let n = n0 + i % 32u;
    return select(0.0, dy_at(m0 + i / 32u, n), n < p.n);
}

fn load_w(block0: u32, i: u32, n0: u32) -> mat2x4<f32> {
    let block = min(block0 + i % (TK / 8u) / 4u, p.k_blocks - 1u);
    return dequant(min(n0 + i / (TK / 8u), p.n - 1u) * p.k_blocks + block, i % 4u);
}

fn stage_w(i: u32, v: mat2x4<f32>) {
    let at = i / (TK / 8u) * W_STRIDE + i % (TK / 8u) / 4u * 32u + i % 4u * 4u;
    for (var j = 0u; j < 4u; j++) {
        tile_w[at + j] = f16(v[0][j]);
        tile_w[at + 16u + j] = f16(v[1][j]);
    }
}

// The exponent e, as f32 stores it, of the workgroup's largest |dy|: 2^(e - 127) <= max < 2^(e - 126). At least 15, so
// that the scale and its inverse are both normal numbers.
fn largest_exponent(m0: u32, index: u32) -> u32 {
    var most = 0.0;
    for (var m = m0; m < min(m0 + TM, p.m); m += 4u) {
        for (var n = index; n < p.n; n += WG) {
            let v = abs(vec4<f32>(dy_at(m, n), dy_at(m + 1u, n), dy_at(m + 2u, n), dy_at(m + 3u, n)));
            most = max(most, max(max(v.x, v.y), max(v.z, v.w)));
        }
    }
    edge[index] = most;
    workgroupBarrier();
    for (var i = 0u; i < WG; i++) {
        most = max(most, edge[i]);
    }
    return max(bitcast<u32>(most) >> 23u, 15u);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let m0 = group.y * TM;
    let block0 = group.x * (TK / 32u);
    let sm = subgroup / 2u * FM * S;
    let sk = subgroup % 2u * FK * S;
    let exponent = largest_exponent(m0, index);
    let scale = bitcast<f32>((268u - exponent) << 23u); // 2^(141 - exponent)
    let unscale = bitcast<f32>((exponent - 14u) << 23u);
    var acc: array<coop_c, FRAGMENTS>;
    for (var i = 0u; i < FRAGMENTS; i++) { acc[i] = coop_c(); }
    // The next step's dy and W travel while this step's are multiplied.
    var next_dy: array<f32, DY_LOADS>;
    var next_w: array<mat2x4<f32>, W_PARTS>;
    for (var i = 0u; i < DY_LOADS; i++) { next_dy[i] = load_dy(m0, index + i * WG, 0u); }
    for (var i = 0u; i < W_PARTS; i++) { next_w[i] = load_w(block0, index + i * WG, 0u); }
    for (var n0 = 0u; n0 < p.n; n0 += 32u) {
        workgroupBarrier();
        for (var i = 0u; i < DY_LOADS; i++) {
            let e = index + i * WG;
            tile_dy[e / 32u * DY_STRIDE + e % 32u] = f16(scale * next_dy[i]);
        }
        for (var i = 0u; i < W_PARTS; i++) { stage_w(index + i * WG, next_w[i]); }
        workgroupBarrier();
        let ahead = n0 + 32u;
        for (var i = 0u; i < DY_LOADS; i++) { next_dy[i] = load_dy(m0, index + i * WG, ahead); }
        for (var i = 0u; i < W_PARTS; i++) { next_w[i] = load_w(block0, index + i * WG, ahead); }
        for (var n = 0u; n < 32u; n += S) {
            var b: array<coop_b, FK>;
            for (var j = 0u; j < FK; j++) {
                b[j] = coopLoadT<coop_b>(&tile_w[n * W_STRIDE + sk + j * S], W_STRIDE);
            }
            for (var i = 0u; i < FM; i++) {
                let a = coopLoadT<coop_a>(&tile_dy[(sm + i * S) * DY_STRIDE + n], DY_STRIDE);
                for (var j = 0u; j < FK; j++) {
                    acc[i * FK + j] = coopMultiplyAdd(a, b[j], acc[i * FK + j]);
                }
            }
        }
    }
    // Through an edge patch of workgroup memory, since a fragment may hang over the edge of dx.
    let base = subgroup * S * S;
    for (var f = 0u; f < FRAGMENTS; f++) {
        workgroupBarrier();
        let c = acc[f];
        coopStoreT(c, &edge[base], S);
        workgroupBarrier();
        for (var e = lane; e < S * S; e += WG / 4u) {
            let m = m0 + sm + f / FK * S + e / S;
            let k = block0 * 32u + sk + f % FK * S + e % S;
            if m < p.m && k < p.k_blocks * 32u {
                let at = (p.dx_row + m) * p.k_blocks * 32u + k;
                dx[at] = unscale * edge[base + e] + select(0.0, dx[at], p.add == 1u);
            }
        }
    }
}
