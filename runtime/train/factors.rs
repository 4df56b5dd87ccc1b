//! The factors A and B of an adapter in training, in one flat buffer: every A, then every B, layer
//! by layer; where A is frozen, every B first.
//!
//! So each of the two is a range, which may have a learning rate of its own (LoRA+, Hayou et al.
//! 2024, arXiv:2402.12354). And what is trained comes first: gradients and moments, which are of
//! it alone, lie where their parameters do.

use std::ops::Range;

use crate::adapter::{
    Adapter, BaseShape, Factor, LoraConfig, LoraModule, ModulePath, Modules, Target,
};
use crate::error::{Error, Result};

use super::options::TrainOptions;
use super::random::CounterRng;

/// A stream of the seed that no epoch uses.
const INIT_STREAM: u64 = u64::MAX - 1;

/// The place of one module's factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: ModulePath,
    /// Rows of the module.
    pub(crate) n: u32,
    /// Its inputs.
    pub(crate) k: u32,
    /// Of A `[r, K]`.
    pub(crate) a: u32,
    /// Of B `[N, r]`.
    pub(crate) b: u32,
}

/// Where all of them are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout {
    pub(crate) rank: u32,
    pub(crate) scaling: f32,
    /// By layer, in the order of use.
    pub(crate) layers: Vec<Vec<Place>>,
    /// The factor that stays as it is.
    pub(crate) freeze: Option<Factor>,
    a_len: u32,
    len: u32,
}

impl Layout {
    /// For the targets of `options`, in every layer.
    ///
    /// Errors: [`Error::InvalidArgument`] for targets outside the layers, or more parameters than a
    /// buffer can number.
    pub(crate) fn new(shape: &BaseShape, options: &TrainOptions) -> Result<Self> {
        let (targets, rank) = (&options.targets()?, options.rank);
        if targets.is_empty() || targets.iter().any(|target| !target.is_in_layer()) {
            let reason = "only the linears of the layers can be trained: q_proj, …, down_proj, or \
                all-linear"
                .into();
            return Err(Error::InvalidArgument { name: "targets", reason });
        }
        let shapes = || {
            let per_layer = move |layer| {
                targets.iter().map(move |&target| (layer, target, shape.shape(target)))
            };
            (0..shape.num_hidden_layers).flat_map(per_layer)
        };
        let a_len: usize = shapes().map(|(.., [_, k])| rank * k).sum();
        let len = a_len + shapes().map(|(.., [n, _])| rank * n).sum::<usize>();
        if u32::try_from(len).is_err() {
            let reason = format!("{len} parameters; a lower rank or fewer targets fit");
            return Err(Error::InvalidArgument { name: "rank", reason });
        }
        let mut layers = vec![Vec::new(); shape.num_hidden_layers];
        let freeze = options.freeze;
        let (mut a, mut b) = if freeze == Some(Factor::A) { (len - a_len, 0) } else { (0, a_len) };
        for (layer, target, [n, k]) in shapes() {
            let path = ModulePath::in_layer(layer, target);
            layers[layer].push(Place { path, n: n as u32, k: k as u32, a: a as u32, b: b as u32 });
            a += rank * k;
            b += rank * n;
        }
        Ok(Self {
            rank: rank as u32,
            scaling: options.scaling() as f32,
            layers,
            freeze,
            a_len: a_len as u32,
            len: len as u32,
        })
    }

    /// Parameters, frozen ones included.
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// Those that are trained: the first ones.
    pub(crate) fn trained(&self) -> usize {
        self.ranges().map(|(_, range)| range.len()).sum()
    }

