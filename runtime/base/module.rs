//! The modules of a model that take LoRA, under their Hugging Face paths, and their sizes.

use std::fmt;
use std::ops::Range;

use super::Architecture;

/// A kind of module that takes LoRA, in the order a layer computes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each variant is the module's own name")]
pub enum Target {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
    LmHead,
    EmbedTokens,
}

impl Target {
    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
        Self::LmHead,
        Self::EmbedTokens,
    ];

    /// The last part of its path, e.g. `q_proj`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
            Self::LmHead => "lm_head",
            Self::EmbedTokens => "embed_tokens",
        }
    }

    /// Whether each layer has one.
    pub const fn is_in_layer(self) -> bool {
        !matches!(self, Self::LmHead | Self::EmbedTokens)
    }

    const fn block(self) -> &'static str {
        match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj => "self_attn",
            _ => "mlp",
        }
    }
}

/// One module of a model. Displays as its Hugging Face path, e.g.
/// `model.layers.3.self_attn.q_proj`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModulePath {
    /// From 0; `None` for `lm_head` and `embed_tokens`.
    pub layer: Option<usize>,
    /// Which module of it.
    pub target: Target,
}

impl ModulePath {
    /// A module of a layer.
    pub const fn in_layer(layer: usize, target: Target) -> Self {
        Self { layer: Some(layer), target }
    }

    /// Reads a Hugging Face path, exactly as [`Self`] displays it; `None` for any other text.
    pub fn parse(path: &str) -> Option<Self> {
        let find = |name: &str| Target::ALL.into_iter().find(|target| target.name() == name);
        let parsed = match path.strip_prefix("model.layers.") {
            Some(rest) => {
                let (layer, module) = rest.split_once('.')?;
                let (_, name) = module.split_once('.')?;
                Self { layer: Some(layer.parse().ok()?), target: find(name)? }
            }
            None => Self { layer: None, target: find(path.rsplit('.').next()?)? },
        };
        // Only the canonical spelling: no `layers.03`, no `mlp.q_proj`.
        (parsed.layer.is_some() == parsed.target.is_in_layer() && parsed.to_string() == path)
            .then_some(parsed)
    }
}

impl fmt::Display for ModulePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.target.name();
        match (self.layer, self.target) {
            (Some(layer), target) => write!(f, "model.layers.{layer}.{}.{name}", target.block()),
            (None, Target::EmbedTokens) => write!(f, "model.{name}"),
            (None, _) => f.write_str(name),
        }
    }
}

impl serde::Serialize for ModulePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The sizes of a base model that an adapter has to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseShape {
    /// The family.
    pub architecture: Architecture,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Width of the residual stream, D.
    pub hidden_size: usize,
    /// Width inside the MLP, F.
    pub intermediate_size: usize,
    /// Rows of `q_proj`: heads times their width, `H * E`.
    pub q_size: usize,
    /// Rows of `k_proj` and `v_proj`: `G * E`.
    pub kv_size: usize,
    /// Rows of the embedding, V.
    pub vocab_size: usize,
    /// Query heads, H.
    pub num_attention_heads: usize,
    /// Key and value heads, G.
    pub num_key_value_heads: usize,
    /// Whether the head is the embedding. LoRA on one of them leaves the other alone all the same,
    /// as PEFT has it.
    pub tie_word_embeddings: bool,
}

impl BaseShape {
    /// `[N, K]`: what a module gives and takes. A is `[r, K]`, B is `[N, r]`; an embedding takes
    /// one of V tokens.
    pub const fn shape(&self, target: Target) -> [usize; 2] {
        match target {
            Target::QProj => [self.q_size, self.hidden_size],
            Target::KProj | Target::VProj => [self.kv_size, self.hidden_size],
            Target::OProj => [self.hidden_size, self.q_size],
            Target::GateProj | Target::UpProj => [self.intermediate_size, self.hidden_size],
            Target::DownProj => [self.hidden_size, self.intermediate_size],
            Target::LmHead => [self.vocab_size, self.hidden_size],
            Target::EmbedTokens => [self.hidden_size, self.vocab_size],
        }
    }

    /// Every module that takes LoRA, sorted: `lm_head` and `embed_tokens`, then layer by layer.
    pub fn modules(&self) -> impl Iterator<Item = ModulePath> + use<> {
        let outside =
            [Target::LmHead, Target::EmbedTokens].map(|target| ModulePath { layer: None, target });
        let layers = 0..self.num_hidden_layers;
        let inside =
            |layer| Target::ALL.into_iter().map(move |target| ModulePath::in_layer(layer, target));
        outside.into_iter().chain(layers.flat_map(inside).filter(|path| path.target.is_in_layer()))
    }

    /// Where a module's weights lie in Hugging Face's files: a path, and which of its rows (all,
    /// but where the family joins linears).
    pub fn in_files(&self, path: ModulePath) -> (String, Range<usize>) {
        let joined = self.architecture.family().joined.iter();
        let found = joined.copied().find(|(site, _)| site.targets().contains(&path.target));
        let (Some((site, name)), Some(layer)) = (found, path.layer) else {
            let [n, k] = self.shape(path.target);
            // An embedding's rows are its tokens.
            return (path.to_string(), 0..if path.target == Target::EmbedTokens { k } else { n });
        };
        let before = site.targets().iter().take_while(|&&target| target != path.target);
        let first = before.map(|&target| self.shape(target)[0]).sum::<usize>();
        let rows = first..first + self.shape(path.target)[0];
        (format!("model.layers.{layer}.{}.{name}", path.target.block()), rows)
    }

    /// The modules whose weights lie under a path in files, each with its rows; a part's own path
    /// is its as well. None for what is no module's.
    pub fn parts(&self, path: &str) -> Vec<(ModulePath, Range<usize>)> {
        if let Some(module) = ModulePath::parse(path) {
            let (_, rows) = self.in_files(module);
            return vec![(module, 0..rows.len())];
        }
        let number = path.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let Some(layer) = number.and_then(|(layer, _)| layer.parse().ok()) else {
            return Vec::new();
        };
        let sites = self.architecture.family().joined.iter();
        let targets = sites.flat_map(|(site, _)| site.targets());
        let placed = targets.map(|&target| ModulePath::in_layer(layer, target));
        let placed = placed.map(|module| (module, self.in_files(module)));
        // The whole name: `layers.03` is no other one of layer 3.
        let own = placed.filter(|(_, (name, _))| name == path);
        own.map(|(module, (_, rows))| (module, rows)).collect()
    }

    /// Whether the base has this module.
    pub fn has(&self, path: ModulePath) -> bool {
        path.layer.is_none_or(|layer| layer < self.num_hidden_layers)
            && path.layer.is_some() == path.target.is_in_layer()
    }
}
