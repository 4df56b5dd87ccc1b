// matvec by quarters of a block: neighbouring lanes load side by side, many loads are under way.
// Named and unrolled by hand: drivers keep indexed arrays in memory and wait for each load of a
// loop in turn.
//fills accumulate
//needs quant, reduce
//const COLS, NORM, GUARD
const QUARTERS: u32 = 1u;

// Adds quarter u of the rows: 8 products for each. GUARD 1: u may be past the end.
fn accumulate(u: u32, rows: vec4<u32>, col: u32, index: u32) {
    if GUARD == 1u && u >= p.k_blocks * 4u {
        return;
    }
    let kb = u / 4u;
    let part = u % 4u;
    let b = rows + kb;
    add(0u, b, kb, part, col);
    if COLS > 1u { add(1u, b, kb, part, col); }
    if COLS > 2u { add(2u, b, kb, part, col); }
    if COLS > 2u { add(3u, b, kb, part, col); }
}

fn add(c: u32, b: vec4<u32>, kb: u32, part: u32, col: u32) {
    let at = x_at(c, kb, col) + part;
    var lo = x[at];
    var hi = x[at + 4u];
    if NORM == 1u {
        squares[c] += dot(lo, lo) + dot(hi, hi);
        lo *= gain[kb * 8u + part];
        hi *= gain[kb * 8u + part + 4u];
    }
    let sum = dot(lo + hi, vec4<f32>(1.0));
    sums[c] += vec4<f32>(
        dot_part(b.x, part, lo, hi, sum),
        dot_part(b.y, part, lo, hi, sum),
        dot_part(b.z, part, lo, hi, sum),
        dot_part(b.w, part, lo, hi, sum),
    );
}

// The square of a row of x.
fn joined(square: f32, index: u32) -> f32 { return reduce_add(square, index); }
