// sgd: b = momentum b + g + weight_decay w; w -= lr b
//   torch.optim.SGD, dampening 0, without Nesterov
//   0 norm     f32  read  [slot + 1]
//   1 grads   f32  read_write  [offset + len], clipped here, then zeroed
//   2 weights  f32  read_write  the same
//   3 buffer  the same with MOMENTUM 1, unused with 0
// Where the norm is not finite only the gradients are zeroed: the last good state survives.
// Grid: (ceil(len / 1024), 1, 1); 256 lanes, 4 elements each.
// Host: runtime/kernels/sgd.rs    Oracle: tests/kernels/sgd.rs
//import shared/clip
//const MOMENTUM
@group(0) @binding(0) var<storage, read> norm: array<f32>;
@group(0) @binding(1) var<storage, read_write> grads: array<f32>;
@group(0) @binding(2) var<storage, read_write> weights: array<f32>;
@group(0) @binding(3) var<storage, read_write> buffer: array<f32>;

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
            var step = g + p.weight_decay * weights[at];
            if MOMENTUM == 1u {
                step += p.momentum * buffer[at];
                buffer[at] = step;
            }
            weights[at] -= p.lr * step;
        }
    }
}
