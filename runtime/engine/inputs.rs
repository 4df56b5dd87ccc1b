//! What goes into the linears while a text goes through the model: the squares of each column, for
//! an importance matrix.

use std::sync::Arc;

use crate::base::layout::SiteKind;
use crate::base::{BaseShape, ModulePath};
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::gpu::Tensor;

use super::executor::Chunk;
use super::pass::{How, Prefilled};
use super::{Engine, Session};

/// Bytes of inputs that are read back at once, about.
const READ: usize = 64 << 20;

/// Where a pass leaves the inputs of all groups: f32, by layer and group.
pub(crate) struct Inputs {
    pub(crate) readback: Tensor,
    widths: [usize; 4],
    /// Of a pass, at most.
    rows: usize,
}

impl Inputs {
    fn new(engine: &Engine, rows: usize) -> Result<Self> {
        let shape = engine.base.adapter_shape();
        let widths = widths(&shape);
        let row: usize = shape.num_hidden_layers * widths.iter().sum::<usize>() * 4;
        let rows = rows.min((READ / row).max(1));
        let readback = engine.gpu().readback("inputs", (rows * row) as u64)?;
        Ok(Self { readback, widths, rows })
    }

    /// First byte, and bytes, of `rows` rows.
    pub(crate) fn place(&self, layer: usize, site: SiteKind, rows: u32) -> (u64, u64) {
        let group = site as usize;
        let before: usize = self.widths[..group].iter().sum();
        let all: usize = self.widths.iter().sum();
        let at = self.rows * (layer * all + before) * 4;
        (at as u64, u64::from(rows) * self.widths[group] as u64 * 4)
    }
}

/// Columns of what goes into each group of a layer.
fn widths(shape: &BaseShape) -> [usize; 4] {
    SiteKind::IN_LAYER.map(|site| shape.shape(site.targets()[0])[1])
}

/// Sums of squares of each column of every layer's inputs.
pub(crate) struct Squares {
    /// By layer and group.
    sums: Vec<[Vec<f64>; 4]>,
    /// Tokens.
    pub(crate) tokens: u64,
}

impl Squares {
    pub(crate) fn new(shape: &BaseShape) -> Self {
        let layer = || widths(shape).map(|width| vec![0.0; width]);
        let sums = std::iter::repeat_with(layer).take(shape.num_hidden_layers).collect();
        Self { sums, tokens: 0 }
    }

    /// Of every linear of the layers.
    pub(crate) fn by_module(&self) -> impl Iterator<Item = (ModulePath, &[f64])> {
        self.sums.iter().enumerate().flat_map(|(layer, groups)| {
            SiteKind::IN_LAYER.into_iter().zip(groups).flat_map(move |(site, sums)| {
                let paths = site.targets().iter().map(move |&t| ModulePath::in_layer(layer, t));
                paths.map(move |path| (path, sums.as_slice()))
            })
        })
    }

    /// Those of a text more.
    pub(crate) fn append(&mut self, other: &Self) {
        let ours = self.sums.iter_mut().flatten().flatten();
        ours.zip(other.sums.iter().flatten().flatten()).for_each(|(a, b)| *a += b);
        self.tokens += other.tokens;
    }

    fn add(&mut self, inputs: &Inputs, rows: usize, values: &[f32]) {
        for (layer, groups) in self.sums.iter_mut().enumerate() {
            for (site, sums) in SiteKind::IN_LAYER.into_iter().zip(groups) {
                let (at, bytes) = inputs.place(layer, site, rows as u32);
                let values = &values[at as usize / 4..][..bytes as usize / 4];
                for row in values.chunks_exact(sums.len()) {
                    let squares = row.iter().map(|x| f64::from(*x) * f64::from(*x));
                    sums.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
                }
            }
        }
        self.tokens += rows as u64;
    }
}

impl Session {
    /// Computes all its tokens anew, and gives the squares of what went into the linears.
    ///
    /// Errors: as [`Session::prefill`].
    pub(crate) fn input_squares(&mut self, cancel: &CancelToken) -> Result<Squares> {
        let engine = Arc::clone(&self.engine);
        let mut kept = None;
        loop {
            let mut squares = Squares::new(&engine.base.adapter_shape());
            let prefilled = engine.surviving(|| {
                squares = Squares::new(&engine.base.adapter_shape());
                self.add_squares(&mut squares, cancel)
            });
            if prefilled? == Prefilled::Whole {
                return Ok(squares);
            }
            // What had to make room is not taken a second time.
            kept.get_or_insert_with(|| engine.recoveries.enter_first());
        }
    }

    fn add_squares(&mut self, squares: &mut Squares, cancel: &CancelToken) -> Result<Prefilled> {
        let engine = Arc::clone(&self.engine);
        self.drop_kv();
        drop(engine.executor_with(self.set)?);
        let end = self.tokens.len();
        self.reserve(end)?;
        let inputs = Inputs::new(&engine, end)?;
        let all = (inputs.readback.bytes() / 4) as usize;
        let tokens = std::mem::take(&mut self.tokens);
        let mut done = Ok(Prefilled::Whole);
        for (tokens, position) in tokens.chunks(inputs.rows).zip((0..).step_by(inputs.rows)) {
            let (set, how) = (self.set, Some(How::Wide));
            let chunk = Chunk { tokens, position, keys: &[], set, how, inputs: Some(&inputs) };
            done = engine.prefill(chunk, &mut self.pages, cancel, |computed| {
                let mut values = vec![0.0; all];
                let index = engine.run(
                    engine.executor()?,
                    computed.pass(),
                    std::iter::empty(),
                    |_, _| (),
                )?;
                engine.gpu().take(&inputs.readback, index, &mut values)?;
                squares.add(&inputs, computed.count as usize, &values);
                Ok(())
            });
            if !matches!(done, Ok(Prefilled::Whole)) {
                break;
            }
        }
        self.tokens = tokens;
        self.drop_kv();
        done
    }
}
