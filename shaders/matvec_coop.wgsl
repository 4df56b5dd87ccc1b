// matvec_coop: y[m, n] (=, +=) sum_k x[m, k] W[n, k]
//   for few rows m on cooperative matrices, f16 x f16 -> f32
// NORM, EPILOGUE and adapters as in matvec; the latter for up to COLS rows. What the norm makes of
// x, and W, are rounded to f16 on staging; sums in f32.
// Grid: (ceil(N / TN) ceil(M / COLS), 1, 1), or pair / (TN / 2) with SwiGLU; neighbours share W. A
// workgroup of SUBGROUPS makes COLS x TN: SPLIT of them share fragments of S columns, each with its
// part of a step of STEP blocks of K. COLS: 8, 16 or 32. While a step is multiplied, the next two
// are under way. The subgroups' sums are added in their order. GUARD 1: the last step reaches past
// the end of K. Within a step the terms are in an order of their own, the same for x and W, so that
// neighbouring lanes store side by side.
// Bindings: shared/linear.wgsl
// Host: runtime/kernels/matvec_coop.rs    Oracle: tests/kernels/matvec_coop.rs
//import shared/linear
//needs activation, halves, fragments, quads, reduce, adapters, begin
//const WG, SUBGROUPS, SPLIT, STEP, COLS, GUARD, NORM, EPILOGUE

const LANES: u32 = WG / COLS;                             // that stage a row of x
const SN: u32 = SUBGROUPS / SPLIT;                        // fragments side by side
const TN: u32 = SN * S;
const OUT: u32 = select(TN, TN / 2u, EPILOGUE == 2u);     // columns of y
const PARTS: u32 = 4u * STEP;                             // of a line of x: 8 values each
const QUADS: u32 = 8u * STEP;                             // of a line, of 4 values
const STRIDE: u32 = QUADS + 2u;                           // padded against bank conflicts
const W_BLOCKS: u32 = max(TN * STEP / WG, 1u);            // that a lane stages, two of them ahead
const X_PARTS: u32 = (PARTS + LANES - 1u) / LANES;        // likewise, four of them
const ROWS: u32 = min(COLS, S);                           // of a fragment of x
// COLS lines of x, then TN of W. A fragment of x that is taller goes on in W: its rows are not
// used.
var<workgroup> tile: array<cell, (COLS + TN) * STRIDE * QUAD>;
var<workgroup> edge: array<f32, SUBGROUPS / 2u * S * S>;
var<workgroup> total: array<f32, COLS * TN>;

// Weights or values 4 p..4 p + 3 and 16 + 4 p.. of a block.
struct Halves {
    lo: vec4<f16>,
    hi: vec4<f16>,
}

fn put(line: u32, block: u32, part: u32, v: Halves) {
    let to = line * STRIDE + 2u * part * STEP + block;
    put_quad(to, v.lo);
    put_quad(to + STEP, v.hi);
}

// Line i of W's tile; with SwiGLU the first half are of gate, the others of up.
fn weight_row(n0: u32, i: u32) -> u32 {
    if EPILOGUE == 2u {
        return min(n0 + i % OUT, p.pair - 1u) + select(0u, p.pair, i >= OUT);
    }
    return min(n0 + i, p.n - 1u);
}

// Past the end of K: the last block.
fn inside(block: u32) -> u32 {
    if GUARD == 1u { return min(block, p.k_blocks - 1u); }
    return block;
}

// Past the last step: the first one again.
fn inside_step(kb: u32) -> u32 {
    return select(0u, kb, kb < p.k_blocks);
}

fn fetch_w(n0: u32, i: u32, kb: u32) -> Fetched {
    return fetch(weight_row(n0, min(i / STEP, TN - 1u)) * p.k_blocks + inside(kb + i % STEP));
}

