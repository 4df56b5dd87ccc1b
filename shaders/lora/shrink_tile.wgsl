// Joined with a kernel whose workgroup holds columns column..column+count of a linear's input:
// their share of u = A x. The shares are added by the linear that follows, in order. TILE is the
// kernel's: the most columns that a workgroup holds.
//fills shrink_tile
//import lora/a
//needs reduce
//const WG, L, LORA_PARTS
// [M, parts, u_width]
@group(0) @binding(LORA_PARTS) var<storage, read_write> lora_parts: array<f32>;
var<workgroup> lora_tile: array<f32, TILE>;

// Lanes that share a row of A: 16 rows at a time.
const SHARING: u32 = min(L, max(WG / 16u, 1u));

// Every eighth column side by side: neighbouring lanes read neighbouring words.
fn tile_put(i: u32, v: f32) {
    lora_tile[i % 8u * (TILE / 8u) + i / 8u] = v;
}

struct Share {
    alone: vec4<u32>,
    site: u32,
    // Row of u's parts.
    part: u32,
    u_width: u32,
    column: u32,
    count: u32,
    // Columns of A / 8.
    k8s: u32,
}

// A lane's four eights of a row of A.
struct Eights {
    f: FactorA,
    a0: vec4<u32>,
    a1: vec4<u32>,
    a2: vec4<u32>,
    a3: vec4<u32>,
}

// The first of them, to be loaded before the columns are known.
fn shrink_ahead(m: u32, s: Share, index: u32) -> Eights {
    return eights(first_a(m, s.site, s.alone), s, index / SHARING, index % SHARING);
}

// Of row i, columns 8 k.. and further. Past the end the last ones: branches would wait for the
// loads.
fn eights(f: FactorA, s: Share, i: u32, k: u32) -> Eights {
    let row = f.at + min(i, max(f.rows, 1u) - 1u) * s.k8s + s.column / 8u;
    let last = s.count / 8u - 1u;
    return Eights(
        f, lora_a[row + min(k, last)], lora_a[row + min(k + SHARING, last)],
        lora_a[row + min(k + 2u * SHARING, last)], lora_a[row + min(k + 3u * SHARING, last)]);
}

fn shrink_tile(m: u32, s: Share, ahead: Eights, index: u32) {
    workgroupBarrier();
    let lane = index % SHARING;
    var e = ahead;
    for (var f = e.f; f.rows > 0u; f = next_a(f)) {
        for (var first = 0u; first < f.rows; first += WG / SHARING) {
            let i = first + index / SHARING;
            var sum = 0.0;
            for (var k = lane; k < s.count / 8u; k += 4u * SHARING) {
                if f.before + first + k != lane { e = eights(f, s, i, k); }
                sum += times_tile(e.a0, k, s) + times_tile(e.a1, k + SHARING, s)
                    + times_tile(e.a2, k + 2u * SHARING, s) + times_tile(e.a3, k + 3u * SHARING, s);
            }
            let total = reduce_add_of(SHARING, sum, index);
            if lane == 0u && i < f.rows {
                lora_parts[s.part * s.u_width + f.before + i] = f.weight * total;
            }
        }
    }
}

fn times_tile(a: vec4<u32>, k: u32, s: Share) -> f32 {
    let c = TILE / 8u;
    let i = min(k, s.count / 8u - 1u);
    let lo = vec4<f32>(lora_tile[i], lora_tile[i + c], lora_tile[i + 2u * c],
        lora_tile[i + 3u * c]);
    let hi = vec4<f32>(lora_tile[i + 4u * c], lora_tile[i + 5u * c], lora_tile[i + 6u * c],
        lora_tile[i + 7u * c]);
    return select(0.0, dot_a(a, lo, hi), k < s.count / 8u);
}
