//! A Llama in f64 loops over the dequantised weights, and how far f32 arithmetic may end up from
//! it: see [`matrix`].

use epiphyte::adapter::{Adapter, ModulePath, Target};
use epiphyte::base::ModelConfig;
use epiphyte::base::RopeScaling;
use epiphyte::base::layout::SiteKind;
use epiphyte::format::gguf::Gguf;

use super::matrix::{EPS, HALF_EPS, Matrix, Near, Rounding, Row, add_expanded};

/// What is rounded to f16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Halves {
    /// Keys and values.
    pub(super) cache: bool,
    /// Both factors of the layers' products; the head's are never.
    pub(super) products: bool,
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
            let read =
                |module: &str| Matrix::read(gguf, &format!("model.layers.{i}.{module}.weight"));
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
        let modules = adapters
            .iter()
            .flat_map(|(adapter, weight)| adapter.modules.iter().map(|m| (m.clone(), *weight)));
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

    /// The embedding of a token; LoRA on it adds B times a column of A, and leaves a tied head
    /// alone.
    fn embed(&self, id: u32) -> Row {
        let row = self.embed_tokens.row(id as usize).iter();
        let mut x: Row =
            row.map(|&value| Near { value, variance: 0.0 }.rounded(2.0 * EPS)).collect();
        for (i, x) in x.iter_mut().enumerate() {
            let own = self.embed_tokens.deviations.get(id as usize * self.embed_tokens.k + i);
            x.variance += own.map_or(0.0, |dev| dev * dev);
        }
        for (lora, weight) in &self.embed_tokens.loras {
            let scale = weight * f64::from(lora.scaling);
            let column = lora
                .a
                .chunks(lora.a.len() / lora.rank)
                .map(|row| f64::from(row[id as usize]) * scale);
            let u: Row =
                column.map(|value| Near { value, variance: 0.0 }.rounded(HALF_EPS)).collect();
            add_expanded(&mut x, &lora.b, &u);
        }
        x
    }

    /// Logits `[T, V]` of `ids`.
    pub(super) fn logits(&self, ids: &[u32], halves: Halves) -> Vec<Row> {
        self.watched(ids, halves, &mut |_, _, _| ())
    }

    /// As [`Self::logits`]; `watch` sees the layer, the group and what goes into it, row by row.
    pub(super) fn watched(
        &self,
        ids: &[u32],
        halves: Halves,
        watch: &mut dyn FnMut(usize, SiteKind, &Row),
    ) -> Vec<Row> {
        let products = halves.products;
        let mut x: Vec<Row> = ids.iter().map(|&id| self.embed(id)).collect();
        for (i, layer) in self.layers.iter().enumerate() {
            self.attend(layer, &mut x, halves, &mut |site, row| watch(i, site, row));
            for x in &mut x {
                let normed = self.rms_norm(x, &layer.post_attention_layernorm);
                watch(i, SiteKind::GateUp, &normed);
                let (gate, up) = (
                    layer.gate_proj.times(&normed, products),
                    layer.up_proj.times(&normed, products),
                );
                let h: Row = gate.into_iter().zip(up).map(|(gate, up)| swiglu(gate, up)).collect();
                watch(i, SiteKind::DownProj, &h);
                add(x, &layer.down_proj.times(&h, products));
            }
        }
        let head = |x: &Row| match &self.lm_head {
            Some(head) => head.times(x, false),
            // LoRA on the embedding is not on the head.
            None => {
                (0..self.config.vocab_size).map(|n| self.embed_tokens.dot(n, x, false)).collect()
            }
        };
        x.iter().map(|x| head(&self.rms_norm(x, &self.norm))).collect()
    }

    fn rms_norm(&self, x: &[Near], gain: &Matrix) -> Row {
        let squares: f64 = x.iter().map(|x| x.value * x.value).sum();
        let scale = 1.0 / (squares / x.len() as f64 + f64::from(self.config.rms_norm_eps)).sqrt();
        // d scale / scale = -sum x dx / sum x²; ten roundings for the sum's last steps, the root
        // and the division.
        let moved: f64 =
            x.iter().map(|x| x.value * x.value * x.variance).sum::<f64>() / (squares * squares);
        let relative = moved + (10.0 * EPS).powi(2);
        let normed = x.iter().zip(gain.row(0)).map(|(x, g)| Near {
            value: g * scale * x.value,
            variance: (g * scale).powi(2) * (x.variance + x.value * x.value * relative),
        });
        normed.map(|y| y.rounded(2.0 * EPS)).collect()
    }

    fn attend(
        &self,
        layer: &Layer,
        x: &mut [Row],
        halves: Halves,
        watch: &mut dyn FnMut(SiteKind, &Row),
    ) {
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        let width = self.config.head_dim;
        let (mut keys, mut values): (Vec<Row>, Vec<Row>) = (Vec::new(), Vec::new());
        for (position, x) in x.iter_mut().enumerate() {
            let normed = self.rms_norm(x, &layer.input_layernorm);
            watch(SiteKind::Qkv, &normed);
            let stored = |row: Row| {
                row.into_iter()
                    .map(|v| v.rounded(if halves.cache { HALF_EPS } else { 0.0 }))
                    .collect()
            };
            let projected = |matrix: &Matrix| matrix.times(&normed, halves.products);
            let q = self.rotated(projected(&layer.q_proj), position);
            keys.push(stored(self.rotated(projected(&layer.k_proj), position)));
            values.push(stored(projected(&layer.v_proj)));
            let mut out = Row::new();
            for h in 0..heads {
                let kv = h / (heads / kv_heads) * width;
                let of = |rows: &[Row]| {
                    rows.iter().map(|row| row[kv..kv + width].to_vec()).collect::<Vec<_>>()
                };
                out.extend(attention(&q[h * width..(h + 1) * width], &of(&keys), &of(&values)));
            }
            watch(SiteKind::OProj, &out);
            add(x, &layer.o_proj.times(&out, halves.products));
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
                // The frequency is kept in f32; cosine and sine are rounded, maybe twice, and so
                // are the products.
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
            s.variance +=
                scale * scale * (q.value.powi(2) * k.variance + k.value.powi(2) * q.variance + own);
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
        let moved: f64 = weights
            .iter()
            .zip(values)
            .map(|((p, dev), v)| p * (v[e].value - value).abs() * dev)
            .sum();
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
    (0..config.head_dim / 2)
        .map(|i| f64::from(config.rope_theta).powf(exponent(i)) / divisor(i))
        .collect()
}
