// matvec: y[m, n] (=, +=) sum_k x[m, k] W[n, k]
//   for few rows m: the weights are read once for COLS of them
// NORM 1: x is RMS-normalised on the way: the squares are summed beside the products and applied at
// the end.
// EPILOGUE 0: y = .  1: y += .  2: y[m, i] = activate(W x)[i] * (W x)[i + pair]   (Shazeer
// 2020, arXiv:2002.05202)
// With an adapter: lora/matvec_shrink.wgsl lets A's rows ride along, lora/matvec_expand.wgsl adds B
// u to the sums.
// Grid: (ceil(N / (WG / L / SPLIT * 4)), ceil(M / COLS), 1), or pair / 2 for N / 4 with SwiGLU;
// SPLIT teams of L lanes share 4 rows of W, a lane takes QUARTERS quarters of a block, UNROLL
// times, L SPLIT apart. The teams' sums are added in their order. matvec/quarters.wgsl or
// matvec/blocks.wgsl says what a lane takes at a time.
// Bindings: shared/linear.wgsl
// Host: runtime/kernels/matvec.rs    Oracle: tests/kernels/matvec.rs
//import shared/linear
//needs activation, quant, reduce, accumulate, adapters
//const WG, L, SPLIT, UNROLL, COLS, NORM, EPILOGUE

// A lane sums 4 rows of W, for up to 4 rows of x.
var<private> sums: array<vec4<f32>, COLS>;
var<private> squares: array<f32, COLS>;
// Where there are several teams: their sums and squares.
const KEPT: u32 = select(1u, WG / L * COLS, SPLIT > 1u);
var<workgroup> team_sums: array<vec4<f32>, KEPT>;
var<workgroup> team_squares: array<f32, KEPT>;

// The rows of W; with SwiGLU two of gate and the same two of up.
fn weight_rows(unit: u32) -> vec4<u32> {
    if EPILOGUE == 2u {
        let n = min(vec2<u32>(unit, unit + 1u), vec2<u32>(p.pair - 1u));
        return vec4<u32>(n, n + p.pair);
    }
    return min(vec4<u32>(unit, unit + 1u, unit + 2u, unit + 3u), vec4<u32>(p.n - 1u));
}

// Where block kb of column c begins in x.
fn x_at(c: u32, kb: u32, col: u32) -> u32 {
    return ((p.x_row + min(col + c, p.m - 1u)) * p.k_blocks + kb) * 8u;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    if shrinks(group.x) {
        shrink(group, index);
        return;
    }
    let lane = index % L;
    let team = index / L % SPLIT;
    let unit = ((group.x - p.lora_groups) * (WG / L / SPLIT) + index / L / SPLIT) * UNITS;
    let col = group.y * COLS;
    let n = weight_rows(unit);
    let rows = n * p.k_blocks;
    begin(0u, col, team, lane, n + p.row0);
    if COLS > 1u { begin(1u, col, team, lane, n + p.row0); }
    if COLS > 2u { begin(2u, col, team, lane, n + p.row0); }
    if COLS > 2u { begin(3u, col, team, lane, n + p.row0); }
    const STEP: u32 = L * SPLIT * QUARTERS;
    for (var u = (team * L + lane) * QUARTERS; u < p.k_blocks * 4u; u += STEP * UNROLL) {
        accumulate(u, rows, col, index);
        if UNROLL > 1u { accumulate(u + STEP, rows, col, index); }
        if UNROLL > 2u { accumulate(u + 2u * STEP, rows, col, index); }
        if UNROLL > 2u { accumulate(u + 3u * STEP, rows, col, index); }
    }
    for (var c = 0u; c < COLS; c++) { end(c, col, unit, index); }
    if SPLIT > 1u {
        workgroupBarrier();
        // The first team's lanes take a column each.
        for (var c = lane; team == 0u && c < min(COLS, p.m - col); c += L) {
            var v = vec4<f32>();
            var square = 0.0;
            for (var t = 0u; t < SPLIT; t++) {
                v += team_sums[(index / L + t) * COLS + c];
                square += team_squares[(index / L + t) * COLS + c];
            }
            finish(col + c, unit, v, square);
        }
    }
}

// What an adapter adds to column c, by one of the teams.
fn begin(c: u32, col: u32, team: u32, lane: u32, rows: vec4<u32>) {
    if c % SPLIT == team && col + c < p.m {
        expand(c, p.x_row + col + c, rows, lane);
    }
}

// The lanes' sums of column c.
fn end(c: u32, col: u32, unit: u32, index: u32) {
    let v = vec4<f32>(
        reduce_add(sums[c].x, index),
        reduce_add(sums[c].y, index),
        reduce_add(sums[c].z, index),
        reduce_add(sums[c].w, index),
    );
    var square = 0.0;
    if NORM == 1u { square = joined(squares[c], index); }
    if SPLIT > 1u {
        if index % L == 0u {
            team_sums[index / L * COLS + c] = v;
            team_squares[index / L * COLS + c] = square;
        }
    } else if index % L == 0u && col + c < p.m {
        finish(col + c, unit, v, square);
    }
}

fn finish(m: u32, unit: u32, v: vec4<f32>, square: f32) {
    if NORM == 1u {
        store(m, unit, v * (1.0 / sqrt(square / f32(32u * p.k_blocks) + p.eps)));
    } else {
        store(m, unit, v);
    }
}

const UNITS: u32 = select(4u, 2u, EPILOGUE == 2u); // output columns a lane group makes

fn store(m: u32, unit: u32, v: vec4<f32>) {
    let at = m * p.y_stride + p.y_offset + unit;
    if EPILOGUE == 2u {
        let h = vec2<f32>(activate(v.x), activate(v.y)) * v.zw;
        if unit < p.pair { y[at] = h.x; }
        if unit + 1u < p.pair { y[at + 1u] = h.y; }
        return;
    }
    for (var r = 0u; r < 4u; r++) {
        if unit + r < p.n {
            y[at + r] = v[r] + select(0.0, y[at + r], EPILOGUE == 1u);
        }
    }
}
