// matvec by whole blocks, for GPUs that are software: a load costs them more than its arithmetic,
// so that weights serve all columns, and lanes share x (see x_shared.wgsl).
//fills accumulate
//needs quant, x_block
//const COLS
const QUARTERS: u32 = 4u;

// Adds a block of the rows: 32 products for each.
fn accumulate(u: u32, rows: vec4<u32>, col: u32, index: u32) {
    let kb = u / 4u;
    for (var c = 0u; c < COLS; c++) { hold(c, kb, col, index); }
    let b = rows + kb;
    add(b, 0u, kb, col);
    add(b, 1u, kb, col);
    add(b, 2u, kb, col);
    add(b, 3u, kb, col);
}

fn add(b: vec4<u32>, part: u32, kb: u32, col: u32) {
    let w0 = dequant(b.x, part);
    let w1 = dequant(b.y, part);
    let w2 = dequant(b.z, part);
    let w3 = dequant(b.w, part);
    for (var c = 0u; c < COLS; c++) {
        let lo = held(c, part, kb, col);
        let hi = held(c, part + 4u, kb, col);
        sums[c] += vec4<f32>(
            dot(w0[0], lo) + dot(w0[1], hi),
            dot(w1[0], lo) + dot(w1[1], hi),
            dot(w2[0], lo) + dot(w2[1], hi),
            dot(w3[0], lo) + dot(w3[1], hi),
        );
    }
}
