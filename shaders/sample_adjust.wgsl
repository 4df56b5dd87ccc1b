// sample_adjust: repetition penalty (Keskar et al. 2019, arXiv:1909.05858) and logit biases, in
// place
//   0 samplers  Sampler     read  [M]
//   1 seen      u32         read  [M, seen_words]: bit v is set when token v is in the context
//   2 biases    vec2<u32>   read  [sum of bias_count]: token, f32 bits
//   3 logits    f32         read_write  [M, V]
// Grid: (ceil(V / 64), M, 1).
// Host: runtime/kernels/sample.rs    Oracle: tests/kernels/sample.rs
//import shared/sampler
@group(0) @binding(0) var<storage, read> samplers: array<Sampler>;
@group(0) @binding(1) var<storage, read> seen: array<u32>;
@group(0) @binding(2) var<storage, read> biases: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= p.vocab {
        return;
    }
    let s = samplers[id.y];
    let at = id.y * p.vocab + id.x;
    var logit = logits[at];
    if (seen[id.y * p.seen_words + id.x / 32u] >> (id.x % 32u) & 1u) == 1u {
        logit = select(logit * s.repetition_penalty, logit / s.repetition_penalty, logit > 0.0);
    }
    for (var i = s.bias_start; i < s.bias_start + s.bias_count; i++) {
        let bias = biases[i];
        logit += select(0.0, bitcast<f32>(bias.y), bias.x == id.x);
    }
    logits[at] = logit;
}
