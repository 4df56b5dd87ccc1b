//! A Llama in f64 loops over the dequantised weights, and how far f32 arithmetic may end up from it.
//!
//! Every number carries the variance of its error: what came in goes through the operation's derivative, and each
//! rounding adds a share of its own, taken as independent (Higham & Mary 2019, "A New Approach to Probabilistic Rounding
//! Error Analysis"). Within [`SIGMAS`] standard deviations is what a correct kernel gives.

use epiphyte::adapter::{Adapter, LoraModule, ModulePath, Target};
use epiphyte::format::gguf::Gguf;
use epiphyte::model::config::ModelConfig;
use epiphyte::model::rope::RopeScaling;
use epiphyte::quant;

const SIGMAS: f64 = 8.0;
/// An operation of f32, relative; the rounding mode is the device's.
const EPS: f64 = f32::EPSILON as f64;
/// Rounding to f16, relative.
const HALF_EPS: f64 = 1.0 / 2048.0;

/// A value and the variance of its error.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Near {
    pub(super) value: f64,
    variance: f64,
}

impl Near {
    /// How far off a correct result may be.
    pub(super) fn bound(self) -> f64 {
        SIGMAS * self.variance.sqrt()
    }

    fn rounded(self, relative: f64) -> Self {
        Self { variance: self.variance + (relative * self.value).powi(2), ..self }
    }

    fn plus(self, other: Self) -> Self {
        Self { value: self.value + other.value, variance: self.variance + other.variance }.rounded(EPS)
    }
}

type Row = Vec<Near>;

/// Weights `[N, K]`, dequantised, with the largest of each block of 32.
#[derive(Clone)]
struct Matrix {
    k: usize,
    weights: Vec<f64>,
    peaks: Vec<f64>,
    /// Added to its product, each with the weight of its adapter.
    loras: Vec<(LoraModule, f64)>,
    /// By weight, the deviation of its rounding; empty for weights that are exact.
    deviations: Vec<f64>,
}

impl Matrix {
    fn read(gguf: &Gguf, name: &str) -> Self {
        let view = gguf.require(name).unwrap();
        let mut values = vec![0.0_f32; view.n_weights()];
        quant::format(view.dtype).dequantize(&view.bytes(), &mut values);
        let weights: Vec<f64> = values.into_iter().map(f64::from).collect();
        let peaks = weights.chunks(32).map(peak).collect();
        Self { k: view.row_len(), weights, peaks, loras: Vec::new(), deviations: Vec::new() }
    }

    /// Adds the adapters to the weights: `[N, K]`, an embedding's `[V, D]` their transpose.
    fn merge(&mut self, rounding: Rounding) {
        let k = self.k;
        for (lora, weight) in std::mem::take(&mut self.loras) {
            let (scale, rank) = (weight * f64::from(lora.scaling), lora.rank);
            let (rows, columns) = (self.weights.len() / k, lora.a.len() / rank);
            for (n, m) in (0..rows).flat_map(|n| (0..k).map(move |m| (n, m))) {
                let (out, column) = if lora.path.target == Target::EmbedTokens { (m, n) } else { (n, m) };
                let term = |r: usize| f64::from(lora.b[out * rank + r]) * f64::from(lora.a[r * columns + column]);
                self.weights[n * k + m] += scale * (0..rank).map(term).sum::<f64>();
            }
        }
        self.peaks = self.weights.chunks(32).map(peak).collect();
        let deviation = |(i, w): (usize, &f64)| rounding(*w, self.peaks[i / 32]);
        self.deviations = self.weights.iter().enumerate().map(deviation).collect();
    }

    fn row(&self, n: usize) -> &[f64] {
        &self.weights[n * self.k..][..self.k]
    }

    /// W x.
    fn times(&self, x: &[Near]) -> Row {
        let mut y: Row = (0..self.weights.len() / self.k).map(|n| self.dot(n, x)).collect();
        for (lora, weight) in &self.loras {
            let scale = weight * f64::from(lora.scaling);
            let u: Row = lora.a.chunks(x.len()).map(|a| factor_dot(a, x, scale)).collect();
            add_expanded(&mut y, &lora.b, &u);
        }
        y
    }

