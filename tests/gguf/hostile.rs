//! One test an error: each refusal names the thing, and is of the right variant.

use epiphyte::Error;
use epiphyte::format::gguf::Gguf;

use crate::common::writer::{Meta, Writer, array, llama, text};

/// A test a line: a file, the variant it must be refused with, and words of the message.
macro_rules! refused {
    ($($test:ident: $bytes:expr => $variant:ident, $words:literal;)+) => {$(
        #[test]
        fn $test() {
            let error = Gguf::from_bytes($bytes).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::$variant { .. }), "{error:?}");
            assert!(message.contains($words), "{message}");
        }
    )+};
}

const NORM: &str = "output_norm.weight";

fn raw(kind: u32, bytes: Vec<u8>) -> Vec<u8> {
    llama().key("x.y", Meta::Raw(kind, bytes)).bytes()
}

fn norm(dims: &[u64]) -> Vec<u8> {
    llama().edit(NORM, |t| t.dims = dims.into()).bytes()
}

fn norm_at(offset: u64) -> Vec<u8> {
    llama().edit(NORM, |t| t.offset = Some(offset)).bytes()
}

fn nested(depth: usize) -> Vec<u8> {
    (0..depth).fold(array(0, 0, []), |inner, _| array(9, 1, inner))
}

refused! {
    nothing: Vec::new() => InvalidFile, "cut short";
    wrong_magic: Writer { magic: *b"GGML", ..llama() }.bytes() => InvalidFile, "does not begin \
        with `GGUF`";
    version_1: Writer { version: 1, ..llama() }.bytes() => Unsupported, "GGUF version 1";
    version_4: Writer { version: 4, ..llama() }.bytes() => Unsupported, "GGUF version 4";
    version_0: Writer { version: 0, ..llama() }.bytes() => Unsupported, "GGUF version 0";
    big_endian: Writer { version: 3_u32.swap_bytes(), ..llama() }.bytes() => Unsupported, "big-endian";
    tensor_count_too_large: Writer { n_tensors: Some(1 << 40), ..llama() }.bytes() => InvalidFile, "tensors don't fit";
    tensor_count_overflows: Writer { n_tensors: Some(u64::MAX), ..llama() }.bytes() => InvalidFile, "tensors don't fit";
    key_count_too_large: Writer { n_keys: Some(1 << 40), ..llama() }.bytes() => InvalidFile, "keys don't fit";
    key_count_overflows: Writer { n_keys: Some(u64::MAX), ..llama() }.bytes() => InvalidFile, "keys don't fit";
    key_empty: llama().key("", Meta::U32(1)).bytes() => InvalidFile, "has 0 bytes";
    key_too_long: llama().key(&"k".repeat(65_536), Meta::U32(1)).bytes() => InvalidFile, "has 65536 bytes";
    key_twice: { let mut w = llama(); w.keys.push(w.keys[1].clone()); w.bytes() } => InvalidMetadata, "embedding_length`: given twice";
    type_unknown: raw(13, vec![0; 8]) => InvalidMetadata, "`x.y`: value type 13";
    bool_neither: raw(7, vec![2]) => InvalidMetadata, "`x.y`: 2 is neither true";
    text_too_long: raw(8, u64::MAX.to_le_bytes().into()) => InvalidMetadata, "`x.y`: 18446744073709551615 bytes";
    text_not_utf8: raw(8, text(&[0xff])) => InvalidMetadata, "not UTF-8";
    token_not_utf8: raw(9, array(8, 2, [text(b"ok"), text(&[0xc3])].concat())) => InvalidMetadata, "not UTF-8";
    array_too_long: raw(9, array(4, 1 << 40, [])) => InvalidMetadata, "an array of 1099511627776";
    array_overflows: raw(9, array(12, usize::MAX, [])) => InvalidMetadata, "longer than the rest";
    array_type_unknown: raw(9, array(99, 0, [])) => InvalidMetadata, "value type 99";
    array_too_deep: raw(9, nested(4)) => InvalidMetadata, "more than 4 deep";
    array_far_too_deep: raw(9, nested(1000)) => InvalidMetadata, "more than 4 deep";
    alignment_zero: llama().key("general.alignment", Meta::U32(0)).bytes() => InvalidMetadata, "power of two";
    alignment_odd: llama().key("general.alignment", Meta::U32(48)).bytes() => InvalidMetadata, "power of two";
    alignment_text: llama().key("general.alignment", Meta::Text("32")).bytes() => InvalidMetadata, "power of two";
    alignment_past_the_end: llama().key("general.alignment", Meta::U32(1 << 31)).bytes() => InvalidTensor, "past the end";
    tensor_name_empty: llama().counting("", &[1]).bytes() => InvalidFile, "has 0 bytes";
    tensor_name_too_long: llama().counting(&"n".repeat(65), &[1]).bytes() => InvalidFile, "has 65 bytes";
    tensor_name_not_utf8: llama().edit(NORM, |t| t.name = vec![0xff]).bytes() => InvalidFile, "not UTF-8";
    tensor_twice: llama().counting(NORM, &[1]).bytes() => InvalidTensor, "`output_norm.weight`: \
        given twice";
    tensor_twice_by_module_path: llama().counting("model.norm.weight", &[1]).bytes() => InvalidTensor, "given twice";
    tensor_type_unknown: llama().edit(NORM, |t| t.ggml_type = 99).bytes() => Unsupported, "tensor `output_norm.weight`: ggml tensor type 99";
    no_axes: norm(&[]) => InvalidFile, "has 0 axes";
    five_axes: norm(&[1; 5]) => InvalidFile, "has 5 axes";
    axes_beyond_counting: { let mut b = norm(&[1]); let at = find(&b, NORM.as_bytes()) + NORM.len(); b[at..at + 4].fill(255); b } => InvalidFile, "has 4294967295 axes";
    axis_zero: norm(&[64, 0]) => InvalidTensor, "empty or too large";
    shape_overflows: norm(&[1 << 32, 1 << 32]) => InvalidTensor, "too large";
    bytes_overflow: norm(&[1 << 62]) => InvalidTensor, "too large";
    rows_not_whole_blocks: llama().edit(NORM, |t| (t.dims, t.ggml_type) = (vec![16, 2], 2)).bytes() => InvalidTensor, "not whole Q4_0 blocks of 32";
    offset_not_aligned: norm_at(8) => InvalidTensor, "not a multiple of the alignment 32";
    offset_past_the_end: norm_at(1 << 40) => InvalidTensor, "past the end";
    offset_overflows: norm_at(u64::MAX - 31) => InvalidTensor, "past the end";
    data_cut_short: { let mut b = llama().bytes(); b.pop(); b } => InvalidTensor, "`blk.0.ffn_down.weight`";
    tensors_overlap: norm_at(64) => InvalidTensor, "overlaps tensor `token_embd.weight`";
    heads_missing: llama().without("llama.attention.head_count").bytes() => InvalidMetadata, "head_count`: missing";
    heads_do_not_divide: llama().key("llama.attention.head_count", Meta::U32(3)).bytes() => InvalidTensor, "`blk.0.attn_q.weight`: 64 rows";
    heads_zero: llama().key("llama.attention.head_count_kv", Meta::U32(0)).bytes() => InvalidTensor, "`blk.0.attn_k.weight`: 32 rows";
    heads_of_odd_size: llama().key("llama.attention.head_count", Meta::U32(64)).bytes() => InvalidTensor, "even size";
    bias_in_blocks: llama().tensor("blk.0.attn_q.bias", &[64], 8, vec![0; 68]).bytes() => InvalidTensor, "`blk.0.attn_q.bias`";
    one_shard_of_several: llama().key("split.count", Meta::U32(3)).bytes() => InvalidFile, "one of 3 shards";
}

fn find(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).unwrap()
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = llama().bytes();
    let header = bytes.len() - llama().tensors.iter().map(|t| t.data.len()).sum::<usize>();
    for len in (0..header).chain((header..bytes.len()).step_by(997)) {
        assert!(Gguf::from_bytes(bytes[..len].to_vec()).is_err(), "{len} of {}", bytes.len());
    }
}

#[test]
fn files_that_cannot_be_mapped_name_their_path() {
    let dir = tempfile::tempdir().unwrap();
    let missing = Gguf::open(dir.path().join("absent.gguf")).unwrap_err();
    assert!(
        matches!(&missing, Error::Io { path, .. } if path.ends_with("absent.gguf")),
        "{missing}"
    );
    let folder = Gguf::open(dir.path()).unwrap_err();
    assert!(
        matches!(&folder, Error::InvalidFile { reason, .. } if reason.contains("regular file")),
        "{folder}"
    );
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, []).unwrap();
    assert!(matches!(Gguf::open(&empty).unwrap_err(), Error::InvalidFile { .. }));
}
