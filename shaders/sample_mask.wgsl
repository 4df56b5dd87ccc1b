// sample_mask: leaves of each row's logits those that its grammar allows, in place
//   0 masks   u32  read  [M, mask_words]: bit v is set where token v may come next
//   1 logits  f32  read_write  [M, V]
// Grid: (ceil(V / 64), M, 1).
// Host: runtime/kernels/sample_mask.rs    Oracle: tests/kernels/sample_mask.rs
@group(0) @binding(0) var<storage, read> masks: array<u32>;
@group(0) @binding(1) var<storage, read_write> logits: array<f32>;

// Whatever penalties and biases made of it, a token that may come is above those that may not, also
// divided by a temperature.
const LEAST: f32 = -1.0e30;
const NEVER: f32 = -1.0e36;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.vocab {
        return;
    }
    let at = id.y * p.vocab + id.x;
    let may = (masks[id.y * p.mask_words + id.x / 32u] >> (id.x % 32u) & 1u) == 1u;
    logits[at] = select(NEVER, max(logits[at], LEAST), may);
}
