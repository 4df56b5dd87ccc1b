// One row's sampling settings; in Rust kernels::sample::Sampler.
struct Sampler {
    temperature: f32, // 0: greedy
    top_p: f32,       // 1: off
    min_p: f32,       // 0: off
    repetition_penalty: f32,
    top_k: u32, // 0: off
    seed_lo: u32,
    seed_hi: u32,
    bias_start: u32,
    bias_count: u32,
}

fn restricted(s: Sampler) -> bool {
    return s.temperature > 0.0 && (s.top_k > 0u || s.top_p < 1.0 || s.min_p > 0.0);
}
