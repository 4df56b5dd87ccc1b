// What attention_dq and attention_dkv share: with p = exp(q k^T scale - lse),
//   ds = p (d_out v^T - delta) scale
//   Dao 2023, arXiv:2307.08691, algorithm 2
//   0 rows, 1 qkv  as in attention/tile.wgsl
//   2 lse    f32  read  [row0 + T, H]
//   3 d_out  f32  read  [T, H E]
//   4 delta  f32  read  [T, H]
//   5 d_qkv  f32  read_write  [T, (H + 2 G) E]: the gradients, those of q and k still rotated
//import attention/tile
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> d_out: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> delta: array<f32>;
@group(0) @binding(5) var<storage, read_write> d_qkv: array<vec4<f32>>;

const PIECES: u32 = 4u; // q, k, d_out, v

// Of a lane's rows and columns.
struct Products {
    s: mat2x4<f32>,  // of q and k
    dp: mat2x4<f32>, // of d_out and v
}

// ROWS and COLUMNS are the pieces of q and k, as the kernel lays them. A lane stages a quarter of a
// query and of a position.
fn products(head: u32, kv_head: u32, query: u32, position: u32, index: u32) -> Products {
    let stride = (p.heads + 2u * p.kv_heads) * E4;
    let q_at = (p.row0 + query) * stride + head * E4;
    let k_at = (p.row0 + position) * stride + (p.heads + kv_head) * E4;
    let v_at = k_at + p.kv_heads * E4;
    var all = Products();
    for (var e = index % 4u; e < E4; e += 4u) {
        let q = qkv[q_at + e];
        let k = qkv[k_at + e];
        let d = d_out[(query * p.heads + head) * E4 + e];
        let v = qkv[v_at + e];
        workgroupBarrier();
        put_piece(0u, q, index);
        put_piece(1u, k, index);
        put_piece(2u, d, index);
        put_piece(3u, v, index);
        workgroupBarrier();
        all.s += dots(ROWS, COLUMNS, index);
        all.dp += dots(ROWS + 2u, COLUMNS + 2u, index);
    }
    return all;
}
