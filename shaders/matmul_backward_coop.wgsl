// matmul_backward_coop: dx[m, k] (=, +=) sum_n dy[m, n] W[n, k]
//   on cooperative matrices, f16 x f16 -> f32
//   4 exponents  u32  read  [M], by row_exponents
// S: side of a fragment, 8 or 16.  WG: 4 subgroups.
// Grid: (ceil(K / T), ceil(M / T), 1); 2 x 2 subgroups make a T x T tile, 2 x 2 fragments each, in
// steps of NS of N. dy and W are rounded to f16 on staging; sums in f32. Gradients are small: each
// row of dy is scaled by a power of two, so that its largest element lies in [2^14, 2^15)
// (Micikevicius et al. 2017, arXiv:1710.03740, section 3.2, scale the whole loss). Off per term,
// with h = 2^-11 (2^-10 where f16 is cut off instead of rounded):
//   |w| (h |dy| + 2^-28 max |dy|) + |dy| (h |w| + 2^-14 if |w| < 2^-14),
//   as subnormal f16 may be flushed.
// Fragments are named, not indexed: drivers keep indexed ones in memory.
// Bindings and `add`: shared/backward.wgsl
// Host: runtime/kernels/matmul_backward.rs    Oracle: tests/kernels/matmul_backward.rs
//import shared/backward, shared/quads_scalar, shared/fragment_store
//needs quant, fragments
//const WG, NS
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;
@group(0) @binding(4) var<storage, read> exponents: array<u32>;

const T: u32 = 4u * S;
const DY_LOADS: u32 = T * NS / 4u / WG; // fours of dy that a lane stages: 2, 4, 8 or 16
const W_PARTS: u32 = T * NS / 8u / WG;  // eighths of weights
// 8 halves of padding against bank conflicts.
const DY_STRIDE: u32 = NS + 8u;
const W_STRIDE: u32 = T + 8u;
const W_TILE: u32 = T * DY_STRIDE;        // where that of W begins
var<workgroup> tile: array<f16, W_TILE + NS * W_STRIDE>;
var<workgroup> tile_scale: array<f32, T>; // of the rows of dy

fn load_dy(m0: u32, i: u32, n0: u32) -> vec4<f32> {
    let n = n0 + i % (NS / 4u) * 4u + vec4<u32>(0u, 1u, 2u, 3u);
    let row = (p.dy_row + min(m0 + i / (NS / 4u), p.m - 1u)) * p.dy_stride + p.dy_offset;
    let at = row + min(n, vec4<u32>(p.n - 1u));
    let v = vec4<f32>(dy[at.x], dy[at.y], dy[at.z], dy[at.w]);
    return select(vec4<f32>(), v, n < vec4<u32>(p.n));
}

fn keep_dy(i: u32, v: vec4<f32>) {
    let line = i / (NS / 4u);
    put_quad(line * (DY_STRIDE / 4u) + i % (NS / 4u), vec4<f16>(tile_scale[line] * v));
}

// Four at a time, so that their loads are under way together.
fn stage_dy(m0: u32, i: u32, n0: u32) {
    let v0 = load_dy(m0, i, n0);
    let v1 = load_dy(m0, i + WG, n0);
    if DY_LOADS > 2u {
        let v2 = load_dy(m0, i + 2u * WG, n0);
        let v3 = load_dy(m0, i + 3u * WG, n0);
        keep_dy(i + 2u * WG, v2);
        keep_dy(i + 3u * WG, v3);
    }
    keep_dy(i, v0);
    keep_dy(i + WG, v1);
}

fn stage_w(block0: u32, i: u32, n0: u32) {
    let block = min(block0 + i % (T / 8u) / 4u, p.k_blocks - 1u);
    let w = dequant(min(n0 + i / (T / 8u), p.n - 1u) * p.k_blocks + block, i % 4u);
    let to = W_TILE / 4u + i / (T / 8u) * (W_STRIDE / 4u) + i % (T / 8u) / 4u * 8u + i % 4u;
    put_quad(to, vec4<f16>(w[0]));
    put_quad(to + 4u, vec4<f16>(w[1]));
}

// An element of a fragment.
fn put(m: u32, k: u32, v: f32) {
    if m < p.m && k < p.k_blocks * 32u {
        let at = (p.dx_row + m) * p.k_blocks * 32u + k;
        let unscale = bitcast<f32>((exponents[m] - 14u) << 23u);
        dx[at] = unscale * v + select(0.0, dx[at], p.add == 1u);
    }
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let m0 = group.y * T;
    let block0 = group.x * (T / 32u);
    let sm = subgroup / 2u * 2u * S;
    let sk = subgroup % 2u * 2u * S;
    var c00 = coop_c();
    var c01 = coop_c();
    var c10 = coop_c();
    var c11 = coop_c();
    for (var i = index; i < T; i += WG) {
        // 2^(141 - exponent)
        tile_scale[i] = bitcast<f32>((268u - exponents[min(m0 + i, p.m - 1u)]) << 23u);
    }
    for (var n0 = 0u; n0 < p.n; n0 += NS) {
        workgroupBarrier();
        for (var i = 0u; i < DY_LOADS; i += 4u) { stage_dy(m0, index + i * WG, n0); }
        for (var i = 0u; i < W_PARTS; i++) { stage_w(block0, index + i * WG, n0); }
        workgroupBarrier();
        for (var n = 0u; n < NS; n += S) {
            let w_at = W_TILE + n * W_STRIDE + sk;
            let dy_at = sm * DY_STRIDE + n;
            let b0 = coopLoadT<coop_b>(&tile[w_at], W_STRIDE);
            let b1 = coopLoadT<coop_b>(&tile[w_at + S], W_STRIDE);
            let a0 = coopLoadT<coop_a>(&tile[dy_at], DY_STRIDE);
            let a1 = coopLoadT<coop_a>(&tile[dy_at + S * DY_STRIDE], DY_STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
        }
    }
    let m = m0 + sm;
    let k = block0 * 32u + sk;
    store(c00, subgroup, lane, m, k);
    store(c01, subgroup, lane, m, k + S);
    store(c10, subgroup, lane, m + S, k);
    store(c11, subgroup, lane, m + S, k + S);
}
