// Clipping by the gradients' norm, as torch.nn.utils.clip_grad_norm_ does it. For adamw and sgd.

// Neither infinite nor NaN. By its bits: compilers may assume that there is no NaN to compare with.
fn is_finite(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
}

// min(1, max_norm / (norm + 1e-6))
fn clip_factor(norm: f32, max_norm: f32) -> f32 {
    let size = norm + 1e-6;
    if size <= max_norm {
        return 1.0;
    }
    return max_norm / size;
}
