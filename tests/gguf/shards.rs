//! Models in several files.

use std::path::{Path, PathBuf};

use epiphyte::Error;
use epiphyte::format::gguf::Gguf;

use crate::common::writer::{Meta, Writer, llama};

/// Splits the small llama into three files in `dir`; `change` may spoil one of them.
fn split(dir: &Path, change: impl Fn(usize, Writer) -> Writer) -> PathBuf {
    let whole = llama();
    let total = whole.tensors.len();
    for (no, tensors) in whole.tensors.chunks(total.div_ceil(3)).enumerate() {
        let keys = if no == 0 { whole.keys.clone() } else { Vec::new() };
        let shard = Writer { keys, tensors: tensors.to_vec(), ..Writer::new() }
            .key("split.no", Meta::Raw(2, (no as u16).to_le_bytes().into()))
            .key("split.count", Meta::Raw(2, 3_u16.to_le_bytes().into()))
            .key("split.tensors.count", Meta::Raw(5, (total as i32).to_le_bytes().into()));
        std::fs::write(path(dir, no), change(no, shard).bytes()).unwrap();
    }
    path(dir, 0)
}

fn path(dir: &Path, no: usize) -> PathBuf {
    dir.join(format!("tiny-{:05}-of-00003.gguf", no + 1))
}

fn refused(change: impl Fn(usize, Writer) -> Writer) -> String {
    let dir = tempfile::tempdir().unwrap();
    Gguf::open(split(dir.path(), change)).unwrap_err().to_string()
}

#[test]
fn the_first_opens_all() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = Gguf::open(split(dir.path(), |_, shard| shard)).unwrap();
    let whole = Gguf::from_bytes(llama().bytes()).unwrap();
    assert_eq!(gguf.tensors().len(), whole.tensors().len());
    for (a, b) in gguf.tensors().zip(whole.tensors()) {
        assert_eq!((a.name, a.shape, a.bytes()), (b.name, b.shape, b.bytes()));
    }
    assert_eq!(
        gguf.n_bytes(),
        (0..3).map(|no| std::fs::metadata(path(dir.path(), no)).unwrap().len()).sum::<u64>()
    );
}

#[test]
fn another_than_the_first_says_so() {
    let dir = tempfile::tempdir().unwrap();
    split(dir.path(), |_, shard| shard);
    let error = Gguf::open(path(dir.path(), 1)).unwrap_err().to_string();
    assert!(error.contains("shard 2 of 3; open the first"), "{error}");
}

#[test]
fn a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = split(dir.path(), |_, shard| shard);
    std::fs::remove_file(path(dir.path(), 2)).unwrap();
    let error = Gguf::open(first).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidFile { path, .. } if path.ends_with("tiny-00003-of-00003.gguf")),
        "{error}"
    );
    assert!(error.to_string().contains("shard 3 of 3 is missing"), "{error}");
}

#[test]
fn a_first_one_under_another_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let renamed = dir.path().join("model.gguf");
    std::fs::rename(split(dir.path(), |_, shard| shard), &renamed).unwrap();
    let error = Gguf::open(renamed).unwrap_err().to_string();
    assert!(error.contains("must be named like model-00001-of-00003.gguf"), "{error}");
}

#[test]
fn one_that_belongs_elsewhere_is_refused() {
    let no = refused(|no, shard| if no == 1 { shard.key("split.no", Meta::U32(2)) } else { shard });
    assert!(no.contains("it says it is shard 3 of 3, but is named 2 of 3"), "{no}");
    let count =
        refused(|no, shard| if no == 1 { shard.key("split.count", Meta::U32(4)) } else { shard });
    assert!(count.contains("shard 2 of 4, but is named 2 of 3"), "{count}");
    let total =
        refused(
            |no, shard| {
                if no == 0 { shard.key("split.tensors.count", Meta::U32(99)) } else { shard }
            },
        );
    assert!(total.contains("99, but the shards hold 11"), "{total}");
}

#[test]
fn a_tensor_in_two_is_refused() {
    let twice = |no, shard: Writer| match no {
        2 => shard.edit("blk.0.ffn_up.weight", |t| t.name = "token_embd.weight".into()),
        _ => shard,
    };
    let error = refused(twice);
    assert!(error.contains("tensor `token_embd.weight`: given twice"), "{error}");
}
