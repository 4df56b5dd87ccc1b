//! `softmax(q kᵀ scale) v` over the positions up to each row's own.

use epiphyte::gpu::{Gpu, Tensor};
use epiphyte::kernels::attention::{
    self, AttentionParams, Heads, Leaves, PrefillParams, ReduceParams,
};
use half::f16;
use proptest::prelude::*;

use super::adapters::{Adapters, Site};
use super::lora::share_depth;
use super::oracle::{DIV, EPS, exp_error, gamma};
use super::{Checked, Near, Output, POISON, Random, for_all, matrices, seed, submit, upload_kv};

#[derive(Clone, Debug)]
struct Case {
    heads: Heads,
    /// Positions that each row sees; a row has its own page table.
    lens: Vec<usize>,
    row0: usize,
    /// Positions that a row sees; 0 for all.
    window: usize,
    /// Size of q: the larger, the more the softmax is one position's.
    sharp: f32,
    seed: u64,
}

fn cases(lens: impl Strategy<Value = Vec<usize>>) -> impl Strategy<Value = Case> {
    let group = proptest::sample::select(vec![1u32, 3, 4, 8]);
    let head_dim = proptest::sample::select(vec![64u32, 96, 128, 256]);
    let heads =
        (1u32..3, group, head_dim, proptest::sample::select(vec![16u32, 32, 64]), any::<bool>())
            .prop_map(|(kv_heads, group, head_dim, page_len, kv_f16)| Heads {
                heads: kv_heads * group,
                kv_heads,
                head_dim,
                page_len,
                kv_f16,
            });
    let sharp = prop_oneof![Just(0.1f32), Just(3.0), Just(30.0)];
    let window = proptest::sample::select(vec![0usize, 0, 1, 31, 32, 100, 130]);
    (heads, lens, 0usize..3, window, sharp, seed()).prop_map(
        |(heads, lens, row0, window, sharp, seed)| Case { heads, lens, row0, window, sharp, seed },
    )
}

/// The first of `len` positions that the last one sees.
fn first_seen(len: usize, window: usize) -> usize {
    if window == 0 { 0 } else { len.saturating_sub(window) }
}

/// A paged cache that holds the positions in `held[t]` for table t; all else in it is poison.
struct Cache {
    heads: Heads,
    window: usize,
    max_pages: usize,
    tables: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    fn random(
        heads: Heads,
        held: &[std::ops::Range<usize>],
        window: usize,
        random: &mut Random,
    ) -> Self {
        let page_len = heads.page_len as usize;
        let max_pages = held.iter().map(|held| held.end.div_ceil(page_len)).max().unwrap_or(1) + 1;
        let tables: Vec<u32> = random.shuffled(held.len() * max_pages);
        let slots = tables.len() * heads.kv_heads as usize * page_len * heads.head_dim as usize;
        let (keys, values) = (vec![POISON; slots], vec![POISON; slots]);
        let mut cache = Self { heads, window, max_pages, tables, keys, values };
        for (table, held) in held.iter().enumerate() {
            for (position, kv_head) in
                held.clone().flat_map(|p| (0..heads.kv_heads as usize).map(move |g| (p, g)))
            {
                let at = cache.slot(table, kv_head, position);
                cache.keys[at.clone()].copy_from_slice(&random.halves(at.len()));
                cache.values[at.clone()].copy_from_slice(&random.halves(at.len()));
            }
        }
        cache
    }

    /// Where a position's head lies: `[pages, G, page_len, E]`.
    fn slot(&self, table: usize, kv_head: usize, position: usize) -> std::ops::Range<usize> {
        let (g, page_len, e) = (
            self.heads.kv_heads as usize,
            self.heads.page_len as usize,
            self.heads.head_dim as usize,
        );
        let page = self.tables[table * self.max_pages + position / page_len] as usize;
        let at = ((page * g + kv_head) * page_len + position % page_len) * e;
        at..at + e
    }

    fn upload(&mut self, gpu: &Gpu) -> Checked<[Tensor; 3]> {
        let f16 = self.heads.kv_f16;
        let (keys, values) =
            (upload_kv(gpu, &mut self.keys, f16)?, upload_kv(gpu, &mut self.values, f16)?);
        Ok([gpu.upload("pages", &self.tables)?, keys, values])
    }

