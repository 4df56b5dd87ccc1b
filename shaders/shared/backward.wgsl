// What the variants of matmul_backward read, for dx[m, k] (=, +=) sum_n dy[m, n] W[n, k]: the
// gradient of matmul's x; W is frozen and gets none.
//   0 dy    f32  read  [., dy_stride], rows from dy_row, columns from dy_offset
//   1 words, 2 scales  read  W [N, K] in the format's blocks of 32, the buffers of the forward pass
//   3 dx    f32  read_write  [., K], rows from dx_row
// add 0: dx = .  1: dx += .
@group(0) @binding(1) var<storage, read> words: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;
