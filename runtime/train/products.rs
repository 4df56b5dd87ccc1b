//! The products of LoRA's factors around one linear: `u = A x`, `y += s B u` and their gradients
//! (Hu et al. 2021, arXiv:2106.09685, eq. 3). Factors and gradients lie at offsets of two flat
//! buffers.

use std::sync::Arc;

use crate::adapter::Factor;
use crate::error::Result;
use crate::gpu::{Commands, Gpu, Kernel, Op, Tensor};
use crate::kernels::matmul_dense::{self, BINDINGS, MatmulDenseParams, Sizes, Tiling, View};

use super::buffers::Buffers;
use super::factors::{Layout, Place};

/// A product bound to its three buffers; the kernel depends on how many rows there are.
struct Product {
    group: wgpu::BindGroup,
}

/// The kernels of every tiling, compiled once.
#[derive(Clone)]
pub(crate) struct Kernels(Arc<Vec<(Tiling, Arc<Kernel>)>>);

impl Kernels {
    /// Errors: as [`Gpu::kernel`].
    pub(crate) fn new(gpu: &Gpu) -> Result<Self> {
        let wanted = Tiling::ALL
            .into_iter()
            .filter(|tiling| gpu.caps().software == (*tiling == Tiling::Direct));
        Ok(Self(Arc::new(
            wanted
                .map(|tiling| Ok((tiling, gpu.kernel(&tiling.spec())?)))
                .collect::<Result<_>>()?,
        )))
    }
}

/// Where one module's data lies.
pub(crate) struct Around<'a> {
    /// Its input `[T, K]`.
    pub(crate) x: &'a Tensor,
    /// Its output `[T, y_stride]`, its own part from `y_column` on.
    pub(crate) y: &'a Tensor,
    /// Gradient of `y`, of the same shape.
    pub(crate) dy: &'a Tensor,
    /// Gradient of `x`.
    pub(crate) dx: &'a Tensor,
    /// `A x`, `[T, r]`.
    pub(crate) u: &'a Tensor,
    pub(crate) y_stride: u32,
    pub(crate) y_column: u32,
}

/// One module's LoRA, bound.
pub(crate) struct FactorOps {
    kernels: Kernels,
    factor: Place,
    freeze: Option<Factor>,
    rank: u32,
    scaling: f32,
    y_stride: u32,
    y_column: u32,
    shrink: Product,
    expand: Product,
    du: Product,
    d_b: Product,
    d_a: Product,
    dx: Product,
}

impl FactorOps {
    /// Binds a factor of `layout`.
    pub(crate) fn new(
        gpu: &Gpu,
        kernels: &Kernels,
        buffers: &Buffers,
        layout: &Layout,
        factor: Place,
        at: &Around<'_>,
    ) -> Self {
        let bind =
            |a: &Tensor, b: &Tensor, c: &Tensor| Product { group: gpu.bind(BINDINGS, &[a, b, c]) };
        let (params, grads, du) = (&buffers.state[0], &buffers.grads, &buffers.du);
        Self {
            kernels: kernels.clone(),
            factor,
            freeze: layout.freeze,
            rank: layout.rank,
            scaling: layout.scaling,
            y_stride: at.y_stride,
            y_column: at.y_column,
            shrink: bind(at.x, params, at.u),
            expand: bind(at.u, params, at.y),
            du: bind(at.dy, params, du),
            d_b: bind(at.dy, at.u, grads),
            d_a: bind(du, at.x, grads),
            dx: bind(du, params, at.dx),
        }
    }

    /// Records `u = x Aᵀ` and `y += s u Bᵀ`.
    pub(crate) fn forward(&self, commands: &mut Commands<'_>, rows: u32) -> Result<()> {
        let (n, r) = (self.factor.n, self.rank);
        self.shrink_only(commands, rows)?;
        let u = View::new(0, r);
        let expand = MatmulDenseParams {
            alpha: self.scaling,
            beta: 1.0,
            ..MatmulDenseParams::new(Sizes { m: rows, n, k: r }, u, self.b().transposed(), self.y())
        };
        self.record(commands, &self.expand, expand)
    }

    /// Records `u = x Aᵀ`.
    pub(crate) fn shrink_only(&self, commands: &mut Commands<'_>, rows: u32) -> Result<()> {
        let (k, r) = (self.factor.k, self.rank);
        let sizes = Sizes { m: rows, n: r, k };
        let (x, u) = (View::new(0, k), View::new(0, r));
        let params = MatmulDenseParams::new(sizes, x, self.a().transposed(), u);
        self.record(commands, &self.shrink, params)
    }

    /// Records `du = s dy B`, `dB += s dyᵀ u`, `dA += duᵀ x`, and with `through` `dx += du A`; of a
    /// factor that is frozen nothing.
    pub(crate) fn backward(
        &self,
        commands: &mut Commands<'_>,
        rows: u32,
        through: bool,
    ) -> Result<()> {
        let (Place { n, k, .. }, r) = (self.factor, self.rank);
        let (a, b, dy) = (self.a(), self.b(), self.y());
        let (u, du, x) = (View::new(0, r), View::new(0, r), View::new(0, k));
        let product = |m, n, k, a, b, c| MatmulDenseParams::new(Sizes { m, n, k }, a, b, c);
        let scaled = |params| MatmulDenseParams { alpha: self.scaling, ..params };
        let added = |params| MatmulDenseParams { beta: 1.0, ..params };
        let (trains_a, trains_b) = (self.freeze != Some(Factor::A), self.freeze != Some(Factor::B));
        if trains_a || through {
            self.record(commands, &self.du, scaled(product(rows, r, n, dy, b, du)))?;
        }
        if trains_b {
            let d_b = added(scaled(product(n, r, rows, dy.transposed(), u, b)));
            self.record(commands, &self.d_b, d_b)?;
        }
        if trains_a {
            self.record(commands, &self.d_a, added(product(r, k, rows, du.transposed(), x, a)))?;
        }
        if through {
            self.record(commands, &self.dx, added(product(rows, k, r, du, a, x)))?;
        }
        Ok(())
    }

    fn y(&self) -> View {
        View::new(self.y_column, self.y_stride)
    }

    fn a(&self) -> View {
        View::new(self.factor.a, self.factor.k)
    }

    fn b(&self) -> View {
        View::new(self.factor.b, self.rank)
    }

    fn record(
        &self,
        commands: &mut Commands<'_>,
        product: &Product,
        params: MatmulDenseParams,
    ) -> Result<()> {
        let tiling = Tiling::choose(commands.caps(), params.m, params.n);
        if let Some((_, kernel)) = self.kernels.0.iter().find(|(known, _)| *known == tiling) {
            let op = Op { kernel: Arc::clone(kernel), group: product.group.clone() };
            matmul_dense::record(commands, &op, tiling, &params);
        }
        commands.bound(2 * u64::from(params.m) * u64::from(params.n) * u64::from(params.k))
    }
}
