// sample_partial: the best token of each run of the vocabulary: argmax of the logits when greedy,
// else of
//   logit / temperature + Gumbel noise, which draws from their softmax (Gumbel 1954; Maddison et
//     al. 2014, arXiv:1411.0030)
//   0 samplers    Sampler    read  [M]
//   1 rows        vec2<u32>  read  [M]: page table, position; the position is the counter of the
//     noise
//   2 logits      f32        read  [M, V]
//   3 thresholds  f32  read  [M]
//   4 partials    vec2<u32>  read_write  [M, runs]: f32 bits of the best value, its token
// Grid: (runs = ceil(V / 1024), M, 1). Of equal values the lowest token wins.
// Host: runtime/kernels/sample.rs    Oracle: tests/kernels/sample.rs
//import shared/sampler
@group(0) @binding(0) var<storage, read> samplers: array<Sampler>;
@group(0) @binding(1) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read> thresholds: array<f32>;
@group(0) @binding(4) var<storage, read_write> partials: array<vec2<u32>>;

var<workgroup> tile_value: array<f32, 64>;
var<workgroup> tile_token: array<u32, 64>;

// PCG4D: a counter-based hash (Jarzynski & Olano 2020, JCGT 9(3)).
fn pcg4d(seed: vec4<u32>) -> vec4<u32> {
    var v = seed * 1664525u + 1013904223u;
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    v = v ^ (v >> vec4<u32>(16u));
    v.x += v.y * v.w;
    v.y += v.z * v.x;
    v.z += v.x * v.y;
    v.w += v.y * v.z;
    return v;
}

// -log(E), E exponential. E = -log(1 - u) by its series for small u, where a GPU's log is inexact.
fn gumbel(bits: u32) -> f32 {
    let u = min((f32(bits) + 0.5) * 2.3283064e-10, 0.99999994);
    let series = u * (1.0 + u * (0.5 + u * (0.33333333 + u * (0.25 + u * 0.2))));
    return -log(select(-log(1.0 - u), series, u < 0.03));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let s = samplers[group.y];
    let threshold = select(-3.4e38, thresholds[group.y], restricted(s));
    let position = rows[group.y].y;
    var best = -3.4e38;
    var token = 0xffffffffu;
    for (var i = 0u; i < 16u; i++) {
        let v = group.x * 1024u + i * 64u + index;
        if v < p.vocab {
            let logit = logits[group.y * p.vocab + v];
            var value = logit;
            if s.temperature > 0.0 {
                value = logit / s.temperature
                    + gumbel(pcg4d(vec4<u32>(s.seed_lo, s.seed_hi, position, v)).w);
            }
            if logit >= threshold && (value > best || token == 0xffffffffu) {
                best = value;
                token = v;
            }
        }
    }
    tile_value[index] = best;
    tile_token[index] = token;
    for (var step = 32u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if index < step {
            let value = tile_value[index + step];
            let other = tile_token[index + step];
            if value > tile_value[index]
                || (value == tile_value[index] && other < tile_token[index]) {
                tile_value[index] = value;
                tile_token[index] = other;
            }
        }
    }
    if index == 0u {
        partials[group.y * p.runs + group.x] =
            vec2<u32>(bitcast<u32>(tile_value[0]), tile_token[0]);
    }
}
