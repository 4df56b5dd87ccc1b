// matmul_coop: y[m, n] (=, +=) sum_k x[m, k] W[n, k]    on cooperative matrices, f16 x f16 -> f32
// EPILOGUE 0: y = .  1: y += .    S: side of a fragment, 8 or 16.  WG: 4 subgroups.
// Grid: (ceil(N / TN), ceil(M / TM), 1); 2 x 2 subgroups make a TM x TN tile, F x F fragments each,
// F 2 or 4, in steps of KS blocks of K. x and W are rounded to f16 on staging; sums in f32.
// Fragments are named, not indexed: drivers keep indexed ones in memory, which takes three times as
// long.
// Bindings: shared/linear.wgsl
// Host: runtime/kernels/matmul.rs    Oracle: tests/kernels/matmul.rs
//import shared/linear, shared/quads_scalar, shared/fragment_store
//needs quant, fragments
//const WG, F, KS, EPILOGUE

const TM: u32 = 2u * F * S;
const TN: u32 = 2u * F * S;
const LINE: u32 = 4u * KS;           // parts of a line
const PARTS: u32 = TM * LINE / WG;   // of x that a lane stages, and as many of W
const STRIDE: u32 = 32u * KS + 8u;   // 8 halves of padding against bank conflicts
// TM lines of x, then TN of W.
var<workgroup> tile: array<f16, (TM + TN) * STRIDE>;

// A part is 8 values of a line's block: 4 at 4 * part and 4 at 16 + 4 * part.
fn put_part(line0: u32, i: u32, lo: vec4<f32>, hi: vec4<f32>) {
    let to = (line0 + i / LINE) * (STRIDE / 4u) + i % LINE / 4u * 8u + i % 4u;
    put_quad(to, vec4<f16>(lo));
    put_quad(to + 4u, vec4<f16>(hi));
}

fn stage_x(m0: u32, i: u32, kb: u32) {
    let block = kb + i % LINE / 4u;
    let row = p.x_row + min(m0 + i / LINE, p.m - 1u);
    let at = (row * p.k_blocks + min(block, p.k_blocks - 1u)) * 8u + i % 4u;
    let inside = block < p.k_blocks;
    let none = vec4<f32>();
    put_part(0u, i, select(none, x[at], inside), select(none, x[at + 4u], inside));
}

fn stage_w(n0: u32, i: u32, kb: u32) {
    let block = min(kb + i % LINE / 4u, p.k_blocks - 1u);
    let w = dequant(min(n0 + i / LINE, p.n - 1u) * p.k_blocks + block, i % 4u);
    put_part(TM, i, w[0], w[1]);
}

// An element of a fragment.
fn put(m: u32, n: u32, v: f32) {
    if m < p.m && n < p.n {
        let at = m * p.y_stride + p.y_offset + n;
        y[at] = v + select(0.0, y[at], EPILOGUE == 1u);
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
    let sm = subgroup / 2u * F * S;
    let sn = subgroup % 2u * F * S;
    var c00 = coop_c(); var c01 = coop_c(); var c02 = coop_c(); var c03 = coop_c();
    var c10 = coop_c(); var c11 = coop_c(); var c12 = coop_c(); var c13 = coop_c();
    var c20 = coop_c(); var c21 = coop_c(); var c22 = coop_c(); var c23 = coop_c();
    var c30 = coop_c(); var c31 = coop_c(); var c32 = coop_c(); var c33 = coop_c();
    for (var kb = 0u; kb < p.k_blocks; kb += KS) {
        workgroupBarrier();
        for (var i = 0u; i < PARTS; i++) { stage_x(m0, index + i * WG, kb); }
        for (var i = 0u; i < PARTS; i++) { stage_w(n0, index + i * WG, kb); }
        workgroupBarrier();
        for (var k = 0u; k < 32u * KS; k += S) {
            let x_at = sm * STRIDE + k;
            let w_at = (TM + sn) * STRIDE + k;
            let b0 = coopLoad<coop_b>(&tile[w_at], STRIDE);
            let b1 = coopLoad<coop_b>(&tile[w_at + S * STRIDE], STRIDE);
            var b2 = coop_b();
            var b3 = coop_b();
            if F > 2u {
                b2 = coopLoad<coop_b>(&tile[w_at + 2u * S * STRIDE], STRIDE);
                b3 = coopLoad<coop_b>(&tile[w_at + 3u * S * STRIDE], STRIDE);
            }
            let a0 = coopLoadT<coop_a>(&tile[x_at], STRIDE);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            if F > 2u {
                c02 = coopMultiplyAdd(a0, b2, c02);
                c03 = coopMultiplyAdd(a0, b3, c03);
            }
            let a1 = coopLoadT<coop_a>(&tile[x_at + S * STRIDE], STRIDE);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            if F > 2u {
                c12 = coopMultiplyAdd(a1, b2, c12);
                c13 = coopMultiplyAdd(a1, b3, c13);
            }
            if F > 2u {
                let a2 = coopLoadT<coop_a>(&tile[x_at + 2u * S * STRIDE], STRIDE);
                c20 = coopMultiplyAdd(a2, b0, c20);
                c21 = coopMultiplyAdd(a2, b1, c21);
                c22 = coopMultiplyAdd(a2, b2, c22);
                c23 = coopMultiplyAdd(a2, b3, c23);
                let a3 = coopLoadT<coop_a>(&tile[x_at + 3u * S * STRIDE], STRIDE);
                c30 = coopMultiplyAdd(a3, b0, c30);
                c31 = coopMultiplyAdd(a3, b1, c31);
                c32 = coopMultiplyAdd(a3, b2, c32);
                c33 = coopMultiplyAdd(a3, b3, c33);
            }
        }
    }
    let m = m0 + sm;
    let n = n0 + sn;
    store(c00, subgroup, lane, m, n);
    store(c01, subgroup, lane, m, n + S);
    store(c10, subgroup, lane, m + S, n);
    store(c11, subgroup, lane, m + S, n + S);
    if F > 2u {
        store(c02, subgroup, lane, m, n + 2u * S);
        store(c03, subgroup, lane, m, n + 3u * S);
        store(c12, subgroup, lane, m + S, n + 2u * S);
        store(c13, subgroup, lane, m + S, n + 3u * S);
        store(c20, subgroup, lane, m + 2u * S, n);
        store(c21, subgroup, lane, m + 2u * S, n + S);
        store(c22, subgroup, lane, m + 2u * S, n + 2u * S);
        store(c23, subgroup, lane, m + 2u * S, n + 3u * S);
        store(c30, subgroup, lane, m + 3u * S, n);
        store(c31, subgroup, lane, m + 3u * S, n + S);
        store(c32, subgroup, lane, m + 3u * S, n + 2u * S);
        store(c33, subgroup, lane, m + 3u * S, n + 3u * S);
    }
}
