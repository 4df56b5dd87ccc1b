//! The rotation of q and k, and the append of k and v to the pages of the cache.

use std::collections::BTreeMap;

use epiphyte::gpu::Gpu;
use epiphyte::kernels::rope::{RopeParams, record, rotations, spec};
use proptest::prelude::*;

use super::adapters::{Adapters, Site};
use super::oracle::EPS;
use super::{Checked, Near, Output, POISON, Random, for_all, seed, submit};

const POSITIONS: usize = 131_072;

#[derive(Clone, Debug)]
struct Case {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    page_len: usize,
    neox: bool,
    kv_f16: bool,
    /// Page table and position of each row.
    rows: Vec<[u32; 2]>,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let edges =
        [0u32, 1, 15, 16, 31, 32, 63, 64, 255, 256, 257, 511, 4095, 4096, 65_535, 131_070, 131_071];
    let position = prop_oneof![proptest::sample::select(edges.to_vec()), 0..POSITIONS as u32];
    let rows = proptest::collection::btree_set((0u32..3, position), 1..7)
        .prop_map(|rows| rows.into_iter().map(|(t, p)| [t, p]).collect());
    let shape = (
        1usize..4,
        proptest::sample::select(vec![1usize, 3, 4, 8]),
        proptest::sample::select(vec![64usize, 96, 128, 256]),
    );
    (shape, proptest::sample::select(vec![16usize, 32, 64]), any::<[bool; 2]>(), rows, seed())
        .prop_map(|((kv_heads, group, head_dim), page_len, [neox, kv_f16], rows, seed)| Case {
            kv_heads,
            group,
            head_dim,
            page_len,
            neox,
            kv_f16,
            rows,
            seed,
        })
}

impl Case {
    /// Of rotated heads.
    fn scale(&self) -> f32 {
        if self.seed.is_multiple_of(2) { 1.0 } else { 0.75 }
    }

    /// Dimensions that turn: all, or three of four.
    fn rotary_dim(&self) -> usize {
        let some = self.neox && self.seed % 4 < 2;
        if some { 3 * self.head_dim / 4 } else { self.head_dim }
    }

    /// Tables for every position there may be; only those of the rows' pages name a page, the
    /// others lead nowhere.
    fn tables(&self, random: &mut Random) -> (Vec<u32>, usize) {
        let max_pages = POSITIONS / self.page_len;
        let used: BTreeMap<usize, ()> = self
            .rows
            .iter()
            .map(|&[table, position]| {
                (table as usize * max_pages + position as usize / self.page_len, ())
            })
            .collect();
        let mut tables = vec![u32::MAX; 3 * max_pages];
        for (&at, page) in used.keys().zip(random.shuffled(used.len())) {
            tables[at] = page;
        }
        (tables, used.len())
    }
}

/// `pair` turned by `angle` and multiplied by `scale`, at most 1.
fn rotate(a: Near, b: Near, angle: f64, scale: f64) -> [Near; 2] {
    let moved = a.bound + b.bound;
    let (a, b) = (a.value, b.value);
    // The tables are within EPS / 2; cos and sin of the sum of two angles are then within 3 EPS, as
    // |cos cos| + |sin sin| <= 1; a product and a sum more.
    let bound = moved + 5.01 * EPS * (a.abs() + b.abs() + moved);
    let (cos, sin) = (scale * angle.cos(), scale * angle.sin());
    [a * cos - b * sin, a * sin + b * cos].map(|value| Near { value, bound })
}

/// What an f16 makes of it: rounded either way, or flushed when subnormal.
fn stored(near: Near, f16: bool) -> Near {
    let rounding =
        if f16 { (near.value.abs() + near.bound) / 1024.0 + 2f64.powi(-14) } else { 0.0 };
    Near { bound: near.bound + rounding, ..near }
}

type Expected = Vec<Option<Near>>;

/// What `qkv`, `keys` and `values` must hold after.
fn oracle(
    case: &Case,
    kv_f16: bool,
    qkv: &[Near],
    tables: &[u32],
    frequencies: &[f32],
    slots: usize,
) -> [Expected; 3] {
    let (e, g, heads) = (case.head_dim, case.kv_heads, case.kv_heads * case.group);
    let (mut q, mut keys, mut values) =
        (vec![None; qkv.len()], vec![None; slots], vec![None; slots]);
    for (m, &[table, position]) in case.rows.iter().enumerate() {
        let position = position as usize;
        let page =
            tables[table as usize * POSITIONS / case.page_len + position / case.page_len] as usize;
        let slot =
            |kv_head: usize| ((page * g + kv_head) * case.page_len + position % case.page_len) * e;
        let all = heads + 2 * g;
        for head in 0..heads + g {
            let at = (m * all + head) * e;
            for (i, &frequency) in frequencies.iter().enumerate() {
                let half = case.rotary_dim() / 2;
                let pair = match case.neox {
                    true if i < half => [i, i + half],
                    true => [i + half, i + e / 2],
                    false => [2 * i, 2 * i + 1],
                };
                let rotated = rotate(
                    qkv[at + pair[0]],
                    qkv[at + pair[1]],
                    position as f64 * f64::from(frequency),
                    if i < half { case.scale().into() } else { 1.0 },
                );
                for (i, near) in pair.into_iter().zip(rotated) {
                    if head < heads {
                        q[at + i] = Some(near);
                    } else {
                        keys[slot(head - heads) + i] = Some(stored(near, kv_f16));
                    }
                }
            }
        }
        for i in 0..g * e {
            let v = qkv[(m * all + heads + g) * e + i];
            // What nothing was added to is an f16 already.
            values[slot(i / e) + i % e] = Some(stored(v, kv_f16 && v.bound > 0.0));
        }
    }
    [q, keys, values]
}