    fn dot(&self, n: usize, x: &[Near]) -> Near {
        let mut out = Near::default();
        let mut squares = 0.0;
        for (k, (w, x)) in self.row(n).iter().zip(x).enumerate() {
            out.value += w * x.value;
            out.variance += w * w * x.variance;
            out.variance += self.deviations.get(n * self.k + k).map_or(0.0, |dev| (dev * x.value).powi(2));
            // Kernels sum codes and offsets apart; each sum is at most three times the block's largest weight.
            squares += (3.0 * self.peaks[(n * self.k + k) / 32] * x.value).powi(2);
        }
        // K additions, each rounding a sum of such terms.
        out.variance += EPS * EPS * self.k as f64 * squares;
        out
    }
}

fn peak(block: &[f64]) -> f64 {
    block.iter().fold(0.0, |peak, w| peak.max(w.abs()))
}

/// How far rounding may move a weight, by its value and its block's largest.
pub(super) type Rounding = fn(f64, f64) -> f64;

/// scale * sum f x, for factors rounded to f16 and f32 sums.
fn factor_dot(factors: &[f32], x: &[Near], scale: f64) -> Near {
    let mut out = Near::default();
    for (f, x) in factors.iter().zip(x) {
        let f = f64::from(*f) * scale;
        out.value += f * x.value;
        // A power of two is taken out of the factors: what f16 can't hold below is 2^-24 of the largest.
        let own = (f * x.value).powi(2) * (HALF_EPS * HALF_EPS + factors.len() as f64 * EPS * EPS);
        out.variance += f * f * x.variance + own;
    }
    out
}

/// y += B u.
fn add_expanded(y: &mut [Near], b: &[f32], u: &[Near]) {
    for (y, b) in y.iter_mut().zip(b.chunks(u.len())) {
        *y = y.plus(factor_dot(b, u, 1.0));
    }
}

struct Layer {
    input_layernorm: Matrix,
    q_proj: Matrix,
    k_proj: Matrix,
    v_proj: Matrix,
    o_proj: Matrix,
    post_attention_layernorm: Matrix,
    gate_proj: Matrix,
    up_proj: Matrix,
    down_proj: Matrix,
}

/// The model of a file.
pub(super) struct Reference {
    config: ModelConfig,
    frequencies: Vec<f64>,
    embed_tokens: Matrix,
    layers: Vec<Layer>,
    norm: Matrix,
    lm_head: Option<Matrix>,
}

impl Reference {
    pub(super) fn new(gguf: &Gguf) -> Self {
        let config = ModelConfig::from_gguf(gguf).unwrap();
        let layer = |i: usize| {
            let read = |module: &str| Matrix::read(gguf, &format!("model.layers.{i}.{module}.weight"));
            Layer {
                input_layernorm: read("input_layernorm"),
                q_proj: read("self_attn.q_proj"),
                k_proj: read("self_attn.k_proj"),
                v_proj: read("self_attn.v_proj"),
                o_proj: read("self_attn.o_proj"),
                post_attention_layernorm: read("post_attention_layernorm"),
                gate_proj: read("mlp.gate_proj"),
                up_proj: read("mlp.up_proj"),
                down_proj: read("mlp.down_proj"),
            }
        };
        Self {
            frequencies: frequencies(&config),
            embed_tokens: Matrix::read(gguf, "model.embed_tokens.weight"),
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            norm: Matrix::read(gguf, "model.norm.weight"),
            lm_head: (!config.tie_word_embeddings).then(|| Matrix::read(gguf, "lm_head.weight")),
            config,
        }
    }

    /// With `adapters`, each with its weight.
    pub(super) fn adapted(gguf: &Gguf, adapters: &[(&Adapter, f32)]) -> Self {
        let mut reference = Self::new(gguf);
        let modules =
            adapters.iter().flat_map(|(adapter, weight)| adapter.modules.iter().map(|m| (m.clone(), *weight)));
        for (module, weight) in modules {
            reference.module(module.path).loras.push((module, weight.into()));
        }
        reference
    }

    /// With `adapters` merged into the weights they change, which are then rounded.
    pub(super) fn merged(gguf: &Gguf, adapters: &[(&Adapter, f32)], rounding: Rounding) -> Self {
        let mut reference = Self::adapted(gguf, adapters);
        // LoRA on an embedding is not on the head.
        let untied = || Matrix::read(gguf, "model.embed_tokens.weight");
        reference.lm_head.get_or_insert_with(untied);
        for path in reference.config.base_shape().modules() {
            let matrix = reference.module(path);
            if !matrix.loras.is_empty() {
                matrix.merge(rounding);
            }
        }
        reference
    }

    /// The weights of a module, row-major.
    pub(super) fn weights(&mut self, path: ModulePath) -> &[f64] {
        &self.module(path).weights
    }