fn put_w(i: u32, f: Fetched) {
    if i < TN * STEP {
        let line = COLS + i / STEP;
        put(line, i % STEP, 0u, halves(f, 0u));
        put(line, i % STEP, 1u, halves(f, 1u));
        put(line, i % STEP, 2u, halves(f, 2u));
        put(line, i % STEP, 3u, halves(f, 3u));
    }
}

// Past the end of K: zeros. Lanes beyond a line's parts load nothing.
fn load_x(row: u32, part: u32, kb: u32, scale: f32) -> Halves {
    if part >= PARTS { return Halves(); }
    let block = kb + part / 4u;
    let k = inside(block) * 8u + part % 4u;
    let at = row * p.k_blocks * 8u + k;
    var lo = x[at];
    var hi = x[at + 4u];
    if NORM == 1u {
        lo *= scale * gain[k];
        hi *= scale * gain[k + 4u];
    }
    if GUARD == 1u && block >= p.k_blocks { return Halves(); }
    return Halves(vec4<f16>(lo), vec4<f16>(hi));
}

fn put_x(line: u32, part: u32, v: Halves) {
    if part < PARTS { put(line, part / 4u, part % 4u, v); }
}

fn squares(row: u32, k: u32) -> f32 {
    let v = x[row * p.k_blocks * 8u + min(k, p.k_blocks * 8u - 1u)];
    return select(0.0, dot(v, v), k < p.k_blocks * 8u);
}

// 1 / sqrt(mean(x^2) + eps) of a row, by the lanes that stage it.
fn rms_scale(row: u32, index: u32) -> f32 {
    var sum = 0.0;
    for (var k = index % LANES; k < p.k_blocks * 8u; k += 8u * LANES) {
        sum += squares(row, k) + squares(row, k + LANES)
            + squares(row, k + 2u * LANES) + squares(row, k + 3u * LANES)
            + squares(row, k + 4u * LANES) + squares(row, k + 5u * LANES)
            + squares(row, k + 6u * LANES) + squares(row, k + 7u * LANES);
    }
    return 1.0 / sqrt(reduce_add_of(LANES, sum, index) / f32(32u * p.k_blocks) + p.eps);
}

