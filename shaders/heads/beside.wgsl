// q, k and v with what lies beside their linears: HEAD_BIAS 1: biases are added. HEAD_NORM 1: then
// each head of q and k is RMS-normalised; a workgroup has one head's pairs.
//   BESIDE  f32  read  [(H + 2 G) E] biases, if any, then [2, E] gains of q and k, if any
//fills head_input
//const E, WG, BESIDE, HEAD_BIAS, HEAD_NORM
@group(0) @binding(BESIDE) var<storage, read> beside: array<f32>;
var<workgroup> tile_squares: array<f32, WG>;

// Elements `pair` of a head.
fn head_input(v: vec2<f32>, head: u32, pair: vec2<u32>, index: u32) -> vec2<f32> {
    var x = v;
    if HEAD_BIAS == 1u {
        x += vec2<f32>(beside[head * E + pair.x], beside[head * E + pair.y]);
    }
    if HEAD_NORM == 1u {
        tile_squares[index] = dot(x, x);
        workgroupBarrier();
        var squares = 0.0;
        for (var i = 0u; i < WG; i++) { squares += tile_squares[i]; }
        let scale = 1.0 / sqrt(squares / f32(E) + p.eps);
        let biases = HEAD_BIAS * (p.heads + 2u * p.kv_heads) * E;
        let gains = biases + select(0u, E, head >= p.heads);
        let normed = x * scale * vec2<f32>(beside[gains + pair.x], beside[gains + pair.y]);
        x = select(x, normed, head < p.heads + p.kv_heads);
    }
    return x;
}
