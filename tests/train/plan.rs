//! The memory plan: the textbook's examples, the sums by hand, the search, and what the engine
//! really takes.

use std::collections::HashSet;

use epiphyte::base::RopeScaling;
use epiphyte::base::{Architecture, ModelConfig};
use epiphyte::engine::pass_rows;
use epiphyte::format::gguf::Gguf;
use epiphyte::train::buffers::{Class, Optimizer, Target, TrainShape, layer_input, train_buffers};
use epiphyte::train::plan::{
    Free, MemoryPlan, Model, Textbook, engine_bytes, fit, human_bytes, weight_bytes,
};
use epiphyte::train::{TrainOptions, Trainer};
use epiphyte::{Engine, EngineOptions, Error};
use proptest::prelude::*;

use super::trainer::examples;
use crate::common::skip::skip;
use crate::common::{golden, model_path};

const GB: u64 = 1_000_000_000;

fn config(layers: usize) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: layers,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        vocab_size: 49_152,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        max_position_embeddings: 2048,
        tie_word_embeddings: true,
    }
}

fn model(config: &ModelConfig) -> Model<'_> {
    Model { config, weight_bytes: 90_000_000, kv_element_bytes: 2, engine_bytes: 0 }
}

fn shape(config: &ModelConfig) -> TrainShape {
    TrainShape {
        micro_batch: 2,
        seq_len: 256,
        checkpoint_every: None,
        rank: 8,
        targets: Target::named(config, &["q_proj", "v_proj", "down_proj"]).unwrap(),
        optimizer: Optimizer::AdamW,
        logit_rows: 64,
    }
}

#[test]
fn the_textbooks_examples_come_out() {
    // 13 billion parameters at 16 bit answer in 13e9 · 2 · 1.2 bytes.
    let inference = Textbook { parameters: 13e9, bytes_per_param: 2.0, training: None }.plan();
    assert_eq!(inference.total_bytes(), 31_200_000_000);
    // 7 billion, all trained by Adam at 16 bit: 14 GB weights, 14 GB gradients, two states of 14
    // GB.
    let full = Textbook { parameters: 7e9, bytes_per_param: 2.0, training: Some((7e9, 2)) }.plan();
    assert_eq!(
        full.classes(),
        [(Class::Weights, 14 * GB), (Class::Gradients, 14 * GB), (Class::OptimizerStates, 28 * GB)]
    );
    assert_eq!(full.total_bytes(), 56 * GB);
    // 13 billion: a gradient and two states of 2 bytes each are 6 bytes a parameter.
    let adam =
        Textbook { parameters: 13e9, bytes_per_param: 2.0, training: Some((13e9, 2)) }.plan();
    assert_eq!(
        adam.class_bytes(Class::Gradients) + adam.class_bytes(Class::OptimizerStates),
        78 * GB
    );
    // With 1 billion of them trained, 6 GB.
    let few = Textbook { parameters: 13e9, bytes_per_param: 2.0, training: Some((1e9, 2)) }.plan();
    assert_eq!(few.total_bytes() - few.class_bytes(Class::Weights), 6 * GB);
    assert_eq!(full.sum(), "weights 14.00 GB + gradients 14.00 GB + optimiser states 28.00 GB");
}

#[test]
fn lora_parameters_are_those_of_the_paper() {
    // Hu et al. 2021, table 15: GPT-3 175B, 4 attention matrices of 96 layers at rank 2: 18.9
    // million (37.7 at 4).
    let square = |name: &str| Target { name: name.into(), n: 12_288, k: 12_288 };
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj"].map(square).to_vec();
    let gpt3 = ModelConfig { hidden_size: 12_288, ..config(96) };
    for (rank, parameters) in [(2, 18_874_368), (4, 37_748_736)] {
        let shape = TrainShape { rank, targets: targets.clone(), ..shape(&gpt3) };
        assert_eq!(shape.parameters(&gpt3), parameters);
    }
}

