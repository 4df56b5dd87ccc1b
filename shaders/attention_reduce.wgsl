// attention_reduce: joins the splits of attention: out = sum_s e^(top_s - top) part_s / sum_s e^(top_s - top) sum_s
//   0 rows   vec2<u32>  read  [M]: page table, position
//   1 parts  f32        read  [M, splits, H E]      2 stats  vec2<f32>  read  [M, splits, H]: top, sum
//   3 out    f32        read_write  [M, H E]
// Grid: (ceil(H E / 4 / 64), M, 1); a lane 4 columns.
// Host: runtime/kernels/attention.rs    Oracle: tests/kernels/attention.rs
struct Params {
    heads: u32,
    splits: u32,
    row0: u32,
    pad: u32,
}
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let width = p.heads * E / 4u;
    if id.x >= width {
        return;
    }
    let head = id.x / (E / 4u);
    let m = p.row0 + id.y;
    let used = rows[m].y / CHUNK + 1u;
    var top = -3.0e38;
    for (var s = 0u; s < used; s++) {
        top = max(top, stats[(id.y * p.splits + s) * p.heads + head].x);
    }
    var acc = vec4<f32>(0.0);
    var sum = 0.0;
    for (var s = 0u; s < used; s++) {
        let part = (id.y * p.splits + s) * p.heads;
        let stat = stats[part + head];
        let weight = exp(stat.x - top);
        acc += weight * parts[part * (E / 4u) + id.x];
        sum += weight * stat.y;
    }
    out[m * width + id.x] = acc / sum;
}
