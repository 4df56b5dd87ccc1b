//! Random damage to a valid file: never a panic, never a long wait.

use std::sync::LazyLock;

use epiphyte::base::ModelConfig;
use epiphyte::format::gguf::Gguf;
use proptest::prelude::*;

use crate::common::ends;
use crate::common::writer::{Meta, array, llama};

/// A valid file and the length of its header: damage is aimed there, since damaged weights are
/// still weights.
static VALID: LazyLock<(Vec<u8>, usize)> = LazyLock::new(|| {
    let writer = llama()
        .key("x", Meta::Raw(9, array(9, 1, array(8, 0, []))))
        .key("llama.rope.scaling.type", Meta::Text("none"))
        .counting("rope_freqs.weight", &[16]);
    let (bytes, data) =
        (writer.bytes(), writer.tensors.iter().map(|t| t.data.len()).sum::<usize>());
    let header = bytes.len() - data;
    (bytes, header)
});

/// Reads all there is to read.
fn visit(bytes: Vec<u8>) {
    let Ok(gguf) = Gguf::from_bytes(bytes) else { return };
    for (key, value) in gguf.metadata() {
        assert!(!value.to_string().is_empty() || gguf.get::<&str>(key).is_ok());
        drop((gguf.find::<Vec<&str>>(key), gguf.find::<Vec<i32>>(key)));
    }
    for tensor in gguf.tensors() {
        assert_eq!(tensor.bytes().len(), tensor.n_bytes());
        assert_eq!(tensor.rows(tensor.n_rows() - 1, 1).len(), tensor.row_bytes());
    }
    if let Ok(config) = ModelConfig::from_gguf(&gguf) {
        assert_eq!(config.rope_frequencies(0).len(), config.head_dim / 2);
        drop(config.check_tensors(&gguf));
    }
}

/// Values that lengths, counts and offsets break on.
fn number() -> impl Strategy<Value = u64> {
    let edges = prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        Just(1 << 32),
        Just(u64::from(u32::MAX)),
        Just(i64::MAX as u64)
    ];
    prop_oneof![edges, 0_u64..300, any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn never_panics_or_lingers(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        words in prop::collection::vec((any::<prop::sample::Index>(), 1..=8_usize, number()), 0..3),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let (mut bytes, header) = VALID.clone();
        for (at, byte) in flips {
            bytes[at.index(header)] = byte;
        }
        for (at, len, value) in words {
            let at = at.index(header);
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        ends("a damaged file", || visit(bytes));
    }
}