#[test]
fn the_sum_is_the_one_done_by_hand() {
    let config = config(30);
    let (t, d, f, qkv, attn, heads, v, r) = (512_u64, 576, 1536, 960, 576, 9, 49_152, 8);
    let parameters = 30 * r * ((576 + 576) + (192 + 576) + (576 + 1536));
    let saved = qkv + attn + heads + d + 2 * f + 3 * r;
    let scratch = d + d + f + d + qkv + attn + d + f + heads + 2 * r + 1 + d;
    let fixed = 4 * (t * (scratch + 5 + 3) + 64 * v + 257 * 64);
    for (every, inputs, slots) in [
        (None, 30, 30),
        (Some(1), 30, 1),
        (Some(4), 8 + 3, 4),
        (Some(30), 30, 30),
        (Some(99), 30, 30),
    ] {
        let shape = TrainShape { checkpoint_every: every, ..shape(&config) };
        let plan = MemoryPlan::training(&model(&config), &shape, 0).unwrap();
        let activations = 4 * t * (inputs * d + slots * saved) + fixed;
        let sums = [
            (Class::Weights, 90_000_000),
            (Class::Adapter, 4 * parameters),
            (Class::Gradients, 4 * parameters),
            (Class::OptimizerStates, 8 * parameters),
            (Class::Activations, activations),
        ];
        assert_eq!(plan.classes(), sums, "{every:?}");
        assert_eq!(plan.total_bytes(), sums.iter().map(|(_, bytes)| bytes).sum::<u64>());
    }
    let states = |optimizer| {
        let shape = TrainShape { optimizer, ..shape(&config) };
        MemoryPlan::training(&model(&config), &shape, 0)
            .unwrap()
            .class_bytes(Class::OptimizerStates)
    };
    assert_eq!([states(Optimizer::Sgd), states(Optimizer::Momentum)], [0, 4 * parameters]);
    // 33 positions are 2 pages of 32: keys and values of 3 heads of 64, f16.
    let plan = MemoryPlan::training(&model(&config), &shape(&config), 33).unwrap();
    assert_eq!(plan.class_bytes(Class::KvCache), 30 * 2 * 64 * 3 * 64 * 2);
}

#[test]
fn every_layer_finds_its_buffers_and_no_two_share_one_that_both_need() {
    for (layers, every) in
        [(1, None), (5, None), (5, Some(1)), (5, Some(2)), (6, Some(2)), (7, Some(3)), (3, Some(9))]
    {
        let config = config(layers);
        let shape = TrainShape { checkpoint_every: every, ..shape(&config) };
        let names = train_buffers(&config, &shape)
            .into_iter()
            .map(|buffer| buffer.name)
            .collect::<Vec<_>>();
        let unique = names.iter().map(String::as_str).collect::<HashSet<_>>();
        assert_eq!(unique.len(), names.len());
        let k = shape.segment(&config);
        for first in (0..layers).step_by(k) {
            let segment = first..layers.min(first + k);
            let inputs = segment.clone().map(|layer| layer_input(layer, k)).collect::<HashSet<_>>();
            assert_eq!(inputs.len(), segment.len());
            assert!(inputs.iter().all(|name| unique.contains(name.as_str())), "{inputs:?}");
        }
        let kept =
            (0..layers).step_by(k).map(|layer| layer_input(layer, k)).collect::<HashSet<_>>();
        assert_eq!(kept.len(), layers.div_ceil(k));
    }
}

