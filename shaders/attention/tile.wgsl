// What attention's training kernels share: tiles of 32 x 32 scores, made by 128 lanes from pieces
// of their vectors, and products of such tiles with 32 rows of 64. Lane (r, c) = (index / 16, index
// % 16) has rows 4 r..4 r + 3. At most 15 KiB of workgroup memory, with what the kernels add. E is
// a multiple of 16.
//   0 rows  vec2<u32>  read  [T]: first row and end of the row's sequence
//   1 qkv   f32  read  [row0 + T, (H + 2 G) E], q and k rotated
//const E
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>;

const E4: u32 = E / 4u;
const ACC: u32 = (E + 63u) / 64u;               // of 64 columns, which a lane sums its vector of
const LANES: u32 = 128u;
const PIECE: u32 = 160u;                        // [32 rows][4 + 1 of E]
// PIECES, or [32 rows][16 of E].
var<workgroup> tile: array<vec4<f32>, max(PIECE * PIECES, 512u)>;
var<workgroup> tile_p: array<vec4<f32>, 288>;   // [32 columns][8 + 1 rows of four]

// The first positions that a lane's rows see: their sequences' first, or the last `window` of them (0: all).
fn starts(t: vec4<u32>) -> vec4<u32> {
    let first = vec4<u32>(rows[t.x].x, rows[t.y].x, rows[t.z].x, rows[t.w].x);
    return max(first, t - min(t, vec4<u32>(p.window - 1u)));
}

// The first tile that a row sees something of; tiles begin with the row's sequence.
fn first_tile(t: u32) -> u32 {
    return rows[t].x + (starts(vec4<u32>(t)).x - rows[t].x) / 32u * 32u;
}

// The lane's part of a piece: a quarter of row index / 4.
fn put_piece(piece: u32, v: vec4<f32>, index: u32) {
    tile[PIECE * piece + index / 4u * 5u + index % 4u] = v;
}

// Dots of the rows of one piece with rows c and c + 16 of another.
fn dots(a: u32, b: u32, index: u32) -> mat2x4<f32> {
    let row = PIECE * a + index / 16u * 20u;
    let column = PIECE * b + index % 16u * 5u;
    var s = mat2x4<f32>();
    for (var i = 0u; i < 4u; i++) {
        let a0 = tile[row + i];
        let a1 = tile[row + 5u + i];
        let a2 = tile[row + 10u + i];
        let a3 = tile[row + 15u + i];
        let b0 = tile[column + i];
        let b1 = tile[column + 80u + i];
        s += mat2x4<f32>(
            vec4<f32>(dot(a0, b0), dot(a1, b0), dot(a2, b0), dot(a3, b0)),
            vec4<f32>(dot(a0, b1), dot(a1, b1), dot(a2, b1), dot(a3, b1)),
        );
    }
    return s;
}

// Keeps the lane's rows of columns c and c + 16 for `weigh`.
fn keep(columns: mat2x4<f32>, index: u32) {
    let at = index % 16u * 9u + index / 16u;
    tile_p[at] = columns[0];
    tile_p[at + 144u] = columns[1];
}

// For `weigh`: vectors 16 e.. of 32 rows of q, k or v, the first of which begins at `at`; past the
// last row the last one.
fn stage(at: u32, row0: u32, last: u32, e: u32, index: u32) {
    let stride = (p.heads + 2u * p.kv_heads) * E4;
    workgroupBarrier();
    for (var i = index; i < 512u; i += LANES) {
        let column = min(e * 16u + i % 16u, E4 - 1u);
        tile[i] = qkv[at + min(row0 + i / 16u, last) * stride + column];
    }
    workgroupBarrier();
}

// sum + what was kept times [32 rows][16 of E] of `tile`: for each of the lane's rows, vector c.
fn weigh(sum: mat4x4<f32>, index: u32) -> mat4x4<f32> {
    let row = index / 16u;
    let column = index % 16u;
    var s = sum;
    for (var j = 0u; j < 32u; j++) {
        let w = tile_p[j * 9u + row];
        let v = tile[j * 16u + column];
        s += mat4x4<f32>(w.x * v, w.y * v, w.z * v, w.w * v);
    }
    return s;
}
