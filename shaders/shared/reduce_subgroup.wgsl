// Reductions over L consecutive lanes, L a power of two that divides every subgroup size the driver
// may choose. Every lane gets the result.
//fills reduce
//const L

fn reduce_add(value: f32, index: u32) -> f32 {
    return reduce_add_of(L, value, index);
}

// Over fewer lanes, a power of two.
fn reduce_add_of(lanes: u32, value: f32, index: u32) -> f32 {
    var v = value;
    for (var step = lanes / 2u; step > 0u; step /= 2u) {
        v += subgroupShuffleXor(v, step);
    }
    return v;
}

fn reduce_max(value: f32, index: u32) -> f32 {
    var v = value;
    for (var step = L / 2u; step > 0u; step /= 2u) {
        v = max(v, subgroupShuffleXor(v, step));
    }
    return v;
}
