// adamw: w -= lr weight_decay w + lr m^ / (sqrt(v^) + eps)
//   Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2
//   m = beta1 m + (1 - beta1) g, m^ = m / (1 - beta1^step); v = beta2 v + (1 - beta2) g^2, v^ = v /
//     (1 - beta2^step)
//   0 norm     f32  read  [slot + 1]
//   1 grads  f32  read_write  [offset + len], clipped here, then zeroed
//   2 weights  f32  read_write  the same
//   3 m, 4 v  the same
// Where the norm is not finite only the gradients are zeroed: the last good state survives.
// Grid: (ceil(len / 1024), 1, 1); 256 lanes, 4 elements each.
// Host: runtime/kernels/adamw.rs    Oracle: tests/kernels/adamw.rs
//import shared/clip
@group(0) @binding(0) var<storage, read> norm: array<f32>;
@group(0) @binding(1) var<storage, read_write> grads: array<f32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> first: array<f32>;
@group(0) @binding(4) var<storage, read_write> second: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let good = is_finite(norm[p.slot]);
    let clip = clip_factor(norm[p.slot], p.max_norm);
    let end = min((group.x + 1u) * 1024u, p.len);
    for (var i = group.x * 1024u + index; i < end; i += 256u) {
        let at = p.offset + i;
        let g = grads[at] * clip;
        grads[at] = 0.0;
        if good {
            let m = p.beta1 * first[at] + p.gain1 * g;
            let v = p.beta2 * second[at] + p.gain2 * g * g;
            first[at] = m;
            second[at] = v;
            weights[at] =
                p.decay * weights[at] - p.step_size * (m / (sqrt(v) * p.correction + p.eps));
        }
    }
}
