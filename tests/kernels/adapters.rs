//! Random adapters as the LoRA kernels find them, laid out here anew from `shaders/lora/a.wgsl` and
//! `b.wgsl`, and in f64 what they make of an input. Whatever a kernel has no business with (another
//! site's factors, what comes after the end of a set, rows before the first, elements of u that a
//! row's set does not make) leads to NaN.

use std::ops::Range;

use epiphyte::gpu::{Gpu, Tensor};
use epiphyte::kernels::lora::{self, Directory, ENTRIES, MORE};
use half::f16;

use super::oracle::gamma;
use super::{Checked, Near, Random};

/// Sites of the directory, whatever the test uses of them.
const SITES: u32 = 4;
/// Most rows of any test: the kernels then differ in nothing that has to be compiled.
const ROWS: u32 = 16;

/// Linears with the same input.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) number: u32,
    pub(super) k: usize,
    /// Rows of each linear.
    pub(super) modules: Vec<usize>,
}

/// One adapter of a set at a site.
struct Entry {
    rank: usize,
    weight: f32,
    /// Elements of u that the entries before it make.
    before: usize,
    /// `[modules * rank, K]`; for an embedding `[K, rank]`.
    a: Vec<f32>,
    /// `[N of all modules, rank]`.
    b: Vec<f32>,
}

pub(super) struct Adapters {
    pub(super) directory: Directory,
    sites: Vec<Site>,
    /// By set and site. Set 0 is without adapters.
    entries: Vec<Vec<Vec<Entry>>>,
    /// The set of each row.
    rows: Vec<u32>,
}

impl Adapters {
    /// Sets for `rows` rows after `skipped` ones that nobody may look at.
    pub(super) fn random(
        sites: Vec<Site>,
        skipped: usize,
        rows: usize,
        random: &mut Random,
    ) -> Self {
        let sets = 2 + random.below(4);
        let mut at =
            |set: usize, site: &Site| if set == 0 { Vec::new() } else { entries(site, random) };
        let entries =
            (0..sets).map(|set| sites.iter().map(|site| at(set, site)).collect()).collect();
        // The last one leads nowhere.
        let nowhere = std::iter::repeat_n(sets as u32, skipped);
        let rows: Vec<u32> = nowhere.chain((0..rows).map(|_| random.below(sets) as u32)).collect();
        let directory = Directory { rows: ROWS, sets: sets as u32 + 1, sites: SITES };
        Self { directory, sites, entries, rows }
    }

    /// The buffers of A and of B.
    pub(super) fn upload(&self, gpu: &Gpu) -> Checked<[Tensor; 2]> {
        let [a, b] = self.both();
        Ok([gpu.upload("A", &a)?, gpu.upload("B", &b)?])
    }

    fn both(&self) -> [Vec<u32>; 2] {
        let a = self.words(|entry, modules| (&entry.a, entry.rank * modules));
        [a, self.words(|entry, _| (&entry.b, entry.rank))]
    }

    /// The only adapter of rows from `skipped` on at a site, for A and for B; zeros where there is
    /// none such.
    pub(super) fn alone(&self, site: usize, skipped: usize) -> [lora::Entry; 2] {
        let set = self.rows[skipped];
        if self.rows[skipped..].iter().any(|other| *other != set)
            || self.of(site, skipped).len() != 1
        {
            return [[0; 4]; 2];
        }
        self.both().map(|words| {
            std::array::from_fn(|i| words[self.at(set, self.sites[site].number, 0) + i])
        })
    }

    /// The first word of an entry.
    fn at(&self, set: u32, site: u32, entry: usize) -> usize {
        let Directory { rows, sites, .. } = self.directory;
        (rows + ((set * sites + site) * ENTRIES + entry as u32) * 4) as usize
    }

