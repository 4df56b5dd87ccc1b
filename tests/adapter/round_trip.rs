//! What is written is read again, bit for bit; nothing else is left behind.

use std::fs;
use std::path::Path;

use epiphyte::adapter::{Adapter, AdapterFormat, ModulePath, Target, Verdict};
use epiphyte::{DType, Error};
use half::f16;

use super::{Files, SHAPE, adapter, all, names, verdict};

fn files_in(dir: &Path) -> Vec<String> {
    let mut files: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    files
}

#[test]
fn a_peft_folder_gives_back_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/adapter");
    let saved = adapter(all(), &SHAPE, 1);
    saved.save_peft(&path, DType::F32, &SHAPE).unwrap();
    assert_eq!(files_in(&path), ["adapter_config.json", "adapter_model.safetensors"]);
    let loaded = Adapter::load(&path, &SHAPE).unwrap();
    assert_eq!((&loaded.config, &loaded.modules), (&saved.config, &saved.modules));
    assert_eq!(loaded.base_fingerprint.as_deref(), Some("0123abcd"));
    // The tensor file alone is enough, on disk and in memory.
    let tensors = path.join("adapter_model.safetensors");
    assert_eq!(Adapter::load(&tensors, &SHAPE).unwrap(), loaded);
    assert_eq!(Adapter::from_bytes(fs::read(&tensors).unwrap(), &SHAPE).unwrap(), loaded);
    let config = fs::read(path.join("adapter_config.json")).unwrap();
    assert_eq!(Adapter::from_peft(&config, &fs::read(&tensors).unwrap(), &SHAPE).unwrap(), loaded);
}

#[test]
fn the_report_names_every_key_and_tensor_and_what_takes_effect() {
    let dir = tempfile::tempdir().unwrap();
    let saved = adapter(all(), &SHAPE, 1);
    saved.save_peft(dir.path(), DType::F32, &SHAPE).unwrap();
    let report = Adapter::load(dir.path(), &SHAPE).unwrap().report;
    assert_eq!(report.format, AdapterFormat::Peft);
    assert_eq!(
        report.n_bytes,
        fs::metadata(dir.path().join("adapter_model.safetensors")).unwrap().len()
    );
    assert_eq!(report.tensors.len(), 2 * (7 * 2 + 2));
    assert!(report.tensors.iter().all(|item| item.verdict == Verdict::Matched));
    assert_eq!(verdict(&report.keys, "r"), Verdict::Matched);
    assert_eq!(verdict(&report.keys, "task_type"), Verdict::Ignored);
    let json = fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    let keys: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(report.keys.len(), keys.len());
    let head = &report.modules[0];
    assert_eq!(head.path, ModulePath { layer: None, target: Target::LmHead });
    assert_eq!((head.rank, head.scaling, head.n_bytes), (3, 5.0 / 3.0, 4 * 3 * (64 + 291)));
    let text = serde_json::to_value(&report).unwrap();
    assert_eq!(text["modules"][2]["path"], "model.layers.0.self_attn.q_proj");
    assert_eq!(text["keys"][0]["verdict"], "matched");
}

#[test]
fn peft_to_gguf_and_back_gives_back_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = (dir.path().join("peft"), dir.path().join("lora.gguf"));
    let mut config = all();
    config.rank_pattern = vec![("q_proj".into(), 5), ("layers.1.mlp.down_proj".into(), 1)];
    let first = adapter(config, &SHAPE, 2);
    first.save_gguf(&file, DType::F32, &SHAPE).unwrap();
    let through = Adapter::load(&file, &SHAPE).unwrap();
    assert_eq!(through.report.format, AdapterFormat::Gguf);
    assert_eq!(
        (&through.modules, &through.base_fingerprint),
        (&first.modules, &first.base_fingerprint)
    );
    assert_eq!(Adapter::from_bytes(fs::read(&file).unwrap(), &SHAPE).unwrap(), through);
    through.save_peft(&folder, DType::F32, &SHAPE).unwrap();
    let back = Adapter::load(&folder, &SHAPE).unwrap();
    assert_eq!((&back.modules, &back.config), (&first.modules, &through.config));
    assert_eq!(files_in(dir.path()), ["lora.gguf", "peft"]);
}

#[test]
fn gguf_folds_what_one_alpha_can_not_say_into_b() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lora.gguf");
    let mut config = all();
    config.use_rslora = true;
    config.rank_pattern = vec![("q_proj".into(), 5)];
    config.alpha_pattern =
        vec![("down_proj".into(), 0.3), ("up_proj".into(), 0.0), ("lm_head".into(), -2.0)];
    let first = adapter(config, &SHAPE, 3);
    first.save_gguf(&file, DType::F32, &SHAPE).unwrap();
    let loaded = Adapter::load(&file, &SHAPE).unwrap();
    for (m, l) in first.modules.iter().zip(&loaded.modules) {
        assert_eq!((m.path, m.rank, &m.a), (l.path, l.rank, &l.a));
        for (&b, &folded) in m.b.iter().zip(&l.b) {
            let (exact, found) =
                (f64::from(b) * f64::from(m.scaling), f64::from(folded) * f64::from(l.scaling));
            // One rounding of B and one of the file's scaling, each of 2^-24.
            assert!(
                (exact - found).abs() <= 2.1 * exact.abs() * 2_f64.powi(-24),
                "{}: {exact} {found}",
                m.path
            );
        }
    }
}

