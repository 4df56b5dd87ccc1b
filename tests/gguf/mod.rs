//! GGUF files: what is read from valid ones, what is refused, and what random damage does.

mod config;
mod damage;
mod hostile;
mod real;
mod shards;

use epiphyte::format::gguf::{Array, Gguf, Value, hf_name};
use epiphyte::{DType, Error};

use crate::common::writer::{self, Meta, Writer, llama};

fn open(writer: &Writer) -> Gguf {
    Gguf::from_bytes(writer.bytes()).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

#[test]
fn values_are_read_as_their_type_or_refused() {
    let nested = writer::array(9, 2, [writer::array(0, 1, [7]), writer::array(0, 0, [])].concat());
    let gguf = open(
        &llama()
            .key("a.flag", Meta::Bool(true))
            .key("a.minus", Meta::Raw(5, (-3_i32).to_le_bytes().into()))
            .key("a.wide", Meta::Raw(10, u64::MAX.to_le_bytes().into()))
            .key("a.double", Meta::Raw(12, 0.5_f64.to_le_bytes().into()))
            .key("a.nested", Meta::Raw(9, nested)),
    );
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.architecture().unwrap(), "llama");
    assert_eq!(gguf.get::<u32>("llama.embedding_length").unwrap(), 64);
    assert_eq!(gguf.get::<f32>("llama.attention.layer_norm_rms_epsilon").unwrap(), 1e-5);
    assert!(gguf.get::<bool>("a.flag").unwrap());
    assert_eq!(gguf.get::<i32>("a.minus").unwrap(), -3);
    assert_eq!(gguf.get::<u64>("a.wide").unwrap(), u64::MAX);
    assert_eq!(gguf.get::<f32>("a.double").unwrap(), 0.5);
    assert_eq!(gguf.find::<u32>("a.missing").unwrap(), None);
    let tokens: Vec<&str> = gguf.get("tokenizer.ggml.tokens").unwrap();
    assert_eq!((tokens.len(), tokens[39]), (40, "t39"));
    assert_eq!(gguf.get::<Vec<i32>>("tokenizer.ggml.token_type").unwrap(), [1; 40]);
    let nested: Vec<Array<'_>> = gguf.get("a.nested").unwrap();
    assert_eq!(nested[0].iter().collect::<Vec<_>>(), [Value::Unsigned(7)]);
    assert!(nested[1].is_empty());
    assert_eq!(gguf.metadata().count(), 16);

    let message = |e: Error| e.to_string();
    let wide = gguf.get::<u32>("a.wide").map_err(message).unwrap_err();
    assert_eq!(
        wide,
        "metadata key `a.wide`: an unsigned 32-bit integer is needed, found 18446744073709551615"
    );
    let minus = gguf.get::<u32>("a.minus").map_err(message).unwrap_err();
    assert!(minus.contains("found -3"), "{minus}");
    let missing = gguf.get::<&str>("a.missing").map_err(message).unwrap_err();
    assert_eq!(missing, "metadata key `a.missing`: missing; text is needed");
    let mixed = gguf.get::<Vec<u32>>("tokenizer.ggml.tokens").map_err(message).unwrap_err();
    assert!(mixed.contains("found [40 x string]"), "{mixed}");
}