    /// The directory and after it the factors, which `factor` gives with their second word.
    fn words<'a>(&'a self, factor: impl Fn(&'a Entry, usize) -> (&'a [f32], usize)) -> Vec<u32> {
        let Directory { rows, sets, sites } = self.directory;
        let mut words = vec![0; (rows + sets * sites * ENTRIES * 4) as usize];
        words[..self.rows.len()].copy_from_slice(&self.rows);
        let first = words.len() as u32 / 4;
        let mut factors = vec![f32::NAN; 1024];
        let nowhere = [first, 8, f32::NAN.to_bits(), 0];
        for (set, site) in (1..sets).flat_map(|set| (0..sites).map(move |site| (set, site))) {
            let at = |entry| self.at(set, site, entry);
            let known = self.sites.iter().position(|known| known.number == site);
            let Some((i, entries)) =
                known.and_then(|i| Some((i, &self.entries.get(set as usize)?[i])))
            else {
                (0..ENTRIES as usize)
                    .for_each(|entry| words[at(entry)..][..4].copy_from_slice(&nowhere));
                continue;
            };
            for (number, entry) in entries.iter().enumerate() {
                let (values, second) = factor(entry, self.sites[i].modules.len());
                let eight = first + factors.len() as u32 / 8;
                let more = if number + 1 < entries.len() { MORE } else { 0 };
                let entry =
                    [eight, second as u32 | more, entry.weight.to_bits(), entry.before as u32];
                words[at(number)..][..4].copy_from_slice(&entry);
                factors.extend(values);
            }
            if entries.len().max(1) < ENTRIES as usize {
                words[at(entries.len().max(1))..][..4].copy_from_slice(&nowhere);
            }
        }
        let halves = |pair: &[f32; 2]| pair.map(|v| u32::from(f16::from_f32(v).to_bits()));
        words.extend(factors.as_chunks().0.iter().map(halves).map(|[low, high]| low | high << 16));
        words
    }

    fn of(&self, site: usize, m: usize) -> &[Entry] {
        &self.entries[self.rows[m] as usize][site]
    }

    /// Elements of u that row `m` has at a site.
    pub(super) fn used(&self, site: usize, m: usize) -> usize {
        self.of(site, m).iter().map(|entry| entry.rank * self.sites[site].modules.len()).sum()
    }

    /// What a row of u must hold for the rows from `skipped` on.
    pub(super) fn u_width(&self, site: usize, skipped: usize) -> usize {
        (skipped..self.rows.len()).map(|m| self.used(site, m)).max().unwrap_or(0)
    }

    /// u of all rows, each in `parts`, `[rows, parts, u_width]`.
    pub(super) fn random_u(
        &self,
        site: usize,
        (parts, u_width): (usize, usize),
        random: &mut Random,
    ) -> Vec<f32> {
        let row = |m: usize| {
            if self.rows[m] as usize == self.entries.len() { 0 } else { self.used(site, m) }
        };
        let used: Vec<usize> = (0..self.rows.len()).map(row).collect();
        let mut value =
            |m: usize, i: usize| if i < used[m] { random.signed(1.0) } else { f32::NAN };
        (0..self.rows.len() * parts * u_width)
            .map(|i| value(i / u_width / parts, i % u_width))
            .collect()
    }

    /// `weight * A x` of row `m` over `columns` of x, in sums of `depth` roundings, one for the
    /// weight among them.
    pub(super) fn shrink(
        &self,
        (site, m): (usize, usize),
        columns: Range<usize>,
        x: impl Fn(usize) -> Near,
        depth: usize,
    ) -> Vec<Near> {
        let k = self.sites[site].k;
        let x: Vec<Near> = columns.clone().map(x).collect();
        let row = |(a, weight): (&[f32], f64)| {
            let (mut sum, mut size, mut moved) = (0.0, 0.0, 0.0);
            for (a, x) in a[columns.clone()].iter().zip(&x) {
                let a = f64::from(*a);
                sum += a * x.value;
                size += a.abs() * (x.value.abs() + x.bound);
                moved += a.abs() * x.bound;
            }
            Near {
                value: weight * sum,
                bound: 1.001 * weight.abs() * (moved + gamma(depth) * size),
            }
        };
        let rows = |entry: &Entry| {
            entry.a.chunks(k).map(|a| row((a, entry.weight.into()))).collect::<Vec<_>>()
        };
        self.of(site, m).iter().flat_map(rows).collect()
    }

    /// `Σ B u` for row `n` of all linears and row `m`, and the sum of the magnitudes; `u` gives
    /// value and magnitude.
    pub(super) fn expand(
        &self,
        (site, m): (usize, usize),
        n: usize,
        u: impl Fn(usize) -> (f64, f64),
    ) -> (f64, f64) {
        let mut end = 0;
        let ends = self.sites[site].modules.iter().map(|rows| {
            end += rows;
            end
        });
        let which = ends.take_while(|end| *end <= n).count();
        let (mut sum, mut size) = (0.0, 0.0);
        for entry in self.of(site, m) {
            for (i, b) in entry.b[n * entry.rank..][..entry.rank].iter().enumerate() {
                let (value, magnitude) = u(entry.before + which * entry.rank + i);
                sum += f64::from(*b) * value;
                size += f64::from(b.abs()) * magnitude;
            }
        }
        (sum, size)
    }

    /// What `expand_two` makes of element `n`: `u` is exact.
    pub(super) fn expand_row(
        &self,
        (site, m): (usize, usize),
        n: usize,
        u: impl Fn(usize) -> f32,
    ) -> Near {
        let (value, size) = self.expand((site, m), n, |i| (u(i).into(), u(i).abs().into()));
        // 5 roundings of eight products, one more where two eights are added, and one for each of
        // these.
        Near { value, bound: gamma(6 + self.additions((site, m), 8)) * size }
    }

    /// Additions one after the other when `width` lanes or elements are taken at a time.
    pub(super) fn additions(&self, (site, m): (usize, usize), width: usize) -> usize {
        self.of(site, m).iter().map(|entry| entry.rank.div_ceil(width)).sum()
    }

    /// What `lora_embedding` adds to element `n` of row `m`, and its bound.
    pub(super) fn embedded(&self, (site, m): (usize, usize), id: usize, n: usize) -> Near {
        let (mut value, mut size) = (0.0, 0.0);
        for Entry { rank, weight, a, b, .. } in self.of(site, m) {
            for (a, b) in a[id * rank..][..*rank].iter().zip(&b[n * rank..][..*rank]) {
                let term = f64::from(*weight) * f64::from(*a) * f64::from(*b);
                value += term;
                size += term.abs();
            }
        }
        // As above; the weight, and one addition for each adapter.
        Near {
            value,
            bound: gamma(6 + self.additions((site, m), 8) + self.of(site, m).len()) * size,
        }
    }
}

/// None, one or several adapters, of ranks 8 to 24 and now and then 64.
fn entries(site: &Site, random: &mut Random) -> Vec<Entry> {
    let count = [0, 1, 1, 2, 3, ENTRIES as usize][random.below(6)];
    let n: usize = site.modules.iter().sum();
    let mut before = 0;
    let mut entry = || {
        let rank = if random.below(12) == 0 { 64 } else { 8 + 8 * random.below(3) };
        let made = rank * site.modules.len();
        before += made;
        let weight = random.signed(2.0);
        Entry {
            rank,
            weight,
            before: before - made,
            a: random.halves(made * site.k),
            b: random.halves(n * rank),
        }
    };
    (0..count).map(|_| entry()).collect()
}
