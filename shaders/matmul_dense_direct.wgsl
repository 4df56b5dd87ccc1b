// matmul_dense_direct: C[m, n] = beta C[m, n] + alpha sum_k A(m, k) B(k, n)
//   in registers, where barriers are slow
// Grid: ceil(M / 4) ceil(N / 4) lanes in workgroups of WG, filled up over x and y; a lane makes 4 x
// 4. Sums in f32.
// Bindings and store: shared/dense.wgsl
// Host: runtime/kernels/matmul_dense.rs    Oracle: tests/kernels/matmul_dense.rs
//import shared/dense
//const WG

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let unit = (group.y * groups.x + group.x) * WG + index;
    let across = (p.n + 3u) / 4u;
    let m = unit / across * 4u;
    let n = unit % across * 4u;
    if m >= p.m {
        return;
    }
    let next = vec4<u32>(0u, 1u, 2u, 3u);
    var at_a = p.a_offset + min(m + next, vec4<u32>(p.m - 1u)) * p.a_m;
    var at_b = p.b_offset + min(n + next, vec4<u32>(p.n - 1u)) * p.b_n;
    var acc = mat4x4<f32>();
    for (var k = 0u; k < p.k; k++) {
        let x = vec4<f32>(a[at_a.x], a[at_a.y], a[at_a.z], a[at_a.w]);
        let y = vec4<f32>(b[at_b.x], b[at_b.y], b[at_b.z], b[at_b.w]);
        acc = mat4x4<f32>(acc[0] + x.x * y, acc[1] + x.y * y, acc[2] + x.z * y, acc[3] + x.w * y);
        at_a += p.a_k;
        at_b += p.b_k;
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            store(m + i, n + j, acc[i][j]);
        }
    }
}
