// attention_dq: dq[t] = sum_j ds[t, j] k[j], ds = p (d_out v^T - delta) scale, p = exp(q k^T scale
// - lse) 0 rows   vec2<u32>  read  [T]: first row and end of the row's sequence 1 qkv    f32  read
// [row0 + T, (H + 2 G) E], q and k rotated      2 lse    f32  read  [row0 + T, H] 3 d_out  f32
// read  [T, H E]                                      4 delta  f32  read  [T, H] 5 d_qkv  f32
// read_write  [T, (H + 2 G) E]: its q, still rotated Grid: (ceil(T / 32), H, 1); 128 lanes make 32
// queries x 32 positions.       Dao 2023, arXiv:2307.08691, algorithm 2 Host:
// runtime/kernels/attention_backward.rs    Oracle: tests/kernels/attention_backward.rs
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
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> d_out: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> delta: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_qkv: array<vec4<f32>>;

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
    let c = index % 16u;
    let line = index / 4u; // staging: a quarter of row `line`
    let part = index % 4u;
    let t = first + index / 16u * 4u + vec4<u32>(0u, 1u, 2u, 3u);
    let read = min(t, vec4<u32>(last));
    let start = vec4<u32>(rows[read.x].x, rows[read.y].x, rows[read.z].x, rows[read.w].x);
    var lses = vec4<f32>();
    var deltas = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        lses[i] = lse[(p.row0 + read[i]) * p.heads + head];
        deltas[i] = delta[read[i] * p.heads + head];
    }
    var dq: array<mat4x4<f32>, ACC>; // [E / 64]: the lane's rows
    for (var i = 0u; i < ACC; i++) { dq[i] = mat4x4<f32>(); }
    for (var at = rows[first].x; at <= last; at += 32u) {
        let query = min(first + line, last);
        let position = min(at + line, last);
        var s = mat2x4<f32>();
        var dp = mat2x4<f32>();
        for (var e = part; e < E4; e += 4u) {
            let q = qkv[q_at + query * stride + e];
            let k = qkv[k_at + position * stride + e];
            let d = d_out[(query * p.heads + head) * E4 + e];
            let v = qkv[v_at + position * stride + e];
            workgroupBarrier();
            tile[line * 5u + part] = q;
            tile[PIECE + line * 5u + part] = k;
            tile[2u * PIECE + line * 5u + part] = d;
            tile[3u * PIECE + line * 5u + part] = v;
            workgroupBarrier();
            s += dots(0u, 1u, index);
            dp += dots(2u, 3u, index);
        }
        var ds = mat2x4<f32>();
        for (var i = 0u; i < 2u; i++) {
            let j = vec4<u32>(at + c + 16u * i);
            let d = exp(s[i] * p.scale - lses) * (dp[i] - deltas) * p.scale;
            ds[i] = select(vec4<f32>(0.0), d, (start <= j) & (j <= t));
        }
        keep(ds, index);
        for (var e = 0u; e < ACC; e++) {
            workgroupBarrier();
            for (var i = index; i < 512u; i += LANES) {
                let column = min(e * 16u + i % 16u, E4 - 1u);
                tile[i] = qkv[k_at + min(at + i / 16u, last) * stride + column];
            }
            workgroupBarrier();
            dq[e] = weigh(dq[e], index);
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var e = 0u; e < ACC; e++) {
            if t[i] <= last && e * 16u + c < E4 {
                d_qkv[t[i] * stride + head * E4 + e * 16u + c] = dq[e][i];
            }
        }
    }
}
