// attention_dkv: dv[j] = sum_t p[t, j] d_out[t], dk[j] = sum_t ds[t, j] q[t], over the queries of
//   the heads that share j
// Grid: (ceil(T / 32), G, 1); 128 lanes make 32 positions x 32 queries.
// Bindings, p and ds: attention/backward.wgsl
// Host: runtime/kernels/attention_backward.rs    Oracle: tests/kernels/attention_backward.rs
//import attention/backward
const ROWS: u32 = 1u;    // positions
const COLUMNS: u32 = 0u; // queries

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let stride = (p.heads + 2u * p.kv_heads) * E4;
    let k_at = (p.heads + group.y) * E4;
    let v_at = k_at + p.kv_heads * E4;
    let first = group.x * 32u;
    let last = min(first + 31u, p.rows - 1u);
    // Past the sequence, or the last query that sees a position.
    let end = min(min(rows[last].y, p.rows), last + 1u + min(p.window - 1u, p.rows));
    let sharing = p.heads / p.kv_heads;
    let c = index % 16u;
    let line = index / 4u; // staging: a quarter of row `line`
    let j = first + index / 16u * 4u + vec4<u32>(0u, 1u, 2u, 3u);
    var dk: array<mat4x4<f32>, ACC>; // [E / 64]: the lane's rows
    var dv: array<mat4x4<f32>, ACC>;
    for (var i = 0u; i < ACC; i++) {
        dk[i] = mat4x4<f32>();
        dv[i] = mat4x4<f32>();
    }
    for (var head = group.y * sharing; head < (group.y + 1u) * sharing; head++) {
        for (var at = first; at < end; at += 32u) {
            let query = min(at + line, end - 1u);
            let both = products(head, group.y, query, min(first + line, last), index);
            var ps = mat2x4<f32>();
            var ds = mat2x4<f32>();
            for (var i = 0u; i < 2u; i++) {
                let t = at + c + 16u * i;
                let read = min(t, end - 1u);
                let start = vec4<u32>(starts(vec4<u32>(read)).x);
                let seen = (start <= j) & (j <= vec4<u32>(t)) & vec4<bool>(t < end);
                let w = exp(both.s[i] * p.scale - lse[(p.row0 + read) * p.heads + head]);
                ps[i] = select(vec4<f32>(0.0), w, seen);
                ds[i] = ps[i] * (both.dp[i] - delta[read * p.heads + head]) * p.scale;
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
                stage(p.row0 * stride + head * E4, at, end - 1u, e, index);
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