    fn module(&mut self, path: ModulePath) -> &mut Matrix {
        let Some(layer) = path.layer else {
            let tied = Matrix { loras: Vec::new(), ..self.embed_tokens.clone() };
            return match path.target {
                Target::LmHead => self.lm_head.get_or_insert(tied),
                _ => &mut self.embed_tokens,
            };
        };
        let layer = &mut self.layers[layer];
        match path.target {
            Target::QProj => &mut layer.q_proj,
            Target::KProj => &mut layer.k_proj,
            Target::VProj => &mut layer.v_proj,
            Target::OProj => &mut layer.o_proj,
            Target::GateProj => &mut layer.gate_proj,
            Target::UpProj => &mut layer.up_proj,
            Target::DownProj => &mut layer.down_proj,
            Target::LmHead | Target::EmbedTokens => unreachable!("not in a layer"),
        }
    }

    /// The embedding of a token; LoRA on it adds B times a column of A, and leaves a tied head alone.
    fn embed(&self, id: u32) -> Row {
        let row = self.embed_tokens.row(id as usize).iter();
        let mut x: Row = row.map(|&value| Near { value, variance: 0.0 }.rounded(2.0 * EPS)).collect();
        for (i, x) in x.iter_mut().enumerate() {
            let own = self.embed_tokens.deviations.get(id as usize * self.embed_tokens.k + i);
            x.variance += own.map_or(0.0, |dev| dev * dev);
        }
        for (lora, weight) in &self.embed_tokens.loras {
            let scale = weight * f64::from(lora.scaling);
            let column = lora.a.chunks(lora.a.len() / lora.rank).map(|row| f64::from(row[id as usize]) * scale);
            let u: Row = column.map(|value| Near { value, variance: 0.0 }.rounded(HALF_EPS)).collect();
            add_expanded(&mut x, &lora.b, &u);
        }
        x
    }

    /// Logits `[T, V]` of `ids`, for a KV cache in f16 or f32.
    pub(super) fn logits(&self, ids: &[u32], kv_f16: bool) -> Vec<Row> {
        let mut x: Vec<Row> = ids.iter().map(|&id| self.embed(id)).collect();
        for layer in &self.layers {
            self.attend(layer, &mut x, kv_f16);
            for x in &mut x {
                let normed = self.rms_norm(x, &layer.post_attention_layernorm);
                let (gate, up) = (layer.gate_proj.times(&normed), layer.up_proj.times(&normed));
                let h: Row = gate.into_iter().zip(up).map(|(gate, up)| swiglu(gate, up)).collect();
                add(x, &layer.down_proj.times(&h));
            }
        }
        let head = |x: &Row| match &self.lm_head {
            Some(head) => head.times(x),
            // LoRA on the embedding is not on the head.
            None => (0..self.config.vocab_size).map(|n| self.embed_tokens.dot(n, x)).collect(),
        };
        x.iter().map(|x| head(&self.rms_norm(x, &self.norm))).collect()
    }

    fn rms_norm(&self, x: &[Near], gain: &Matrix) -> Row {
        let squares: f64 = x.iter().map(|x| x.value * x.value).sum();
        let scale = 1.0 / (squares / x.len() as f64 + f64::from(self.config.rms_norm_eps)).sqrt();
        // d scale / scale = -sum x dx / sum x²; ten roundings for the sum's last steps, the root and the division.
        let moved: f64 = x.iter().map(|x| x.value * x.value * x.variance).sum::<f64>() / (squares * squares);
        let relative = moved + (10.0 * EPS).powi(2);
        let normed = x.iter().zip(gain.row(0)).map(|(x, g)| Near {
            value: g * scale * x.value,
            variance: (g * scale).powi(2) * (x.variance + x.value * x.value * relative),
        });
        normed.map(|y| y.rounded(2.0 * EPS)).collect()
    }

    fn attend(&self, layer: &Layer, x: &mut [Row], kv_f16: bool) {
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let width = self.config.head_dim;
        let (mut keys, mut values): (Vec<Row>, Vec<Row>) = (Vec::new(), Vec::new());
        for (position, x) in x.iter_mut().enumerate() {
            let normed = self.rms_norm(x, &layer.input_layernorm);
            let stored = |row: Row| row.into_iter().map(|v| v.rounded(if kv_f16 { HALF_EPS } else { 0.0 })).collect();
            let q = self.rotated(layer.q_proj.times(&normed), position);
            keys.push(stored(self.rotated(layer.k_proj.times(&normed), position)));
            values.push(stored(layer.v_proj.times(&normed)));
            let mut out = Row::new();
            for h in 0..heads {
                let kv = h / (heads / kv_heads) * width;
                let of = |rows: &[Row]| rows.iter().map(|row| row[kv..kv + width].to_vec()).collect::<Vec<_>>();
                out.extend(attention(&q[h * width..(h + 1) * width], &of(&keys), &of(&values)));
            }
            add(x, &layer.o_proj.times(&out));
        }
    }

