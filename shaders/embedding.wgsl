// embedding: x[t] = scale W[token_ids[t]]
//   0 token_ids  u32   read        [T]
//   1 words, 2 scales  read        rows row0..row0+rows of W [V, K], in the format's blocks of 32
//   3 x          f32   read_write  [T, K]
// Grid: (ceil(K / 8 / 64), T, 1); a lane dequantises 8 weights. Rows in other chunks are left
// alone.
// Host: runtime/kernels/embedding.rs    Oracle: tests/kernels/embedding.rs
//needs quant
@group(0) @binding(0) var<storage, read> token_ids: array<u32>;
@group(0) @binding(1) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
@group(0) @binding(3) var<storage, read_write> x: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let kb = id.x / 4u;
    let part = id.x % 4u;
    let row = token_ids[id.y] - p.row0;
    if kb >= p.k_blocks || row >= p.rows {
        return;
    }
    let w = dequant(row * p.k_blocks + kb, part);
    let at = (id.y * p.k_blocks + kb) * 8u + part;
    x[at] = p.scale * w[0];
    x[at + 4u] = p.scale * w[1];
}
