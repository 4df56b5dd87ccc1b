// attention_delta: delta[t, h] = sum_e d_out[t, h, e] out[t, h, e]
//   Dao 2023, arXiv:2307.08691
//   0 out  f32  read  [row0 + T, H E]
//   1 d_out  f32  read  [T, H E]
//   2 delta  f32  read_write  [T, H]
// Grid: (ceil(T H / 64), 1, 1); a lane makes one sum.
// Host: runtime/kernels/attention_backward.rs    Oracle: tests/kernels/attention_backward.rs
//const E
@group(0) @binding(0) var<storage, read> out: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> d_out: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> delta: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.rows * p.heads {
        return;
    }
    let out_at = (p.row0 * p.heads + id.x) * (E / 4u);
    let d_at = id.x * (E / 4u);
    var sum = 0.0;
    for (var e = 0u; e < E / 4u; e++) {
        sum += dot(out[out_at + e], d_out[d_at + e]);
    }
    delta[id.x] = sum;
}
