// sample_threshold: the smallest logit that top-k, top-p (Holtzman et al. 2020, arXiv:1904.09751)
// and min-p (Nguyen et al. 2024, arXiv:2407.01082) let through, after the temperature, in that
// order; ties stay in
//   0 samplers    Sampler  read  [M]
//   1 logits      f32      read  [M, V]
//   2 tallies     u32      read_write  [rows, TALLIES]: three histograms [BINS][2], the largest key
//   3 found       Found    read_write  [rows, 7]: after each pass
//   4 thresholds  f32      read_write  [M]
// Grid: (ceil(V / RUN), rows, 1) for passes 0 to 5, (1, rows, 1) for pass 6, in that order, for the
// rows from row0 on: as many at a time as there is room to tally for. Radix
// selection over order-preserving keys, 11 bits a pass: passes 0 to 2 tally how many logits have
// which digit, 3 to 5 how much they weigh; the pass after reads the digit that was asked for. A
// weight is a whole number of 2^-31 of the likeliest's, so that the order of sums is no matter.
// Each pass empties the tally of the next one, pass 5 the first, pass 6 the largest key: these two
// are zeros before pass 0.
// Host: runtime/kernels/sample.rs    Oracle: tests/kernels/sample.rs
//import shared/sampler
//const RUN
@group(0) @binding(0) var<storage, read> samplers: array<Sampler>;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> tallies: array<atomic<u32>>;
@group(0) @binding(3) var<storage, read_write> found: array<Found>;
@group(0) @binding(4) var<storage, read_write> thresholds: array<f32>;

const WG: u32 = 256u;
const BINS: u32 = 2048u;
const TALLY: u32 = 2u * BINS;
const TALLIES: u32 = 3u * TALLY + 1u;
const OWN: u32 = BINS / WG; // bins of a lane
const PASSES: u32 = 7u;
// A tally of this workgroup's logits, or sums over lanes: all of the 16 KiB that every device has.
var<workgroup> tile: array<atomic<u32>, 4096>;

struct Found {
    prefix: u32, // of the key: the digits so far
    floor: u32,  // the key that top-k lets through
    left: vec2<u32>,
}

// 64 bits: the lower word, the upper one.
fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + u32(low < a.x));
}

fn subtract(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - u32(a.x < b.x));
}

fn is_less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

// What is no number is shut out.
fn key_of(v: f32) -> u32 {
    let b = bitcast<u32>(v);
    let key = select(b | 0x80000000u, ~b, (b >> 31u) == 1u);
    return select(key, 0u, (b & 0x7fffffffu) > 0x7f800000u);
}

fn value_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key >> 31u) == 1u));
}

// First bit of the digit of a pass, and its bits.
fn shift_of(number: u32) -> u32 {
    return select(select(0u, 10u, number % 3u == 1u), 21u, number % 3u == 0u);
}

fn bits_of(number: u32) -> u32 {
    return select(11u, 10u, number % 3u == 2u);
}

fn tile_pair(i: u32) -> vec2<u32> {
    return vec2<u32>(atomicLoad(&tile[2u * i]), atomicLoad(&tile[2u * i + 1u]));
}

fn set_tile_pair(i: u32, v: vec2<u32>) {
    atomicStore(&tile[2u * i], v.x);
    atomicStore(&tile[2u * i + 1u], v.y);
}

fn tally_pair(at: u32) -> vec2<u32> {
    return vec2<u32>(atomicLoad(&tallies[at]), atomicLoad(&tallies[at + 1u]));
}

// Of all weights, the part that top-p asks for; 0 keeps the likeliest.
fn part_of(all: vec2<u32>, top_p: f32) -> vec2<u32> {
    const WORD: f32 = 4294967296.0;
    let part = max(top_p, 1.0e-6) * (f32(all.y) * WORD + f32(all.x));
    let upper = floor(part / WORD);
    return vec2<u32>(u32(part - upper * WORD), u32(upper));
}

// The digit at which what the pass before tallied, from the largest digit down, is as much as was
// asked for, and how much of it is left for those at the digit.
fn walk(row: u32, s: Sampler, before: Found, index: u32) -> Found {
    let last = p.number - 1u;
    let tally = row * TALLIES + last % 3u * TALLY;
    let first = tally + 2u * OWN * index;
    var own = vec2<u32>();
    for (var i = 0u; i < OWN; i++) { own = add(own, tally_pair(first + 2u * i)); }
    set_tile_pair(index, own);
    // Of this lane's bins and all above.
    for (var step = 1u; step < WG; step *= 2u) {
        workgroupBarrier();
        var other = vec2<u32>();
        if index + step < WG { other = tile_pair(index + step); }
        workgroupBarrier();
        set_tile_pair(index, add(tile_pair(index), other));
    }
    workgroupBarrier();
    let all = tile_pair(0u);
    var above = vec2<u32>();
    if index + 1u < WG { above = tile_pair(index + 1u); }
    let with_own = tile_pair(index);
    var prefix = before.prefix;
    var left = before.left;
    if last % 3u == 0u {
        prefix = 0u;
        left = vec2<u32>(s.top_k, 0u);
        if last >= 3u { left = part_of(all, s.top_p); }
    }
    workgroupBarrier();
    // All of it is not enough: the least digit.
    if index == 0u {
        set_tile_pair(0u, left);
        set_tile_pair(1u, vec2<u32>());
    }
    workgroupBarrier();
    if !is_less(with_own, left) && is_less(above, left) {
        var bin = OWN - 1u;
        for (; bin > 0u; bin--) {
            let more = add(above, tally_pair(first + 2u * bin));
            if !is_less(more, left) {
                break;
            }
            above = more;
        }
        set_tile_pair(0u, subtract(left, above));
        set_tile_pair(1u, vec2<u32>(OWN * index + bin, 0u));
    }
    workgroupBarrier();
    let digit = tile_pair(1u).x;
    left = tile_pair(0u);
    workgroupBarrier();
    return Found(prefix | digit << shift_of(last), before.floor, left);
}

