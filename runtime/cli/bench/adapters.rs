//! What adapters cost: decoding under them, changing them between two tokens, loading one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use super::{Bench, REPEATS, split_mix};
use crate::output;
use epiphyte::adapter::{Adapter, LoraConfig, LoraModule, Modules};
use epiphyte::dtype::DType;
use epiphyte::engine::{Change, KvPolicy};
use epiphyte::error::{Error, Result};

/// Changes to time where that is quick, and where a GPU is software.
const SWAPS: usize = 200;
const SWAPS_IN_SOFTWARE: usize = 20;
/// Tokens between two changes: the last of them comes at the pace of an undisturbed generation.
const TOKENS_BETWEEN: usize = 5;
/// The id of an adapter that is loaded from a file.
const FROM_FILE: &str = "bench file";

#[derive(Serialize)]
pub(super) struct Report {
    adapters: usize,
    rank: usize,
    /// Of one adapter, on the device.
    adapter_bytes: u64,
    /// Of the same batch without adapters.
    base_decode_tps: f64,
    /// What the adapters add to the time of a token.
    cost_percent: f64,
    swaps: usize,
    /// Host time of `set_adapters` with [`KvPolicy::Keep`], waiting for the tokens under way
    /// included.
    swap_seconds_p50: f64,
    swap_seconds_p99: f64,
    /// From one token to the next before a change, and from the change's end to the token after it.
    token_seconds_before_swap: f64,
    token_seconds_after_swap: f64,
    loads: usize,
    /// A file that was just written (f16, GGUF) to the first token of a session under it: median
    /// and most of `loads`.
    file_to_first_token_seconds: f64,
    file_to_first_token_seconds_max: f64,
}