    /// Turns the pairs (i, i + head_dim / 2) of every head.
    fn rotated(&self, mut x: Row, position: usize) -> Row {
        let half = self.config.head_dim / 2;
        for head in x.chunks_mut(2 * half) {
            for (i, frequency) in self.frequencies.iter().enumerate() {
                let angle = position as f64 * frequency;
                let (sin, cos) = angle.sin_cos();
                let (a, b) = (head[i], head[i + half]);
                // The frequency is kept in f32; cosine and sine are rounded, maybe twice, and so are the products.
                let turn = (angle * EPS).powi(2) + (4.0 * EPS).powi(2);
                let own = (a.value * a.value + b.value * b.value) * turn;
                let mix = |c: f64, s: f64| Near {
                    value: a.value * c + b.value * s,
                    variance: c * c * a.variance + s * s * b.variance + own,
                };
                (head[i], head[i + half]) = (mix(cos, -sin), mix(sin, cos));
            }
        }
        x
    }
}

/// softmax(q k / sqrt(E)) v over all the positions given.
fn attention(q: &[Near], keys: &[Row], values: &[Row]) -> Row {
    let len = q.len() as f64;
    let scale = 1.0 / len.sqrt();
    let score = |k: &Row| {
        let mut s = Near::default();
        for (q, k) in q.iter().zip(k) {
            s.value += scale * q.value * k.value;
            let own = len * (EPS * q.value * k.value).powi(2);
            s.variance += scale * scale * (q.value.powi(2) * k.variance + k.value.powi(2) * q.variance + own);
        }
        s
    };
    let scores: Row = keys.iter().map(score).collect();
    let top = scores.iter().fold(f64::NEG_INFINITY, |top, s| top.max(s.value));
    let sum: f64 = scores.iter().map(|s| (s.value - top).exp()).sum();
    // Probability, and the deviation of its logarithm: the score's, and exp's 3 + 2 |x| ULP.
    let weigh = |s: &Near| {
        let below = s.value - top;
        (below.exp() / sum, (s.variance + ((3.0 + 2.0 * below.abs()) * EPS).powi(2)).sqrt())
    };
    let weights: Vec<(f64, f64)> = scores.iter().map(weigh).collect();
    let column = |e: usize| {
        let value: f64 = weights.iter().zip(values).map(|((p, _), v)| p * v[e].value).sum();
        // All scores share q, so their errors are added up as if they agreed.
        let moved: f64 = weights.iter().zip(values).map(|((p, dev), v)| p * (v[e].value - value).abs() * dev).sum();
        let summed = |(&(p, _), v): (&(f64, f64), &Row)| {
            p * p * v[e].variance + keys.len() as f64 * (EPS * p * v[e].value).powi(2)
        };
        let variance = moved * moved + weights.iter().zip(values).map(summed).sum::<f64>();
        Near { value, variance }.rounded(4.0 * EPS)
    };
    (0..q.len()).map(column).collect()
}

/// silu(gate) up.
fn swiglu(gate: Near, up: Near) -> Near {
    let sigmoid = 1.0 / (1.0 + (-gate.value).exp());
    let silu = gate.value * sigmoid;
    let slope = sigmoid * (1.0 + gate.value * (1.0 - sigmoid));
    let variance = (slope * up.value).powi(2) * gate.variance + silu * silu * up.variance;
    Near { value: silu * up.value, variance }.rounded((8.0 + 2.0 * gate.value.abs()) * EPS)
}

fn add(x: &mut [Near], y: &[Near]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x = x.plus(*y));
}

/// Radians a token, from the definition: theta^(-2 i / head_dim), stretched as the file asks.
fn frequencies(config: &ModelConfig) -> Vec<f64> {
    let divisor = |i: usize| match &config.rope_scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear { factor } => f64::from(*factor),
        RopeScaling::Factors(factors) => f64::from(factors[i]),
        other => panic!("no test has {other:?}"),
    };
    let exponent = |i: usize| -2.0 * i as f64 / config.head_dim as f64;
    (0..config.head_dim / 2).map(|i| f64::from(config.rope_theta).powf(exponent(i)) / divisor(i)).collect()
}