// Of a logit, in units of 2^-31.
fn weight(v: f32, top: f32, temperature: f32) -> u32 {
    return u32(exp((v - top) / temperature) * 2147483648.0 + 0.5);
}

// Adds this workgroup's logits to the tally of this pass.
fn take_stock(row: u32, m: u32, run: u32, s: Sampler, now: Found, top: f32, index: u32) {
    let shift = shift_of(p.number);
    let bits = bits_of(p.number);
    for (var i = index; i < TALLY; i += WG) { atomicStore(&tile[i], 0u); }
    workgroupBarrier();
    for (var v = run * RUN + index; v < min((run + 1u) * RUN, p.vocab); v += WG) {
        let logit = logits[m * p.vocab + v];
        let key = key_of(logit);
        // No shift by 32.
        let above = shift + bits & 31u;
        let is_like = shift + bits == 32u || key >> above == now.prefix >> above;
        if is_like && key >= now.floor {
            var amount = 1u;
            if p.number >= 3u { amount = weight(logit, top, s.temperature); }
            let bin = key >> shift & (1u << bits) - 1u;
            let old = atomicAdd(&tile[2u * bin], amount);
            if old + amount < old { atomicAdd(&tile[2u * bin + 1u], 1u); }
        }
    }
    workgroupBarrier();
    let tally = row * TALLIES + p.number % 3u * TALLY;
    for (var bin = index; bin < BINS; bin += WG) {
        let sum = tile_pair(bin);
        var upper = sum.y;
        if sum.x > 0u {
            let old = atomicAdd(&tallies[tally + 2u * bin], sum.x);
            upper += u32(old + sum.x < old);
        }
        if upper > 0u { atomicAdd(&tallies[tally + 2u * bin + 1u], upper); }
    }
}

// The largest key of this workgroup's logits goes to the row's.
fn raise_top(row: u32, m: u32, run: u32, index: u32) {
    if index == 0u { atomicStore(&tile[0], 0u); }
    var top = 0u;
    for (var v = run * RUN + index; v < min((run + 1u) * RUN, p.vocab); v += WG) {
        top = max(top, key_of(logits[m * p.vocab + v]));
    }
    workgroupBarrier();
    atomicMax(&tile[0], top);
    workgroupBarrier();
    if index == 0u { atomicMax(&tallies[row * TALLIES + 3u * TALLY], atomicLoad(&tile[0])); }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let row = group.y; // of tallies
    let m = p.row0 + row;
    let s = samplers[m];
    if !restricted(s) {
        return;
    }
    if group.x == 0u && p.number < 6u {
        let next = row * TALLIES + (p.number + 1u) % 3u * TALLY;
        for (var i = index; i < TALLY; i += WG) { atomicStore(&tallies[next + i], 0u); }
    }
    let by_count = s.top_k > 0u && s.top_k < p.vocab;
    let by_mass = s.top_p < 1.0;
    let top = max(value_of(atomicLoad(&tallies[row * TALLIES + 3u * TALLY])), -3.0e38);
    var now = Found();
    if p.number > 0u { now = found[row * PASSES + p.number - 1u]; }
    if p.number == 0u { raise_top(row, m, group.x, index); }
    if select(by_mass, by_count, p.number <= 3u) && p.number > 0u {
        now = walk(row, s, now, index);
    }
    if p.number == 3u { now = Found(0u, select(0u, now.prefix, by_count), vec2<u32>()); }
    if select(by_mass, by_count, p.number < 3u) && p.number < 6u {
        take_stock(row, m, group.x, s, now, top, index);
    }
    if group.x > 0u || index > 0u {
        return;
    }
    found[row * PASSES + p.number] = now;
    if p.number == 6u {
        let key = max(now.floor, select(0u, now.prefix, by_mass));
        var threshold = value_of(key);
        if key == 0u { threshold = -3.0e38; }
        if s.min_p > 0.0 { threshold = max(threshold, top + s.temperature * log(s.min_p)); }
        thresholds[m] = min(threshold, top);
        atomicStore(&tallies[row * TALLIES + 3u * TALLY], 0u);
    }
}
