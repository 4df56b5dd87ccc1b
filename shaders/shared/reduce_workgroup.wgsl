// Reductions over L consecutive lanes through workgroup memory: the reference, for any WebGPU
// device. Called in uniform control flow by all WG lanes; every lane gets the result.
//fills reduce
//const WG, L
var<workgroup> reduce_tile: array<f32, WG>;

fn reduce_add(value: f32, index: u32) -> f32 {
    return reduce_add_of(L, value, index);
}

// Over fewer lanes, a power of two.
fn reduce_add_of(lanes: u32, value: f32, index: u32) -> f32 {
    let base = index - index % lanes;
    reduce_tile[index] = value;
    for (var step = lanes / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if index - base < step {
            reduce_tile[index] += reduce_tile[index + step];
        }
    }
    workgroupBarrier();
    let result = reduce_tile[base];
    workgroupBarrier();
    return result;
}

fn reduce_max(value: f32, index: u32) -> f32 {
    let base = index - index % L;
    reduce_tile[index] = value;
    for (var step = L / 2u; step > 0u; step /= 2u) {
        workgroupBarrier();
        if index - base < step {
            reduce_tile[index] = max(reduce_tile[index], reduce_tile[index + step]);
        }
    }
    workgroupBarrier();
    let result = reduce_tile[base];
    workgroupBarrier();
    return result;
}
