// A tile of f16 in quads, stored whole.
//fills quads
const QUAD: u32 = 1u; // cells of a quad
alias cell = vec4<f16>;

fn put_quad(i: u32, v: vec4<f16>) {
    tile[i] = v;
}
