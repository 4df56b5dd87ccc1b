//! Layers stacked to a deeper model: copied to the byte, in the order asked for.

use std::path::PathBuf;

use epiphyte::adapter::{Adapter, LoraConfig, LoraModule, ModulePath, Modules};
use epiphyte::base::{ModelConfig, fingerprint};
use epiphyte::format::gguf::Gguf;
use epiphyte::stack::{Slice, depth_up_scaling, stack_adapter, stack_gguf};
use epiphyte::tokenizer::TokenizerSpec;
use epiphyte::{DType, Error};

use crate::common::{Random, golden};

fn slice(model: usize, layers: std::ops::Range<usize>) -> Slice {
    Slice { model, layers }
}

fn stack(models: &[&Gguf], slices: &[Slice]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stacked.gguf");
    let mut last = (0, 0);
    stack_gguf(models, slices, &path, &mut |done, all| last = (done, all)).unwrap();
    assert!(last.0 == last.1 && last.1 > 0);
    (folder, path)
}

fn name(gguf: &Gguf) -> String {
    let config = ModelConfig::from_gguf(gguf).unwrap();
    config.check_tensors(gguf).unwrap();
    fingerprint::fingerprint(gguf, &config, &TokenizerSpec::from_gguf(gguf).unwrap()).unwrap()
}

#[test]
fn the_same_layers_are_the_same_model() {
    let tiny = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let (_folder, path) = stack(&[&tiny], &[slice(0, 0..2)]);
    assert_eq!(name(&Gguf::open(path).unwrap()), name(&tiny));
}

#[test]
fn layers_of_two_models_are_copied_in_order() {
    let tiny = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    // Another model of its shape: the same layers the other way round.
    let (_folder, turned) = stack(&[&tiny], &[slice(0, 1..2), slice(0, 0..1)]);
    let turned = Gguf::open(turned).unwrap();
    assert_ne!(name(&turned), name(&tiny));
    let (_folder, path) = stack(&[&tiny, &turned], &[slice(0, 0..2), slice(1, 0..1)]);
    let stacked = Gguf::open(path).unwrap();
    assert_eq!(ModelConfig::from_gguf(&stacked).unwrap().num_hidden_layers, 3);
    assert_eq!(stacked.find::<&str>("epiphyte.stacked_layers").unwrap(), Some("0:0-1,1:0-0"));
    let bytes = |gguf: &Gguf, name: &str| {
        let view = gguf.tensors().find(|view| view.name == name).unwrap();
        (view.dtype, view.shape.to_vec(), view.bytes().into_owned())
    };
    let mut compared = 0;
    for view in stacked.tensors() {
        let rest = view.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let origin = match rest {
            Some((layer, rest)) => {
                format!("model.layers.{}.{rest}", ["0", "1", "1"][layer.parse::<usize>().unwrap()])
            }
            None => view.name.to_string(),
        };
        assert_eq!(bytes(&stacked, view.name), bytes(&tiny, &origin), "{}", view.name);
        compared += 1;
    }
    assert_eq!(compared, tiny.tensors().len() + (tiny.tensors().len() - 3) / 2);
}

#[test]
fn solar_leaves_layers_out_at_the_seam() {
    let solar = depth_up_scaling(32, 8).unwrap();
    assert_eq!(solar, [slice(0, 0..24), slice(0, 8..32)]);
    assert_eq!(solar.iter().map(|slice| slice.layers.len()).sum::<usize>(), 48);
    for overlap in [0, 32, usize::MAX] {
        let refused = depth_up_scaling(32, overlap);
        assert!(matches!(refused, Err(Error::InvalidArgument { name: "overlap", .. })));
    }
}

#[test]
fn what_can_not_be_stacked() {
    let tiny = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stacked.gguf");
    for slices in [
        vec![],
        vec![slice(1, 0..1)],
        vec![slice(0, 1..1)],
        vec![slice(0, 0..3)],
        vec![slice(0, 0..2); 600],
    ] {
        let refused = stack_gguf(&[&tiny], &slices, &path, &mut |_, _| {});
        assert!(matches!(refused, Err(Error::InvalidArgument { name: "slices", .. })));
    }
    assert!(stack_gguf(&[], &[slice(0, 0..1)], &path, &mut |_, _| {}).is_err());
    // Another rotary base is another shape, for what follows.
    let other = Gguf::open(golden("tiny_llama_llama3.gguf")).unwrap();
    let refused = stack_gguf(&[&tiny, &other], &[slice(1, 0..1)], &path, &mut |_, _| {});
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    let nowhere = folder.path().join("none/stacked.gguf");
    let refused = stack_gguf(&[&tiny], &[slice(0, 0..1)], &nowhere, &mut |_, _| {});
    assert!(matches!(refused, Err(Error::Io { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing half written");
}

#[test]
fn an_adapter_goes_where_its_layers_go() {
    let tiny = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let shape = ModelConfig::from_gguf(&tiny).unwrap().base_shape();
    let mut random = Random::new(4);
    let config = LoraConfig {
        r: 2,
        lora_alpha: 3.0,
        target_modules: Modules::Names(["q_proj", "lm_head"].map(String::from).into()),
        ..LoraConfig::default()
    };
    let module = |target: epiphyte::adapter::TargetModule| {
        let [n, k] = shape.shape(target.path.target);
        let mut fill = |len: usize| (0..len).map(|_| random.signed(0.5)).collect();
        let (a, b) = (fill(2 * k), fill(n * 2));
        LoraModule { path: target.path, rank: 2, a, b, scaling: target.scaling }
    };
    let modules = config.modules(&shape).unwrap().into_iter().map(module).collect();
    let adapter = Adapter::new(config, modules, None, &shape).unwrap();
    let slices = [slice(0, 0..2), slice(1, 0..1), slice(0, 1..2)];
    let stacked_shape = epiphyte::adapter::BaseShape { num_hidden_layers: 4, ..shape };
    let stacked = stack_adapter(&adapter, 0, &slices, &stacked_shape).unwrap();
    let layers: Vec<_> = stacked.modules.iter().map(|module| module.path.layer).collect();
    assert_eq!(layers, [None, Some(0), Some(1), Some(3)]);
    let q = |adapter: &Adapter, layer| {
        let path = ModulePath::in_layer(layer, epiphyte::adapter::Target::QProj);
        adapter.module(path).unwrap().clone()
    };
    assert_eq!(q(&stacked, 3).a, q(&adapter, 1).a);
    let folder = tempfile::tempdir().unwrap();
    stacked.save_peft(folder.path(), DType::F32, &stacked_shape).unwrap();
    assert_eq!(Adapter::load(folder.path(), &stacked_shape).unwrap().modules, stacked.modules);
}
