//! Damage and malice in delta files: typed errors, no panic, no memory beyond the file's own size.

use epiphyte::federated::{Delta, DeltaOptions, Factors, Published, Quantisation, Signer, make};

use super::{RANK, delta, key, parent, plan, trained};
use crate::common::{Random, ends};

/// Writes a delta again with other contents, signed anew: what a liar with a good key can do.
fn forged(
    bytes: &[u8],
    client: u8,
    change: impl FnOnce(&mut serde_json::Value, &mut Vec<u8>),
) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut data = bytes[8 + length..].to_vec();
    let text = header["__metadata__"]["epiphyte.manifest"].as_str().unwrap().to_string();
    let mut manifest = serde_json::from_str(&text).unwrap();
    change(&mut manifest, &mut data);
    header["__metadata__"]["epiphyte.manifest"] = manifest.to_string().into();
    let name = super::python::name(&header, &data);
    let signature = key(client).sign(name.as_bytes()).unwrap();
    let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    header["__metadata__"]["epiphyte.signature"] = hex.into();
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

pub(super) fn with_nan(parent: &Published, client: u8) -> Vec<u8> {
    let good = delta(parent, client, RANK, 0.05);
    forged(&good, client, |_, data| data[..4].copy_from_slice(&f32::NAN.to_le_bytes()))
}

fn refused(bytes: Vec<u8>) -> String {
    Delta::from_bytes(bytes).unwrap_err().to_string()
}

#[test]
fn lies_in_a_signed_manifest_are_refused() {
    let parent = parent(plan(Factors::Both));
    let good = delta(&parent, 3, RANK, 0.05);
    Delta::from_bytes(forged(&good, 3, |_, _| ())).unwrap();
    let mut unknown = forged(&good, 3, |m, _| m["colour"] = "red".into());
    assert_eq!(Delta::from_bytes(unknown.clone()).unwrap().manifest.others["colour"], "red");
    unknown = forged(&good, 3, |m, _| {
        m["colour"] = "red".into();
        m["critical"] = vec!["colour"].into();
    });
    assert!(refused(unknown).contains("colour"));
    let lies: [(&str, &str, serde_json::Value); 16] = [
        ("rank", "rank", 0.into()),
        ("rank", "rank", 1_000_000_000_000_u64.into()),
        ("rank", "type or shape", 5.into()),
        ("examples", "power of two", 100.into()),
        ("examples", "damaged", (-1).into()),
        ("factors", "no factor", "A".into()),
        ("factors", "damaged", "C".into()),
        ("shapes", "no factor", serde_json::json!({})),
        ("shapes", "widths", serde_json::json!({"q_proj": [0, 32], "v_proj": [16, 32]})),
        ("shapes", "widths", serde_json::json!({"q_proj": [u64::MAX, 32], "v_proj": [16, 32]})),
        ("quantisation", "damaged", serde_json::json!({"kind": "zip"})),
        ("quantisation", "type or shape", serde_json::json!({"kind": "int8"})),
        ("quantisation", "fraction", serde_json::json!({"kind": "top_k", "fraction": 0.0})),
        ("noise", "mechanism", serde_json::json!({"mechanism": "hope", "sigma": 1.0})),
        ("signer", "damaged", "ed25519:00".into()),
        ("adapter", "plain text", "\u{1b}[2J".into()),
    ];
    for (field, says, value) in lies {
        let e = refused(forged(&good, 3, |manifest, _| manifest[field] = value.clone()));
        assert!(e.contains(says), "{field} {value}: {e}");
    }
    let signer = key(4).public_key().to_string();
    let e = refused(forged(&good, 3, |manifest, _| manifest["signer"] = signer.into()));
    assert!(e.contains("signature"), "another's name under it: {e}");
}

#[test]
fn a_small_file_can_not_ask_for_much_memory() {
    let parent = parent(plan(Factors::B));
    let options = DeltaOptions {
        quantisation: Some(Quantisation::TopK { fraction: 0.01 }),
        ..DeltaOptions::default()
    };
    let trained = trained(&parent, 3, RANK, 0.05);
    let bytes = make(&parent, &trained, &options, None, &key(3)).unwrap();
    let wide = forged(&bytes, 3, |manifest, _| {
        manifest["shapes"] = serde_json::json!({"q_proj": [1 << 28, 32], "v_proj": [16, 32]});
    });
    // It is a delta of a huge base, for all anyone can tell; reading it takes no more than it has.
    let read = ends("a huge base", || Delta::from_bytes(wide)).unwrap();
    assert_eq!(read.n_numbers(), (1 << 28) * RANK + 16 * RANK);
}

#[test]
fn every_cut_and_thousands_of_flips_are_refused_or_harmless() {
    let parent = parent(plan(Factors::B));
    let trained = trained(&parent, 3, RANK, 0.05);
    let mut random = Random::new(5);
    for quantisation in [
        Quantisation::F32,
        Quantisation::Int8,
        Quantisation::Ternary,
        Quantisation::TopK { fraction: 0.1 },
    ] {
        let options = DeltaOptions { quantisation: Some(quantisation), ..DeltaOptions::default() };
        let bytes = make(&parent, &trained, &options, None, &key(2)).unwrap();
        for len in (0..bytes.len()).step_by(7) {
            assert!(Delta::from_bytes(bytes[..len].to_vec()).is_err(), "{len}");
        }
        for _ in 0..1000 {
            let mut damaged = bytes.clone();
            let at = random.below(bytes.len() as u32) as usize;
            damaged[at] ^= 1 << random.below(8);
            // Padding of the header is all that is not signed.
            if let Ok(delta) = Delta::from_bytes(damaged) {
                assert_eq!(delta.name(), Delta::from_bytes(bytes.clone()).unwrap().name());
            }
        }
    }
}

#[test]
fn codes_and_indices_that_are_none_are_refused() {
    let parent = parent(plan(Factors::B));
    let trained = trained(&parent, 3, RANK, 0.05);
    for quantisation in [Quantisation::Ternary, Quantisation::TopK { fraction: 0.1 }] {
        let options = DeltaOptions { quantisation: Some(quantisation), ..DeltaOptions::default() };
        let bytes = make(&parent, &trained, &options, None, &key(2)).unwrap();
        // Code 3, or an index past the end, wherever one lies.
        let e = refused(forged(&bytes, 2, |_, data| data.iter_mut().for_each(|byte| *byte = 0x7f)));
        assert!(e.contains("codes or indices") || e.contains("scales"), "{e}");
    }
}
