// sample_threshold: the smallest logit that top-k, top-p (Holtzman et al. 2020, arXiv:1904.09751)
// and min-p
//   (Nguyen et al. 2024, arXiv:2407.01082) let through, after the temperature, in that order; ties
//     stay in
//   0 samplers    Sampler  read  [M]
//   1 logits      f32      read  [M, V]
//   2 thresholds  f32      read_write  [M]
// Grid: (M, 1, 1), a workgroup a row. Radix selection over order-preserving keys, 4 bits a pass: no
// sort, no atomics.
// Host: runtime/kernels/sample.rs    Oracle: tests/kernels/sample.rs
//import shared/sampler
@group(0) @binding(0) var<storage, read> samplers: array<Sampler>;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> thresholds: array<f32>;

const WG: u32 = 256u;
// [WG][16 buckets]: all of the 16 KiB that every device has.
var<workgroup> tile: array<vec4<f32>, 1024>;

fn key_of(v: f32) -> u32 {
    let b = bitcast<u32>(v);
    return select(b | 0x80000000u, ~b, (b >> 31u) == 1u);
}

fn value_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key >> 31u) == 1u));
}

// Sums tile over lanes; the result is in tile[0..4].
fn add_lanes(index: u32) {
    for (var step = WG / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if index < step {
            for (var j = 0u; j < 4u; j++) { tile[index * 4u + j] += tile[(index + step) * 4u + j]; }
        }
    }
    workgroupBarrier();
}

fn weight(v: f32, top: f32, temperature: f32, by_mass: bool) -> f32 {
    return select(1.0, exp((v - top) / temperature), by_mass);
}

// Sum of the weights of the logits whose key is at least floor_key.
fn total(row: u32, index: u32, floor_key: u32, top: f32, temperature: f32) -> f32 {
    var sum = 0.0;
    for (var i = index; i < p.vocab; i += WG) {
        let v = logits[row * p.vocab + i];
        sum += select(0.0, weight(v, top, temperature, true), key_of(v) >= floor_key);
    }
    tile[index * 4u] = vec4<f32>(sum, 0.0, 0.0, 0.0);
    add_lanes(index);
    let all = tile[0].x;
    workgroupBarrier();
    return all;
}

// The largest key such that the keys at or above it weigh at least `wanted`. Every lane walks the
// buckets.
fn select_key(row: u32, index: u32, wanted: f32, top: f32, temperature: f32, by_mass: bool) -> u32 {
    var prefix = 0u;
    var left = wanted;
    for (var shift = 32u; shift > 0u; shift -= 4u) {
        var sums: array<vec4<f32>, 4>;
        for (var j = 0u; j < 4u; j++) { sums[j] = vec4<f32>(0.0); }
        for (var i = index; i < p.vocab; i += WG) {
            let v = logits[row * p.vocab + i];
            let key = key_of(v);
            let matches = shift == 32u || (key >> (shift & 31u)) == (prefix >> (shift & 31u));
            let w = select(0.0, weight(v, top, temperature, by_mass), matches);
            let bucket = vec4<u32>(key >> (shift - 4u) & 15u);
            for (var j = 0u; j < 4u; j++) {
                sums[j] += select(vec4<f32>(0.0), vec4<f32>(w),
                    bucket == vec4<u32>(4u * j, 4u * j + 1u, 4u * j + 2u, 4u * j + 3u));
            }
        }
        for (var j = 0u; j < 4u; j++) { tile[index * 4u + j] = sums[j]; }
        add_lanes(index);
        var bucket = 15u;
        for (; bucket > 0u; bucket--) {
            let w = tile[bucket / 4u][bucket % 4u];
            if w >= left {
                break;
            }
            left -= w;
        }
        prefix |= bucket << (shift - 4u);
        workgroupBarrier();
    }
    return prefix;
}

fn largest(row: u32, index: u32) -> f32 {
    var top = -3.0e38;
    for (var i = index; i < p.vocab; i += WG) {
        top = max(top, logits[row * p.vocab + i]);
    }
    tile[index].x = top;
    for (var step = WG / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if index < step { tile[index].x = max(tile[index].x, tile[index + step].x); }
    }
    workgroupBarrier();
    top = tile[0].x;
    workgroupBarrier();
    return top;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = group.x;
    let s = samplers[row];
    if !restricted(s) {
        return;
    }
    let top = largest(row, index);
    var floor_key = 0u;
    if s.top_k > 0u && s.top_k < p.vocab {
        floor_key = select_key(row, index, f32(s.top_k), top, s.temperature, false);
    }
    if s.top_p < 1.0 {
        // Above floor_key the order of keys is the same with or without the tokens below it. A
        // top_p of 0 keeps the likeliest, whose weight of 1 is above 1e-6 of any total.
        let wanted = max(s.top_p, 1.0e-6) * total(row, index, floor_key, top, s.temperature);
        floor_key = max(floor_key, select_key(row, index, wanted, top, s.temperature, true));
    }
    if index == 0u {
        var threshold = value_of(floor_key);
        if floor_key == 0u { threshold = -3.0e38; }
        if s.min_p > 0.0 { threshold = max(threshold, top + s.temperature * log(s.min_p)); }
        thresholds[row] = min(threshold, top);
    }
}
