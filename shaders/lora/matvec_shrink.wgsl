// matvec with A's rows riding along: the first workgroups make u = A x from the same x, norm and
// all.
//fills adapters
//import shared/linear, lora/shrink_rows
//needs reduce
//const WG, L, COLS, NORM
fn shrinks(group: u32) -> bool {
    return group < p.lora_groups;
}

// A lane group makes one element of u for one row of x; with several columns, those of one row of A
// are neighbours.
fn shrink(group: vec3<u32>, index: u32) {
    let lane = index % L;
    let unit = group.x * (WG / L) + index / L;
    let m = p.x_row + group.y * COLS + unit % COLS;
    let i = unit / COLS;
    var f = FactorA();
    if m < p.x_row + p.m && i < p.u_width { f = factor_of(m, p.site, i, p.alone); }
    let k8s = p.k_blocks * 4u;
    var sum = vec2<f32>(0.0);
    if f.rows > 0u {
        let a = f.at + (i - f.before) * k8s;
        for (var k = lane; k < k8s; k += 4u * L) {
            sum += columns(a, m, k, k8s) + columns(a, m, k + L, k8s)
                + columns(a, m, k + 2u * L, k8s) + columns(a, m, k + 3u * L, k8s);
        }
    }
    var v = reduce_add(sum.x, index);
    if NORM == 1u {
        v *= 1.0 / sqrt(reduce_add(sum.y, index) / f32(32u * p.k_blocks) + p.eps);
    }
    if lane == 0u && f.rows > 0u {
        lora_u[m * p.u_width + i] = f.weight * v;
    }
}

// What eight columns add to the product and to the squares. Past the end: nothing, but without a
// branch, which would wait for the loads.
fn columns(a: u32, m: u32, k: u32, k8s: u32) -> vec2<f32> {
    let inside = min(k, k8s - 1u);
    let at = (m * k8s + inside) * 2u;
    var lo = x[at];
    var hi = x[at + 1u];
    var square = 0.0;
    if NORM == 1u {
        square = dot(lo, lo) + dot(hi, hi);
        lo *= gain[2u * inside];
        hi *= gain[2u * inside + 1u];
    }
    return select(vec2<f32>(0.0), vec2<f32>(dot_a(lora_a[a + inside], lo, hi), square), k < k8s);
}

fn expand(c: u32, m: u32, rows: vec4<u32>, lane: u32) {}
