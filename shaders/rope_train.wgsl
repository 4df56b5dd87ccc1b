// rope_train: rotates q and k by their position in a packed sequence, or back
//   Su et al. 2021, arXiv:2104.09864
//   0 rows       vec2<u32>  read  [T]: first row and end of the row's sequence; row t is at
//     position t - first
//   1 rotations  vec2<f32>  read  [256 + coarse, E/2]: cos, sin of fine positions 0..255, then of
//     multiples of 256
//   2 qkv        f32        read_write  [row0 + T, (H + 2 G) E]; q and k are rotated in place
// direction 1: forward.  -1: the inverse, which is the transpose: what takes gradients back. Pairs
// are (i, i + E/2).
// Grid: (ceil((H + G) E / 2 / 64), T, 1); a lane makes one pair.
// Host: runtime/kernels/rope_train.rs    Oracle: tests/kernels/rope_train.rs
//const E
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> rotations: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> qkv: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let half_dim = E / 2u;
    let head = id.x / half_dim;
    let i = id.x % half_dim;
    if head >= p.heads + p.kv_heads {
        return;
    }
    let position = id.y - rows[id.y].x;
    let fine = rotations[position % 256u * half_dim + i];
    let coarse = rotations[(256u + position / 256u) * half_dim + i];
    let c = fine.x * coarse.x - fine.y * coarse.y;
    let s = (fine.y * coarse.x + fine.x * coarse.y) * p.direction;
    let at = ((p.row0 + id.y) * (p.heads + 2u * p.kv_heads) + head) * E + i;
    let a = qkv[at];
    let b = qkv[at + half_dim];
    qkv[at] = a * c - b * s;
    qkv[at + half_dim] = a * s + b * c;
}
