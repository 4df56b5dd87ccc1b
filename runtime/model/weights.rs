//! The base on the device, by the groups of `base/layout`.

use crate::base::layout::{Follows, Group, SiteKind, Source};
use crate::base::{ModelConfig, ModulePath};
use crate::error::Result;
use crate::format::TensorView;
use crate::format::gguf::Gguf;
use crate::gpu::{Class, Gpu, Memory, Tensor};
use crate::model::linear::Linear;
use crate::quant;

/// A group of linears of a layer, and the norms around it.
pub struct GroupWeights<T = Tensor> {
    /// Gain of the norm of its input, `[D]`.
    pub norm_in: Option<T>,
    /// Its linears' rows, one after the other.
    pub linear: Linear<T>,
    /// Gain of the norm of its output, `[D]`.
    pub norm_out: Option<T>,
}

/// One decoder layer.
pub struct LayerWeights<T = Tensor> {
    /// By [`SiteKind`].
    groups: [GroupWeights<T>; 4],
    /// Beside q, k and v, where there are any: biases `[(H + 2 G) E]`, then gains of the norms of
    /// q's and k's heads, `[E]` each.
    pub beside_qkv: Option<T>,
}

impl<T> LayerWeights<T> {
    /// One of its groups.
    pub fn group(&self, site: SiteKind) -> &GroupWeights<T> {
        &self.groups[site as usize % self.groups.len()]
    }

    /// The linears of one of its groups.
    pub fn linear(&self, site: SiteKind) -> &Linear<T> {
        &self.group(site).linear
    }
}

/// The frozen base on the device.
pub struct Weights<T = Tensor> {
    /// `[V, D]`; also the head when there is no other.
    pub embed_tokens: Linear<T>,
    /// By layer.
    pub layers: Vec<LayerWeights<T>>,
    /// Gain of the last norm, `[D]`, times [`crate::base::Traits::logit_scale`].
    pub norm: T,
    /// `[V, D]`, unless tied to the embedding.
    pub lm_head: Option<Linear<T>>,
}

/// What of a file goes where.
#[derive(Default)]
pub struct Views<'a> {
    /// In the order of [`Weights::linears`].
    linears: Vec<Vec<TensorView<'a>>>,
    /// In the order of [`Weights::vectors`], each one or several tensors.
    vectors: Vec<Vec<TensorView<'a>>>,
}

/// Makes room, and notes for what.
struct Room<'a, 'm, M> {
    memory: &'m M,
    gguf: &'a Gguf,
    views: Views<'a>,
}

impl<'a, T, M: Memory<Tensor = T>> Room<'a, '_, M> {
    fn views(&self, names: &[String]) -> Result<Vec<TensorView<'a>>> {
        names.iter().map(|name| self.gguf.require(name)).collect()
    }

    fn linear(&mut self, names: &[String]) -> Result<Linear<T>> {
        let views = self.views(names)?;
        let linear = Linear::allocate(self.memory, &views)?;
        self.views.linears.push(views);
        Ok(linear)
    }

    /// Vectors, one after the other.
    fn vector(&mut self, names: &[String]) -> Result<T> {
        let views = self.views(names)?;
        let len = views.iter().map(TensorView::n_weights).sum();
        let vector = self.memory.words(Class::Weights, &names[0], &[len]);
        self.views.vectors.push(views);
        vector
    }

    fn layer(&mut self, config: &ModelConfig, i: usize) -> Result<LayerWeights<T>> {
        let family = config.family();
        let norm = |name: &str| format!("model.layers.{i}.{name}.weight");
        let modules = |group: &Group, part: &str| -> Vec<String> {
            let path = |target: &_| format!("{}.{part}", ModulePath::in_layer(i, *target));
            group.site.targets().iter().map(path).collect()
        };
        let mut group = |group: &Group| -> Result<GroupWeights<T>> {
            let norm_in = match group.source {
                Source::Norm(name) => Some(self.vector(&[norm(name)])?),
                Source::Attention | Source::Gate => None,
            };
            let linear = self.linear(&modules(group, "weight"))?;
            let norm_out = match group.follows {
                Follows::AddNormed(name) => Some(self.vector(&[norm(name)])?),
                Follows::Store | Follows::Add => None,
            };
            Ok(GroupWeights { norm_in, linear, norm_out })
        };
        let [qkv, o_proj, gate_up, down_proj] = family.groups.each_ref();
        let groups = [group(qkv)?, group(o_proj)?, group(gate_up)?, group(down_proj)?];
        let biases = if qkv.bias { modules(qkv, "bias") } else { Vec::new() };
        let beside: Vec<String> =
            biases.into_iter().chain(family.qk_norms.iter().flatten().map(|n| norm(n))).collect();
        let beside_qkv = if beside.is_empty() { None } else { Some(self.vector(&beside)?) };
        Ok(LayerWeights { groups, beside_qkv })
    }
}

