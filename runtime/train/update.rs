//! The optimiser's step: the proximal term, the gradient's norm, and the update by it.

use crate::adapter::Factor;
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Op};
use crate::kernels::adamw;
use crate::kernels::grad_norm::{self, FinalParams, NO_CLIP, PartialParams};
use crate::kernels::proximal::{self, ProximalParams};
use crate::kernels::sgd::{self, SgdParams};

use super::buffers::{Buffers, Optimizer};
use super::factors::Layout;
use super::graph::Graph;
use super::options::TrainOptions;

/// The optimiser's kernels, bound.
pub(super) struct Update {
    proximal: Option<Op>,
    partial: Op,
    last: Op,
    step: Op,
}

impl Update {
    /// Binds them to the buffers of `graph`.
    ///
    /// Errors: as [`Gpu::kernel`].
    pub(super) fn new(gpu: &Gpu, graph: &Graph, options: &TrainOptions) -> Result<Self> {
        let Buffers { state, grads, norm: [partials, norm], .. } = &graph.buffers;
        let mut bound = vec![norm, grads];
        bound.extend(&state[..=options.optimizer.states()]);
        let step = match options.optimizer {
            Optimizer::AdamW => adamw::spec(),
            Optimizer::Momentum => sgd::spec(true),
            Optimizer::Sgd => {
                // Where the momentum would be; it is not used.
                bound.push(partials);
                sgd::spec(false)
            }
        };
        let proximal = (options.proximal_mu > 0.0).then(|| state.last()).flatten();
        let proximal = proximal.map(|start| gpu.op(&proximal::spec(), &[&state[0], start, grads]));
        Ok(Self {
            proximal: proximal.transpose()?,
            partial: gpu.op(&grad_norm::partial_spec(), &[grads, partials])?,
            last: gpu.op(&grad_norm::final_spec(), &[partials, norm])?,
            step: gpu.op(&step, &bound)?,
        })
    }

    /// Records norm and update, the moments' `step`-th; the gradients are zero afterwards.
    pub(super) fn record(
        &self,
        commands: &mut Commands<'_>,
        layout: &Layout,
        options: &TrainOptions,
        lr: f64,
        step: u64,
    ) {
        let len = layout.trained() as u32;
        if let Some(op) = &self.proximal {
            let params = ProximalParams { len, mu: options.proximal_mu as f32 };
            proximal::record(commands, op, &params);
        }
        grad_norm::record_partial(
            commands,
            &self.partial,
            PartialParams { offset: 0, len, partial0: 0 },
        );
        grad_norm::record_final(
            commands,
            &self.last,
            FinalParams { count: grad_norm::partials(len), ..Default::default() },
        );
        let max_norm = options.max_grad_norm.map_or(NO_CLIP, |norm| norm as f32);
        for (factor, range) in layout.ranges() {
            let ratio = if factor == Factor::B { options.lora_plus_ratio } else { 1.0 };
            let lr = lr * ratio;
            match options.optimizer {
                Optimizer::AdamW => {
                    let params = options.adamw().params(range, lr, step, max_norm);
                    adamw::record(commands, &self.step, &params);
                }
                Optimizer::Momentum | Optimizer::Sgd => {
                    let momentum = if options.optimizer == Optimizer::Momentum {
                        options.momentum
                    } else {
                        0.0
                    };
                    let params = SgdParams {
                        offset: range.start,
                        len: range.end - range.start,
                        slot: 0,
                        max_norm,
                        lr: lr as f32,
                        momentum: momentum as f32,
                        weight_decay: options.weight_decay as f32,
                    };
                    sgd::record(commands, &self.step, &params);
                }
            }
        }
    }
}
