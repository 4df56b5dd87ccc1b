// rope: rotates q and k by their position and appends k and v to the cache
//   Su et al. 2021, arXiv:2104.09864
//   0 rows       vec2<u32>  read  [M]: page table, position
//   1 pages      u32        read  [tables, max_pages]
//   2 rotations  vec2<f32>  read  [256 + coarse, E/2]: cos, sin of fine positions 0..255, then of
//     multiples of 256
//   3 qkv        f32        read_write  [M, (H + 2 G) E]; q is rotated in place
//   4 keys       kv         read_write  [pages, G, PAGE, E]
//   5 values  the same
// The angle is the sum of a fine and a coarse one, so that no sine of a large argument is ever
// asked of the GPU.
// NEOX 1: pairs are (i, i + R/2) of the first R elements, as in Hugging Face files, then those of
// the rest, which do not turn.  0: (2i, 2i + 1).
// With an adapter on what came before, lora/expand_two.wgsl adds it to q, k and v first.
// Then heads/*.wgsl makes of them what is rotated.
// Grid: (ceil((H + 2 G) E / 2 / WG), M, 1); a lane makes one pair.
// Host: runtime/kernels/rope.rs    Oracle: tests/kernels/rope.rs
//needs kv, expand_two, head_input
//const WG, E, PAGE, NEOX
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> pages: array<u32>;
@group(0) @binding(2) var<storage, read> rotations: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(4) var<storage, read_write> keys: array<kv>;
@group(0) @binding(5) var<storage, read_write> values: array<kv>;

@compute @workgroup_size(WG)
fn main(
    @builtin(global_invocation_id) id: vec3<u32>, @builtin(local_invocation_index) index: u32,
) {
    let half_dim = E / 2u;
    let all_heads = p.heads + 2u * p.kv_heads;
    // Past the last head: its pairs again, which are not written.
    let head = min(id.x / half_dim, all_heads - 1u);
    let i = id.x % half_dim;
    let row = rows[id.y];
    let turned = p.rotary_dim / 2u;
    let first = select(2u * i, i + select(turned, 0u, i < turned), NEOX == 1u);
    let second = select(2u * i + 1u, i + select(half_dim, turned, i < turned), NEOX == 1u);
    let at = (id.y * all_heads + head) * E;
    let which = select(0u, 1u, head >= p.heads) + select(0u, 1u, head >= p.heads + p.kv_heads);
    var ab = vec2<f32>(qkv[at + first], qkv[at + second]);
    let fine = rotations[row.y % 256u * half_dim + i];
    let coarse = rotations[(256u + row.y / 256u) * half_dim + i];
    let c = fine.x * coarse.x - fine.y * coarse.y;
    let s = fine.y * coarse.x + fine.x * coarse.y;
    let n = head * E + vec2<u32>(first, second);
    ab += expand_two(id.y, p.site, p.alone, p.u_width, vec2<u32>(which), n);
    ab = head_input(ab, head, vec2<u32>(first, second), index);
    if id.x / half_dim >= all_heads {
        return;
    }
    let rotated = vec2<f32>(ab.x * c - ab.y * s, ab.x * s + ab.y * c);
    if head < p.heads {
        qkv[at + first] = rotated.x;
        qkv[at + second] = rotated.y;
        return;
    }
    let page = pages[row.x * p.max_pages + row.y / PAGE];
    let kv_head = (head - p.heads) % p.kv_heads;
    let slot = ((page * p.kv_heads + kv_head) * PAGE + row.y % PAGE) * E;
    if head < p.heads + p.kv_heads {
        keys[slot + first] = kv(rotated.x);
        keys[slot + second] = kv(rotated.y);
    } else {
        values[slot + first] = kv(ab.x);
        values[slot + second] = kv(ab.y);
    }
}
