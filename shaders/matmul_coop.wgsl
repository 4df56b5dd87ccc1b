// matmul_coop: y[m, n] (=, +=) sum_k x[m, k] W[n, k]    on cooperative matrices, f16 x f16 -> f32
// EPILOGUE 0: y = .  1: y += .    S: side of a fragment, 8 or 16.  WG: 4 subgroups.
// Grid: (ceil(N / T), ceil(M / T), 1); 2 x 2 subgroups make a T x T tile, F x F fragments each, F 2
// or 4, in steps of KS blocks of K. While a step is multiplied, the next is under way. x and W are
// rounded to f16 on staging; sums in f32.
// Fragments are named, not indexed: drivers keep indexed ones in memory, which takes three times as
// long.
// Bindings: shared/linear.wgsl
// Host: runtime/kernels/matmul.rs    Oracle: tests/kernels/matmul.rs
//import shared/linear, shared/fragment_store
//needs halves, fragments, quads
//const WG, F, KS, EPILOGUE

const T: u32 = 2u * F * S;
const LINE: u32 = 4u * KS;                       // parts of a line, of 8 values
const X_PARTS: u32 = T * LINE / WG;              // that a lane stages, four of them ahead
const W_BLOCKS: u32 = max(T * KS / WG, 1u);      // likewise, two of them ahead
const STRIDE: u32 = 8u * KS + 2u;                // quads of a line, padded against bank conflicts
const W_LINE: u32 = T;                           // where W's lines begin
// T lines of x, then T of W.
var<workgroup> tile: array<cell, (T + T) * STRIDE * QUAD>;

// Weights or values 4 p..4 p + 3 and 16 + 4 p.. of a block.
struct Halves {
    lo: vec4<f16>,
    hi: vec4<f16>,
}

