// What the products y = x W^T share: W [N, K] in the format's blocks of 32.
struct Params {
    m: u32,
    n: u32,
    k_blocks: u32,
    x_row: u32,
    y_stride: u32,
    y_offset: u32,
    pair: u32,
    eps: f32,
    row0: u32,
    site: u32,
    u_rows: u32,
    lora_groups: u32,
    parts: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
    lora: vec4<u32>,
}
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;       // [M, K]
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;    // [K], with NORM
@group(0) @binding(2) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;       // [M, y_stride], columns from y_offset
