//! Hugging Face checkpoints: written from a GGUF, read again, whole and in shards; what is refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use epiphyte::base::ModelConfig;
use epiphyte::checkpoint::{Checkpoint, export_checkpoint};
use epiphyte::format::gguf::Gguf;
use epiphyte::quant::format;
use epiphyte::quantize::{QuantizeOptions, QuantizeTo, quantize_checkpoint};
use epiphyte::tokenizer::{EncodeOptions, Tokenizer, TokenizerSpec};
use epiphyte::{DType, Error, Result};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use crate::common::{golden, model_path};

/// A folder that goes with its owner.
struct Folder(tempfile::TempDir);

impl Folder {
    /// A checkpoint of the tiny model.
    fn tiny(dtype: DType) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let gguf = Gguf::open(golden("tiny_llama.gguf")).unwrap();
        let mut last = (0, 1);
        let progress = &mut |done, all| last = (done, all);
        let report = export_checkpoint(&gguf, &folder.checkpoint(), dtype, progress).unwrap();
        assert_eq!(last.0, last.1);
        assert!(report.tokenizer && report.files.len() == 4);
        folder
    }

    fn checkpoint(&self) -> PathBuf {
        self.0.path().join("checkpoint")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.checkpoint().join(name)
    }

    fn open(&self) -> Result<Checkpoint> {
        Checkpoint::open(self.checkpoint())
    }

    /// Changes a JSON file.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(self.file(name), value.to_string()).unwrap();
    }

    /// The tensors of the one file of weights.
    fn weights(&self) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
        let bytes = std::fs::read(self.file("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let own = |(name, view): (String, TensorView<'_>)| {
            (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())
        };
        file.tensors().into_iter().map(own).collect()
    }

    fn write(&self, name: &str, tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        std::fs::write(self.file(name), serialize(views, None).unwrap()).unwrap();
    }

    /// The same weights in two files and an index.
    fn shard(&self) {
        let all = self.weights();
        let (first, second) = all.split_at(all.len() / 2);
        let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let mut map = HashMap::new();
        for (name, part) in names.into_iter().zip([first, second]) {
            self.write(name, part);
            map.extend(part.iter().map(|tensor| (tensor.0.clone(), name)));
        }
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(self.file("model.safetensors.index.json"), index).unwrap();
        std::fs::remove_file(self.file("model.safetensors")).unwrap();
    }
}

fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let view = gguf.require(name).unwrap();
    let mut values = vec![0.0; view.n_weights()];
    format(view.dtype).dequantize(&view.bytes(), &mut values);
    values
}

/// A checkpoint as GGUF.
fn to_gguf(checkpoint: &Checkpoint, dtype: DType, path: &Path) -> Gguf {
    let options = QuantizeOptions::new(QuantizeTo::Type(dtype));
    quantize_checkpoint(checkpoint, &options, path, &mut |_, _| {}).unwrap();
    Gguf::open(path).unwrap()
}

#[test]
fn a_model_comes_back_from_its_checkpoint() {
    let tiny = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let config = ModelConfig::from_gguf(&tiny).unwrap();
    for (dtype, most) in [(DType::F32, 0.0), (DType::F16, 1.0 / 2048.0), (DType::BF16, 1.0 / 256.0)]
    {
        for sharded in [false, true] {
            let folder = Folder::tiny(dtype);
            if sharded {
                folder.shard();
            }
            let checkpoint = folder.open().unwrap();
            let back = to_gguf(&checkpoint, dtype, &folder.0.path().join("back.gguf"));
            assert_eq!(ModelConfig::from_gguf(&back).unwrap(), config);
            config.check_tensors(&back).unwrap();
            for (name, shape) in config.tensors() {
                let (before, after) = (values(&tiny, &name), values(&back, &name));
                assert_eq!(back.require(&name).unwrap().shape, shape);
                for (a, b) in before.iter().zip(&after) {
                    assert!((a - b).abs() <= most * a.abs(), "{dtype:?} {name}: {a} became {b}");
                }
            }
        }
    }
}

#[test]
fn a_tokenizer_comes_back_from_its_checkpoint() {
    let mut models = vec![golden("tiny_llama.gguf")];
    models.extend(model_path());
    for model in models {
        let spec = TokenizerSpec::from_gguf(&Gguf::open(&model).unwrap()).unwrap();
        let text = spec.to_tokenizer_json().unwrap().unwrap().to_string();
        let about = spec.to_tokenizer_config().to_string();
        let n = spec.tokens.len();
        let back = TokenizerSpec::from_tokenizer_json(&text, Some(&about), n + 3).unwrap();
        assert_eq!(back.tokens[..n], spec.tokens);
        assert_eq!(back.tokens[n..], [n, n + 1, n + 2].map(|id| format!("[PAD{id}]")));
        assert_eq!(back.merges, spec.merges);
        assert_eq!(back.token_types.as_ref().unwrap()[..n], spec.token_types.clone().unwrap());
        assert_eq!((back.bos, back.eos), (spec.bos, spec.eos));
        assert_eq!(back.chat_template, spec.chat_template);
        let texts = [
            "It's 1234567 o'clock,\n\n  DON'T",
            "<|im_start|>user\nh\u{e9}llo \u{4f60}\u{597d}<|im_end|>",
            " \t\r\n 12ab",
        ];
        let [a, b, c] = [
            Tokenizer::from_spec(spec).unwrap(),
            Tokenizer::from_spec(back).unwrap(),
            Tokenizer::from_tokenizer_json(text.as_bytes()).unwrap(),
        ];
        for text in texts {
            for parse_special in [false, true] {
                let options = EncodeOptions { parse_special, ..EncodeOptions::default() };
                let ids = a.encode(text, options).unwrap();
                assert_eq!(b.encode(text, options).unwrap(), ids);
                assert_eq!(c.encode(text, options).unwrap(), ids);
            }
        }
    }
}

