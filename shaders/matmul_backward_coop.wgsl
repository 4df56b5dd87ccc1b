// matmul_backward_coop: dx[m, k] (=, +=) sum_n dy[m, n] W[n, k]
//   on cooperative matrices, f16 x f16 -> f32
//   4 exponents  u32  read  [M], by row_exponents
// S: side of a fragment, 8 or 16.  WG: 4 subgroups.
// Grid: (ceil(K / T), ceil(M / T), 1); 2 x 2 subgroups make a T x T tile, F x F fragments each, F 2
// or 4, in steps of NS of N. While a step is multiplied, the next is under way. dy and W are
// rounded to f16 on staging; sums in f32. Gradients are small: each row of dy is scaled by a power
// of two, so that its largest element lies in [2^14, 2^15) (Micikevicius et al. 2017,
// arXiv:1710.03740, section 3.2, scale the whole loss). Off per term, with h = 2^-11 (2^-10 where
// f16 is cut off instead of rounded):
//   |w| (h |dy| + 2^-28 max |dy|) + |dy| (h |w| + 2^-14 if |w| < 2^-14),
//   as subnormal f16 may be flushed.
// Fragments are named, not indexed: drivers keep indexed ones in memory.
// Bindings and `add`: shared/backward.wgsl
// Host: runtime/kernels/matmul_backward.rs    Oracle: tests/kernels/matmul_backward.rs
//import shared/backward, shared/fragment_store
//needs dy, halves, fragments, quads
//const WG, F, NS
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;
@group(0) @binding(4) var<storage, read> exponents: array<u32>;

const T: u32 = 2u * F * S;
const LINE: u32 = NS / 4u;                           // fours of a line of dy
const FOURS: u32 = T * LINE / WG;                   // that a lane stages, eight of them ahead
const BLOCKS: u32 = T / 32u;                        // of a line of W
const W_BLOCKS: u32 = max(NS * BLOCKS / WG, 1u);     // that a lane stages, two of them ahead
// Quads of a line, padded against bank conflicts.
const DY_STRIDE: u32 = LINE + 2u;
const W_STRIDE: u32 = T / 4u + 2u;
const W_TILE: u32 = T * DY_STRIDE;                  // where that of W begins
var<workgroup> tile: array<cell, (W_TILE + NS * W_STRIDE) * QUAD>;
var<workgroup> tile_scale: array<f32, T>;           // of the rows of dy

// Weights 4 p..4 p + 3 and 16 + 4 p.. of a block.
struct Halves {
    lo: vec4<f16>,
    hi: vec4<f16>,
}

fn load_dy(m0: u32, i: u32, n0: u32) -> vec4<f32> {
    let row = (p.dy_row + min(m0 + i / LINE, p.m - 1u)) * p.dy_stride + p.dy_offset;
    return four_of_dy(row, n0 + i % LINE * 4u);
}

fn put_dy(i: u32, v: vec4<f32>) {
    if i >= T * LINE { return; }
    let line = i / LINE;
    put_quad(line * DY_STRIDE + i % LINE, vec4<f16>(tile_scale[line] * v));
}

// Past the end of N: the last row, which meets zeros of dy.
fn fetch_w(block0: u32, i: u32, n0: u32) -> Fetched {
    let block = min(block0 + i % BLOCKS, p.k_blocks - 1u);
    return fetch(min(n0 + i / BLOCKS, p.n - 1u) * p.k_blocks + block);
}

fn put_w(i: u32, f: Fetched) {
    if i < NS * BLOCKS {
        let to = W_TILE + i / BLOCKS * W_STRIDE + i % BLOCKS * 8u;
        put_part(to, halves(f, 0u));
        put_part(to + 1u, halves(f, 1u));
        put_part(to + 2u, halves(f, 2u));
        put_part(to + 3u, halves(f, 3u));
    }
}

fn put_part(to: u32, v: Halves) {
    put_quad(to, v.lo);
    put_quad(to + 4u, v.hi);
}

// An element of a fragment.
fn put(m: u32, k: u32, v: f32) {
    if m < p.m && k < p.k_blocks * 32u {
        let at = (p.dx_row + m) * p.k_blocks * 32u + k;
        let unscale = bitcast<f32>((exponents[m] - 14u) << 23u);
        dx[at] = unscale * v + select(0.0, dx[at], p.add == 1u);
    }
}

fn dy_fragment(line: u32, n: u32) -> coop_a {
    return coopLoadT<coop_a>(&tile[(line * DY_STRIDE + n / 4u) * QUAD], DY_STRIDE * QUAD);
}

