// What gate goes through: GELU by its tanh approximation, 0.5 x (1 + tanh(z)), which is
// x sigmoid(2 z).
//   Hendrycks & Gimpel 2016, arXiv:1606.08415
//fills activation
const TWO_ROOT_2_OVER_PI: f32 = 1.5957691216057308;
const CUBIC: f32 = 0.044715;

fn gelu_sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-TWO_ROOT_2_OVER_PI * (x + CUBIC * x * x * x)));
}

fn activate(x: f32) -> f32 {
    return x * gelu_sigmoid(x);
}

// The value and its derivative.
fn activate_with_slope(x: f32) -> vec2<f32> {
    let sigmoid = gelu_sigmoid(x);
    let inner = TWO_ROOT_2_OVER_PI * x * (1.0 + 3.0 * CUBIC * x * x);
    return vec2<f32>(x * sigmoid, sigmoid * (1.0 + inner * (1.0 - sigmoid)));
}
