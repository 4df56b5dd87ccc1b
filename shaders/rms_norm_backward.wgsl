// rms_norm_backward: dx[t] (=, +=) s (g - x[t] s^2 mean(g x[t])), g = dy[t] gain, s = 1 /
// sqrt(mean(x[t]^2) + eps)
//   0 x   f32  read  [x_row + T, K]
//   1 gain  f32  read  [K]
//   2 dy  f32  read  [dy_row + T, K]
//   3 dx    f32  read_write  [dx_row + T, K]
// ADD 0: dx = .  1: dx += .  The gain is frozen: it gets no gradient.
// Grid: (ceil(T / (WG / L)), 1, 1); L lanes a row stride over K. Needs: K a multiple of 4.
// Host: runtime/kernels/rms_norm_backward.rs    Oracle: tests/kernels/rms_norm_backward.rs
//needs reduce
//const WG, L, ADD
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gain: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let lane = index % L;
    let row = group.x * (WG / L) + index / L;
    let read = min(row, p.rows - 1u);
    let x_at = (p.x_row + read) * p.k4;
    let dy_at = (p.dy_row + read) * p.k4;
    var squares = 0.0;
    var products = 0.0;
    for (var i = lane; i < p.k4; i += L) {
        let v = x[x_at + i];
        squares += dot(v, v);
        products += dot(dy[dy_at + i] * gain[i], v);
    }
    let k = f32(4u * p.k4);
    let scale = 1.0 / sqrt(reduce_add(squares, index) / k + p.eps);
    let pull = scale * scale * (reduce_add(products, index) / k);
    if row < p.rows {
        let dx_at = (p.dx_row + row) * p.k4;
        for (var i = lane; i < p.k4; i += L) {
            let d = scale * (dy[dy_at + i] * gain[i] - x[x_at + i] * pull);
            if ADD == 1u {
                dx[dx_at + i] += d;
            } else {
                dx[dx_at + i] = d;
            }
        }
    }
}