#[test]
fn damaged_notes_are_passed_over() {
    let not_utf8 = || writer::text(&[0xff, 0xfe]);
    let deep = (0..3).fold(writer::array(8, 1, not_utf8()), |inner, _| writer::array(9, 1, inner));
    let noted = llama()
        .key("general.name", Meta::Raw(8, not_utf8()))
        .key(
            "general.tags",
            Meta::Raw(9, writer::array(8, 2, [writer::text(b"ok"), not_utf8()].concat())),
        )
        .key("general.flag", Meta::Raw(7, vec![9]))
        .key("general.nested", Meta::Raw(9, deep))
        .key("quantize.imatrix.file", Meta::Raw(8, not_utf8()))
        .key("split.count", Meta::Text("one"))
        .key("split.no", Meta::F32(0.5))
        .key("split.tensors.count", Meta::U32(77))
        .key("tokenizer.chat_template", Meta::Raw(8, not_utf8()));
    let gguf = open(&noted);
    assert_eq!(gguf.tensors().count(), open(&llama()).tensors().count());
    assert_eq!(gguf.find::<&str>("general.name").unwrap(), None);
    // What the file can't do without, and lengths, are held to.
    let refused = |key: &str, kind, bytes| {
        Gguf::from_bytes(llama().key(key, Meta::Raw(kind, bytes)).bytes()).unwrap_err()
    };
    assert!(refused("general.architecture", 8, not_utf8()).to_string().contains("not UTF-8"));
    assert!(refused("general.alignment", 8, not_utf8()).to_string().contains("not UTF-8"));
    assert!(refused("general.name", 13, Vec::new()).to_string().contains("value type 13"));
    assert!(
        refused("general.name", 9, writer::array(7, usize::MAX / 2, [3]))
            .to_string()
            .contains("general.name")
    );
    assert!(
        refused("general.name", 8, u64::MAX.to_le_bytes().into())
            .to_string()
            .contains("bytes are needed")
    );
}

#[test]
fn version_2_is_read() {
    assert_eq!(open(&Writer { version: 2, ..llama() }).version(), 2);
}

#[test]
fn names_become_module_paths() {
    let gguf = open(
        &llama().counting("blk.0.attn_sinks.weight", &[2]).counting("rope_freqs.weight", &[16]),
    );
    let names: Vec<_> = gguf.tensors().map(|t| t.name.to_owned()).collect();
    assert_eq!(names[0], "model.embed_tokens.weight");
    assert!(names.contains(&"model.layers.0.post_attention_layernorm.weight".into()), "{names:?}");
    assert_eq!(gguf.ignored().collect::<Vec<_>>(), ["blk.0.attn_sinks.weight"]);
    assert!(gguf.tensor("token_embd.weight").is_none());
    let missing = gguf.require("lm_head.weight").unwrap_err();
    assert!(
        matches!(&missing, Error::MissingTensor { name } if name == "lm_head.weight"),
        "{missing}"
    );

    let layer = |module: &str, part| hf_name(&format!("blk.17.{module}.{part}"));
    assert_eq!(layer("attn_q", "bias").unwrap(), "model.layers.17.self_attn.q_proj.bias");
    assert_eq!(layer("attn_k_norm", "weight").unwrap(), "model.layers.17.self_attn.k_norm.weight");
    assert_eq!(hf_name("output.weight").unwrap(), "lm_head.weight");
    for unknown in [
        "blk.017.attn_q.weight",
        "blk.x.attn_q.weight",
        "blk.1.attn_q.scale",
        "blk.1.nope.weight",
        "v.x",
    ] {
        assert_eq!(hf_name(unknown), None, "{unknown}");
    }
}

#[test]
fn a_tensor_of_several_linears_is_told_apart_by_rows() {
    let gguf = Gguf::open(crate::common::golden("families/phi3.gguf")).unwrap();
    let layer = |module: &str| gguf.require(&format!("model.layers.1.{module}.weight")).unwrap();
    let qkv = [("self_attn.q_proj", 64), ("self_attn.k_proj", 32), ("self_attn.v_proj", 32)];
    let gate_up = [("mlp.gate_proj", 96), ("mlp.up_proj", 96)];
    for (joined, parts) in [("self_attn.qkv_proj", &qkv[..]), ("mlp.gate_up_proj", &gate_up[..])] {
        let (whole, mut row) = (layer(joined), 0);
        for &(part, rows) in parts {
            let part = layer(part);
            assert_eq!((part.shape, part.dtype), (&[rows, 64][..], whole.dtype));
            assert_eq!(part.bytes(), whole.rows(row, rows));
            row += rows;
        }
        assert_eq!(row, whole.n_rows());
    }
    let is_part = |name: &str| name.contains(".q_proj") || name.contains(".up_proj");
    assert!(gguf.tensors().all(|tensor| !is_part(tensor.name)));
    let odd = |heads: u32| {
        let writer = Writer::new()
            .key("general.architecture", Meta::Text("phi3"))
            .key("phi3.attention.head_count", Meta::U32(heads))
            .counting("blk.0.attn_qkv.weight", &[64, 100]);
        Gguf::from_bytes(writer.bytes())
    };
    for heads in [3, u32::MAX] {
        let error = odd(heads).unwrap_err().to_string();
        assert!(error.contains("attn_qkv") && error.contains("can't be split"), "{error}");
    }
    assert!(odd(20).is_err(), "20 heads of q, 20 of k and v: 60 do not divide 100 rows");
}

