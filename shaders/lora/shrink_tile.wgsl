// Joined with a kernel whose workgroup holds columns column..column+count of a linear's input: their share of u = A x.
// The shares are added by the linear that follows, in order.       Needs WG, L, TILE, reduce_add
@group(0) @binding(LORA_PARTS) var<storage, read_write> lora_parts: array<f32>; // [M, parts, u_rows]
var<workgroup> lora_tile: array<f32, TILE>;

fn tile_put(i: u32, v: f32) {
    lora_tile[i] = v;
}

struct Share {
    site: u32,
    // Row of u's parts.
    part: u32,
    u_rows: u32,
    column: u32,
    count: u32,
    // Columns of A / 4.
    k4s: u32,
}

fn shrink_tile(m: u32, s: Share, index: u32) {
    workgroupBarrier();
    for (var entry = 0u; entry < ENTRIES; entry++) {
        let f = factor_a(m, s.site, entry);
        if f.rows == 0u { break; }
        for (var first = 0u; first < f.rows; first += WG / L) {
            let i = first + index / L;
            var sum = 0.0;
            if i < f.rows {
                for (var k = index % L; k < s.count / 4u; k += L) {
                    let x = vec4<f32>(
                        lora_tile[4u * k], lora_tile[4u * k + 1u], lora_tile[4u * k + 2u], lora_tile[4u * k + 3u]);
                    sum += dot(four_of_a(f.at + i * s.k4s + s.column / 4u + k), x);
                }
            }
            let total = reduce_add(sum, index);
            if index % L == 0u && i < f.rows {
                lora_parts[s.part * s.u_rows + f.before + i] = f.weight * total;
            }
        }
    }
}
