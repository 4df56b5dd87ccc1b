// matvec_coop's sums begin with nothing.
//fills begin
//const WG, COLS
fn begin(n0: u32, index: u32) {
    for (var e = index; e < COLS * TN; e += WG) { total[e] = 0.0; }
}
