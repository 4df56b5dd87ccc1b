//! Where steps are taken: what is bound to the model's weights, put away when these make room and
//! made again when it is next needed. The state of the run is not part of it.

use std::sync::{Arc, PoisonError};

use crate::cancel::CancelToken;
use crate::engine::{Bench, Engine};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Tensor};

use super::buffers::{Buffers, StateVector, TrainShape};
use super::factors::Layout;
use super::graph::{Graph, Model};
use super::options::TrainOptions;
use super::update::Update;

/// Graph and optimiser, bound.
pub(super) struct Tools {
    pub(super) graph: Graph,
    pub(super) update: Update,
}

impl Tools {
    /// Sets the gradients to zero: as if no step had begun.
    pub(super) fn clear_gradients(&self, gpu: &Gpu) {
        gpu.write(&self.graph.buffers.grads, 0, &vec![0.0_f32; self.graph.layout.trained()]);
    }
}

/// See the module's documentation.
pub(super) struct Workbench {
    engine: Arc<Engine>,
    shape: TrainShape,
    pub(super) layout: Layout,
    /// Of the run, on a device.
    state: Arc<Vec<Tensor>>,
    /// Of that device.
    device: usize,
    tools: Arc<Bench<Tools>>,
}

impl Workbench {
    /// One with a state of zeros.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub(super) fn new(engine: &Arc<Engine>, shape: TrainShape, layout: Layout) -> Result<Self> {
        let device = engine.device_number();
        let state = Buffers::state(engine.gpu(), &engine.base().config, &shape)?;
        let tools = Arc::default();
        engine.benches.add(&tools);
        Ok(Self { engine: Arc::clone(engine), shape, layout, state, device, tools })
    }

    /// Makes a state of zeros where it was lost with its device.
    ///
    /// Errors: [`Error::OutOfMemory`].
    pub(super) fn renew_state(&mut self) -> Result<()> {
        let device = self.engine.device_number();
        if self.device != device {
            *self.tools.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.state =
                Buffers::state(self.engine.gpu(), &self.engine.base().config, &self.shape)?;
            self.device = device;
        }
        Ok(())
    }

    /// What the state is made of.
    pub(super) fn vectors(&self) -> Vec<StateVector> {
        self.shape.state(&self.engine.base().config)
    }

    /// Writes vectors of the state, by name; those that there are not are passed over.
    ///
    /// Errors: [`Error::Background`]; [`Error::DeviceLost`]; [`Error::Gpu`].
    pub(super) fn write(&self, values: &[(&str, &[f32])]) -> Result<()> {
        self.on_device(|gpu| {
            for (vector, buffer) in self.vectors().iter().zip(self.state.iter()) {
                let given = values.iter().find(|(name, _)| *name == vector.name);
                given.into_iter().for_each(|(_, values)| gpu.write(buffer, 0, values));
            }
            gpu.flush_writes();
            gpu.check()
        })
    }

    /// Reads the vectors of the state whose names are `wanted`.
    ///
    /// Errors: as [`Workbench::write`].
    pub(super) fn read(
        &self,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(&'static str, Vec<f32>)>> {
        self.on_device(|gpu| {
            let vectors = self.vectors().into_iter().zip(self.state.iter());
            let vectors = vectors.filter(|(vector, _)| wanted(vector.name));
            vectors.map(|(of, buffer)| Ok((of.name, gpu.read(buffer, 0, of.len)?))).collect()
        })
    }

    /// Runs `work` with the tools; again, if it was stopped because the model had to make room. The
    /// gradients of what did not succeed are forgotten.
    ///
    /// Errors: those of `work`; [`Error::Background`]; [`Error::DeviceLost`], and the state with
    /// it; as [`Engine::weights`].
    pub(super) fn work<T>(
        &self,
        cancel: &CancelToken,
        options: &TrainOptions,
        mut work: impl FnMut(&Gpu, &Tools, &CancelToken) -> Result<T>,
    ) -> Result<T> {
        let benches = &self.engine.benches;
        let stop = cancel.or_while(self.engine.interruptions());
        loop {
            let done = self.on_device(|gpu| {
                let mut tools = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
                let tools = self.set_up(&mut tools, options)?;
                let done = work(gpu, tools, &stop);
                if done.is_err() {
                    tools.clear_gradients(gpu);
                }
                done
            });
            let stopped = matches!(done, Err(Error::Cancelled)) && !cancel.is_cancelled();
            benches.set_step_is_due(stopped);
            if !stopped {
                return done;
            }
        }
    }

    fn set_up<'b>(
        &self,
        tools: &'b mut Option<Tools>,
        options: &TrainOptions,
    ) -> Result<&'b Tools> {
        match tools {
            Some(tools) => Ok(tools),
            none => {
                let (gpu, weights) = (self.engine.gpu(), self.engine.weights()?);
                let model = Model { config: &self.engine.base().config, weights: &weights };
                let (layout, state) = (self.layout.clone(), Arc::clone(&self.state));
                let graph = Graph::new(gpu, model, &self.shape, layout, state)?;
                let update = Update::new(gpu, &graph, options)?;
                Ok(none.insert(Tools { graph, update }))
            }
        }
    }

    /// Runs `work` where nobody takes the tools away, on the device of the state.
    fn on_device<T>(&self, work: impl FnOnce(&Gpu) -> Result<T>) -> Result<T> {
        let lost = || {
            let reason = "and the state of training with it: go on from its last checkpoint";
            Error::DeviceLost(reason.into())
        };
        let _inside = self.engine.benches.gate.enter();
        self.engine.check_foreground()?;
        if self.engine.device_number() != self.device {
            return Err(lost());
        }
        match work(self.engine.gpu()) {
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(_) if self.engine.replaced(self.device) => Err(lost()),
            done => done,
        }
    }
}