/// By trying everything: what `fit` promises.
fn best_by_trying(
    model: &Model<'_>,
    wanted: &TrainShape,
    budget: u64,
) -> Option<(usize, bool, usize)> {
    let bytes = |shape: &TrainShape| MemoryPlan::training(model, shape, 0).unwrap().total_bytes();
    let mut all = Vec::new();
    let lengths = (1..=wanted.seq_len).filter(|&n| n % 32 == 0 || n == wanted.seq_len);
    for seq_len in lengths {
        for checkpoint_every in
            std::iter::once(None).chain((1..=model.config.num_hidden_layers).map(Some))
        {
            for micro_batch in 1..=wanted.micro_batch {
                let shape = TrainShape { seq_len, checkpoint_every, micro_batch, ..wanted.clone() };
                if bytes(&shape) <= budget {
                    all.push((seq_len, checkpoint_every.is_none(), micro_batch));
                }
            }
        }
    }
    all.into_iter().max()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn the_search_finds_the_best_that_fits(
        layers in 1_usize..9, seq_len in 2_usize..200, micro_batch in 1_usize..5, budget in 92_000_000_u64..200_000_000,
    ) {
        let config = config(layers);
        let model = model(&config);
        let wanted = TrainShape { seq_len, micro_batch, ..shape(&config) };
        let found = fit(&model, &wanted, Free::ALL, 0, budget);
        let best = best_by_trying(&model, &wanted, budget);
        match found {
            Ok((shape, plan)) => {
                prop_assert!(plan.total_bytes() <= budget);
                prop_assert_eq!(Some((shape.seq_len, shape.checkpoint_every.is_none(), shape.micro_batch)), best);
            }
            Err(Error::OverBudget { .. }) => prop_assert_eq!(best, None),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn a_refusal_shows_the_sum_and_the_nearest_setting() {
    let config = config(30);
    let model = model(&config);
    let wanted = TrainShape { micro_batch: 8, seq_len: 512, ..shape(&config) };
    let pinned = Free { micro_batch: false, checkpoint: false, seq_len: false };
    let plan = MemoryPlan::training(&model, &wanted, 0).unwrap();
    let exact = fit(&model, &wanted, pinned, 0, plan.total_bytes()).unwrap();
    assert_eq!(exact, (wanted.clone(), plan.clone()));
    let error = fit(&model, &wanted, pinned, 0, plan.total_bytes() - 1).unwrap_err();
    let Error::OverBudget { needed, sum, remedy, .. } = &error else { panic!("{error}") };
    assert_eq!(*needed, human_bytes(plan.total_bytes()));
    assert!(sum.starts_with(&plan.sum()), "{sum}");
    assert!(
        remedy.contains("a micro-batch of 7 x 512 tokens with no checkpointing fits in"),
        "{remedy}"
    );
    let error = fit(&model, &wanted, Free::ALL, 0, 50_000_000).unwrap_err().to_string();
    assert!(error.contains("1 x 32 tokens") && error.contains("smaller model"), "{error}");
    // Each thing that is given up: rows, then time, then length.
    let fitted = |budget| fit(&model, &wanted, Free::ALL, 0, budget).unwrap().0;
    let [a, b, c] = [700_000_000, 250_000_000, 125_000_000].map(fitted);
    assert!(a.seq_len == 512 && a.checkpoint_every.is_none() && a.micro_batch < 8, "{a:?}");
    assert!(b.seq_len == 512 && b.checkpoint_every.is_some(), "{b:?}");
    assert!(c.seq_len < 512 && c.micro_batch >= 1, "{c:?}");
}

#[test]
fn bad_shapes_and_targets_are_refused() {
    let config = config(4);
    let name = |shape: TrainShape| match MemoryPlan::training(&model(&config), &shape, 0) {
        Err(Error::InvalidArgument { name, .. }) => name,
        other => panic!("{other:?}"),
    };
    let good = shape(&config);
    assert_eq!(name(TrainShape { micro_batch: 0, ..good.clone() }), "batch");
    assert_eq!(name(TrainShape { seq_len: 2049, ..good.clone() }), "seq_len");
    assert_eq!(name(TrainShape { checkpoint_every: Some(0), ..good.clone() }), "checkpoint_every");
    assert_eq!(name(TrainShape { rank: 0, ..good.clone() }), "rank");
    assert_eq!(name(TrainShape { rank: 193, ..good.clone() }), "rank");
    assert_eq!(name(TrainShape { targets: vec![], ..good.clone() }), "rank");
    // More than an engine can run, though the matrix has more.
    let wide = |rank| TrainShape {
        rank,
        targets: Target::named(&config, &["gate_proj"]).unwrap(),
        ..good.clone()
    };
    assert!(MemoryPlan::training(&model(&config), &wide(256), 0).is_ok());
    assert_eq!(name(wide(257)), "rank");
    // Sizes beyond any memory saturate.
    let huge = TrainShape { micro_batch: usize::MAX, ..good };
    assert_eq!(MemoryPlan::training(&model(&config), &huge, 0).unwrap().total_bytes(), u64::MAX);
    for names in [&["lm_head"][..], &["q_proj", ""], &[]] {
        assert!(matches!(
            Target::named(&config, names),
            Err(Error::InvalidArgument { name: "targets", .. })
        ));
    }
    assert_eq!(Target::named(&config, &["all-linear"]).unwrap().len(), 7);
    let named = Target::named(&config, &["up_proj", "k_proj"]).unwrap();
    assert_eq!(
        named.iter().map(|target| (target.n, target.k)).collect::<Vec<_>>(),
        [(192, 576), (1536, 576)]
    );
}

#[test]
fn the_engine_takes_what_the_plan_says() {
    let path = golden("tiny_llama.gguf");
    let gguf = Gguf::open(&path).unwrap();
    let config = ModelConfig::from_gguf(&gguf).unwrap();
    let context = 256;
    let options = EngineOptions {
        context: Some(context),
        kv_f32: true,
        skip_self_test: true,
        ..Default::default()
    };
    let engine = Engine::open(path, options).unwrap();
    let weight_bytes = weight_bytes(&gguf, &config).unwrap();
    let model = Model { config: &config, weight_bytes, kv_element_bytes: 4, engine_bytes: 0 };
    let rows = if engine.gpu().caps().software { 64 } else { 512 };
    let plan = MemoryPlan::inference(&model, rows, context);
    let taken = engine.gpu().allocated_bytes();
    // Left out: 4,096 logit biases and a few buffers of a row or less.
    let slack = taken.checked_sub(plan.total_bytes()).unwrap();
    println!("{taken} bytes taken, {} planned: {}", plan.total_bytes(), plan.sum());
    assert!(
        slack < 64 << 10,
        "{taken} bytes taken, {} planned: {}",
        plan.total_bytes(),
        plan.sum()
    );
}

#[test]
fn the_driver_is_asked_for_what_the_plan_says() {
    let Some(path) = model_path() else { return };
    let gguf = Gguf::open(&path).unwrap();
    let config = ModelConfig::from_gguf(&gguf).unwrap();
    let context = 256;
    let options =
        EngineOptions { context: Some(context), skip_self_test: true, ..Default::default() };
    let engine = Engine::open(path, options).unwrap();
    let (gpu, caps) = (engine.gpu(), engine.gpu().caps());
    let kv_element_bytes = if caps.f16 { 2 } else { 4 };
    let mut model = Model {
        config: &config,
        weight_bytes: weight_bytes(&gguf, &config).unwrap(),
        kv_element_bytes,
        engine_bytes: 0,
    };
    model.engine_bytes = engine_bytes(&model, pass_rows(caps), context);
    let settings = |micro_batch, seq_len, checkpoint_every, rank, optimizer| TrainOptions {
        micro_batch,
        seq_len,
        checkpoint_every,
        rank,
        optimizer,
        ..TrainOptions::default()
    };
    let attention = ["q_proj", "v_proj"].map(String::from).to_vec();
    for options in [
        settings(1, 512, Some(1), 8, Optimizer::AdamW),
        settings(1, 512, Some(1), 64, Optimizer::AdamW),
        settings(1, 256, None, 16, Optimizer::AdamW),
        settings(4, 64, Some(6), 8, Optimizer::Momentum),
        settings(1, 32, Some(1), 1, Optimizer::Sgd),
        TrainOptions { target_modules: attention, ..settings(2, 100, None, 4, Optimizer::AdamW) },
    ] {
        let shape = options.shape(&config, caps.cooperative_matrix.is_some()).unwrap();
        let planned = MemoryPlan::training(&model, &shape, 0).unwrap().total_bytes();
        let trainer = Trainer::new(&engine, examples(1, 4), options, None).unwrap();
        gpu.wait(None).unwrap();
        let Some(asked) = gpu.reserved_bytes() else {
            return skip("the driver does not count its memory");
        };
        let ratio = asked as f64 / planned as f64;
        println!("{} asked for, {} planned: {ratio:.3}", human_bytes(asked), human_bytes(planned));
        assert!((0.9..1.1).contains(&ratio), "{ratio} {shape:?}");
        drop(trainer);
        gpu.wait(None).unwrap();
    }
}
