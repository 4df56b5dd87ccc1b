// rope_train: rotates q and k by their position in a packed sequence, or back
//   Su et al. 2021, arXiv:2104.09864
//   0 rows       vec2<u32>  read  [T]: first row and end of the row's sequence; row t is at
//     position t - first
//   1 rotations  vec2<f32>  read  [256 + coarse, E/2]: cos, sin of fine positions 0..255, then of
//     multiples of 256
//   2 qkv        f32        read_write  [row0 + T, (H + 2 G) E]; q and k are rotated in place
// Before, heads/*.wgsl makes of them what is rotated; of v too, if VALUES is 1.
// direction 1: forward.  -1: the inverse, which is the transpose: what takes gradients back. Pairs
// are (i, i + R/2) of the first R elements, then those of the rest, which do not turn.
// Grid: (ceil((H + G + VALUES G) E / 2 / WG), T, 1); a lane makes one pair.
// Host: runtime/kernels/rope_train.rs    Oracle: tests/kernels/rope_train.rs
//needs head_input
//const WG, E, VALUES
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> rotations: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> qkv: array<f32>;

@compute @workgroup_size(WG)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) index: u32,
) {
    let half_dim = E / 2u;
    let all_heads = p.heads + (1u + VALUES) * p.kv_heads;
    // Past the last head: its pairs again, which are not written.
    let head = min(id.x / half_dim, all_heads - 1u);
    let i = id.x % half_dim;
    let position = id.y - rows[id.y].x;
    let fine = rotations[position % 256u * half_dim + i];
    let coarse = rotations[(256u + position / 256u) * half_dim + i];
    let c = fine.x * coarse.x - fine.y * coarse.y;
    let s = (fine.y * coarse.x + fine.x * coarse.y) * p.direction;
    let turned = p.rotary_dim / 2u;
    let pair = i + select(vec2<u32>(turned, half_dim), vec2<u32>(0u, turned), i < turned);
    let at = ((p.row0 + id.y) * (p.heads + 2u * p.kv_heads) + head) * E + pair;
    let v = head_input(vec2<f32>(qkv[at.x], qkv[at.y]), head, pair, index);
    if id.x / half_dim >= all_heads {
        return;
    }
    if head < p.heads + p.kv_heads {
        qkv[at.x] = v.x * c - v.y * s;
        qkv[at.y] = v.x * s + v.y * c;
    } else {
        qkv[at.x] = v.x;
        qkv[at.y] = v.y;
    }
}