    /// One head of one row; the kernel joins `joins` parts of the positions. With `halves`, q times
    /// the scale is rounded to f16, and so are the weights, as 256 times what they are.
    fn oracle(
        &self,
        q: &[f32],
        kv_head: usize,
        table: usize,
        len: usize,
        scale: f32,
        (joins, halves): (usize, bool),
    ) -> Vec<Option<Near>> {
        let scaled = |q: &f32| match halves {
            true => f16::from_f32(q * scale).to_f64(),
            false => f64::from(*q) * f64::from(scale),
        };
        let dot = |position| {
            let k = &self.keys[self.slot(table, kv_head, position)];
            let terms = q.iter().zip(k).map(|(q, k)| scaled(q) * f64::from(*k));
            terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()))
        };
        let seen = first_seen(len, self.window)..len;
        let scores: Vec<(f64, f64)> = seen.clone().map(dot).collect();
        let top = scores.iter().map(|s| s.0).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s.0 - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        // A score: the scale, 4 roundings in a vec4's dot, E / 4 additions; of halves E additions.
        let depth = if halves { q.len() } else { 5 + q.len() / 4 };
        let score_error = gamma(depth) * scores.iter().map(|s| s.1).fold(0.0, f64::max);
        // top may stay behind the largest score by a margin of 5.
        let margin = if halves { 5.0 } else { 0.0 };
        let fall = margin + top - scores.iter().map(|s| s.0).fold(f64::INFINITY, f64::min)
            + 2.0 * score_error;
        // A weight: e^(score - top), then for each join a factor e^(top - larger top); the steps of
        // top sum to <= fall.
        let (half, least) =
            if halves { (2f64.powi(-11) + EPS, 2f64.powi(-33)) } else { (0.0, 0.0) };
        let weight_error = score_error
            + exp_error(fall)
            + EPS * fall
            + (4.0 * joins as f64 + 3.0 * fall) * EPS
            + half;
        // Weights and their roundings come in above and below the line; the sums are chains of at
        // most len additions.
        let error = 2.0 * weight_error + 2.0 * gamma(len + 2 * joins + 4) + DIV + EPS;
        let largest = |e: usize| {
            let values = seen.clone().map(|t| self.values[self.slot(table, kv_head, t).start + e]);
            values.fold(0.0, |most, v| v.abs().max(most))
        };
        let column = |e: usize| {
            // What is below f16's smallest, above and below the line.
            let lost = 2.0 * least * seen.len() as f64 * f64::from(largest(e)) / sum;
            let terms = seen.clone().zip(&weights).map(|(t, weight)| {
                weight * f64::from(self.values[self.slot(table, kv_head, t).start + e])
            });
            let (value, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
            Some(Near { value: value / sum, bound: 1.01 * (error * size / sum + lost) + 1e-35 })
        };
        (0..q.len()).map(column).collect()
    }
}

/// What the two ways share: the cache, q and the rows' output.
struct Setup {
    cache: Cache,
    cache_tensors: [Tensor; 3],
    qkv: Vec<f32>,
    qkv_tensor: Tensor,
    out: Output,
    scale: f32,
}

impl Setup {
    fn new(gpu: &Gpu, case: &Case, held: &[std::ops::Range<usize>], rows: usize) -> Checked<Self> {
        let mut random = Random(case.seed);
        let heads = Heads { kv_f16: case.heads.kv_f16 && gpu.caps().f16, ..case.heads };
        let mut cache = Cache::random(heads, held, case.window, &mut random);
        let all = (heads.heads + 2 * heads.kv_heads) as usize * heads.head_dim as usize;
        let qkv = random.vec((case.row0 + rows) * all, case.sharp);
        let (cache_tensors, qkv_tensor) = (cache.upload(gpu)?, gpu.upload("qkv", &qkv)?);
        let out =
            Output::poisoned(gpu, (case.row0 + rows) * (heads.heads * heads.head_dim) as usize)?;
        Ok(Self {
            cache,
            cache_tensors,
            qkv,
            qkv_tensor,
            out,
            scale: 1.0 / (heads.head_dim as f32).sqrt(),
        })
    }

    /// What rows from `row0` on make, each a table and the positions it sees.
    fn expected(
        &self,
        row0: usize,
        rows: impl Iterator<Item = (usize, usize)>,
        joins: (usize, bool),
    ) -> Vec<Option<Near>> {
        let heads = self.cache.heads;
        let (e, h, g) = (heads.head_dim as usize, heads.heads as usize, heads.kv_heads as usize);
        let mut expected = vec![None; row0 * h * e];
        for (m, (table, len)) in (row0..).zip(rows) {
            for head in 0..h {
                let q = &self.qkv[(m * (h + 2 * g) + head) * e..][..e];
                expected.extend(self.cache.oracle(
                    q,
                    head / (h / g),
                    table,
                    len,
                    self.scale,
                    joins,
                ));
            }
        }
        expected
    }
}

