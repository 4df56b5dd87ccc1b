// attention_dkv: dv[j] = sum_t p[t, j] d_out[t], dk[j] = sum_t ds[t, j] q[t], over the queries of
// the heads that share j; ds = p (d_out v^T - delta) scale, p = exp(q k^T scale - lse)
// Dao 2023, arXiv:2307.08691, algorithm 2 0 rows   vec2<u32>  read  [T]: first row and end of the
// row's sequence 1 qkv    f32  read  [row0 + T, (H + 2 G) E], q and k rotated      2 lse    f32
// read  [row0 + T, H] 3 d_out  f32  read  [T, H E]                                      4 delta
// f32  read  [T, H] 5 d_qkv  f32  read_write  [T, (H + 2 G) E]: its k, still rotated, and v Grid:
// (ceil(T / 32), G, 1); 128 lanes make 32 positions x 32 queries. Host:
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
    let stride = (p.heads + 2u * p.kv_heads) * E4;
    let k_at = (p.heads + group.y) * E4;
    let v_at = k_at + p.kv_heads * E4;
    let saved = p.row0 * stride;
    let first = group.x * 32u;
    let last = min(first + 31u, p.rows - 1u);
    let end = min(rows[last].y, p.rows);
    let sharing = p.heads / p.kv_heads;
    let c = index % 16u;
    let line = index / 4u; // staging: a quarter of row `line`
    let part = index % 4u;
    let j = first + index / 16u * 4u + vec4<u32>(0u, 1u, 2u, 3u);
    var dk: array<mat4x4<f32>, ACC>; // [E / 64]: the lane's rows
    var dv: array<mat4x4<f32>, ACC>;
    for (var i = 0u; i < ACC; i++) {
        dk[i] = mat4x4<f32>();
        dv[i] = mat4x4<f32>();
    }
    for (var head = group.y * sharing; head < (group.y + 1u) * sharing; head++) {
        for (var at = first; at < end; at += 32u) {
            let position = min(first + line, last);
            let query = min(at + line, end - 1u);
            var s = mat2x4<f32>();
            var dp = mat2x4<f32>();
            for (var e = part; e < E4; e += 4u) {
                let k = qkv[saved + position * stride + k_at + e];
                let q = qkv[saved + query * stride + head * E4 + e];
                let v = qkv[saved + position * stride + v_at + e];
                let d = d_out[(query * p.heads + head) * E4 + e];
                workgroupBarrier();
                tile[line * 5u + part] = k;
                tile[PIECE + line * 5u + part] = q;
                tile[2u * PIECE + line * 5u + part] = v;
                tile[3u * PIECE + line * 5u + part] = d;
                workgroupBarrier();
                s += dots(0u, 1u, index);
                dp += dots(2u, 3u, index);
            }
            var ps = mat2x4<f32>();
            var ds = mat2x4<f32>();
            for (var i = 0u; i < 2u; i++) {
                let t = at + c + 16u * i;
                let read = min(t, end - 1u);
                let start = vec4<u32>(rows[read].x);
                let seen = (start <= j) & (j <= vec4<u32>(t)) & vec4<bool>(t < end);
                let w = exp(s[i] * p.scale - lse[(p.row0 + read) * p.heads + head]);
                ps[i] = select(vec4<f32>(0.0), w, seen);
                ds[i] = ps[i] * (dp[i] - delta[read * p.heads + head]) * p.scale;
            }
            keep(ps, index);
            for (var e = 0u; e < ACC; e++) {
                workgroupBarrier();
                for (var i = index; i < 512u; i += LANES) {
                    let row = min(at + i / 16u, end - 1u) * p.heads + head;
                    tile[i] = d_out[row * E4 + min(e * 16u + i % 16u, E4 - 1u)];
                }
                workgroupBarrier();
                dv[e] = weigh(dv[e], index);
            }
            workgroupBarrier();
            keep(ds, index);
            for (var e = 0u; e < ACC; e++) {
                workgroupBarrier();
                for (var i = index; i < 512u; i += LANES) {
                    let row = min(at + i / 16u, end - 1u) * stride + head * E4;
                    tile[i] = qkv[saved + row + min(e * 16u + i % 16u, E4 - 1u)];
                }
                workgroupBarrier();
                dk[e] = weigh(dk[e], index);
            }
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var e = 0u; e < ACC; e++) {
            if j[i] <= last && e * 16u + c < E4 {
                d_qkv[j[i] * stride + k_at + e * 16u + c] = dk[e][i];
                d_qkv[j[i] * stride + v_at + e * 16u + c] = dv[e][i];
            }
        }
    }
}
