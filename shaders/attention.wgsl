// attention: causal softmax(q k^T scale) v of single rows over the paged cache, the last `window`
// positions of it (0: all), all q heads of a kv head at once;
//   with SPLIT, one part of the positions each, joined by attention_reduce
//   Dao et al. 2023, "Flash-Decoding"
//   0 rows   vec2<u32>  read  [M]: page table, position
//   1 pages  u32  read  [tables, max_pages]
//   2 qkv    f32  read  [M, (H + 2 G) E], q rotated
//   3 keys   vec4<kv>  read  [pages, G, PAGE, E]
//   4 values  the same
//   5 out    f32  read_write  [M, H E], or with SPLIT [M, splits, H E] not yet divided by the sum
//   6 stats  vec2<f32>  read_write  [M, splits, H]: largest score, sum of exponentials; SPLIT only,
//     in attention/split.wgsl
// With an adapter on what follows, lora/shrink_tile.wgsl makes the heads' share of its u; not with
// SPLIT.
// Needs: E a multiple of 16, CHUNK of PAGE.
// Grid: (G, splits, M); WG lanes, a lane a position for the scores, then a lane 4 columns of a
// head.
// Host: runtime/kernels/attention.rs    Oracle: tests/kernels/attention.rs
//needs kv, reduce, stats, shrink_tile
//const WG, L, E, GROUP, PAGE, CHUNK
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> pages: array<u32>;
@group(0) @binding(2) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> keys: array<vec4<kv>>;
@group(0) @binding(4) var<storage, read> values: array<vec4<kv>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

const TILE: u32 = GROUP * E; // of lora/shrink_tile.wgsl
const E4: u32 = E / 4u;
const PARTS: u32 = WG / E4;
const NONE: f32 = -3.0e38;
var<workgroup> tile_page: array<u32, CHUNK / PAGE>;
var<workgroup> tile_q: array<vec4<f32>, GROUP * E4>;
var<workgroup> tile_p: array<f32, GROUP * CHUNK>;
var<workgroup> tile_sum: array<f32, GROUP>;
var<workgroup> tile_o: array<vec4<f32>, PARTS * E4>;

// Where position start + t of the chunk lies in keys and values. CHUNK is whole pages.
fn slot(kv_head: u32, t: u32) -> u32 {
    return ((tile_page[t / PAGE] * p.kv_heads + kv_head) * PAGE + t % PAGE) * E4;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let kv_head = group.x;
    let m = p.row0 + group.z;
    let row = rows[m];
    let len = row.y + 1u;
    // The first position that the row sees; parts begin with the chunk that has it.
    let seen = row.y - min(row.y, p.window - 1u);
    let start = (seen / CHUNK + group.y) * CHUNK;
    let skip = max(seen, start) - start;
    let columns = GROUP * E;
    let share = Share(
        p.alone, p.site, m * p.kv_heads + kv_head, p.u_width,
        kv_head * columns, columns, p.heads * E / 8u);
    let ahead = shrink_ahead(m, share, index);
    let count = min(max(len, start) - start, CHUNK);
    for (var i = index; i < GROUP * E4; i += WG) {
        tile_q[i] = qkv[(m * (p.heads + 2u * p.kv_heads) + kv_head * GROUP) * E4 + i] * p.scale;
    }
    if index * PAGE < count && (index + 1u) * PAGE > skip {
        tile_page[index] = pages[row.x * p.max_pages + start / PAGE + index];
    }
    workgroupBarrier();
    for (var t = index; t < CHUNK; t += WG) {
        if t >= skip && t < count {
            scores(kv_head, t);
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
            let e = select(0.0, exp(tile_p[h * CHUNK + t] - top), t >= skip && t < count);
            sum += e;
            if mine { tile_p[h * CHUNK + t] = e; }
        }
        sum = reduce_add(sum, index);
        if mine && index % L == 0u {
            tile_sum[h] = sum;
            keep((group.z * p.splits + group.y) * p.heads + kv_head * GROUP + h,
                vec2<f32>(top, sum));
        }
    }
    workgroupBarrier();
    // A lane takes 4 columns of every head and one position in PARTS; the parts are added in order.
    let column = index % E4;
    var acc: array<vec4<f32>, GROUP>;
    for (var h = 0u; h < GROUP; h++) { acc[h] = vec4<f32>(0.0); }
    let working = index < PARTS * E4;
    var t = select(count, skip + index / E4, working);
    // Four positions at a time, so that their loads are under way together.
    for (; t + 3u * PARTS < count; t += 4u * PARTS) {
        let v0 = vec4<f32>(values[slot(kv_head, t) + column]);
        let v1 = vec4<f32>(values[slot(kv_head, t + PARTS) + column]);
        let v2 = vec4<f32>(values[slot(kv_head, t + 2u * PARTS) + column]);
        let v3 = vec4<f32>(values[slot(kv_head, t + 3u * PARTS) + column]);
        for (var h = 0u; h < GROUP; h++) {
            let at = h * CHUNK + t;
            acc[h] += tile_p[at] * v0 + tile_p[at + PARTS] * v1 + tile_p[at + 2u * PARTS] * v2
                + tile_p[at + 3u * PARTS] * v3;
        }
    }
    for (; t < count; t += PARTS) {
        let v = vec4<f32>(values[slot(kv_head, t) + column]);
        for (var h = 0u; h < GROUP; h++) { acc[h] += tile_p[h * CHUNK + t] * v; }
    }
    for (var h = 0u; h < GROUP; h++) {
        if working { tile_o[index] = acc[h]; }
        workgroupBarrier();
        if index < E4 {
            var sum = tile_o[index];
            for (var part = 1u; part < PARTS; part++) { sum += tile_o[part * E4 + index]; }
            if SPLIT == 1u {
                let part = (group.z * p.splits + group.y) * p.heads + kv_head * GROUP + h;
                out[part * E4 + index] = sum;
            } else {
                sum /= tile_sum[h];
                out[(m * p.heads + kv_head * GROUP + h) * E4 + index] = sum;
                for (var i = 0u; i < 4u; i++) { tile_put((h * E4 + index) * 4u + i, sum[i]); }
            }
        }
        workgroupBarrier();
    }
    shrink_tile(m, share, ahead, index);
}

fn scores(kv_head: u32, t: u32) {
    let base = slot(kv_head, t);
    var acc: array<f32, GROUP>;
    for (var h = 0u; h < GROUP; h++) { acc[h] = 0.0; }
    for (var e = 0u; e < E4; e += 4u) {
        let k0 = vec4<f32>(keys[base + e]);
        let k1 = vec4<f32>(keys[base + e + 1u]);
        let k2 = vec4<f32>(keys[base + e + 2u]);
        let k3 = vec4<f32>(keys[base + e + 3u]);
        for (var h = 0u; h < GROUP; h++) {
            let q = h * E4 + e;
            acc[h] += dot(tile_q[q], k0) + dot(tile_q[q + 1u], k1) + dot(tile_q[q + 2u], k2)
                + dot(tile_q[q + 3u], k3);
        }
    }
    for (var h = 0u; h < GROUP; h++) { tile_p[h * CHUNK + t] = acc[h]; }
}
