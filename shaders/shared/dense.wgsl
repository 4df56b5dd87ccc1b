// What the variants of matmul_dense share: C[m, n] = beta C[m, n] + alpha sum_k A(m, k) B(k, n)
//   0 a     f32  read  A(m, k) at a_offset + m a_m + k a_k
//   1 b     f32  read  B(k, n) at b_offset + k b_k + n b_n; may be the buffer of A
//   2 c     f32  read_write  C[m, n] at c_offset + m c_m + n; not read when beta is 0
@group(0) @binding(0) var<storage, read> a: array<f32>;
@group(0) @binding(1) var<storage, read> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;

fn store(m: u32, n: u32, sum: f32) {
    if m < p.m && n < p.n {
        let at = p.c_offset + m * p.c_m + n;
        if p.beta == 0.0 {
            c[at] = p.alpha * sum;
        } else {
            c[at] = p.beta * c[at] + p.alpha * sum;
        }
    }
}
