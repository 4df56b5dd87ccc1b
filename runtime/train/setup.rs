//! A device and a model to train on and nothing else: the memory is added up, and known, before any
//! is taken.

use std::sync::Arc;

use crate::base::ModelConfig;
use crate::engine::{Engine, EngineOptions};
use crate::error::Result;
use crate::format::gguf::Gguf;
use crate::gpu::{Gpu, GpuOptions};
use crate::progress::{LoadProgress, Loading};
use crate::selftest;
use crate::train::plan::{Choice, TRAIN_CONTEXT, Wish, choose};
use crate::train::trainer::computes_wrong;

/// An open device that a run of [`TrainSetup::choice`] fits on, and the model file for it.
pub struct TrainSetup<'a> {
    /// The settings that fit, and their memory.
    pub choice: Choice,
    gguf: &'a Gguf,
    gpu: Gpu,
}

impl<'a> TrainSetup<'a> {
    /// Opens and tests a device, and fits what is wished for to its budget. No weight is loaded.
    ///
    /// Errors: as [`choose`] and [`Engine::open`]; [`crate::Error::Unsupported`] on a device that
    /// computes gradients wrong.
    pub fn open(
        gguf: &'a Gguf,
        gpu: GpuOptions,
        wish: Wish,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let config = ModelConfig::from_gguf(gguf)?;
        config.check_tensors(gguf)?;
        // What is wrong whatever the device is refused before one is opened.
        wish.options.shape()?.check(&config)?;
        let mut gpu = Gpu::open(gpu)?;
        if !selftest::run_for(&mut gpu, &mut Loading::to_the_end(progress))?.trains {
            return Err(computes_wrong());
        }
        let choice = choose(gguf, &config, gpu.caps(), wish)?;
        Ok(Self { choice, gguf, gpu })
    }

    /// Loads the model. Sessions of the engine are short: it is there to train. Chats are rendered
    /// with `chat_template`, or with the model's own.
    ///
    /// Errors: as [`Engine::open`].
    pub fn load(
        self,
        chat_template: Option<String>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Arc<Engine>> {
        let options = EngineOptions {
            context: Some(TRAIN_CONTEXT),
            chat_template,
            ..EngineOptions::default()
        };
        let mut loading = Loading::to_the_end(progress);
        Engine::load_on(self.gpu, self.gguf, &options, &mut loading)
    }
}
