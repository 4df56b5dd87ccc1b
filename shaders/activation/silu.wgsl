// What gate goes through: x sigmoid(x).
//fills activation
fn activate(x: f32) -> f32 {
    return x / (1.0 + exp(-x));
}

// The value and its derivative.
fn activate_with_slope(x: f32) -> vec2<f32> {
    let sigmoid = 1.0 / (1.0 + exp(-x));
    return vec2<f32>(x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)));
}
