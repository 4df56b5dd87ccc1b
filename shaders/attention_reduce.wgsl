// attention_reduce: joins the splits of attention: out = sum_s e^(top_s - top) part_s / sum_s
// e^(top_s - top) sum_s
//   0 rows   vec2<u32>  read  [M]: page table, position
//   1 parts  f32        read  [M, splits, H E]
//   2 stats  vec2<f32>  read  [M, splits, H]: top, sum
//   3 out    f32        read_write  [M, H E]
// With an adapter on what follows, lora/shrink_tile.wgsl makes the columns' share of its u.
// Grid: (ceil(H E / 4 / 64), M, 1); COLUMNS of the WG lanes 4 columns each; the shares take all.
// Host: runtime/kernels/attention.rs    Oracle: tests/kernels/attention.rs
//needs shrink_tile
//const WG, COLUMNS, E, CHUNK
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

const TILE: u32 = 4u * COLUMNS; // of lora/shrink_tile.wgsl

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let width = p.heads * E / 4u;
    let column = group.x * COLUMNS + index;
    let m = p.row0 + group.y;
    let parts = (width + COLUMNS - 1u) / COLUMNS;
    let count = min(COLUMNS, width - group.x * COLUMNS) * 4u;
    let share = Share(
        p.alone, p.site, m * parts + group.x, p.u_width,
        group.x * COLUMNS * 4u, count, width / 2u);
    let ahead = shrink_ahead(m, share, index);
    if index < COLUMNS && column < width {
        let v = joined(m, group.y, column);
        out[m * width + column] = v;
        for (var i = 0u; i < 4u; i++) { tile_put(index * 4u + i, v[i]); }
    }
    shrink_tile(m, share, ahead, index);
}

fn joined(m: u32, row: u32, column: u32) -> vec4<f32> {
    let head = column / (E / 4u);
    let last = rows[m].y;
    let used = last / CHUNK + 1u - (last - min(last, p.window - 1u)) / CHUNK;
    var top = -3.0e38;
    for (var s = 0u; s < used; s++) {
        top = max(top, stats[(row * p.splits + s) * p.heads + head].x);
    }
    var acc = vec4<f32>(0.0);
    var sum = 0.0;
    for (var s = 0u; s < used; s++) {
        let part = (row * p.splits + s) * p.heads;
        let stat = stats[part + head];
        let weight = exp(stat.x - top);
        acc += weight * parts[part * (E / 4u) + column];
        sum += weight * stat.y;
    }
    return acc / sum;
}
