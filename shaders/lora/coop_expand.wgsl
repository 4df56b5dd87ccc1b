// matvec_coop's sums begin with B u.
//fills begin
//needs reduce
//const WG, L, COLS
var<private> sums: array<vec4<f32>, 1>; // by matvec_expand

fn begin(n0: u32, index: u32) {
    for (var t = index / L; t < COLS * TN / 4u; t += WG / L) {
        let m = t % COLS;
        let i = t / COLS * 4u;
        sums[0] = vec4<f32>();
        if m < p.m {
            let n = min(vec4<u32>(n0 + i) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.n - 1u));
            expand(0u, p.x_row + m, n + p.row0, index % L);
        }
        let x = reduce_add(sums[0].x, index);
        let y = reduce_add(sums[0].y, index);
        let z = reduce_add(sums[0].z, index);
        let w = reduce_add(sums[0].w, index);
        if index % L == 0u {
            total[m * TN + i] = x;
            total[m * TN + i + 1u] = y;
            total[m * TN + i + 2u] = z;
            total[m * TN + i + 3u] = w;
        }
    }
}
