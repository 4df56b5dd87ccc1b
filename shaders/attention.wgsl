// attention: causal softmax(q k^T scale) v of single rows over the paged cache, all q heads of a kv head at once;
//   with SPLIT, one part of the positions each, joined by attention_reduce       Dao et al. 2023, "Flash-Decoding"
//   0 rows   vec2<u32>  read  [M]: page table, position      1 pages  u32  read  [tables, max_pages]
//   2 qkv    f32  read  [M, (H + 2 G) E], q rotated
//   3 keys   vec4<kv>  read  [pages, G, PAGE, E]              4 values  the same
//   5 out    f32  read_write  [M, H E], or with SPLIT [M, splits, H E] not yet divided by the sum
//   6 stats  vec2<f32>  read_write  [M, splits, H]: largest score, sum of exponentials; SPLIT only
// Grid: (G, splits, M); WG lanes, a lane a position for the scores, then a lane 4 columns of a head.
// Host: runtime/kernels/attention.rs    Oracle: tests/kernels/attention.rs
struct Params {
    heads: u32,
    kv_heads: u32,
    max_pages: u32,
    splits: u32,
    scale: f32,
    row0: u32,
    pad0: u32,
    pad1: u32,
}
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> pages: array<u32>;
@group(0) @binding(2) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> keys: array<vec4<kv>>;
@group(0) @binding(4) var<storage, read> values: array<vec4<kv>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> stats: array<vec2<f32>>;

const E4: u32 = E / 4u;
const NONE: f32 = -3.0e38;
var<workgroup> tile_q: array<vec4<f32>, GROUP * E4>;
var<workgroup> tile_p: array<f32, GROUP * CHUNK>;
var<workgroup> tile_sum: array<f32, GROUP>;

fn slot(row: vec2<u32>, kv_head: u32, position: u32) -> u32 {
    let page = pages[row.x * p.max_pages + position / PAGE];
    return ((page * p.kv_heads + kv_head) * PAGE + position % PAGE) * E4;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let kv_head = group.x;
    let m = p.row0 + group.z;
    let row = rows[m];
    let start = group.y * CHUNK;
    let len = row.y + 1u;
    let count = min(max(len, start) - start, CHUNK);
    for (var i = index; i < GROUP * E4; i += WG) {
        tile_q[i] = qkv[(m * (p.heads + 2u * p.kv_heads) + kv_head * GROUP) * E4 + i] * p.scale;
    }
    workgroupBarrier();
    for (var t = index; t < CHUNK; t += WG) {
        if t < count {
            scores(row, kv_head, start + t, t);
        } else {
            for (var h = 0u; h < GROUP; h++) { tile_p[h * CHUNK + t] = NONE; }
        }
    }
    workgroupBarrier();
    // A lane group takes every (WG / L)th head.
    for (var first = 0u; first < GROUP; first += WG / L) {
        let mine = first + index / L < GROUP;
        let h = min(first + index / L, GROUP - 1u);
        var top = NONE;
        for (var t = index % L; t < CHUNK; t += L) { top = max(top, tile_p[h * CHUNK + t]); }
        top = reduce_max(top, index);
        var sum = 0.0;
        for (var t = index % L; t < CHUNK; t += L) {
            let e = select(0.0, exp(tile_p[h * CHUNK + t] - top), t < count);
            sum += e;
            if mine { tile_p[h * CHUNK + t] = e; }
        }
        sum = reduce_add(sum, index);
        if mine && index % L == 0u {
            tile_sum[h] = sum;
            if SPLIT == 1u {
                stats[(group.z * p.splits + group.y) * p.heads + kv_head * GROUP + h] = vec2<f32>(top, sum);
            }
        }
    }
    workgroupBarrier();
    for (var i = index; i < GROUP * E4; i += WG) {
        let h = i / E4;
        var acc = vec4<f32>(0.0);
        for (var t = 0u; t < count; t++) {
            acc += tile_p[h * CHUNK + t] * vec4<f32>(values[slot(row, kv_head, start + t) + i % E4]);
        }
        if SPLIT == 1u {
            out[((group.z * p.splits + group.y) * p.heads + kv_head * GROUP) * E4 + i] = acc;
        } else {
            out[(m * p.heads + kv_head * GROUP) * E4 + i] = acc / tile_sum[h];
        }
    }
}

fn scores(row: vec2<u32>, kv_head: u32, position: u32, t: u32) {
    let base = slot(row, kv_head, position);
    var acc: array<f32, GROUP>;
    for (var h = 0u; h < GROUP; h++) { acc[h] = 0.0; }
    for (var e = 0u; e < E4; e++) {
        let k = vec4<f32>(keys[base + e]);
        for (var h = 0u; h < GROUP; h++) { acc[h] += dot(tile_q[h * E4 + e], k); }
    }
    for (var h = 0u; h < GROUP; h++) { tile_p[h * CHUNK + t] = acc[h]; }
}
