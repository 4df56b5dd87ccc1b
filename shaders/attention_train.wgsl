// attention_train: causal softmax(q k^T scale) v within packed sequences, and its log-sum-exp
//   Dao 2023, arXiv:2307.08691
//   0 rows, 1 qkv  as in attention/tile.wgsl
//   2 out   f32  read_write  [row0 + T, H E]
//   3 lse  f32  read_write  [row0 + T, H]
// Grid: (ceil(T / 32), H, 1); 128 lanes make 32 queries x 32 positions. Softmax in f32, kept
// running over the tiles.
// Host: runtime/kernels/attention_train.rs    Oracle: tests/kernels/attention_train.rs
//import attention/tile
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;

const PIECES: u32 = 2u; // q, k
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
    let start = starts(read);
    var top = vec4<f32>(NONE);
    var sum = vec4<f32>(0.0);
    var acc: array<mat4x4<f32>, ACC>; // [E / 64]: the lane's rows
    for (var i = 0u; i < ACC; i++) { acc[i] = mat4x4<f32>(); }
    for (var at = first_tile(first); at <= last; at += 32u) {
        var s = mat2x4<f32>();
        for (var e = 0u; e < E4; e += 4u) {
            let q = qkv[q_at + min(first + line, last) * stride + e + part];
            let k = qkv[k_at + min(at + line, last) * stride + e + part];
            workgroupBarrier();
            put_piece(0u, q, index);
            put_piece(1u, k, index);
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
            stage(v_at, at, last, e, index);
            let a = acc[e];
            let faded = mat4x4<f32>(a[0] * fade.x, a[1] * fade.y, a[2] * fade.z, a[3] * fade.w);
            acc[e] = weigh(faded, index);
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
