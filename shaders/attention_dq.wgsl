// attention_dq: dq[t] = sum_j ds[t, j] k[j]
// Grid: (ceil(T / 32), H, 1); 128 lanes make 32 queries x 32 positions.
// Bindings and ds: attention/backward.wgsl
// Host: runtime/kernels/attention_backward.rs    Oracle: tests/kernels/attention_backward.rs
//import attention/backward
const ROWS: u32 = 0u;    // queries
const COLUMNS: u32 = 1u; // positions

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let stride = (p.heads + 2u * p.kv_heads) * E4;
    let k_at = p.row0 * stride + (p.heads + kv_head) * E4;
    let first = group.x * 32u;
    let last = min(first + 31u, p.rows - 1u);
    let c = index % 16u;
    let line = index / 4u; // staging: a quarter of row `line`
    let t = first + index / 16u * 4u + vec4<u32>(0u, 1u, 2u, 3u);
    let read = min(t, vec4<u32>(last));
    let start = starts(read);
    var lses = vec4<f32>();
    var deltas = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        lses[i] = lse[(p.row0 + read[i]) * p.heads + head];
        deltas[i] = delta[read[i] * p.heads + head];
    }
    var dq: array<mat4x4<f32>, ACC>; // [E / 64]: the lane's rows
    for (var i = 0u; i < ACC; i++) { dq[i] = mat4x4<f32>(); }
    for (var at = first_tile(first); at <= last; at += 32u) {
        let both = products(head, kv_head, min(first + line, last), min(at + line, last), index);
        var ds = mat2x4<f32>();
        for (var i = 0u; i < 2u; i++) {
            let j = vec4<u32>(at + c + 16u * i);
            let d = exp(both.s[i] * p.scale - lses) * (both.dp[i] - deltas) * p.scale;
            ds[i] = select(vec4<f32>(0.0), d, (start <= j) & (j <= t));
        }
        keep(ds, index);
        for (var e = 0u; e < ACC; e++) {
            stage(k_at, at, last, e, index);
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
