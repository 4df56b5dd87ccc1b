// matmul_dense_thin: C[m, n] = beta C[m, n] + alpha sum_k A(m, k) B(k, n)
//   where C is small and K long: U = X A^T
// Grid: (ceil(N / 16), ceil(M / 4), 1); 64 teams of 4 lanes, a lane 4 x 4 of a 4 x 16 tile and
// every 64th k, straight from memory: nothing waits for a barrier until the end. The teams' sums
// are added in their order: the same every time. Sums in f32.
// Bindings and store: shared/dense.wgsl
// Host: runtime/kernels/matmul_dense.rs    Oracle: tests/kernels/matmul_dense.rs
//import shared/dense

const TEAMS: u32 = 64u;
var<workgroup> tile: array<vec4<f32>, TEAMS * 16u>; // [team][row][4 of N]

fn load_a(at: vec4<u32>, k: u32) -> vec4<f32> {
    let i = at + min(k, p.k - 1u) * p.a_k;
    return select(vec4<f32>(), vec4<f32>(a[i.x], a[i.y], a[i.z], a[i.w]), k < p.k);
}

fn load_b(at: vec4<u32>, k: u32) -> vec4<f32> {
    let i = at + min(k, p.k - 1u) * p.b_k;
    return vec4<f32>(b[i.x], b[i.y], b[i.z], b[i.w]);
}

fn outer(x: vec4<f32>, y: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(x.x * y, x.y * y, x.z * y, x.w * y);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let m0 = group.y * 4u;
    let n0 = group.x * 16u;
    let team = index / 4u;
    let next = vec4<u32>(0u, 1u, 2u, 3u);
    let at_a = p.a_offset + min(m0 + next, vec4<u32>(p.m - 1u)) * p.a_m;
    let at_b = p.b_offset + min(n0 + index % 4u * 4u + next, vec4<u32>(p.n - 1u)) * p.b_n;
    var acc = mat4x4<f32>();
    // Four at a time, so that their loads are under way together.
    for (var k = team; k < p.k; k += 4u * TEAMS) {
        let x0 = load_a(at_a, k);
        let x1 = load_a(at_a, k + TEAMS);
        let x2 = load_a(at_a, k + 2u * TEAMS);
        let x3 = load_a(at_a, k + 3u * TEAMS);
        let y0 = load_b(at_b, k);
        let y1 = load_b(at_b, k + TEAMS);
        let y2 = load_b(at_b, k + 2u * TEAMS);
        let y3 = load_b(at_b, k + 3u * TEAMS);
        acc += outer(x0, y0) + outer(x1, y1) + (outer(x2, y2) + outer(x3, y3));
    }
    let at = team * 16u + index % 4u;
    tile[at] = acc[0];
    tile[at + 4u] = acc[1];
    tile[at + 8u] = acc[2];
    tile[at + 12u] = acc[3];
    workgroupBarrier();
    // 16 lanes add the sums of four teams each, then one adds theirs.
    let first = index / 16u * 64u + index % 16u;
    let four = tile[first] + tile[first + 16u] + (tile[first + 32u] + tile[first + 48u]);
    workgroupBarrier();
    tile[index] = four;
    workgroupBarrier();
    if index >= 16u {
        return;
    }
    var sum = vec4<f32>();
    for (var i = 0u; i < 16u; i++) { sum += tile[i * 16u + index]; }
    for (var j = 0u; j < 4u; j++) {
        store(m0 + index / 4u, n0 + index % 4u * 4u + j, sum[j]);
    }
}
