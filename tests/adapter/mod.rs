//! LoRA adapters in files: what is read and written, what each key means, what is refused, what
//! damage does.

mod config;
mod copies;
mod gguf;
mod golden;
mod hostile;
mod joined;
mod refused;
mod round_trip;

use std::collections::BTreeMap;
use std::path::Path;

use epiphyte::Error;
use epiphyte::adapter::{
    Adapter, BaseShape, Item, LoraConfig, LoraModule, Modules, Target, Verdict,
};
use safetensors::tensor::{TensorView, serialize};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::common::Random;

/// `tiny_llama.gguf`'s sizes: 4 heads of 32 over 2, so q and k have more rows than the hidden size.
const SHAPE: BaseShape = BaseShape {
    architecture: epiphyte::base::Architecture::Llama,
    num_hidden_layers: 2,
    hidden_size: 64,
    intermediate_size: 96,
    q_size: 128,
    kv_size: 64,
    vocab_size: 291,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    tie_word_embeddings: false,
};

fn names(names: &[&str]) -> Modules {
    Modules::Names(names.iter().map(|name| (*name).into()).collect())
}

/// All nine kinds of modules.
fn all() -> LoraConfig {
    let target_modules = names(&Target::ALL.map(Target::name));
    LoraConfig { r: 3, lora_alpha: 5.0, target_modules, ..LoraConfig::default() }
}

/// Random factors for every module that the config targets.
fn adapter(config: LoraConfig, shape: &BaseShape, seed: u64) -> Adapter {
    let mut random = Random::new(seed);
    let mut fill = |len: usize| (0..len).map(|_| random.signed(0.5)).collect();
    let module = |target: epiphyte::adapter::TargetModule| {
        let [n, k] = shape.shape(target.path.target);
        let (a, b) = (fill(target.rank * k), fill(n * target.rank));
        LoraModule { path: target.path, rank: target.rank, a, b, scaling: target.scaling }
    };
    let modules = config.modules(shape).unwrap().into_iter().map(module).collect();
    Adapter::new(config, modules, Some("0123abcd".into()), shape).unwrap()
}

/// The numbers of a folder's tensors, which are F32, by name.
fn tensors_of(dir: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &TensorView<'_>| {
        assert_eq!(view.dtype(), Dtype::F32);
        view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), values(view))).collect()
}

/// A PEFT adapter in the making.
#[derive(Clone)]
struct Files {
    config: Value,
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
}

impl Files {
    /// Rank 2 on `q_proj` of both layers, as PEFT would save it.
    fn new() -> Self {
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]});
        let mut files = Self { config, tensors: Vec::new() };
        for layer in 0..2 {
            let module = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
            files = files.counting(&format!("{module}.lora_A.weight"), &[2, 64]);
            files = files.counting(&format!("{module}.lora_B.weight"), &[128, 2]);
        }
        files
    }

    fn key(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    /// An F32 tensor of 0, 1, 2 and so on.
    fn counting(self, name: &str, shape: &[usize]) -> Self {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        self.floats(name, shape, &values)
    }

    fn floats(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        self.tensor(name, Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn tensor(mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        self.tensors.retain(|(old, ..)| old != name);
        self.tensors.push((name.into(), dtype, shape.into(), bytes));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.tensors.retain(|(old, ..)| old != name);
        self
    }

    fn renamed(mut self, from: &str, to: &str) -> Self {
        self.tensors.iter_mut().for_each(|tensor| tensor.0 = tensor.0.replace(from, to));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let views =
            self.tensors.iter().map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
        serialize(views, None).unwrap()
    }

    fn load(&self) -> Result<Adapter, Error> {
        Adapter::from_peft(self.config.to_string().as_bytes(), &self.bytes(), &SHAPE)
    }

    fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("adapter_config.json"), self.config.to_string()).unwrap();
        std::fs::write(dir.join("adapter_model.safetensors"), self.bytes()).unwrap();
    }
}

fn verdict(items: &[Item], name: &str) -> Verdict {
    items
        .iter()
        .find(|item| item.name == name)
        .unwrap_or_else(|| panic!("{name} is not in the report"))
        .verdict
}

/// The name and reason of a refusal.
fn refusal(result: Result<Adapter, Error>) -> (String, String) {
    match result {
        Err(Error::InvalidAdapter { what, reason }) => (what, reason),
        other => panic!("{other:?}"),
    }
}
