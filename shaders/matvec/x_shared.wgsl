// A block of each column of x, that a subgroup's lanes hold together: each loads its part.
//fills x_block
//needs reduce
//const COLS, NORM, SUBGROUP
const SHARE: u32 = min(SUBGROUP, 8u);
var<private> held_x: array<vec4<f32>, COLS * 8u / SHARE>;

fn hold(c: u32, kb: u32, col: u32, index: u32) {
    for (var i = 0u; i < 8u / SHARE; i++) {
        let at = i * SHARE + index % SHARE;
        var v = x[x_at(c, kb, col) + at];
        if NORM == 1u {
            squares[c] += dot(v, v);
            v *= gain[kb * 8u + at];
        }
        held_x[c * 8u / SHARE + i] = v;
    }
}

// Elements 4i to 4i + 3 of the block. A lane is named by a constant, and must exist even in cases
// that are never taken.
fn held(c: u32, i: u32, kb: u32, col: u32) -> vec4<f32> {
    let v = held_x[(c * 8u + i) / SHARE];
    switch i % SHARE {
        case 0u: { return subgroupBroadcast(v, 0u); }
        case 1u: { return subgroupBroadcast(v, 1u); }
        case 2u: { return subgroupBroadcast(v, 2u); }
        case 3u: { return subgroupBroadcast(v, 3u); }
        case 4u: { return subgroupBroadcast(v, 4u % SHARE); }
        case 5u: { return subgroupBroadcast(v, 5u % SHARE); }
        case 6u: { return subgroupBroadcast(v, 6u % SHARE); }
        default: { return subgroupBroadcast(v, 7u % SHARE); }
    }
}

// The square of a row of x.
fn joined(square: f32, index: u32) -> f32 { return reduce_add_of(SHARE, square, index); }
