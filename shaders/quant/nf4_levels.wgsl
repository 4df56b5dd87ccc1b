// The levels of four codes, quantiles of a normal distribution (QLoRA, arXiv:2305.14314): by
// halves, since drivers keep a table that is indexed in memory.
fn levels(q: vec4<u32>) -> vec4<f32> {
    let b0 = (q & vec4<u32>(1u)) != vec4<u32>();
    let b1 = (q & vec4<u32>(2u)) != vec4<u32>();
    let b2 = (q & vec4<u32>(4u)) != vec4<u32>();
    let b3 = (q & vec4<u32>(8u)) != vec4<u32>();
    let l0 = select(vec4<f32>(-1.0), vec4<f32>(-0.6961928), b0);
    let l1 = select(vec4<f32>(-0.52507305), vec4<f32>(-0.3949175), b0);
    let l2 = select(vec4<f32>(-0.28444138), vec4<f32>(-0.18477343), b0);
    let l3 = select(vec4<f32>(-0.091050036), vec4<f32>(0.0), b0);
    let l4 = select(vec4<f32>(0.0795803), vec4<f32>(0.1609302), b0);
    let l5 = select(vec4<f32>(0.2461123), vec4<f32>(0.33791524), b0);
    let l6 = select(vec4<f32>(0.44070983), vec4<f32>(0.562617), b0);
    let l7 = select(vec4<f32>(0.72295684), vec4<f32>(1.0), b0);
    let low = select(select(l0, l1, b1), select(l2, l3, b1), b2);
    let high = select(select(l4, l5, b1), select(l6, l7, b1), b2);
    return select(low, high, b3);
}
