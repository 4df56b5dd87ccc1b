// heads_backward: takes the gradients of normed q and k back through the norm of each head, as in
// rms_norm_backward
//   0 raw     f32  read  [row0 + T, (H + 2 G) E]: q, k and v as their linears made them
//   1 beside  f32  read  [(H + 2 G) E] biases, if any, then [2, E] gains
//   2 d_qkv   f32  read_write  [T, (H + 2 G) E]; those of q and k change in place
// Grid: (H + G, T, 1); E / 2 lanes make a head.
// Host: runtime/kernels/heads_backward.rs    Oracle: tests/kernels/heads_backward.rs
//const WG, E, HEAD_BIAS
@group(0) @binding(0) var<storage, read> raw: array<f32>;
@group(0) @binding(1) var<storage, read> beside: array<f32>;
@group(0) @binding(2) var<storage, read_write> d_qkv: array<f32>;
var<workgroup> tile_sums: array<vec2<f32>, WG>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let head = group.x;
    let all_heads = p.heads + 2u * p.kv_heads;
    let at = (group.y * all_heads + head) * E + index;
    let raw_at = ((p.row0 + group.y) * all_heads + head) * E + index;
    let biases = HEAD_BIAS * all_heads * E;
    var x = vec2<f32>(raw[raw_at], raw[raw_at + WG]);
    if HEAD_BIAS == 1u {
        x += vec2<f32>(beside[head * E + index], beside[head * E + index + WG]);
    }
    let gains = biases + select(0u, E, head >= p.heads) + index;
    let g = vec2<f32>(d_qkv[at] * beside[gains], d_qkv[at + WG] * beside[gains + WG]);
    tile_sums[index] = vec2<f32>(dot(x, x), dot(g, x));
    workgroupBarrier();
    var sums = vec2<f32>(0.0);
    for (var i = 0u; i < WG; i++) { sums += tile_sums[i]; }
    let scale = 1.0 / sqrt(sums.x / f32(E) + p.eps);
    let d = scale * (g - x * (scale * scale * (sums.y / f32(E))));
    d_qkv[at] = d.x;
    d_qkv[at + WG] = d.y;
}
