// A tile of f16 in quads, stored one by one: Metal loads fragments from scalars only.
//fills quads
const QUAD: u32 = 4u; // cells of a quad
alias cell = f16;

fn put_quad(i: u32, v: vec4<f16>) {
    tile[4u * i] = v.x;
    tile[4u * i + 1u] = v.y;
    tile[4u * i + 2u] = v.z;
    tile[4u * i + 3u] = v.w;
}
