// attention_prefill_coop: as attention_prefill, on cooperative matrices, f16 x f16 -> f32
//   3 keys   vec4<f16>  read  [pages, G, PAGE, E]
//   4 values  the same
// Grid: (ceil(rows / (4 S)), H, 1). S: side of a fragment, 8 or 16. WG: 4 subgroups of LANES, each
// of which makes S queries x PAGE positions, then S x E: at most 8 fragments.
// Softmax in f32. A row's weights are e^(score - top) * PEAK, where top follows the row's largest
// score so far only when that has outgrown it by MARGIN: then what was summed fades (Dao 2023,
// arXiv:2307.08691, has it fade with every tile). q * scale and the weights are rounded to f16, the
// weights before they are summed, too.
// Fragments are named, not indexed, since drivers keep indexed ones in memory: hence the length.
// Host: runtime/kernels/attention.rs    Oracle: tests/kernels/attention.rs
//needs fragments
//import shared/quads
//const E, PAGE, WG, LANES
@group(0) @binding(0) var<storage, read> rows: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> pages: array<u32>;
@group(0) @binding(2) var<storage, read> qkv: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> keys: array<vec4<f16>>;
@group(0) @binding(4) var<storage, read> values: array<vec4<f16>>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

const E4: u32 = E / 4u;
const S4: u32 = S / 4u;
const QUERIES: u32 = 4u * S;
const NONE: f32 = -3.0e38;
const PEAK: f32 = 256.0;  // far from what f16 has no bits for
const MARGIN: f32 = 5.0;  // PEAK e^MARGIN < 2^16
const TEAM: u32 = max(LANES / S, 1u);     // lanes that share a row
const ROUNDS: u32 = max(S / LANES, 1u);   // rows of a lane
const RUN: u32 = PAGE / TEAM / 4u;        // fours of positions of a lane
// Lines in quads, padded against bank conflicts: [QUERIES][E] of q, then [QUERIES][PAGE] of
// weights, [PAGE][E] of keys and as many of values.
const E_LINE: u32 = E4 + 2u;
const W_LINE: u32 = PAGE / 4u + 2u;
const K_TILE: u32 = QUERIES * W_LINE;
const V_TILE: u32 = K_TILE + PAGE * E_LINE;
var<workgroup> tile: array<vec4<f16>, max(QUERIES * E_LINE, V_TILE + PAGE * E_LINE)>;
// [QUERIES][PAGE] in fours, padded; fragments of the output on their way.
const S_LINE: u32 = PAGE / 4u + 1u;
var<workgroup> scores: array<vec4<f32>, QUERIES * S_LINE>;
var<workgroup> factor: array<f32, QUERIES>; // on what was summed
var<workgroup> outgrown: array<u32, 4>;     // by subgroup

// What a page holds of a tile's positions, those in use.
struct Page {
    at: u32,       // its first quad
    start: u32,    // its first position
    seen: u32,     // the first one in use
    end: u32,      // behind the last one
}

struct Pair {
    key: vec4<f16>,
    value: vec4<f16>,
}

// Quad i of a page; beside the positions in use there may be anything.
fn load_pair(page: Page, i: u32) -> Pair {
    let position = page.start + i / E4;
    if i >= PAGE * E4 || position < page.seen || position >= page.end { return Pair(); }
    return Pair(keys[page.at + i], values[page.at + i]);
}

fn put_pair(i: u32, pair: Pair) {
    if i < PAGE * E4 {
        let to = i / E4 * E_LINE + i % E4;
        put_quad(K_TILE + to, pair.key);
        put_quad(V_TILE + to, pair.value);
    }
}

fn is_seen(position: u32, query: u32) -> vec4<bool> {
    let four = position + vec4<u32>(0u, 1u, 2u, 3u);
    let behind = vec4<u32>(query) - four; // wraps for those ahead
    return four <= vec4<u32>(query) & behind <= vec4<u32>(p.window - 1u);
}

fn team_max(v: f32) -> f32 {
    var most = v;
    for (var step = 1u; step < TEAM; step *= 2u) {
        most = max(most, subgroupShuffleXor(most, step));
    }
    return most;
}

fn team_sum(v: f32) -> f32 {
    var sum = v;
    for (var step = 1u; step < TEAM; step *= 2u) { sum += subgroupShuffleXor(sum, step); }
    return sum;
}

fn q_fragment(line: u32, i: u32) -> coop_a {
    return coopLoadT<coop_a>(&tile[line * E_LINE + i * S4], E_LINE);
}

fn key_fragment(line: u32, i: u32) -> coop_b {
    return coopLoad<coop_b>(&tile[K_TILE + line * E_LINE + i * S4], E_LINE);
}