fn w_fragment(n: u32, k: u32) -> coop_b {
    return coopLoadT<coop_b>(&tile[(W_TILE + n * W_STRIDE + k / 4u) * QUAD], W_STRIDE * QUAD);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let m0 = group.y * T;
    let block0 = group.x * BLOCKS;
    let sm = subgroup / 2u * F * S;
    let sk = subgroup % 2u * F * S;
    var y0 = vec4<f32>(); var y1 = vec4<f32>();
    var y2 = vec4<f32>(); var y3 = vec4<f32>();
    var y4 = vec4<f32>(); var y5 = vec4<f32>();
    var y6 = vec4<f32>(); var y7 = vec4<f32>();
    y0 = load_dy(m0, index, 0u);
    y1 = load_dy(m0, index + WG, 0u);
    if FOURS > 2u {
        y2 = load_dy(m0, index + 2u * WG, 0u);
        y3 = load_dy(m0, index + 3u * WG, 0u);
    }
    if FOURS > 4u {
        y4 = load_dy(m0, index + 4u * WG, 0u);
        y5 = load_dy(m0, index + 5u * WG, 0u);
        y6 = load_dy(m0, index + 6u * WG, 0u);
        y7 = load_dy(m0, index + 7u * WG, 0u);
    }
    var w0 = fetch_w(block0, index, 0u);
    var w1 = Fetched();
    if W_BLOCKS > 1u { w1 = fetch_w(block0, index + WG, 0u); }
    for (var i = index; i < T; i += WG) {
        // 2^(141 - exponent)
        tile_scale[i] = bitcast<f32>((268u - exponents[min(m0 + i, p.m - 1u)]) << 23u);
    }
    var c00 = coop_c(); var c01 = coop_c(); var c02 = coop_c(); var c03 = coop_c();
    var c10 = coop_c(); var c11 = coop_c(); var c12 = coop_c(); var c13 = coop_c();
    var c20 = coop_c(); var c21 = coop_c(); var c22 = coop_c(); var c23 = coop_c();
    var c30 = coop_c(); var c31 = coop_c(); var c32 = coop_c(); var c33 = coop_c();
    for (var n0 = 0u; n0 < p.n; n0 += NS) {
        workgroupBarrier();
        put_dy(index, y0);
        put_dy(index + WG, y1);
        if FOURS > 2u {
            put_dy(index + 2u * WG, y2);
            put_dy(index + 3u * WG, y3);
        }
        if FOURS > 4u {
            put_dy(index + 4u * WG, y4);
            put_dy(index + 5u * WG, y5);
            put_dy(index + 6u * WG, y6);
            put_dy(index + 7u * WG, y7);
        }
        for (var i = 8u; i < FOURS; i++) {
            put_dy(index + i * WG, load_dy(m0, index + i * WG, n0));
        }
        put_w(index, w0);
        if W_BLOCKS > 1u { put_w(index + WG, w1); }
        for (var i = 2u; i < W_BLOCKS; i++) {
            put_w(index + i * WG, fetch_w(block0, index + i * WG, n0));
        }
        workgroupBarrier();
        let next = n0 + NS;
        y0 = load_dy(m0, index, next);
        y1 = load_dy(m0, index + WG, next);
        if FOURS > 2u {
            y2 = load_dy(m0, index + 2u * WG, next);
            y3 = load_dy(m0, index + 3u * WG, next);
        }
        if FOURS > 4u {
            y4 = load_dy(m0, index + 4u * WG, next);
            y5 = load_dy(m0, index + 5u * WG, next);
            y6 = load_dy(m0, index + 6u * WG, next);
            y7 = load_dy(m0, index + 7u * WG, next);
        }
        w0 = fetch_w(block0, index, next);
        if W_BLOCKS > 1u { w1 = fetch_w(block0, index + WG, next); }
        for (var n = 0u; n < NS; n += S) {
            let b0 = w_fragment(n, sk);
            let b1 = w_fragment(n, sk + S);
            var b2 = coop_b();
            var b3 = coop_b();
            if F > 2u {
                b2 = w_fragment(n, sk + 2u * S);
                b3 = w_fragment(n, sk + 3u * S);
            }
            let a0 = dy_fragment(sm, n);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            if F > 2u {
                c02 = coopMultiplyAdd(a0, b2, c02);
                c03 = coopMultiplyAdd(a0, b3, c03);
            }
            let a1 = dy_fragment(sm + S, n);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            if F > 2u {
                c12 = coopMultiplyAdd(a1, b2, c12);
                c13 = coopMultiplyAdd(a1, b3, c13);
                let a2 = dy_fragment(sm + 2u * S, n);
                c20 = coopMultiplyAdd(a2, b0, c20);
                c21 = coopMultiplyAdd(a2, b1, c21);
                let a3 = dy_fragment(sm + 3u * S, n);
                c30 = coopMultiplyAdd(a3, b0, c30);
                c31 = coopMultiplyAdd(a3, b1, c31);
                if F > 2u {
                    c22 = coopMultiplyAdd(a2, b2, c22);
                    c23 = coopMultiplyAdd(a2, b3, c23);
                    c32 = coopMultiplyAdd(a3, b2, c32);
                    c33 = coopMultiplyAdd(a3, b3, c33);
                }
            }
        }
    }
    let m = m0 + sm;
    let k = block0 * 32u + sk;
    store(c00, subgroup, lane, m, k);
    store(c01, subgroup, lane, m, k + S);
    store(c10, subgroup, lane, m + S, k);
    store(c11, subgroup, lane, m + S, k + S);
    if F > 2u {
        store(c02, subgroup, lane, m, k + 2u * S);
        store(c03, subgroup, lane, m, k + 3u * S);
        store(c12, subgroup, lane, m + S, k + 2u * S);
        store(c13, subgroup, lane, m + S, k + 3u * S);
        store(c20, subgroup, lane, m + 2u * S, k);
        store(c21, subgroup, lane, m + 2u * S, k + S);
        store(c30, subgroup, lane, m + 3u * S, k);
        store(c31, subgroup, lane, m + 3u * S, k + S);
        store(c22, subgroup, lane, m + 2u * S, k + 2u * S);
        store(c23, subgroup, lane, m + 2u * S, k + 3u * S);
        store(c32, subgroup, lane, m + 3u * S, k + 2u * S);
        store(c33, subgroup, lane, m + 3u * S, k + 3u * S);
    }
}