#[test]
fn weights_that_are_not_those_of_the_config_are_named() {
    let q = "model.layers.0.self_attn.q_proj.weight";
    let missing = |name: &str| Error::MissingTensor { name: name.into() }.to_string();
    type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;
    type Case = (&'static str, fn(&mut Tensors), String);
    let cases: [Case; 4] = [
        ("gone", |all| all.retain(|tensor| !tensor.0.contains("0.self_attn.q_proj")), missing(q)),
        (
            "extra",
            |all| {
                all.push((
                    "model.layers.0.self_attn.q_proj.bias".into(),
                    Dtype::F32,
                    vec![1],
                    vec![0; 4],
                ))
            },
            "`model.layers.0.self_attn.q_proj.bias`".into(),
        ),
        (
            "shape",
            |all| {
                all.iter_mut()
                    .filter(|t| t.0.contains("0.self_attn.q_proj"))
                    .for_each(|t| t.2.reverse())
            },
            format!("`{q}`: its shape is"),
        ),
        (
            "type",
            |all| {
                all.iter_mut()
                    .filter(|t| t.0.contains("0.self_attn.q_proj"))
                    .for_each(|t| t.1 = Dtype::I32);
            },
            format!("`{q}` of type I32"),
        ),
    ];
    for (what, change, says) in cases {
        let folder = Folder::tiny(DType::F32);
        let mut tensors = folder.weights();
        change(&mut tensors);
        folder.write("model.safetensors", &tensors);
        let refused = folder.open().unwrap_err().to_string();
        assert!(refused.contains(&says), "{what}: {refused}");
    }
}

#[test]
fn shards_that_are_not_whole_are_named() {
    let index = "model.safetensors.index.json";
    let second = "model-00002-of-00002.safetensors";
    let refused = |change: &dyn Fn(&Folder)| {
        let folder = Folder::tiny(DType::F32);
        folder.shard();
        change(&folder);
        folder.open().unwrap_err().to_string()
    };
    let gone = refused(&|folder| std::fs::remove_file(folder.file(second)).unwrap());
    assert!(gone.contains(second) && gone.contains("missing"), "{gone}");
    let unlisted = refused(&|folder| {
        folder.edit(index, |index| {
            index["weight_map"].as_object_mut().unwrap().remove("model.norm.weight");
        });
    });
    assert!(unlisted.contains("`model.norm.weight`") && unlisted.contains("list"), "{unlisted}");
    let listed = refused(&|folder| {
        folder.edit(index, |index| index["weight_map"]["model.more.weight"] = second.into());
    });
    assert!(listed.contains("`model.more.weight` is missing"), "{listed}");
    for name in ["../checkpoint/model.safetensors", "/etc/passwd", "..", ""] {
        let out = refused(&|folder| {
            folder.edit(index, |index| index["weight_map"]["model.norm.weight"] = name.into());
        });
        assert!(out.contains("no name of a file"), "{name}: {out}");
    }
    for text in ["", "[]", "{}", "{\"weight_map\": {}}", "{\"weight_map\": {\"a\": 1}}"] {
        let damaged = refused(&|folder| std::fs::write(folder.file(index), text).unwrap());
        assert!(damaged.contains(index), "{text}: {damaged}");
    }
}

#[test]
fn what_a_config_asks_for_and_is_not_there_is_refused_by_name() {
    for (key, value) in [
        ("model_type", json!("gpt_neox")),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("num_local_experts", json!(8)),
        ("sliding_window", json!(64)),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
        ("rope_scaling", json!({"rope_type": "linear"})),
        ("hidden_size", json!(0)),
        ("hidden_size", json!("64")),
        ("num_attention_heads", json!(null)),
        ("rms_norm_eps", json!(-1.0)),
        ("vocab_size", json!(1_u64 << 40)),
    ] {
        let folder = Folder::tiny(DType::F32);
        folder.edit("config.json", |config| config[key] = value.clone());
        let refused = folder.open().unwrap_err();
        assert!(
            matches!(refused, Error::Unsupported { .. } | Error::InvalidMetadata { .. }),
            "{key} = {value}: {refused}"
        );
    }
    let folder = Folder::tiny(DType::F32);
    folder.edit("config.json", |config| config["use_cache"] = false.into());
    folder.open().unwrap();
}

#[test]
fn other_tokenizers_are_refused_by_name() {
    let changes: [fn(&mut Value); 7] = [
        |file| file["model"]["type"] = "Unigram".into(),
        |file| file["model"]["byte_fallback"] = true.into(),
        |file| file["normalizer"] = json!({"type": "Lowercase"}),
        |file| file["model"]["vocab"]["a"] = json!(1 << 30),
        |file| file["model"]["merges"] = json!(["x"]),
        |file| file["model"]["merges"] = json!([["a"]]),
        |file| file["added_tokens"][0]["id"] = json!(-1),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let folder = Folder::tiny(DType::F32);
        folder.edit("tokenizer.json", change);
        assert!(folder.open().is_err(), "{i}");
    }
    let folder = Folder::tiny(DType::F32);
    std::fs::write(folder.file("tokenizer.json"), "{").unwrap();
    assert!(matches!(folder.open(), Err(Error::Tokenizer(_))));
}

#[test]
fn what_cannot_be_a_checkpoint_is_not_begun() {
    let gguf = Gguf::open(golden("tiny_llama.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let refused = export_checkpoint(&gguf, folder.path(), DType::Q8_0, &mut |_, _| {});
    assert!(matches!(refused, Err(Error::InvalidArgument { name: "type", .. })));
    // What is a tensor in GGUF has no key.
    let llama3 = Gguf::open(golden("tiny_llama_llama3.gguf")).unwrap();
    let refused = export_checkpoint(&llama3, folder.path(), DType::F32, &mut |_, _| {});
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing half written");
    // A reader would take these in place of what is written.
    for other in ["model.safetensors.index.json", "chat_template.jinja"] {
        let path = folder.path().join(other);
        std::fs::write(&path, "{}").unwrap();
        let refused = export_checkpoint(&gguf, folder.path(), DType::F32, &mut |_, _| {});
        assert!(refused.unwrap_err().to_string().contains(other));
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing half written");
}

#[test]
fn a_checkpoint_is_not_overwritten_by_what_is_made_of_it() {
    let folder = Folder::tiny(DType::F32);
    let (checkpoint, weights) = (folder.open().unwrap(), folder.file("model.safetensors"));
    let before = std::fs::read(&weights).unwrap();
    let options = QuantizeOptions::new(QuantizeTo::Type(DType::Q8_0));
    let same = quantize_checkpoint(&checkpoint, &options, &weights, &mut |_, _| {});
    assert!(matches!(same, Err(Error::InvalidArgument { name: "path", .. })), "{same:?}");
    assert_eq!(std::fs::read(&weights).unwrap(), before);
}

#[test]
fn tokens_around_a_text_come_along() {
    let folder = Folder::tiny(DType::F32);
    let tokenizer: Value =
        serde_json::from_slice(&std::fs::read(folder.file("tokenizer.json")).unwrap()).unwrap();
    let special = &tokenizer["added_tokens"][0];
    let (text, id) = (special["content"].as_str().unwrap(), special["id"].as_u64().unwrap());
    let token = json!({"SpecialToken": {"id": text, "type_id": 0}});
    let a = json!({"Sequence": {"id": "A", "type_id": 0}});
    folder.edit("tokenizer.json", |file| {
        file["post_processor"] = json!({
            "type": "TemplateProcessing", "single": [token, a, token], "pair": [token, a, a],
            "special_tokens": {text: {"id": text, "ids": [id], "tokens": [text]}},
        });
    });
    std::fs::write(folder.file("tokenizer_config.json"), "{}").unwrap();
    let back = to_gguf(&folder.open().unwrap(), DType::F16, &folder.0.path().join("back.gguf"));
    let spec = TokenizerSpec::from_gguf(&back).unwrap();
    let id = Some(id as u32);
    assert_eq!((spec.bos, spec.eos), (id, id));
    assert_eq!((spec.add_bos, spec.add_eos), (Some(true), Some(true)));
    let written = spec.to_tokenizer_json().unwrap().unwrap();
    assert_eq!(written["post_processor"]["single"], json!([token, a, token]));
}

#[test]
fn llama_3_s_frequencies_become_a_tensor() {
    let folder = Folder::tiny(DType::F32);
    folder.edit("config.json", |config| {
        config["rope_scaling"] = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        });
    });
    let back = to_gguf(&folder.open().unwrap(), DType::F16, &folder.0.path().join("back.gguf"));
    let factors = values(&back, "rope_freqs.weight");
    let expected =
        values(&Gguf::open(golden("tiny_llama_llama3.gguf")).unwrap(), "rope_freqs.weight");
    assert_eq!(factors.len(), expected.len());
    for (a, b) in factors.iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-5 * b, "{a} is not {b}");
    }
}
