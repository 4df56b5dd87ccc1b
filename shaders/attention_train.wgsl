// attention_train: causal softmax(q k^T scale) v within packed sequences, and its log-sum-exp
// Dao 2023, arXiv:2307.08691 0 rows  vec2<u32>  read  [T]: first row and end of the row's sequence
// 1 qkv   f32  read  [row0 + T, (H + 2 G) E], q and k rotated 2 out   f32  read_write  [row0 + T, H
// E]      3 lse  f32  read_write  [row0 + T, H] Grid: (ceil(T / 32), H, 1); 128 lanes make 32
// queries x 32 positions. Softmax in f32, kept running over the tiles. Host:
// runtime/kernels/attention_train.rs    Oracle: tests/kernels/attention_train.rs
struct Params {
    rows: u32,
    heads: u32,
    kv_heads: u32,
    row0: u32,
    scale: f32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;

const NONE: f32 = -3.0e38;
var<workgroup> tile_part: array<vec4<f32>, 128>; // [8 rows of four][16 lanes]

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let stride = (p.heads + 2u * p.kv_heads) * E4;
    let q_at = p.row0 * stride + head * E4;
    let k_at = p.row0 * stride + (p.heads + kv_head) * E4;
    let v_at = k_at + p.kv_heads * E4;
    let first = group.x * 32u;
    let last = min(first + 31u, p.rows - 1u);
    let r = index / 16u;
    let c = index % 16u;
    let line = index / 4u; // staging: a quarter of row `line`
    let part = index % 4u;
    let t = first + 4u * r + vec4<u32>(0u, 1u, 2u, 3u);
    let read = min(t, vec4<u32>(last));
    let start = vec4<u32>(rows[read.x].x, rows[read.y].x, rows[read.z].x, rows[read.w].x);
    var top = vec4<f32>(NONE);
    var sum = vec4<f32>(0.0);
    var acc: array<mat4x4<f32>, ACC>; // [E / 64]: the lane's rows
    for (var i = 0u; i < ACC; i++) { acc[i] = mat4x4<f32>(); }
    for (var at = rows[first].x; at <= last; at += 32u) {
        var s = mat2x4<f32>();
        for (var e = 0u; e < E4; e += 4u) {
            let q = qkv[q_at + min(first + line, last) * stride + e + part];
            let k = qkv[k_at + min(at + line, last) * stride + e + part];
            workgroupBarrier();
            tile[line * 5u + part] = q;
            tile[PIECE + line * 5u + part] = k;
            workgroupBarrier();
            s += dots(0u, 1u, index);
        }
        let seen0 = (start <= vec4<u32>(at + c)) & (vec4<u32>(at + c) <= t);
        let seen1 = (start <= vec4<u32>(at + c + 16u)) & (vec4<u32>(at + c + 16u) <= t);
        let s0 = select(vec4<f32>(NONE), s[0] * p.scale, seen0);
        let s1 = select(vec4<f32>(NONE), s[1] * p.scale, seen1);
        tile_part[index] = max(s0, s1);
        workgroupBarrier();
        var now = top;
        for (var i = 0u; i < 16u; i++) { now = max(now, tile_part[r * 16u + i]); }
        let fade = exp(top - now);
        top = now;
        let p0 = select(vec4<f32>(0.0), exp(s0 - now), seen0);
        let p1 = select(vec4<f32>(0.0), exp(s1 - now), seen1);
        sum = sum * fade + (p0 + p1); // of this lane's columns; the lanes are added at the end
        keep(mat2x4<f32>(p0, p1), index);
        for (var e = 0u; e < ACC; e++) {
            workgroupBarrier();
            for (var i = index; i < 512u; i += LANES) {
                let column = min(e * 16u + i % 16u, E4 - 1u);
                tile[i] = qkv[v_at + min(at + i / 16u, last) * stride + column];
            }
            workgroupBarrier();
            let a = acc[e];
            acc[e] = weigh(mat4x4<f32>(a[0] * fade.x, a[1] * fade.y, a[2] * fade.z, a[3] * fade.w), index);
        }
    }
    workgroupBarrier();
    tile_part[index] = sum;
    workgroupBarrier();
    var all = vec4<f32>(0.0);
    for (var i = 0u; i < 16u; i++) { all += tile_part[r * 16u + i]; }
    let log_all = top + log(all);
    for (var i = 0u; i < 4u; i++) {
        let row = p.row0 + t[i];
        if t[i] <= last {
            for (var e = 0u; e < ACC; e++) {
                if e * 16u + c < E4 {
                    out[(row * p.heads + head) * E4 + e * 16u + c] = acc[e][i] / all[i];
                }
            }
            if c == 0u { lse[row * p.heads + head] = log_all[i]; }
        }
    }
}
