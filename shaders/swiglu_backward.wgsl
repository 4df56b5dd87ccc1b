// swiglu_backward: with h = activate(gate) up, (gate, up) becomes dh (up activate'(gate),
// activate(gate))
//   0 dh  f32  read  [dh_row + T, F]
//   1 gu  f32  read_write  [gu_row + T, 2 F]: gate, up; then their gradients
// In place: nothing else asks for gate and up once their gradients are known.
// Grid: (ceil(F / 4 / 64), T, 1). Needs: F a multiple of 4.
// Host: runtime/kernels/swiglu_backward.rs    Oracle: tests/kernels/swiglu_backward.rs
//needs activation
@group(0) @binding(0) var<storage, read> dh: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> gu: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.f4 {
        return;
    }
    let at = (p.gu_row + id.y) * 2u * p.f4 + id.x;
    let gate = gu[at];
    let up = gu[at + p.f4];
    let d = dh[(p.dh_row + id.y) * p.f4 + id.x];
    let x = activate_with_slope(gate.x);
    let y = activate_with_slope(gate.y);
    let z = activate_with_slope(gate.z);
    let w = activate_with_slope(gate.w);
    gu[at] = d * up * vec4<f32>(x.y, y.y, z.y, w.y);
    gu[at + p.f4] = d * vec4<f32>(x.x, y.x, z.x, w.x);
}