fn value_fragment(line: u32, i: u32) -> coop_b {
    return coopLoadT<coop_b>(&tile[V_TILE + line * E_LINE + i * S4], E_LINE);
}

// o, each row times its factor.
fn faded(o: coop_c, own: u32, lane: u32) -> coop_c {
    let base = own * S_LINE;
    coopStoreT(o, &scores[base], S_LINE);
    workgroupBarrier();
    for (var e = lane; e < S * S4; e += LANES) {
        scores[base + e / S4 * S_LINE + e % S4] *= factor[own + e / S4];
    }
    workgroupBarrier();
    let v = coopLoadT<coop_c>(&scores[base], S_LINE);
    workgroupBarrier();
    return v;
}

// Columns i S.. of a subgroup's rows, `left` of them, from `row0` on.
fn put_out(o: coop_c, i: u32, own: u32, lane: u32, row0: u32, left: u32, head: u32) {
    let base = own * S_LINE;
    coopStoreT(o, &scores[base], S_LINE);
    workgroupBarrier();
    for (var e = lane; e < S * S4; e += LANES) {
        let line = e / S4;
        if line < left {
            out[((row0 + line) * p.heads + head) * E4 + i * S4 + e % S4] =
                scores[base + line * S_LINE + e % S4] * factor[own + line];
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(WG)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let head = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let first = group.x * QUERIES;
    let last = min(first + QUERIES - 1u, p.count - 1u);
    let row = rows[p.row0 + first];
    let len = row.y + last - first + 1u; // positions that the last query sees
    for (var i = index; i < QUERIES * E4; i += WG) {
        let q = (p.row0 + min(first + i / E4, last)) * (p.heads + 2u * p.kv_heads) + head;
        put_quad(i / E4 * E_LINE + i % E4, vec4<f16>(qkv[q * E4 + i % E4] * p.scale));
    }
    workgroupBarrier();
    let own = subgroup * S;              // this subgroup's first line
    let team_line = own + lane / TEAM;   // this lane's
    let four0 = lane % TEAM * RUN;       // its first four of positions
    let q0 = q_fragment(own, 0u);
    var q1 = coop_a();
    var q2 = coop_a();
    var q3 = coop_a();
    var q4 = coop_a();
    var q5 = coop_a();
    var q6 = coop_a();
    var q7 = coop_a();
    if E > 1u * S { q1 = q_fragment(own, 1u); }
    if E > 2u * S { q2 = q_fragment(own, 2u); }
    if E > 3u * S { q3 = q_fragment(own, 3u); }
    if E > 4u * S { q4 = q_fragment(own, 4u); }
    if E > 5u * S { q5 = q_fragment(own, 5u); }
    if E > 6u * S { q6 = q_fragment(own, 6u); }
    if E > 7u * S { q7 = q_fragment(own, 7u); }
    var o0 = coop_c(); var o1 = coop_c(); var o2 = coop_c(); var o3 = coop_c();
    var o4 = coop_c(); var o5 = coop_c(); var o6 = coop_c(); var o7 = coop_c();
    var top: array<f32, ROUNDS>;
    var sum: array<f32, ROUNDS>;
    for (var r = 0u; r < ROUNDS; r++) { top[r] = NONE; sum[r] = 0.0; }
    // Of the first query.
    let seen = row.y - min(row.y, p.window - 1u);
    var page = Page(0u, 0u, seen, row.y - first + p.count);
    for (var start = seen / PAGE * PAGE; start < len; start += PAGE) {
        page.start = start;
        page.at =
            (pages[row.x * p.max_pages + start / PAGE] * p.kv_heads + kv_head) * PAGE * E4;
        workgroupBarrier();
        // Four at a time, so that their loads are under way together.
        for (var i = index; i < PAGE * E4; i += 4u * WG) {
            let pair0 = load_pair(page, i);
            let pair1 = load_pair(page, i + WG);
            let pair2 = load_pair(page, i + 2u * WG);
            let pair3 = load_pair(page, i + 3u * WG);
            put_pair(i, pair0);
            put_pair(i + WG, pair1);
            put_pair(i + 2u * WG, pair2);
            put_pair(i + 3u * WG, pair3);
        }
        workgroupBarrier();
        for (var j = 0u; j < PAGE; j += S) {
            var s = coopMultiplyAdd(q0, key_fragment(j, 0u), coop_c());
            if E > 1u * S { s = coopMultiplyAdd(q1, key_fragment(j, 1u), s); }
            if E > 2u * S { s = coopMultiplyAdd(q2, key_fragment(j, 2u), s); }
            if E > 3u * S { s = coopMultiplyAdd(q3, key_fragment(j, 3u), s); }
            if E > 4u * S { s = coopMultiplyAdd(q4, key_fragment(j, 4u), s); }
            if E > 5u * S { s = coopMultiplyAdd(q5, key_fragment(j, 5u), s); }
            if E > 6u * S { s = coopMultiplyAdd(q6, key_fragment(j, 6u), s); }
            if E > 7u * S { s = coopMultiplyAdd(q7, key_fragment(j, 7u), s); }
            coopStoreT(s, &scores[own * S_LINE + j / 4u], S_LINE);
        }
        workgroupBarrier();
        var most: array<f32, ROUNDS>;
        var grows = false;
        for (var r = 0u; r < ROUNDS; r++) {
            let line = team_line + r * LANES;
            var largest = vec4<f32>(NONE);
            for (var i = four0; i < four0 + RUN; i++) {
                let is_in = is_seen(start + 4u * i, row.y + line);
                let score = scores[line * S_LINE + i];
                largest = max(largest, select(vec4<f32>(NONE), score, is_in));
            }
            most[r] = team_max(max(max(largest.x, largest.y), max(largest.z, largest.w)));
            grows = grows || (top[r] > NONE && most[r] > top[r] + MARGIN);
        }
        let any_grows = subgroupAny(grows);
        if lane == 0u { outgrown[subgroup] = u32(any_grows); }
        let growth = workgroupUniformLoad(&outgrown);
        let fades = growth[0] + growth[1] + growth[2] + growth[3] > 0u;
        for (var r = 0u; r < ROUNDS; r++) {
            let line = team_line + r * LANES;
            if fades || top[r] == NONE {
                // A row that has seen nothing has nothing to fade.
                let now = max(top[r], most[r]);
                let fade = exp(top[r] - now);
                if fades && lane % TEAM == 0u { factor[line] = fade; }
                sum[r] *= fade;
                top[r] = now;
            }
            for (var i = four0; i < four0 + RUN; i++) {
                let is_in = is_seen(start + 4u * i, row.y + line);
                let weight = PEAK * exp(scores[line * S_LINE + i] - top[r]);
                let w = vec4<f16>(select(vec4<f32>(), weight, is_in));
                put_quad(line * W_LINE + i, w);
                sum[r] += dot(vec4<f32>(w), vec4<f32>(1.0));
            }
        }
        workgroupBarrier();
        if fades {
            o0 = faded(o0, own, lane);
            if E > 1u * S { o1 = faded(o1, own, lane); }
            if E > 2u * S { o2 = faded(o2, own, lane); }
            if E > 3u * S { o3 = faded(o3, own, lane); }
            if E > 4u * S { o4 = faded(o4, own, lane); }
            if E > 5u * S { o5 = faded(o5, own, lane); }
            if E > 6u * S { o6 = faded(o6, own, lane); }
            if E > 7u * S { o7 = faded(o7, own, lane); }
        }
        for (var j = 0u; j < PAGE; j += S) {
            let w = coopLoadT<coop_a>(&tile[own * W_LINE + j / 4u], W_LINE);
            o0 = coopMultiplyAdd(w, value_fragment(j, 0u), o0);
            if E > 1u * S { o1 = coopMultiplyAdd(w, value_fragment(j, 1u), o1); }
            if E > 2u * S { o2 = coopMultiplyAdd(w, value_fragment(j, 2u), o2); }
            if E > 3u * S { o3 = coopMultiplyAdd(w, value_fragment(j, 3u), o3); }
            if E > 4u * S { o4 = coopMultiplyAdd(w, value_fragment(j, 4u), o4); }
            if E > 5u * S { o5 = coopMultiplyAdd(w, value_fragment(j, 5u), o5); }
            if E > 6u * S { o6 = coopMultiplyAdd(w, value_fragment(j, 6u), o6); }
            if E > 7u * S { o7 = coopMultiplyAdd(w, value_fragment(j, 7u), o7); }
        }
    }
    for (var r = 0u; r < ROUNDS; r++) {
        let all = team_sum(sum[r]);
        if lane % TEAM == 0u { factor[team_line + r * LANES] = 1.0 / all; }
    }
    workgroupBarrier();
    let row0 = p.row0 + first + own;
    let left = max(p.count, first + own) - first - own;
    put_out(o0, 0u, own, lane, row0, left, head);
    if E > 1u * S { put_out(o1, 1u, own, lane, row0, left, head); }
    if E > 2u * S { put_out(o2, 2u, own, lane, row0, left, head); }
    if E > 3u * S { put_out(o3, 3u, own, lane, row0, left, head); }
    if E > 4u * S { put_out(o4, 4u, own, lane, row0, left, head); }
    if E > 5u * S { put_out(o5, 5u, own, lane, row0, left, head); }
    if E > 6u * S { put_out(o6, 6u, own, lane, row0, left, head); }
    if E > 7u * S { put_out(o7, 7u, own, lane, row0, left, head); }
}
