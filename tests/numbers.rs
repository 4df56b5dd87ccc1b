//! Number formats: bit by bit against `ml_dtypes` (`tests/golden/number_formats.py`), and the
//! table of one number in all of them.

use epiphyte::numbers::NumberFormat;
use serde_json::Value;

use crate::common::golden;

fn format(name: &str) -> NumberFormat {
    NumberFormat::ALL.into_iter().find(|format| format.name() == name).unwrap()
}

#[test]
fn bits_are_those_of_ml_dtypes() {
    let text = std::fs::read(golden("number_formats.json")).unwrap();
    let formats: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(formats.as_object().unwrap().len(), 6);
    for (name, cases) in formats.as_object().unwrap() {
        assert!(cases.as_array().unwrap().len() > 60, "{name}");
        for case in cases.as_array().unwrap() {
            let given = case[0].as_f64().unwrap();
            let stored = &format(name).store(&[given])[0];
            let code = u64::from_str_radix(&stored.bits.replace(' ', ""), 2).unwrap();
            assert_eq!(Some(code), case[1].as_u64(), "{name} {given}: {stored:?}");
            // Decimals are read to the last bit or two.
            let value = case[2].as_f64().unwrap();
            assert!((stored.value - value).abs() <= 1e-15 * value.abs(), "{name} {given}");
        }
    }
}

/// 1234.56789 in every format, digit by digit; whole numbers and levels beside a 2000.
#[test]
fn one_number_in_every_format() {
    let table = [
        ("FP32", "0 10001001 00110100101001000101100", 1_234.567_871_093_75),
        ("TF32", "0 10001001 0011010011", 1235.0),
        ("BF16", "0 10001001 0011010", 1232.0),
        ("FP16", "0 11001 0011010011", 1235.0),
        ("FP8 E4M3", "0 1111 110", 448.0),
        ("FP8 E5M2", "0 11001 01", 1280.0),
        ("FP4 E2M1", "0 11 1", 6.0),
        ("INT8", "01001110", 78.0 * 2000.0 / 127.0),
        ("INT4", "0100", 4.0 * 2000.0 / 7.0),
        ("NF4", "1101", 0.562_617 * 2000.0),
    ];
    for (name, bits, value) in table {
        let stored = &format(name).store(&[1234.56789, -2000.0])[0];
        assert_eq!(stored.bits, bits, "{name}");
        assert!((stored.value - value).abs() < 2e-4, "{name}: {}", stored.value);
    }
}

#[test]
fn what_has_no_number_and_what_is_too_large() {
    for (name, value, expected) in [
        ("FP16", 65520.0, f64::INFINITY),
        ("BF16", -3.4e38, f64::NEG_INFINITY),
        ("FP32", 1e39, f64::INFINITY),
        ("FP8 E4M3", 500.0, 448.0),
        ("FP8 E5M2", f64::NEG_INFINITY, -57344.0),
        ("FP4 E2M1", -1e300, -6.0),
        ("FP32", 0.0, 0.0),
        ("FP16", f64::MIN_POSITIVE, 0.0),
        ("NF4", 0.0, 0.0),
        ("INT8", 0.0, 0.0),
    ] {
        assert_eq!(format(name).store(&[value])[0].value, expected, "{name} {value}");
    }
    for format in NumberFormat::ALL {
        for value in [f64::NAN, f64::INFINITY, f64::MAX, f64::from_bits(1), -0.0] {
            assert_eq!(format.store(&[value, 1.0]).len(), 2);
        }
    }
    assert!(format("FP16").store(&[f64::NAN])[0].value.is_nan());
    let bits = |name| format(name).n_bits_with_scale();
    assert_eq!([bits("FP32"), bits("BF16"), bits("NF4"), bits("INT8")], [32.0, 16.0, 4.5, 8.5]);
}

/// Every level of NF4 is its own nearest, and what lies between goes to the nearer.
#[test]
fn nf4_levels_stay() {
    let stored = format("NF4").store(&[1.0, 0.0, -1.0, 0.08, 0.04, 0.9]);
    let found: Vec<_> = stored.iter().map(|stored| stored.bits.as_str()).collect();
    assert_eq!(found, ["1111", "0111", "0000", "1000", "1000", "1111"]);
}