#[test]
fn shapes_are_row_major_and_rows_are_slices() {
    let gguf = open(&llama().tensor("x", &[64, 3], 2, (0..108).collect()));
    let x = gguf.require("x").unwrap();
    assert_eq!(
        (x.dtype, x.shape, x.n_rows(), x.row_bytes()),
        (DType::Q4_0, &[3_usize, 64][..], 3, 36)
    );
    assert_eq!(*x.rows(1, 2), (36..108).collect::<Vec<u8>>());
    assert!(x.rows(3, 0).is_empty());
    let norm = gguf.require("model.norm.weight").unwrap();
    assert_eq!((norm.n_rows(), norm.row_len(), norm.n_bytes()), (1, 64, 256));
    assert_eq!(floats(&norm.bytes())[63], 63.0);
}

/// What llama converters do to the rows of q and k: `[head, half, i]` becomes `[head, i, half]`.
fn interleave(n_heads: usize, head_dim: usize) -> Vec<usize> {
    let pair =
        |head: usize, i: usize| [0, 1].map(|half| head * head_dim + half * (head_dim / 2) + i);
    (0..n_heads).flat_map(|head| (0..head_dim / 2).flat_map(move |i| pair(head, i))).collect()
}

#[test]
fn rows_of_q_and_k_return_to_hugging_face_order() {
    // Each row, or weight of a bias, holds its Hugging Face index.
    let data = |order: &[usize], width| {
        order
            .iter()
            .flat_map(|&r| [(r as f32).to_le_bytes(); 64][..width].concat())
            .collect::<Vec<u8>>()
    };
    let (q, k) = (interleave(2, 32), interleave(1, 32));
    let writer = llama()
        .edit("blk.0.attn_q.weight", |t| t.data = data(&q, 64))
        .edit("blk.0.attn_k.weight", |t| t.data = data(&k, 64))
        .edit("blk.0.attn_v.weight", |t| t.data = data(&k, 64))
        .tensor("blk.0.attn_q.bias", &[64], 0, data(&q, 1))
        .tensor("blk.0.attn_k.bias", &[32], 0, data(&k, 1));
    let first = |gguf: &Gguf, module: &str| -> Vec<f32> {
        let tensor = gguf.require(&format!("model.layers.0.self_attn.{module}")).unwrap();
        let all: Vec<u8> = (0..tensor.n_rows())
            .step_by(4)
            .flat_map(|row| tensor.rows(row, 4.min(tensor.n_rows())).into_owned())
            .collect();
        assert_eq!(all, *tensor.bytes());
        floats(&all).into_iter().step_by(if tensor.shape.len() == 1 { 1 } else { 64 }).collect()
    };
    let up_to = |n: u16| (0..n).map(f32::from).collect::<Vec<_>>();
    let gguf = open(&writer);
    assert_eq!(first(&gguf, "q_proj.weight"), up_to(64));
    assert_eq!(first(&gguf, "k_proj.weight"), up_to(32));
    assert_eq!(first(&gguf, "q_proj.bias"), up_to(64));
    assert_eq!(first(&gguf, "k_proj.bias"), up_to(32));
    // v is never reordered, and other families are not at all.
    assert_ne!(first(&gguf, "v_proj.weight"), up_to(32));
    let other = open(&writer.key("general.architecture", Meta::Text("qwen2")));
    assert_ne!(first(&other, "q_proj.weight"), up_to(64));
}

#[test]
fn alignment_is_honoured() {
    let wide = Writer { alignment: 4096, ..llama() }.key("general.alignment", Meta::U32(4096));
    assert_eq!(floats(&open(&wide).require("model.norm.weight").unwrap().bytes())[5], 5.0);
}