/// The rows of `attention`, before them `row0` that lead nowhere.
fn rows_tensor(gpu: &Gpu, row0: usize, rows: impl Iterator<Item = [u32; 2]>) -> Checked<Tensor> {
    let rows: Vec<_> = std::iter::repeat_n([u32::MAX; 2], row0).chain(rows).collect();
    Ok(gpu.upload("rows", &rows)?)
}

/// With `adapted`, the shares of the next linear's u are made beside.
fn check(gpu: &Gpu, case: &Case, split: bool, adapted: bool) -> Checked {
    let held: Vec<_> = case.lens.iter().map(|&len| first_seen(len, case.window)..len).collect();
    let setup = Setup::new(gpu, case, &held, case.lens.len())?;
    let heads = setup.cache.heads;
    let rows = rows_tensor(
        gpu,
        case.row0,
        (0..).zip(&case.lens).map(|(table, len)| [table, *len as u32 - 1]),
    )?;
    let most = case.lens.iter().max().map_or(1, |len| *len as u32);
    let splits = if split { attention::window_splits(most, case.window as u32) } else { 1 };
    let [pages, keys, values] = &setup.cache_tensors;
    let stat_count = case.lens.len() * (splits * heads.heads) as usize;
    let parts = Output::poisoned(gpu, stat_count * heads.head_dim as usize)?;
    let stats = Output::poisoned(gpu, 2 * stat_count)?;
    let first = if split { &parts } else { &setup.out };
    let next = Next::new(gpu, case, heads, split)?;
    let (site, u_width) = (3, next.u_width as u32);
    let [alone, _] = next.adapters.alone(0, case.row0);
    let mut tensors = vec![&rows, pages, &setup.qkv_tensor, keys, values, &first.tensor];
    let leaves = match (split, adapted) {
        (true, _) => Leaves::Split,
        (false, false) => Leaves::Whole,
        (false, true) => Leaves::WholeAndU(next.adapters.directory),
    };
    match leaves {
        Leaves::Whole => {}
        Leaves::WholeAndU(_) => tensors.extend([&next.a, &next.u.tensor]),
        Leaves::Split => tensors.push(&stats.tensor),
    }
    let op = gpu.op(&attention::spec(gpu.caps(), heads, leaves), &tensors)?;
    let reduce = attention::reduce_spec(
        gpu.caps(),
        heads.head_dim,
        adapted.then_some(next.adapters.directory),
    );
    let join = [&rows, &parts.tensor, &stats.tensor, &setup.out.tensor, &next.a, &next.u.tensor];
    let join = gpu.op(&reduce, if adapted { &join } else { &join[..4] })?;
    let (row0, count) = (case.row0 as u32, case.lens.len() as u32);
    submit(gpu, |commands| {
        let (kv_heads, max_pages) = (heads.kv_heads, setup.cache.max_pages as u32);
        let scale = setup.scale;
        let params = AttentionParams {
            heads: heads.heads,
            kv_heads,
            max_pages,
            splits,
            scale,
            row0,
            site,
            u_width,
            alone,
            window: case.window as u32,
            ..Default::default()
        };
        attention::record(commands, &op, &params, count, 0);
        if split {
            let params = ReduceParams {
                heads: heads.heads,
                splits,
                row0,
                site,
                u_width,
                alone,
                window: case.window as u32,
                ..Default::default()
            };
            attention::record_reduce(commands, &join, heads.head_dim, &params, count);
        }
    })?;
    let expected =
        setup.expected(case.row0, case.lens.iter().copied().enumerate(), (splits as usize, false));
    setup.out.check(gpu, &expected)?;
    if adapted { next.check(gpu, case, &expected) } else { Ok(()) }
}

/// The linear that follows, and the parts of its u.
struct Next {
    adapters: Adapters,
    a: Tensor,
    u: Output,
    u_width: usize,
    /// Columns of a part.
    columns: usize,
    width: usize,
    /// Lanes of a workgroup.
    wg: u32,
}

