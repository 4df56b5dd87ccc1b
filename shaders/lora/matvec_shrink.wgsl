// matvec with A's rows riding along: workgroups from lora_groups on make u = A x from the same x, norm and all.
fn shrinks(group: u32) -> bool {
    return group >= p.lora_groups;
}

// A lane group makes four rows of u for one row of x; with several columns, those of one A are neighbours.
fn shrink(group: vec3<u32>, index: u32) {
    let lane = index % L;
    let unit = (group.x - p.lora_groups) * (WG / L) + index / L;
    let m = group.y * COLS + unit % COLS;
    let i = unit / COLS * 4u;
    let working = m < p.m && i < p.u_rows;
    var f = FactorA();
    if working { f = rows_of_a(p.x_row + m, p.site, i); }
    let k4s = p.k_blocks * 8u;
    var v = vec4<f32>(0.0);
    var square = 0.0;
    if f.rows > 0u {
        for (var k = lane; k < k4s; k += L) {
            var xs = x[(p.x_row + m) * k4s + k];
            if NORM == 1u {
                square += dot(xs, xs);
                xs *= gain[k];
            }
            v += four_rows(f, i, k, k4s, xs);
        }
    }
    v = vec4<f32>(reduce_add(v.x, index), reduce_add(v.y, index), reduce_add(v.z, index), reduce_add(v.w, index));
    if NORM == 1u {
        v *= 1.0 / sqrt(reduce_add(square, index) / f32(32u * p.k_blocks) + p.eps);
    }
    if lane == 0u && f.rows > 0u {
        store_u((p.x_row + m) * p.u_rows + i, f.weight * v);
    }
}

fn expand(c: u32, m: u32, rows: vec4<u32>, lane: u32) {}
