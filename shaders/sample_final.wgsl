// sample_final: picks the best of the runs and makes it the next token of each row
//   0 partials   vec2<u32>  read  [M, runs]: f32 bits of the best value, its token
//   1 token_ids  u32        read_write  [M]: the row's next input
//   2 rows       vec2<u32>  read_write  [M]: page table, position; the position advances
//   3 seen       u32        read_write  [M, seen_words]: bit v is set when token v is in the
//     context
//   4 ring       u32        read_write  [slots, M]: what the host reads back
// Grid: (M, 1, 1). Of equal values the lowest token wins.
// Host: runtime/kernels/sample.rs    Oracle: tests/kernels/sample.rs
@group(0) @binding(0) var<storage, read> partials: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read_write> token_ids: array<u32>;
@group(0) @binding(2) var<storage, read_write> rows: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> seen: array<u32>;
@group(0) @binding(4) var<storage, read_write> ring: array<u32>;

var<workgroup> tile_value: array<f32, 64>;
var<workgroup> tile_token: array<u32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = group.x;
    var best = -3.4e38;
    var token = 0xffffffffu;
    for (var i = index; i < p.runs; i += 64u) {
        let partial = partials[row * p.runs + i];
        let value = bitcast<f32>(partial.x);
        if value > best || token == 0xffffffffu {
            best = value;
            token = partial.y;
        }
    }
    tile_value[index] = best;
    tile_token[index] = token;
    for (var step = 32u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if index < step {
            let value = tile_value[index + step];
            let other = tile_token[index + step];
            if value > tile_value[index]
                || (value == tile_value[index] && other < tile_token[index]) {
                tile_value[index] = value;
                tile_token[index] = other;
            }
        }
    }
    if index == 0u {
        // No token at all (every logit NaN): token 0, rather than an index outside the table.
        let next = select(tile_token[0], 0u, tile_token[0] == 0xffffffffu);
        token_ids[row] = next;
        rows[row].y += 1u;
        seen[row * p.seen_words + next / 32u] |= 1u << (next % 32u);
        ring[p.ring_offset + row] = next;
    }
}