// What is under way of x: eight values.
struct Part {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

fn put_halves(line: u32, block: u32, part: u32, v: Halves) {
    let to = line * STRIDE + 8u * block + part;
    put_quad(to, v.lo);
    put_quad(to + 4u, v.hi);
}

// Past the end of K: zeros.
fn load_x(m0: u32, i: u32, kb: u32) -> Part {
    let block = kb + i % LINE / 4u;
    let row = p.x_row + min(m0 + i / LINE, p.m - 1u);
    let at = (row * p.k_blocks + min(block, p.k_blocks - 1u)) * 8u + i % 4u;
    if KS > 1u && block >= p.k_blocks { return Part(); }
    return Part(x[at], x[at + 4u]);
}

fn put_x(i: u32, v: Part) {
    if i >= T * LINE { return; }
    put_halves(i / LINE, i % LINE / 4u, i % 4u, Halves(vec4<f16>(v.lo), vec4<f16>(v.hi)));
}

fn fetch_w(n0: u32, i: u32, kb: u32) -> Fetched {
    let n = min(n0 + i / KS, p.n - 1u);
    return fetch(n * p.k_blocks + min(kb + i % KS, p.k_blocks - 1u));
}

fn put_w(i: u32, f: Fetched) {
    if i < T * KS {
        let line = W_LINE + i / KS;
        put_halves(line, i % KS, 0u, halves(f, 0u));
        put_halves(line, i % KS, 1u, halves(f, 1u));
        put_halves(line, i % KS, 2u, halves(f, 2u));
        put_halves(line, i % KS, 3u, halves(f, 3u));
    }
}

// An element of a fragment.
fn put(m: u32, n: u32, v: f32) {
    if m < p.m && n < p.n {
        let at = m * p.y_stride + p.y_offset + n;
        y[at] = v + select(0.0, y[at], EPILOGUE == 1u);
    }
}

// Of a tile that lies inside, with lines that begin at multiples of 16 bytes.
fn whole_from(m: u32, n: u32) -> coop_c {
    let stride = p.y_stride; // naga loads nothing in the place of an argument
    let at = m * stride + p.y_offset + n;
    return coopLoadT<coop_c>(&y[at], stride);
}

fn whole_to(c: coop_c, m: u32, n: u32) {
    let stride = p.y_stride;
    let at = m * stride + p.y_offset + n;
    coopStoreT(c, &y[at], stride);
}

fn x_fragment(line: u32, k: u32) -> coop_a {
    return coopLoadT<coop_a>(&tile[(line * STRIDE + k) * QUAD], STRIDE * QUAD);
}

fn w_fragment(line: u32, k: u32) -> coop_b {
    return coopLoad<coop_b>(&tile[((W_LINE + line) * STRIDE + k) * QUAD], STRIDE * QUAD);
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let m0 = group.y * T;
    let n0 = group.x * T;
    let sm = subgroup / 2u * F * S;
    let sn = subgroup % 2u * F * S;
    var x0 = load_x(m0, index, 0u);
    var x1 = load_x(m0, index + WG, 0u);
    var x2 = Part();
    var x3 = Part();
    if X_PARTS > 2u {
        x2 = load_x(m0, index + 2u * WG, 0u);
        x3 = load_x(m0, index + 3u * WG, 0u);
    }
    var w0 = fetch_w(n0, index, 0u);
    var w1 = Fetched();
    if W_BLOCKS > 1u { w1 = fetch_w(n0, index + WG, 0u); }
    let m = m0 + sm;
    let n = n0 + sn;
    let whole = m0 + T <= p.m && n0 + T <= p.n && (p.y_stride | p.y_offset) % 4u == 0u;
    var c00 = coop_c(); var c01 = coop_c(); var c02 = coop_c(); var c03 = coop_c();
    var c10 = coop_c(); var c11 = coop_c(); var c12 = coop_c(); var c13 = coop_c();
    var c20 = coop_c(); var c21 = coop_c(); var c22 = coop_c(); var c23 = coop_c();
    var c30 = coop_c(); var c31 = coop_c(); var c32 = coop_c(); var c33 = coop_c();
    if EPILOGUE == 1u && whole {
        c00 = whole_from(m, n);
        c01 = whole_from(m, n + S);
        c10 = whole_from(m + S, n);
        c11 = whole_from(m + S, n + S);
        if F > 2u {
            c02 = whole_from(m, n + 2u * S);
            c03 = whole_from(m, n + 3u * S);
            c12 = whole_from(m + S, n + 2u * S);
            c13 = whole_from(m + S, n + 3u * S);
            c20 = whole_from(m + 2u * S, n);
            c21 = whole_from(m + 2u * S, n + S);
            c30 = whole_from(m + 3u * S, n);
            c31 = whole_from(m + 3u * S, n + S);
            c22 = whole_from(m + 2u * S, n + 2u * S);
            c23 = whole_from(m + 2u * S, n + 3u * S);
            c32 = whole_from(m + 3u * S, n + 2u * S);
            c33 = whole_from(m + 3u * S, n + 3u * S);
        }
    }
    for (var kb = 0u; kb < p.k_blocks; kb += KS) {
        workgroupBarrier();
        put_x(index, x0);
        put_x(index + WG, x1);
        if X_PARTS > 2u {
            put_x(index + 2u * WG, x2);
            put_x(index + 3u * WG, x3);
        }
        for (var i = 4u; i < X_PARTS; i++) {
            put_x(index + i * WG, load_x(m0, index + i * WG, kb));
        }
        put_w(index, w0);
        if W_BLOCKS > 1u { put_w(index + WG, w1); }
        for (var i = 2u; i < W_BLOCKS; i++) {
            put_w(index + i * WG, fetch_w(n0, index + i * WG, kb));
        }
        workgroupBarrier();
        let next = min(kb + KS, p.k_blocks - 1u);
        x0 = load_x(m0, index, next);
        x1 = load_x(m0, index + WG, next);
        if X_PARTS > 2u {
            x2 = load_x(m0, index + 2u * WG, next);
            x3 = load_x(m0, index + 3u * WG, next);
        }
        w0 = fetch_w(n0, index, next);
        if W_BLOCKS > 1u { w1 = fetch_w(n0, index + WG, next); }
        for (var k = 0u; k < 8u * KS; k += S / 4u) {
            let b0 = w_fragment(sn, k);
            let b1 = w_fragment(sn + S, k);
            var b2 = coop_b();
            var b3 = coop_b();
            if F > 2u {
                b2 = w_fragment(sn + 2u * S, k);
                b3 = w_fragment(sn + 3u * S, k);
            }
            let a0 = x_fragment(sm, k);
            c00 = coopMultiplyAdd(a0, b0, c00);
            c01 = coopMultiplyAdd(a0, b1, c01);
            if F > 2u {
                c02 = coopMultiplyAdd(a0, b2, c02);
                c03 = coopMultiplyAdd(a0, b3, c03);
            }
            let a1 = x_fragment(sm + S, k);
            c10 = coopMultiplyAdd(a1, b0, c10);
            c11 = coopMultiplyAdd(a1, b1, c11);
            if F > 2u {
                c12 = coopMultiplyAdd(a1, b2, c12);
                c13 = coopMultiplyAdd(a1, b3, c13);
                let a2 = x_fragment(sm + 2u * S, k);
                c20 = coopMultiplyAdd(a2, b0, c20);
                c21 = coopMultiplyAdd(a2, b1, c21);
                let a3 = x_fragment(sm + 3u * S, k);
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
    if whole {
        whole_to(c00, m, n);
        whole_to(c01, m, n + S);
        whole_to(c10, m + S, n);
        whole_to(c11, m + S, n + S);
        if F > 2u {
            whole_to(c02, m, n + 2u * S);
            whole_to(c03, m, n + 3u * S);
            whole_to(c12, m + S, n + 2u * S);
            whole_to(c13, m + S, n + 3u * S);
            whole_to(c20, m + 2u * S, n);
            whole_to(c21, m + 2u * S, n + S);
            whole_to(c30, m + 3u * S, n);
            whole_to(c31, m + 3u * S, n + S);
            whole_to(c22, m + 2u * S, n + 2u * S);
            whole_to(c23, m + 2u * S, n + 3u * S);
            whole_to(c32, m + 3u * S, n + 2u * S);
            whole_to(c33, m + 3u * S, n + 3u * S);
        }
        return;
    }
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
        store(c30, subgroup, lane, m + 3u * S, n);
        store(c31, subgroup, lane, m + 3u * S, n + S);
        store(c22, subgroup, lane, m + 2u * S, n + 2u * S);
        store(c23, subgroup, lane, m + 2u * S, n + 3u * S);
        store(c32, subgroup, lane, m + 3u * S, n + 2u * S);
        store(c33, subgroup, lane, m + 3u * S, n + 3u * S);
    }
}