/// A file that goes away when dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It lies among other temporary files; the system clears them sooner or later.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Bench {
    /// Puts `count` random adapters on the device, a set each.
    pub(super) fn make_adapters(&mut self, count: usize, rank: usize) -> Result<()> {
        self.rank = rank;
        for i in 0..count {
            let (id, adapter) = (format!("bench {i}"), self.random_adapter(rank)?);
            self.engine.add_adapter(&id, &adapter)?;
            self.sets.push(vec![(id, 1.0)]);
        }
        Ok(())
    }

    /// On every linear of the layers, about as large as what training gives.
    fn random_adapter(&mut self, rank: usize) -> Result<Adapter> {
        let shape = self.engine.base().adapter_shape();
        let config = LoraConfig {
            r: rank,
            lora_alpha: rank as f64,
            target_modules: Modules::Pattern("all-linear".into()),
            ..LoraConfig::default()
        };
        let mut modules = Vec::new();
        for target in config.modules(&shape)? {
            let [n, k] = shape.shape(target.path.target);
            let mut values = |len: usize, size: f32| -> Vec<f32> {
                (0..len)
                    .map(|_| {
                        size * (((split_mix(&mut self.random) >> 40) as f32) / (1 << 23) as f32
                            - 1.0)
                    })
                    .collect()
            };
            let (a, b) = (values(rank * k, (k as f32).sqrt().recip()), values(n * rank, 0.02));
            modules.push(LoraModule { path: target.path, rank, a, b, scaling: target.scaling });
        }
        Adapter::new(config, modules, Some(self.engine.base().fingerprint.clone()), &shape)
    }

    /// Everything but the speed of decoding under the adapters, which is `decode_tps`.
    pub(super) fn adapters(
        &mut self,
        sequences: usize,
        tokens: usize,
        decode_tps: f64,
    ) -> Result<Report> {
        let sets = std::mem::take(&mut self.sets);
        let (seconds, _) = self.median("base", |bench| bench.decode(sequences, tokens))?;
        self.sets = sets;
        let base_decode_tps = (sequences * tokens) as f64 / seconds;
        let [mut swaps, mut before, mut after] = self.swaps()?;
        let states = self.engine.adapters();
        let mut loads = self.loads()?;
        Ok(Report {
            adapters: self.sets.len(),
            rank: self.rank,
            adapter_bytes: states.first().map_or(0, |state| state.n_bytes),
            base_decode_tps,
            cost_percent: 100.0 * (base_decode_tps / decode_tps - 1.0),
            swaps: swaps.len(),
            swap_seconds_p50: percentile(&mut swaps, 50),
            swap_seconds_p99: percentile(&mut swaps, 99),
            token_seconds_before_swap: percentile(&mut before, 50),
            token_seconds_after_swap: percentile(&mut after, 50),
            loads: loads.len(),
            file_to_first_token_seconds: percentile(&mut loads, 50),
            file_to_first_token_seconds_max: percentile(&mut loads, 100),
        })
    }

    /// Seconds of each change, of the token before, and of the token after.
    fn swaps(&mut self) -> Result<[Vec<f64>; 3]> {
        let most = if self.engine.gpu().caps().software { SWAPS_IN_SOFTWARE } else { SWAPS };
        let swaps = most.min(self.engine.context().saturating_sub(1) / TOKENS_BETWEEN);
        if swaps == 0 {
            let reason =
                format!("{} tokens leave no room to change adapters in", self.engine.context());
            return Err(Error::InvalidArgument { name: "context", reason });
        }
        let mut session = self.session(0, 1)?;
        let mut generation = session.generate(self.options(swaps * TOKENS_BETWEEN))?;
        let mut timed = [(); 3].map(|()| Vec::with_capacity(swaps));
        let ended =
            || Error::InvalidArgument { name: "context", reason: "the session ended early".into() };
        for i in 0..swaps {
            // One adapter takes turns with the base.
            let set =
                (i % 2 == 0 || self.sets.len() > 1).then(|| &self.sets[(i + 1) % self.sets.len()]);
            let adapters: Vec<(&str, f32)> =
                set.into_iter().flatten().map(|(id, weight)| (id.as_str(), *weight)).collect();
            let mut seconds = 0.0;
            for token in 0..TOKENS_BETWEEN {
                let start = Instant::now();
                generation.next().ok_or_else(ended)??;
                seconds = start.elapsed().as_secs_f64();
                if token == 0 && i > 0 {
                    timed[2].push(seconds);
                }
            }
            timed[1].push(seconds);
            let start = Instant::now();
            generation.set_adapters(&Change { adapters: &adapters, history: KvPolicy::Keep })?;
            timed[0].push(start.elapsed().as_secs_f64());
        }
        Ok(timed)
    }

    /// Seconds from an adapter's file to the first token under it, several times.
    fn loads(&mut self) -> Result<Vec<f64>> {
        let adapter = self.random_adapter(self.rank)?;
        let file = Temporary(
            std::env::temp_dir().join(format!("epiphyte-bench-{}.gguf", std::process::id())),
        );
        adapter.save_gguf(&file.0, DType::F16, &self.engine.base().adapter_shape())?;
        let loads = if self.engine.gpu().caps().software { 1 } else { REPEATS };
        (0..loads).map(|_| self.load_from_file(&file.0)).collect()
    }

    fn load_from_file(&mut self, path: &Path) -> Result<f64> {
        let start = Instant::now();
        self.engine.load_adapter(FROM_FILE, path)?;
        let sets = std::mem::replace(&mut self.sets, vec![vec![(FROM_FILE.into(), 1.0)]]);
        let decoded = self.decode(1, 1);
        let seconds = start.elapsed().as_secs_f64();
        self.sets = sets;
        decoded?;
        self.engine.unload_adapter(FROM_FILE)?;
        Ok(seconds)
    }
}

/// The nearest rank.
fn percentile(seconds: &mut [f64], percent: usize) -> f64 {
    seconds.sort_by(f64::total_cmp);
    let rank = (seconds.len() * percent).div_ceil(100).max(1);
    seconds.get(rank - 1).copied().unwrap_or(f64::NAN)
}

impl Report {
    pub(super) fn print(&self) -> Result<()> {
        let bytes = output::human_bytes(self.adapter_bytes);
        output::line(&format!(
            "adapters   {} of rank {}, {bytes} each: {:+.1} % time a token ({:.1} tokens/s \
            without)",
            self.adapters, self.rank, self.cost_percent, self.base_decode_tps
        ))?;
        let ms = |seconds: f64| 1e3 * seconds;
        output::line(&format!(
            "change     {:.3} ms, {:.3} ms in 99 of 100 ({} times); the next token {:.2} ms, \
            before it {:.2} ms",
            ms(self.swap_seconds_p50),
            ms(self.swap_seconds_p99),
            self.swaps,
            ms(self.token_seconds_after_swap),
            ms(self.token_seconds_before_swap)
        ))?;
        output::line(&format!(
            "from file  {:.1} ms to the first token, at most {:.1} ms ({} times)",
            ms(self.file_to_first_token_seconds),
            ms(self.file_to_first_token_seconds_max),
            self.loads
        ))
    }
}
