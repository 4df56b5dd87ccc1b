// A block of each column of x, that every lane loads for itself: without subgroups.
//fills x_block
//const NORM
fn hold(c: u32, kb: u32, col: u32, index: u32) {
    if NORM == 1u {
        for (var i = 0u; i < 4u; i++) {
            let lo = x[x_at(c, kb, col) + i];
            let hi = x[x_at(c, kb, col) + i + 4u];
            squares[c] += dot(lo, lo) + dot(hi, hi);
        }
    }
}

// Elements 4i to 4i + 3 of the block.
fn held(c: u32, i: u32, kb: u32, col: u32) -> vec4<f32> {
    let v = x[x_at(c, kb, col) + i];
    if NORM == 1u { return v * gain[kb * 8u + i]; }
    return v;
}

// The square of a row of x.
fn joined(square: f32, index: u32) -> f32 { return square; }