impl<T> Weights<T> {
    /// Makes room for the file's tensors, and says which.
    ///
    /// Errors: as [`Linear::allocate`]; [`crate::Error::MissingTensor`].
    pub fn allocate<'a>(
        memory: &impl Memory<Tensor = T>,
        gguf: &'a Gguf,
        config: &ModelConfig,
    ) -> Result<(Self, Views<'a>)> {
        let mut room = Room { memory, gguf, views: Views::default() };
        let embed_tokens = room.linear(&["model.embed_tokens.weight".into()])?;
        let layers =
            (0..config.num_hidden_layers).map(|i| room.layer(config, i)).collect::<Result<_>>()?;
        let lm_head = if config.tie_word_embeddings {
            None
        } else {
            Some(room.linear(&["lm_head.weight".into()])?)
        };
        let norm = room.vector(&["model.norm.weight".into()])?;
        Ok((Self { embed_tokens, layers, norm, lm_head }, room.views))
    }

    /// Every linear, in the order of the file's tensors.
    pub fn linears(&self) -> impl Iterator<Item = &Linear<T>> {
        let layers = self.layers.iter().flat_map(|l| l.groups.iter().map(|group| &group.linear));
        std::iter::once(&self.embed_tokens).chain(layers).chain(&self.lm_head)
    }

    /// Every norm and bias, in the order of the file's tensors.
    fn vectors(&self) -> impl Iterator<Item = &T> {
        let layers = self.layers.iter().flat_map(|layer| {
            let groups = layer.groups.iter().flat_map(|g| g.norm_in.iter().chain(&g.norm_out));
            groups.chain(&layer.beside_qkv)
        });
        layers.chain([&self.norm])
    }

    /// The head's rows, `[V, D]`.
    pub fn head(&self) -> &Linear<T> {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }
}

impl Weights {
    /// Sends the file's tensors to the device, calling `progress` with the bytes of the file done
    /// so far.
    ///
    /// Errors: as [`Weights::allocate`]; those of `progress`, which end it.
    pub fn load(
        gpu: &Gpu,
        gguf: &Gguf,
        config: &ModelConfig,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Self> {
        let (weights, views) = Self::allocate(gpu, gguf, config)?;
        for (vector, views) in weights.vectors().zip(&views.vectors) {
            gpu.write(vector, 0, &views.iter().flat_map(values).collect::<Vec<_>>());
        }
        if config.traits.logit_scale != 1.0 {
            let gain = values(&gguf.require("model.norm.weight")?);
            let scaled = gain.iter().map(|gain| gain * config.traits.logit_scale);
            gpu.write(&weights.norm, 0, &scaled.collect::<Vec<_>>());
        }
        let mut done = 0;
        for (linear, views) in weights.linears().zip(views.linears) {
            linear.fill(gpu, &views);
            done += views.iter().map(|view| view.n_bytes() as u64).sum::<u64>();
            progress(done)?;
        }
        Ok(weights)
    }
}

/// A small tensor's values.
fn values(view: &TensorView<'_>) -> Vec<f32> {
    let mut values = vec![0.0; view.n_weights()];
    quant::format(view.dtype).dequantize(&view.bytes(), &mut values);
    values
}
