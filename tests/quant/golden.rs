//! Random blocks and their values by another implementation, see `tests/golden/quant.py`.

use epiphyte::DType;
#[cfg(feature = "gpu")]
use epiphyte::gpu::KernelSpec;
use epiphyte::quant::format;
use safetensors::SafeTensors;

const FILE: &[u8] = include_bytes!("../golden/quant.safetensors");

/// Blocks and values.
pub(super) fn load(dtype: DType) -> (Vec<u8>, Vec<f32>) {
    let file = SafeTensors::deserialize(FILE).unwrap();
    let tensor =
        |key: &str| file.tensor(&format!("{}.{key}", dtype.name())).unwrap().data().to_vec();
    let values =
        tensor("values").as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (tensor("blocks"), values)
}

#[test]
fn every_format_dequantizes_bit_for_bit() {
    for dtype in DType::ALL {
        let (blocks, expected) = load(dtype);
        assert_eq!(dtype.bytes(expected.len()), Some(blocks.len()), "{dtype:?}");
        let mut values = vec![f32::NAN; expected.len()];
        format(dtype).dequantize(&blocks, &mut values);
        for (i, (value, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "{dtype:?} weight {i}: {value} is not {expected}"
            );
        }
    }
}

#[test]
fn every_type_finds_its_own_format() {
    for dtype in DType::ALL {
        assert_eq!(format(dtype).dtype(), dtype);
        let name = dtype.name().to_lowercase();
        assert_eq!(format(dtype).wgsl(), format!("quant/{name}"));
    }
}

#[cfg(feature = "gpu")]
#[test]
fn every_shader_is_headed_by_its_format() {
    for dtype in DType::ALL {
        let spec = KernelSpec { name: format(dtype).wgsl(), ..Default::default() };
        let header = format!("// {}: ", dtype.name().to_lowercase());
        assert!(
            spec.text(false).unwrap().starts_with(&header),
            "{dtype:?}'s shader does not start with {header:?}"
        );
    }
}