#[test]
fn half_precision_rounds_once_and_never_overflows() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = (dir.path().join("peft"), dir.path().join("lora.gguf"));
    let mut saved = adapter(all(), &SHAPE, 4);
    saved.save_peft(&folder, DType::F16, &SHAPE).unwrap();
    saved.save_gguf(&file, DType::F16, &SHAPE).unwrap();
    for loaded in [Adapter::load(&folder, &SHAPE).unwrap(), Adapter::load(&file, &SHAPE).unwrap()] {
        for (m, l) in saved.modules.iter().zip(&loaded.modules) {
            assert!(m.a.iter().zip(&l.a).all(|(&v, &found)| f16::from_f32(v).to_f32() == found));
            assert!(m.b.iter().zip(&l.b).all(|(&v, &found)| f16::from_f32(v).to_f32() == found));
        }
    }
    let before =
        (fs::read(folder.join("adapter_model.safetensors")).unwrap(), fs::read(&file).unwrap());
    saved.modules[3].b[7] = 70_000.0;
    for result in
        [saved.save_peft(&folder, DType::F16, &SHAPE), saved.save_gguf(&file, DType::F16, &SHAPE)]
    {
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains("model.layers.0.self_attn.k_proj") && error.contains("save it as F32"),
            "{error}"
        );
    }
    let result = saved.save_peft(&folder, DType::BF16, &SHAPE);
    assert!(matches!(result, Err(Error::InvalidAdapter { .. })), "{result:?}");
    assert_eq!(
        before,
        (fs::read(folder.join("adapter_model.safetensors")).unwrap(), fs::read(&file).unwrap())
    );
    assert_eq!(files_in(dir.path()), ["lora.gguf", "peft"]);
}

#[test]
fn a_folder_is_replaced_only_if_it_is_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let one = adapter(all(), &SHAPE, 5);
    one.save_peft(dir.path(), DType::F32, &SHAPE).unwrap();
    fs::write(dir.path().join("README.md"), "mine").unwrap();
    let mut config = all();
    config.target_modules = names(&["v_proj"]);
    let two = adapter(config, &SHAPE, 6);
    two.save_peft(dir.path(), DType::F32, &SHAPE).unwrap();
    assert_eq!(Adapter::load(dir.path(), &SHAPE).unwrap().modules, two.modules);
    assert_eq!(
        files_in(dir.path()),
        ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    );

    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    two.save_peft(&other, DType::F32, &SHAPE).unwrap();
    for (name, text) in
        [("notes.txt", "x"), ("adapter_config.json", "{}"), ("adapter_config.json", "no json")]
    {
        let mine = dir.path().join("mine");
        fs::create_dir(&mine).unwrap();
        fs::write(mine.join(name), text).unwrap();
        let error = two.save_peft(&mine, DType::F32, &SHAPE).unwrap_err().to_string();
        assert!(error.contains("no adapter"), "{error}");
        assert_eq!(
            (files_in(&mine), fs::read_to_string(mine.join(name)).unwrap()),
            (vec![name.into()], text.into())
        );
        fs::remove_dir_all(&mine).unwrap();
    }
    let error =
        two.save_peft(dir.path().join("README.md"), DType::F32, &SHAPE).unwrap_err().to_string();
    assert!(error.contains("a file has that name"), "{error}");
}

#[test]
fn only_what_the_config_says_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let good = adapter(all(), &SHAPE, 7);
    let edits: [fn(&mut Adapter); 5] = [
        |a| a.modules[4].scaling = 9.0,
        |a| a.config.r = 4,
        |a| a.config.target_modules = names(&["q_proj"]),
        |a| a.modules[4].a[0] = f32::NAN,
        |a| a.modules[4].b.truncate(5),
    ];
    for edit in edits {
        let mut bad = good.clone();
        edit(&mut bad);
        for result in [
            bad.save_peft(dir.path(), DType::F32, &SHAPE),
            bad.save_gguf(dir.path().join("x"), DType::F32, &SHAPE),
        ] {
            assert!(matches!(result, Err(Error::InvalidAdapter { .. })), "{result:?}");
        }
    }
    assert!(files_in(dir.path()).is_empty());
    let twice = vec![good.modules[0].clone(), good.modules[0].clone()];
    assert!(Adapter::new(good.config, twice, None, &SHAPE).is_err());
}

#[test]
fn every_float_type_and_spelling_is_read() {
    let (a, b) =
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "q_proj.lora_B.weight");
    let values: Vec<f32> = (0..128).map(|i| i as f32 - 64.0).collect();
    let f64s = values.iter().flat_map(|&v| f64::from(v).to_le_bytes()).collect();
    let bf16 = values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
    let f16s = values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    for (dtype, bytes) in [
        (safetensors::Dtype::F64, f64s),
        (safetensors::Dtype::BF16, bf16),
        (safetensors::Dtype::F16, f16s),
    ] {
        let loaded = Files::new().tensor(a, dtype, &[2, 64], bytes).load().unwrap();
        assert_eq!(loaded.modules[0].a, values);
    }
    let plain = Files::new().load().unwrap();
    assert_eq!(
        (plain.modules.len(), plain.modules[1].scaling, plain.base_fingerprint),
        (2, 2.0, None)
    );
    for files in [
        Files::new().renamed("base_model.model.", ""),
        Files::new()
            .renamed("lora_A.weight", "lora_A.default.weight")
            .renamed(b, "q_proj.lora_B.default.weight"),
    ] {
        assert_eq!(files.load().unwrap().modules, plain.modules);
    }
    let embed = "base_model.model.model.embed_tokens.lora_embedding_";
    let files = Files::new().key("target_modules", serde_json::json!(["q_proj", "embed_tokens"]));
    let files = files
        .counting(&format!("{embed}A"), &[2, 291])
        .counting(&format!("{embed}B.default"), &[64, 2]);
    assert_eq!(files.load().unwrap().modules[0].path.to_string(), "model.embed_tokens");
}