/// With `adapted`, q, k and v lack what B u adds to them.
fn check(gpu: &Gpu, case: &Case, adapted: bool) -> Checked {
    let (mut random, kv_f16) = (Random(case.seed), case.kv_f16 && gpu.caps().f16);
    let (tables, pages) = case.tables(&mut random);
    let slots = pages * case.kv_heads * case.page_len * case.head_dim;
    let heads = case.kv_heads * case.group;
    let turned = case.rotary_dim();
    let mut frequencies: Vec<f32> =
        (0..turned / 2).map(|i| 10_000f64.powf(-2.0 * i as f64 / turned as f64) as f32).collect();
    frequencies.resize(case.head_dim / 2, 0.0);
    let qkv = Output::holding(
        gpu,
        random.halves(case.rows.len() * (heads + 2 * case.kv_heads) * case.head_dim),
        false,
    )?;
    let [keys, values] = [(); 2].map(|()| Output::holding(gpu, vec![POISON; slots], kv_f16));
    let (keys, values) = (keys?, values?);
    let inputs = [gpu.upload("rows", &case.rows)?, gpu.upload("pages", &tables)?];
    let rotations = gpu.upload("rotations", &rotations(&frequencies, case.scale(), POSITIONS))?;
    let [q, kv] = [heads, case.kv_heads].map(|heads| heads * case.head_dim);
    let site = Site { number: 2, k: 4, modules: vec![q, kv, kv] };
    let adapters = Adapters::random(vec![site], 0, case.rows.len(), &mut random);
    let (u_width, width) = (adapters.u_width(0, 0), q + 2 * kv);
    let u = adapters.random_u(0, (1, u_width), &mut random);
    let ([_, b], u_tensor) = (adapters.upload(gpu)?, gpu.upload("u", &u)?);
    let directory = adapted.then_some(adapters.directory);
    let spec = spec(case.head_dim as u32, case.page_len as u32, case.neox, kv_f16, directory);
    let tensors = [
        &inputs[0],
        &inputs[1],
        &rotations,
        &qkv.tensor,
        &keys.tensor,
        &values.tensor,
        &b,
        &u_tensor,
    ];
    let op = gpu.op(&spec, if adapted { &tensors } else { &tensors[..6] })?;
    let max_pages = (POSITIONS / case.page_len) as u32;
    let (heads_u32, kv_heads) = (heads as u32, case.kv_heads as u32);
    let (site, u_width_u32) = if adapted { (2, u_width as u32) } else { (0, 0) };
    let alone = if adapted { adapters.alone(0, 0)[1] } else { [0; 4] };
    let params = RopeParams {
        heads: heads_u32,
        kv_heads,
        max_pages,
        site,
        u_width: u_width_u32,
        eps: 0.0,
        rotary_dim: turned as u32,
        pad: 0,
        alone,
    };
    submit(gpu, |commands| {
        record(commands, &op, case.head_dim as u32, params, case.rows.len() as u32)
    })?;
    let whole = |(i, before): (usize, &f32)| {
        let (m, before) = (i / width, f64::from(*before));
        if !adapted || adapters.used(0, m) == 0 {
            return Near { value: before, bound: 0.0 };
        }
        let added = adapters.expand_row((0, m), i % width, |j| u[m * u_width + j]);
        let value = before + added.value;
        Near { value, bound: added.bound + EPS * (value.abs() + added.bound) }
    };
    let whole: Vec<Near> =
        qkv.before[..case.rows.len() * width].iter().enumerate().map(whole).collect();
    let expected = oracle(case, kv_f16, &whole, &tables, &frequencies, slots);
    for (name, output, expected) in [
        ("qkv", &qkv, &expected[0]),
        ("keys", &keys, &expected[1]),
        ("values", &values, &expected[2]),
    ] {
        output.check(gpu, expected).map_err(|e| format!("{name}{e}"))?;
    }
    Ok(())
}

#[test]
fn rope_rotates_and_appends() {
    for_all(12, cases(), |gpu, case| check(gpu, case, false));
}

#[test]
fn rope_adds_what_the_adapters_say_first() {
    for_all(3, cases(), |gpu, case| check(gpu, case, true));
}
