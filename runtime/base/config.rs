//! What a model is: its sizes under Hugging Face's `config.json` names, and the tensors they imply.

use std::collections::HashSet;

use super::layout::{Architecture, Family, Follows, LayerAttention, Source};
use super::module::{BaseShape, ModulePath};
use super::rope::{RopeScaling, Rotary, inverse_frequencies};
use crate::error::{Error, Result};
use crate::format::gguf::Gguf;

/// Tensors that are read with the metadata, or that old converters left behind and nothing needs.
const HARMLESS: [&str; 4] = [
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
    ".attn_rot_embd.weight",
];

/// Positions that there is room for unless someone says; keys and values of more take gigabytes.
const USUAL_CONTEXT: usize = 8192;

/// The kernels read weights in blocks of this length.
const BLOCK: usize = crate::quant::BLOCK;
pub(super) const MAX_HEAD_DIM: usize = 256;

/// A size as files name it.
#[derive(Clone, Copy)]
pub(super) struct Key {
    /// After the family's prefix.
    pub(super) gguf: &'static str,
    pub(super) json: &'static str,
}

const HIDDEN: Key = Key { gguf: "embedding_length", json: "hidden_size" };
const INTERMEDIATE: Key = Key { gguf: "feed_forward_length", json: "intermediate_size" };
const KV_HEADS: Key = Key { gguf: "attention.head_count_kv", json: "num_key_value_heads" };
const SCALING: Key = Key { gguf: "rope.scaling.type", json: "rope_scaling" };
const ROTARY: Key = Key { gguf: "rope.dimension_count", json: "partial_rotary_factor" };
const HEAD_DIM: Key = Key { gguf: "attention.key_length", json: "head_dim" };

/// The sizes of a model. Lengths are in weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides [`Self::num_attention_heads`].
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding; at least the tokenizer's tokens.
    pub vocab_size: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How the frequencies are stretched for long contexts.
    pub rope_scaling: RopeScaling,
    /// Positions the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the embedding is also the head: there is no `lm_head.weight`.
    pub tie_word_embeddings: bool,
    /// In what it is no plain llama, beside its family's layers.
    pub traits: Traits,
}

/// Numbers by which models depart from a plain llama; the default is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Traits {
    /// On the scores of attention; `None` for 1 over the root of a head's width.
    pub attention_scale: Option<f32>,
    /// On the embeddings.
    pub embedding_scale: f32,
    /// On what attention and MLP add to the residual stream.
    pub residual_scale: f32,
    /// On the logits.
    pub logit_scale: f32,
    /// Which layers see the last tokens only.
    pub sliding_window: Option<SlidingWindow>,
    /// Layers without rotary embedding: every so many, the first of them this one's number less 1.
    pub no_rope_every: Option<usize>,
    /// Dimensions of a head that are rotated, its first; `None` for all.
    pub rotary_dim: Option<usize>,
}

impl Default for Traits {
    fn default() -> Self {
        Self {
            attention_scale: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            sliding_window: None,
            no_rope_every: None,
            rotary_dim: None,
        }
    }
}

/// Layers whose tokens see the last ones only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlidingWindow {
    /// Tokens that one sees, itself among them.
    pub tokens: usize,
    /// Every so many layers, the last of them sees everything; `None`: none does.
    pub full_every: Option<usize>,
    /// Base of the rotary frequencies in layers with a window, which then are not scaled; `None`:
    /// as in the others.
    pub rope_theta: Option<f32>,
}

impl ModelConfig {
    /// Checks sizes against each other and against what kernels can do; `name` names a key.
    ///
    /// Errors: [`Error::InvalidMetadata`].
    pub(super) fn check_sizes(&self, name: impl Fn(Key) -> String) -> Result<()> {
        let check = |ok: bool, key: Key, reason: String| {
            if ok { Ok(()) } else { Err(Error::InvalidMetadata { key: name(key), reason }) }
        };
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        let whole = |n: usize| n.is_multiple_of(BLOCK);
        check(whole(self.hidden_size), HIDDEN, needs_blocks(self.hidden_size))?;
        check(whole(self.intermediate_size), INTERMEDIATE, needs_blocks(self.intermediate_size))?;
        let reason = format!("{kv} does not divide {heads} heads");
        check(heads.is_multiple_of(kv), KV_HEADS, reason)?;
        let head_ok = whole(self.head_dim) && (BLOCK..=MAX_HEAD_DIM).contains(&self.head_dim);
        let reason = format!(
            "the head width {} is not a multiple of {BLOCK} up to {MAX_HEAD_DIM}",
            self.head_dim
        );
        check(head_ok, HEAD_DIM, reason)?;
        let (turned, whole) = (self.rotary_dim(), self.head_dim);
        let reason = format!("{turned} of {whole} dimensions; an even number of them is needed");
        check(turned.is_multiple_of(2) && (2..=whole).contains(&turned), ROTARY, reason)?;
        let RopeScaling::Long(long) = &self.rope_scaling else { return Ok(()) };
        let fits = |factors: &Vec<f32>| factors.len() == turned / 2;
        let reason = format!("lists of {} and {} factors", long.short.len(), long.long.len());
        let reason = format!("{reason}; {} of each are needed", turned / 2);
        check(fits(&long.short) && fits(&long.long), SCALING, reason)
    }