fn product(m0: u32, n0: u32, index: u32, subgroup: u32) {
    let line = index / LANES;
    let row = p.x_row + min(m0 + line, p.m - 1u);
    let part = index % LANES;
    // The first steps are under way while the norm is made and adapters are added.
    var w0 = fetch_w(n0, index, 0u);
    var w1 = Fetched();
    if W_BLOCKS > 1u { w1 = fetch_w(n0, index + WG, 0u); }
    var next0 = fetch_w(n0, index, inside_step(STEP));
    var next1 = Fetched();
    if W_BLOCKS > 1u { next1 = fetch_w(n0, index + WG, inside_step(STEP)); }
    var scale = 1.0;
    if NORM == 1u { scale = rms_scale(row, index); }
    begin(n0, index);
    var x0 = load_x(row, part, 0u, scale);
    var x1 = Halves();
    var x2 = Halves();
    var x3 = Halves();
    if X_PARTS > 1u { x1 = load_x(row, part + LANES, 0u, scale); }
    if X_PARTS > 2u { x2 = load_x(row, part + 2u * LANES, 0u, scale); }
    if X_PARTS > 3u { x3 = load_x(row, part + 3u * LANES, 0u, scale); }
    var c0 = coop_c(); var c1 = coop_c(); var c2 = coop_c(); var c3 = coop_c();
    for (var kb = 0u; kb < p.k_blocks; kb += STEP) {
        workgroupBarrier();
        put_w(index, w0);
        if W_BLOCKS > 1u { put_w(index + WG, w1); }
        for (var i = 2u; i < W_BLOCKS; i++) {
            put_w(index + i * WG, fetch_w(n0, index + i * WG, kb));
        }
        w0 = next0;
        w1 = next1;
        put_x(line, part, x0);
        if X_PARTS > 1u { put_x(line, part + LANES, x1); }
        if X_PARTS > 2u { put_x(line, part + 2u * LANES, x2); }
        if X_PARTS > 3u { put_x(line, part + 3u * LANES, x3); }
        for (var i = 4u; i < X_PARTS; i++) {
            put_x(line, part + i * LANES, load_x(row, part + i * LANES, kb, scale));
        }
        workgroupBarrier();
        let next = kb + STEP;
        if next < p.k_blocks {
            next0 = fetch_w(n0, index, inside_step(next + STEP));
            if W_BLOCKS > 1u { next1 = fetch_w(n0, index + WG, inside_step(next + STEP)); }
            x0 = load_x(row, part, next, scale);
            if X_PARTS > 1u { x1 = load_x(row, part + LANES, next, scale); }
            if X_PARTS > 2u { x2 = load_x(row, part + 2u * LANES, next, scale); }
            if X_PARTS > 3u { x3 = load_x(row, part + 3u * LANES, next, scale); }
        }
        let run = subgroup / SN * (QUADS / SPLIT);
        let w_line = (COLS + subgroup % SN * S) * STRIDE;
        for (var k = run; k < run + QUADS / SPLIT; k += S / 4u) {
            let b = coopLoad<coop_b>(&tile[(w_line + k) * QUAD], STRIDE * QUAD);
            c0 = coopMultiplyAdd(x_fragment(0u, k), b, c0);
            if COLS > S { c1 = coopMultiplyAdd(x_fragment(1u, k), b, c1); }
            if COLS > 2u * S {
                c2 = coopMultiplyAdd(x_fragment(2u, k), b, c2);
                c3 = coopMultiplyAdd(x_fragment(3u, k), b, c3);
            }
        }
    }
    add_up(c0, 0u, index, subgroup);
    if COLS > S { add_up(c1, S, index, subgroup); }
    if COLS > 2u * S {
        add_up(c2, 2u * S, index, subgroup);
        add_up(c3, 3u * S, index, subgroup);
    }
    for (var e = index; e < COLS * OUT; e += WG) { store(m0, e / OUT, n0, e % OUT); }
}

fn x_fragment(i: u32, k: u32) -> coop_a {
    return coopLoadT<coop_a>(&tile[(i * S * STRIDE + k) * QUAD], STRIDE * QUAD);
}

// The subgroups' sums for rows m.., half of the subgroups at a time.
fn add_up(c: coop_c, m: u32, index: u32, subgroup: u32) {
    const HALF: u32 = SUBGROUPS / 2u;
    for (var half = 0u; half < 2u; half++) {
        workgroupBarrier();
        if subgroup / HALF == half {
            let at = subgroup % HALF * S * S;
            coopStoreT(c, &edge[at], S);
        }
        workgroupBarrier();
        for (var e = index; e < ROWS * TN; e += WG) {
            for (var team = 0u; team < SPLIT; team++) {
                let fragment = team * SN + e % TN / S;
                if fragment / HALF == half {
                    total[m * TN + e] += edge[(fragment % HALF * S + e / TN) * S + e % S];
                }
            }
        }
    }
    workgroupBarrier();
}

fn store(m0: u32, line: u32, n0: u32, i: u32) {
    let m = m0 + line;
    if m >= p.m || n0 + i >= select(p.n, p.pair, EPILOGUE == 2u) {
        return;
    }
    let at = m * p.y_stride + p.y_offset + n0 + i;
    let v = total[line * TN + i];
    if EPILOGUE == 2u {
        y[at] = activate(v) * total[line * TN + OUT + i];
    } else {
        y[at] = v + select(0.0, y[at], EPILOGUE == 1u);
    }
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    if group.x < p.lora_groups {
        shrink(group, index);
    } else {
        let passes = (p.m + COLS - 1u) / COLS;
        let i = group.x - p.lora_groups;
        product(i % passes * COLS, i / passes * OUT, index, subgroup);
    }
}