impl Next {
    fn new(gpu: &Gpu, case: &Case, heads: Heads, split: bool) -> Checked<Self> {
        let width = (heads.heads * heads.head_dim) as usize;
        // A key and value head's queries, or 64 lanes' vec4s.
        let columns = if split { 256 } else { width / heads.kv_heads as usize };
        let site = Site { number: 3, k: width, modules: vec![1] };
        let adapters =
            Adapters::random(vec![site], case.row0, case.lens.len(), &mut Random(!case.seed));
        let u_width = adapters.u_width(0, case.row0);
        let u = Output::poisoned(
            gpu,
            (case.row0 + case.lens.len()) * width.div_ceil(columns) * u_width,
        )?;
        let [a, _] = adapters.upload(gpu)?;
        let wg = match (split, gpu.caps().software) {
            (false, _) => 128,
            (true, software) => {
                if software {
                    64
                } else {
                    256
                }
            }
        };
        Ok(Self { adapters, a, u, u_width, columns, width, wg })
    }

    /// Each part is what its columns of `out` make.
    fn check(&self, gpu: &Gpu, case: &Case, out: &[Option<Near>]) -> Checked {
        let parts = self.width.div_ceil(self.columns);
        let mut expected = vec![None; (case.row0 + case.lens.len()) * parts * self.u_width];
        for (m, part) in (case.row0..case.row0 + case.lens.len())
            .flat_map(|m| (0..parts).map(move |part| (m, part)))
        {
            let columns = part * self.columns..self.width.min((part + 1) * self.columns);
            let depth = share_depth(gpu, columns.len(), self.wg);
            let of = |column: usize| {
                out[m * self.width + column].unwrap_or(Near { value: f64::NAN, bound: 0.0 })
            };
            let made = self.adapters.shrink((0, m), columns, of, depth);
            let at = (m * parts + part) * self.u_width;
            made.into_iter().enumerate().for_each(|(i, near)| expected[at + i] = Some(near));
        }
        self.u.check(gpu, &expected).map_err(|e| format!("u{e}").into())
    }
}

/// Lengths around the edges of pages, tiles and chunks.
fn len(most: usize) -> impl Strategy<Value = usize> + Clone {
    let edges = [1usize, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257];
    let edges: Vec<usize> = edges.into_iter().filter(|len| *len <= most).collect();
    prop_oneof![proptest::sample::select(edges), 1..=most]
}

#[test]
fn attention_in_one_part_is_the_formula() {
    let lens = proptest::collection::vec(len(attention::CHUNK as usize), 1..4);
    for_all(12, cases(lens.clone()), |gpu, case| check(gpu, case, false, false));
    for_all(2, cases(lens), |gpu, case| check(gpu, case, false, true));
}

#[test]
fn attention_in_joined_parts_is_the_formula() {
    let lens = proptest::collection::vec(len(300), 1..4);
    for_all(12, cases(lens.clone()), |gpu, case| check(gpu, case, true, false));
    for_all(2, cases(lens), |gpu, case| check(gpu, case, true, true));
}

/// One sequence: `lens` are the positions before the first row, and the number of rows.
fn check_prefill(gpu: &Gpu, case: &Case) -> Checked {
    let (before, count) = (case.lens[0] - 1, case.lens[1]);
    let seen = first_seen(before + 1, case.window)..before + count;
    let setup = Setup::new(gpu, case, std::slice::from_ref(&seen), count)?;
    let heads = setup.cache.heads;
    let rows = rows_tensor(gpu, case.row0, (0..count).map(|i| [0, (before + i) as u32]))?;
    let [pages, keys, values] = &setup.cache_tensors;
    let tensors = [&rows, pages, &setup.qkv_tensor, keys, values, &setup.out.tensor];
    let spec = attention::prefill_spec(gpu.caps(), heads);
    let op = gpu.op(&spec, &tensors)?;
    let params = PrefillParams {
        heads: heads.heads,
        kv_heads: heads.kv_heads,
        max_pages: setup.cache.max_pages as u32,
        row0: case.row0 as u32,
        count: count as u32,
        scale: setup.scale,
        window: case.window as u32,
    };
    submit(gpu, |commands| attention::record_prefill(commands, &op, heads, &params, 0))?;
    let tiles = (before + count).div_ceil(32);
    let joins = (tiles, spec.name.ends_with("_coop"));
    setup.out.check(gpu, &setup.expected(case.row0, (1..=count).map(|i| (0, before + i)), joins))
}

#[test]
fn attention_of_a_prompt_is_the_formula() {
    matrices("in part, without its cooperative variant");
    let lens = (len(130), len(70)).prop_map(|(before, count)| vec![before, count]);
    for_all(10, cases(lens), check_prefill);
}

#[test]
fn a_window_wider_than_everything_is_split_as_if_there_were_none() {
    for window in [1 << 20, u32::MAX] {
        assert_eq!(attention::window_splits(1 << 20, window), attention::splits(1 << 20));
    }
}
