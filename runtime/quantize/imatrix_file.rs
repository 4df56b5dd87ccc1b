//! An importance matrix to a file, as `llama-imatrix` writes it.

use std::collections::BTreeSet;
use std::path::Path;

use super::Imatrix;
use super::imatrix::{COUNTS, SLOPE, SUMS};
use crate::base::ModulePath;
use crate::dtype::DType;
use crate::error::Result;
use crate::format::gguf::gguf_name;
use crate::format::gguf_writer::{ALIGNMENT, GgufWriter};
use crate::format::staged::Staged;

/// What one matrix of a new file gets.
pub(crate) struct ImatrixEntry<'a> {
    pub(crate) module: ModulePath,
    /// Of the squares of each column.
    pub(crate) sums: &'a [f64],
    /// The mean square of its weights' gradients, where it was measured.
    pub(crate) slope: Option<f64>,
}

/// What a new file was made of.
pub(crate) struct ImatrixText<'a> {
    pub(crate) dataset: &'a str,
    pub(crate) window: usize,
    pub(crate) chunks: usize,
    pub(crate) tokens: u64,
}

impl Imatrix {
    /// Writes a file as `llama-imatrix` does, of a model of this architecture.
    pub(crate) fn write(
        path: &Path,
        architecture: &str,
        entries: &[ImatrixEntry<'_>],
        text: &ImatrixText<'_>,
    ) -> Result<()> {
        let (mut writer, mut data) = (GgufWriter::new(ALIGNMENT), Vec::new());
        writer.text("general.type", "imatrix").texts("imatrix.datasets", &[text.dataset.into()]);
        writer.u32("imatrix.chunk_count", text.chunks as u32);
        writer.u32("imatrix.chunk_size", text.window as u32);
        let mut written = BTreeSet::new();
        for ImatrixEntry { module, sums, slope } in entries {
            let hf = format!("{module}.weight");
            let name = gguf_name(architecture, &hf).unwrap_or(hf);
            // Linears of one tensor have one input; the first one's slope stands for all.
            if !written.insert(name.clone()) {
                continue;
            }
            let sums: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
            let slope = slope.map(|slope| vec![slope as f32]);
            let tokens = vec![text.tokens as f32];
            let parts = [(SUMS, Some(sums)), (COUNTS, Some(tokens)), (SLOPE, slope)];
            for (end, values) in parts.into_iter().filter_map(|(end, v)| Some((end, v?))) {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let (name, n) = (format!("{name}{end}"), bytes.len() as u64);
                let padding = writer.tensor(&name, &[1, values.len()], DType::F32, n);
                data.extend(bytes.into_iter().chain(padding));
            }
        }
        let mut staged = Staged::write(path, &writer.head())?;
        staged.append(&data)?;
        staged.commit()
    }
}