    /// Every tensor of the model with its row-major shape, in the order of use.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, shape) = (self.hidden_size, self.base_shape());
        let mut all = vec![("model.embed_tokens.weight".into(), vec![self.vocab_size, hidden])];
        let mut add = |module: String, part: &str, shape: &[usize]| {
            all.push((format!("{module}.{part}"), shape.to_vec()));
        };
        for layer in 0..self.num_hidden_layers {
            let in_layer = |module: &str| format!("model.layers.{layer}.{module}");
            for group in &self.family().groups {
                if let Source::Norm(norm) = group.source {
                    add(in_layer(norm), "weight", &[hidden]);
                }
                for &target in group.site.targets() {
                    let (path, [n, k]) =
                        (ModulePath::in_layer(layer, target).to_string(), shape.shape(target));
                    if group.bias {
                        add(path.clone(), "bias", &[n]);
                    }
                    add(path, "weight", &[n, k]);
                }
                if let Follows::AddNormed(norm) = group.follows {
                    add(in_layer(norm), "weight", &[hidden]);
                }
            }
            for norm in self.family().qk_norms.iter().flatten() {
                add(in_layer(norm), "weight", &[self.head_dim]);
            }
        }
        add("model.norm".into(), "weight", &[hidden]);
        if !self.tie_word_embeddings {
            add("lm_head".into(), "weight", &[self.vocab_size, hidden]);
        }
        all
    }

    /// Checks that the file holds every tensor of the model in its shape, and none that would be
    /// left out.
    ///
    /// Errors: [`Error::MissingTensor`]; [`Error::InvalidTensor`] naming the tensor and both
    /// shapes; [`Error::Unsupported`] for a tensor that this family does not have, such as a bias.
    pub fn check_tensors(&self, gguf: &Gguf) -> Result<()> {
        let expected = self.tensors();
        for (name, shape) in &expected {
            let found = gguf.require(name)?.shape;
            if found != shape {
                let reason = format!(
                    "its shape is {found:?}, the metadata imply {shape:?}; convert the file again"
                );
                return Err(Error::InvalidTensor { name: name.clone(), reason });
            }
        }
        let shape = self.base_shape();
        let stored = |name: &str| match name.strip_suffix(".weight").and_then(ModulePath::parse) {
            Some(path) => format!("{}.weight", shape.in_files(path).0),
            None => name.into(),
        };
        let expected: HashSet<String> = expected.iter().map(|(name, _)| stored(name)).collect();
        let harmless = |name: &str| HARMLESS.iter().any(|end| name.ends_with(end));
        match gguf
            .tensors()
            .find(|tensor| !expected.contains(tensor.name) && !harmless(tensor.name))
        {
            Some(extra) => Err(unsupported(
                format!("tensor `{}` in a {} model", extra.name, self.family().gguf),
                &format!("plain {} models without other biases or experts are", self.family().gguf),
            )),
            None => Ok(()),
        }
    }

    /// The sizes that an adapter has to fit.
    pub fn base_shape(&self) -> BaseShape {
        BaseShape {
            architecture: self.architecture,
            num_hidden_layers: self.num_hidden_layers,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            q_size: self.num_attention_heads * self.head_dim,
            kv_size: self.num_key_value_heads * self.head_dim,
            vocab_size: self.vocab_size,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }

    /// Weights in all; a tied head counts once.
    pub fn n_params(&self) -> u64 {
        self.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }

    /// What Llama 3's scaling or explicit factors divide each inverse frequency by, `rotary_dim /
    /// 2` of them: GGUF's `rope_freqs.weight`. `None` where there is no such tensor.
    pub(crate) fn rope_divisors(&self) -> Option<Vec<f32>> {
        match &self.rope_scaling {
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Yarn(_)
            | RopeScaling::Long(_) => None,
            RopeScaling::Factors(factors) => Some(factors.clone()),
            RopeScaling::Llama3 { .. } => {
                let (dims, theta) = (self.rotary_dim(), self.rope_theta);
                let plain = inverse_frequencies(dims, theta, &RopeScaling::None, 0);
                let scaled = inverse_frequencies(dims, theta, &self.rope_scaling, 0);
                Some(plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled).collect())
            }
        }
    }

    /// Its family's row of the table.
    pub fn family(&self) -> &'static Family {
        self.architecture.family()
    }

    /// What the attention of a layer does that another's may not.
    pub fn attention(&self, layer: usize) -> LayerAttention {
        let last_of = |every: Option<usize>| every.is_some_and(|n| (layer + 1).is_multiple_of(n));
        let slides = self.traits.sliding_window.filter(|window| !last_of(window.full_every));
        let apart = slides.is_some_and(|window| window.rope_theta.is_some());
        LayerAttention {
            window: slides.map(|window| window.tokens),
            rotary: usize::from(apart || last_of(self.traits.no_rope_every)),
        }
    }

    /// Positions that tokens see in the layers that have windows; `None` without such layers.
    pub fn window(&self) -> Option<usize> {
        (0..self.num_hidden_layers).find_map(|layer| self.attention(layer).window)
    }

    /// A scale of attention, unless it is the usual one.
    pub(super) fn unusual_scale(&self, scale: f32) -> Option<f32> {
        let usual = 1.0 / (self.head_dim as f32).sqrt();
        ((scale - usual).abs() > 1e-6 * usual).then_some(scale)
    }

    /// On the scores of attention.
    pub fn attention_scale(&self) -> f32 {
        self.traits.attention_scale.unwrap_or(1.0 / (self.head_dim as f32).sqrt())
    }

    /// Dimensions of a head that are rotated, its first.
    pub fn rotary_dim(&self) -> usize {
        self.traits.rotary_dim.unwrap_or(self.head_dim)
    }

    /// Positions that there is room for unless someone says: where longer contexts have frequencies
    /// of their own, no more than have the usual ones.
    pub fn usual_context(&self) -> usize {
        let most = self.max_position_embeddings.min(USUAL_CONTEXT);
        match &self.rope_scaling {
            RopeScaling::Long(long) => most.min(long.original_max_position_embeddings),
            _ => most,
        }
    }

    /// Whether room for `positions` means the frequencies for long contexts, where there are two.
    #[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "only saved sessions ask"))]
    pub(crate) fn is_long(&self, positions: usize) -> bool {
        matches!(&self.rope_scaling, RopeScaling::Long(long) if long.is_long(positions))
    }

    /// Inverse frequencies of the rotary embedding with scaling applied where there is room for
    /// `positions`, radians a token: `rotary_dim / 2` of them, the i-th for dimensions `i` and `i +
    /// rotary_dim / 2` (rows are in Hugging Face's order, whatever the file's).
    pub fn rope_frequencies(&self, positions: usize) -> Vec<f32> {
        inverse_frequencies(self.rotary_dim(), self.rope_theta, &self.rope_scaling, positions)
    }

    /// The rotations by [`LayerAttention::rotary`]: that of most layers, then that of layers that are
    /// apart, if any are. `positions` is the room that there is.
    pub fn rotaries(&self, positions: usize) -> Vec<Rotary> {
        let local = self.traits.sliding_window.and_then(|window| window.rope_theta);
        let plain = |theta| inverse_frequencies(self.rotary_dim(), theta, &RopeScaling::None, 0);
        let apart = match (local, self.traits.no_rope_every) {
            (Some(theta), _) => Some(plain(theta)),
            (None, Some(_)) => Some(Vec::new()),
            (None, None) => None,
        };
        let apart = apart.map(|frequencies| Rotary { frequencies, scale: 1.0 });
        let (frequencies, scale) = (self.rope_frequencies(positions), self.rope_scaling.scale());
        let all = std::iter::once(Rotary { frequencies, scale }).chain(apart);
        all.map(|mut rotary| {
            rotary.frequencies.resize(self.head_dim / 2, 0.0);
            rotary
        })
        .collect()
    }

    /// The residual stream is kept in units of [`Traits::residual_scale`], so that nothing has to
    /// be multiplied on its way: what an embedding is multiplied by.
    pub fn input_scale(&self) -> f32 {
        self.traits.embedding_scale / self.traits.residual_scale
    }

    /// Added to the mean square of the stream in those units before the root.
    pub fn norm_eps(&self) -> f32 {
        self.rms_norm_eps / (self.traits.residual_scale * self.traits.residual_scale)
    }
}

fn needs_blocks(n: usize) -> String {
    format!("{n} is not a multiple of {BLOCK}, which the kernels need")
}

pub(super) fn unsupported(what: String, hint: &str) -> Error {
    Error::Unsupported { what, hint: hint.into() }
}
