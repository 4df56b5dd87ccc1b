// attention_prefill: causal softmax(q k^T scale) v for runs of consecutive positions, tiled; a
// query sees the last `window` positions (0: all)
//   Dao 2023, arXiv:2307.08691
//   0 rows   vec2<u32>  read  [M]: page table, position; rows row0.. are consecutive positions of
//     one sequence
//   1 pages  u32  read  [tables, max_pages]
//   2 qkv    f32  read  [M, (H + 2 G) E], q rotated
//   3 keys   vec4<kv>  read  [pages, G, PAGE, E]
//   4 values  the same
//   5 out    f32  read_write  [M, H E]
// Grid: (ceil(rows / 32), H, 1); 128 lanes make 32 queries x 32 positions. 13 KiB of workgroup
// memory. A lane makes 2 x 4 scores, then 2 rows x 4 columns of every 32 of E. Softmax in f32, kept
// running over the tiles.
// Host: runtime/kernels/attention.rs    Oracle: tests/kernels/attention.rs
//needs kv
//const E, PAGE
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> pages: array<u32>;
@group(0) @binding(2) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> keys: array<vec4<kv>>;
@group(0) @binding(4) var<storage, read> values: array<vec4<kv>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

const E4: u32 = E / 4u;
const ACC: u32 = E / 16u; // [E / 32][2]
const NONE: f32 = -3.0e38;
var<workgroup> tile_q: array<vec4<f32>, 288>;  // [32 queries][8 + 1 of E]
var<workgroup> tile_kv: array<vec4<f32>, 288>; // [32 positions][8 + 1 of E]
var<workgroup> tile_p: array<f32, 1056>;       // [32 queries][32 + 1 positions]
var<workgroup> tile_part: array<f32, 128>;     // [32 queries][4 quarters]
var<workgroup> tile_fade: array<f32, 32>;      // factor on what was summed before

fn slot(row: vec2<u32>, kv_head: u32, position: u32) -> u32 {
    let page = pages[row.x * p.max_pages + position / PAGE];
    return ((page * p.kv_heads + kv_head) * PAGE + position % PAGE) * E4;
}

fn is_seen(position: u32, query: u32) -> bool {
    return position <= query && query - position <= p.window - 1u;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let first = group.x * 32u;
    let last = min(first + 31u, p.count - 1u);
    let row = rows[p.row0 + first];
    let len = row.y + last - first + 1u; // positions that the last query sees
    let r = index / 8u * 2u;             // this lane's two queries
    let c = index % 8u;                  // its column of four
    let sr = index / 4u;                 // softmax: a quarter of row sr
    let sq = index % 4u;
    var top = NONE;
    var sum = 0.0;
    var acc: array<vec4<f32>, ACC>;
    for (var i = 0u; i < ACC; i++) { acc[i] = vec4<f32>(0.0); }
    // Of the first query; what a later one does not see of the first tile fades to nothing.
    let seen = row.y - min(row.y, p.window - 1u);
    for (var start = seen / 32u * 32u; start < len; start += 32u) {
        var s0 = vec4<f32>(0.0);
        var s1 = vec4<f32>(0.0);
        for (var e = 0u; e < E4; e += 8u) {
            workgroupBarrier();
            for (var i = index; i < 256u; i += 128u) {
                let q = (p.row0 + min(first + i / 8u, last)) * (p.heads + 2u * p.kv_heads) + head;
                tile_q[i / 8u * 9u + i % 8u] = qkv[q * E4 + e + i % 8u] * p.scale;
                let k = slot(row, kv_head, clamp(start + i / 8u, seen, len - 1u)) + e + i % 8u;
                tile_kv[i / 8u * 9u + i % 8u] = vec4<f32>(keys[k]);
            }
            workgroupBarrier();
            for (var i = 0u; i < 8u; i++) {
                let q0 = tile_q[r * 9u + i];
                let q1 = tile_q[r * 9u + 9u + i];
                for (var j = 0u; j < 4u; j++) {
                    let k = tile_kv[(c + 8u * j) * 9u + i];
                    s0[j] += dot(q0, k);
                    s1[j] += dot(q1, k);
                }
            }
        }
        for (var j = 0u; j < 4u; j++) {
            let position = start + c + 8u * j;
            tile_p[r * 33u + c + 8u * j] = select(NONE, s0[j], is_seen(position, row.y + r));
            tile_p[(r + 1u) * 33u + c + 8u * j] = select(NONE, s1[j], is_seen(position, row.y + r + 1u));
        }
        workgroupBarrier();
        var part = NONE;
        for (var j = 0u; j < 8u; j++) { part = max(part, tile_p[sr * 33u + sq * 8u + j]); }
        tile_part[index] = part;
        workgroupBarrier();
        let t = sr * 4u;
        let now = max(max(top, max(tile_part[t], tile_part[t + 1u])),
            max(tile_part[t + 2u], tile_part[t + 3u]));
        let fade = exp(top - now);
        top = now;
        part = 0.0;
        for (var j = 0u; j < 8u; j++) {
            let at = sr * 33u + sq * 8u + j;
            let e = exp(tile_p[at] - now);
            tile_p[at] = e;
            part += e;
        }
        sum = sum * fade + part; // of this quarter; the quarters are added at the end
        if sq == 0u { tile_fade[sr] = fade; }
        for (var e = 0u; e < E / 32u; e++) {
            workgroupBarrier();
            for (var i = index; i < 256u; i += 128u) {
                let v = slot(row, kv_head, clamp(start + i / 8u, seen, len - 1u)) + e * 8u + i % 8u;
                tile_kv[i / 8u * 9u + i % 8u] = vec4<f32>(values[v]);
            }
            workgroupBarrier();
            var o0 = acc[2u * e] * tile_fade[r];
            var o1 = acc[2u * e + 1u] * tile_fade[r + 1u];
            for (var j = 0u; j < 32u; j++) {
                let v = tile_kv[j * 9u + c];
                o0 += tile_p[r * 33u + j] * v;
                o1 += tile_p[r * 33u + 33u + j] * v;
            }
            acc[2u * e] = o0;
            acc[2u * e + 1u] = o1;
        }
    }
    workgroupBarrier();
    tile_part[index] = sum;
    workgroupBarrier();
    for (var i = 0u; i < 2u; i++) {
        let q = r + i;
        let all = tile_part[q * 4u] + tile_part[q * 4u + 1u] + tile_part[q * 4u + 2u]
            + tile_part[q * 4u + 3u];
        if first + q <= last {
            for (var e = 0u; e < E / 32u; e++) {
                out[((p.row0 + first + q) * p.heads + head) * E4 + e * 8u + c] =
                    acc[2u * e + i] / all;
            }
        }
    }
}
