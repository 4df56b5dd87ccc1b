// proximal: g += mu (w - start)
//   Li et al. 2020, arXiv:1812.06127, equation 2: the gradient of mu/2 |w - start|^2
//   0 weights  f32  read  [len]
//   1 start    f32  read  [len]
//   2 grads  f32  read_write  [len]
// Grid: (ceil(len / 1024), 1, 1); 256 lanes, 4 elements each.
// Host: runtime/kernels/proximal.rs    Oracle: tests/kernels/proximal.rs
@group(0) @binding(0) var<storage, read> weights: array<f32>;
@group(0) @binding(1) var<storage, read> start: array<f32>;
@group(0) @binding(2) var<storage, read_write> grads: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let end = min((group.x + 1u) * 1024u, p.len);
    for (var i = group.x * 1024u + index; i < end; i += 256u) {
        grads[i] += p.mu * (weights[i] - start[i]);
    }
}