    /// Where each factor that is trained is.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = (Factor, Range<u32>)> {
        let (a, b) = match self.freeze {
            Some(Factor::A) => (None, Some(0..self.len - self.a_len)),
            Some(Factor::B) => (Some(0..self.a_len), None),
            None => (Some(0..self.a_len), Some(self.a_len..self.len)),
        };
        let named = |factor| move |range| (factor, range);
        a.map(named(Factor::A)).into_iter().chain(b.map(named(Factor::B)))
    }

    /// Refuses to freeze a factor of zeros: the gradient of the other is a product with it.
    ///
    /// Errors: [`Error::InvalidArgument`].
    pub(crate) fn check_frozen(&self, params: &[f32]) -> Result<()> {
        match self.freeze {
            Some(frozen) if params[self.trained()..].iter().all(|value| *value == 0.0) => {
                let reason = format!(
                    "{} is all zeros, so the other factor would learn nothing; start from an \
                    adapter that has been trained (`--init`)",
                    frozen.name()
                );
                Err(Error::InvalidArgument { name: "freeze", reason })
            }
            _ => Ok(()),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Place> {
        self.layers.iter().flatten()
    }

    /// What training starts from: A uniform within `1 / sqrt(K)`, B zero, as PEFT has it (He et al.
    /// 2015 with a = sqrt 5).
    pub(crate) fn fresh(&self, seed: u64) -> Vec<f32> {
        let random = CounterRng::new(seed, INIT_STREAM);
        let mut params = vec![0.0; self.len()];
        for factor in self.all() {
            let bound = 1.0 / f64::from(factor.k).sqrt();
            for i in factor.a..factor.a + self.rank * factor.k {
                let unit = (random.bits(u64::from(i)) >> 11) as f64 / (1_u64 << 53) as f64;
                params[i as usize] = ((2.0 * unit - 1.0) * bound) as f32;
            }
        }
        params
    }

    /// The factors of `adapter`, which has to sit on the same modules with the same rank and
    /// scaling.
    ///
    /// Errors: [`Error::InvalidAdapter`] naming the first module that differs.
    pub(crate) fn of_adapter(&self, adapter: &Adapter) -> Result<Vec<f32>> {
        let mut params = vec![0.0; self.len()];
        let differs =
            |what: String, reason: &str| Err(Error::InvalidAdapter { what, reason: reason.into() });
        if adapter.modules.len() != self.all().count() {
            return differs(
                "target_modules".into(),
                "it sits on other modules than those to be trained; name the same",
            );
        }
        for factor in self.all() {
            let Some(module) = adapter.module(factor.path) else {
                return differs(
                    factor.path.to_string(),
                    "the adapter to start from does not have it; leave it out",
                );
            };
            if module.rank != self.rank as usize || module.scaling != self.scaling {
                return differs(
                    factor.path.to_string(),
                    "it has another rank or alpha; train with those it has",
                );
            }
            params[factor.a as usize..][..module.a.len()].copy_from_slice(&module.a);
            params[factor.b as usize..][..module.b.len()].copy_from_slice(&module.b);
        }
        Ok(params)
    }

    /// `params` as an adapter.
    ///
    /// Errors: as [`Adapter::new`].
    pub(crate) fn adapter(
        &self,
        params: &[f32],
        options: &FactorOptions,
        shape: &BaseShape,
    ) -> Result<Adapter> {
        let values = |at: u32, len: u32| params[at as usize..][..len as usize].to_vec();
        let module = |factor: &Place| LoraModule {
            path: factor.path,
            rank: self.rank as usize,
            a: values(factor.a, self.rank * factor.k),
            b: values(factor.b, self.rank * factor.n),
            scaling: self.scaling,
        };
        let names = options.targets.iter().map(|target| target.name().to_string()).collect();
        let config = LoraConfig {
            r: self.rank as usize,
            lora_alpha: options.lora_alpha,
            use_rslora: options.use_rslora,
            target_modules: Modules::Names(names),
            ..LoraConfig::default()
        };
        Adapter::new(
            config,
            self.all().map(module).collect(),
            Some(options.base_fingerprint.clone()),
            shape,
        )
    }
}

/// What an adapter's config says beside its factors.
#[derive(Clone, Debug)]
pub(crate) struct FactorOptions {
    targets: Vec<Target>,
    lora_alpha: f64,
    use_rslora: bool,
    base_fingerprint: String,
}

impl FactorOptions {
    /// Errors: as [`TrainOptions::targets`].
    pub(crate) fn new(options: &TrainOptions, base_fingerprint: &str) -> Result<Self> {
        Ok(Self {
            targets: options.targets()?,
            lora_alpha: options.lora_alpha,
            use_rslora: options.use_rslora,
            base_fingerprint: base_fingerprint.into(),
        })
    }
}

/// The adapter that a run of `options` would start from, for a base of this shape and fingerprint:
/// it changes nothing yet.
///
/// Errors: [`Error::InvalidArgument`] naming a setting.
pub fn fresh_adapter(
    options: &TrainOptions,
    shape: &BaseShape,
    base_fingerprint: &str,
) -> Result<Adapter> {
    let layout = Layout::new(shape, options)?;
    let params = layout.fresh(options.seed);
    layout.adapter(&params, &FactorOptions::new(options, base_fingerprint)?, shape)
}
