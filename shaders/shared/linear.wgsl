// What the products y = x W^T share: W [N, K] in the format's blocks of 32.
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;       // [M, K]
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;    // [K], with NORM
@group(0) @binding(2) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> scales: array<u32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;       // [M, y_stride], from y_offset
