//! Which modules a config means, and the rank and scaling of each: PEFT's matching, rule for rule.
//!
//! Sources: `check_target_module_exists`, `get_pattern_key` and `LoraLayer.update_layer` of PEFT
//! 0.21. Its patterns are Python's; `pattern` runs them.

use super::config::{LoraConfig, Modules};
use super::pattern::Pattern;
use crate::base::{BaseShape, ModulePath, Target};
use crate::error::{Error, Result};

/// Patterns in one key that are more than names.
const MAX_REGEXES: usize = 256;

/// A module that a config targets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetModule {
    /// The module.
    pub path: ModulePath,
    /// Its rank.
    pub rank: usize,
    /// `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora`.
    pub scaling: f32,
}

impl LoraConfig {
    /// The modules of a base that this config targets, sorted by path.
    ///
    /// Errors: [`Error::InvalidAdapter`] naming the key whose pattern is not understood or takes
    /// too long, or whose alpha is too large.
    pub fn modules(&self, shape: &BaseShape) -> Result<Vec<TargetModule>> {
        let selected = Selection::new(self)?;
        let ranks =
            Suffixes::new("rank_pattern", self.rank_pattern.iter().map(|(key, _)| key.as_str()))?;
        let alphas =
            Suffixes::new("alpha_pattern", self.alpha_pattern.iter().map(|(key, _)| key.as_str()))?;
        let mut modules = Vec::new();
        for path in shape.modules() {
            // A linear that files hold with others may be meant by its own name or by theirs.
            let mut names = vec![path.to_string(), shape.in_files(path).0];
            names.dedup();
            if !selected.takes(path.target, &names)? {
                continue;
            }
            let name = &names[0];
            let rank = ranks.first(&names)?.map_or(self.r, |i| self.rank_pattern[i].1);
            let own_alpha = alphas.first(&names)?.map(|i| self.alpha_pattern[i].1);
            let alpha = own_alpha.unwrap_or(self.lora_alpha);
            let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
            let scaling = (alpha / divisor) as f32;
            if !scaling.is_finite() {
                let what = if own_alpha.is_some() { "alpha_pattern" } else { "lora_alpha" };
                let reason = format!(
                    "{alpha} for {name} of rank {rank} scales beyond f32; give a smaller one"
                );
                return Err(Error::InvalidAdapter { what: what.into(), reason });
            }
            modules.push(TargetModule { path, rank, scaling });
        }
        Ok(modules)
    }
}

/// `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern`, compiled.
struct Selection<'a> {
    target: Matcher<'a>,
    exclude: Option<Matcher<'a>>,
    layers: &'a [i64],
    /// Each finds a layer's number in a path, as `idx`.
    layer_number: Vec<Pattern>,
}

impl<'a> Selection<'a> {
    fn new(config: &'a LoraConfig) -> Result<Self> {
        let numbers = |pattern: &String| {
            Pattern::new("layers_pattern", &format!(r"\A(?:(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.)"))
        };
        if config.layers_pattern.len() > MAX_REGEXES {
            return Err(too_many("layers_pattern"));
        }
        let mut layer_number =
            config.layers_pattern.iter().map(numbers).collect::<Result<Vec<_>>>()?;
        if layer_number.is_empty() {
            layer_number.push(Pattern::new("layers_pattern", r"\A.*?\.[^.]*\.(?P<idx>\d+)\.")?);
        }
        let exclude = config.exclude_modules.as_ref();
        Ok(Self {
            target: match &config.target_modules {
                Modules::Pattern(text) if text.eq_ignore_ascii_case("all-linear") => {
                    Matcher::AllLinear
                }
                modules => Matcher::new("target_modules", modules)?,
            },
            exclude: exclude.map(|modules| Matcher::new("exclude_modules", modules)).transpose()?,
            layers: &config.layers_to_transform,
            layer_number,
        })
    }

    /// Whether it takes a module, which has these paths.
    fn takes(&self, target: Target, paths: &[String]) -> Result<bool> {
        let excluded =
            self.exclude.as_ref().map_or(Ok(false), |exclude| exclude.matches(target, paths))?;
        if excluded || !self.target.matches(target, paths)? {
            return Ok(false);
        }
        // A full path is taken whatever its layer.
        let named_in_full = match &self.target {
            Matcher::Names(names) => names.iter().any(|name| paths.contains(name)),
            _ => false,
        };
        Ok(named_in_full
            || self.layers.is_empty()
            || self.layer(&paths[0])?.is_some_and(|n| self.layers.contains(&n)))
    }

    /// The layer's number, by the first pattern that matches.
    fn layer(&self, path: &str) -> Result<Option<i64>> {
        for pattern in &self.layer_number {
            if let Some(number) = pattern.group(path, "idx")? {
                return Ok(number.parse().ok());
            }
        }
        Ok(None)
    }
}

enum Matcher<'a> {
    AllLinear,
    Names(&'a [String]),
    Whole(Pattern),
}

impl<'a> Matcher<'a> {
    fn new(key: &str, modules: &'a Modules) -> Result<Self> {
        Ok(match modules {
            Modules::Names(names) => Self::Names(names),
            Modules::Pattern(pattern) => {
                // Alone first: brackets that only balance inside ours are an error to Python.
                Pattern::new(key, pattern)?;
                Self::Whole(Pattern::new(key, &format!(r"\A(?:{pattern})\z"))?)
            }
        })
    }

    /// Whether one of a module's paths is meant.
    fn matches(&self, target: Target, paths: &[String]) -> Result<bool> {
        let mut all = paths.iter();
        match self {
            Self::AllLinear => Ok(target.is_in_layer()),
            Self::Names(names) => {
                Ok(all.any(|path| names.iter().any(|name| ends_with_name(path, name))))
            }
            Self::Whole(pattern) => {
                all.try_fold(false, |found, path| Ok(found || pattern.is_match(path)?))
            }
        }
    }
}

/// Whether a path is `name`, or ends in `.` and `name`.
fn ends_with_name(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The keys of `rank_pattern` or `alpha_pattern`: each is the pattern `(.*\.)?(key)$` from a path's
/// beginning.
struct Suffixes<'a> {
    keys: Vec<Suffix<'a>>,
}

enum Suffix<'a> {
    /// Letters, digits, `_`, and `.` for any character: what PEFT itself writes, a key a module. No
    /// engine is needed.
    Plain(&'a str),
    Pattern(Pattern),
}

impl<'a> Suffixes<'a> {
    fn new(key: &str, patterns: impl Iterator<Item = &'a str>) -> Result<Self> {
        let is_plain = |text: &str| {
            text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.'))
        };
        let (mut keys, mut regexes) = (Vec::new(), 0);
        for text in patterns {
            keys.push(if is_plain(text) {
                Suffix::Plain(text)
            } else {
                regexes += 1;
                Suffix::Pattern(Pattern::new(key, &format!(r"\A(?:(.*\.)?({text})$)"))?)
            });
            if regexes > MAX_REGEXES {
                return Err(too_many(key));
            }
        }
        Ok(Self { keys })
    }

    /// The first key that matches one of a module's paths, in their order.
    fn first(&self, paths: &[String]) -> Result<Option<usize>> {
        for (path, (i, key)) in
            paths.iter().flat_map(|path| self.keys.iter().enumerate().map(move |key| (path, key)))
        {
            let matches = match key {
                Suffix::Plain(text) => ends_with_plain(path.as_bytes(), text.as_bytes()),
                Suffix::Pattern(pattern) => pattern.is_match(path)?,
            };
            if matches {
                return Ok(Some(i));
            }
        }
        Ok(None)
    }
}

fn ends_with_plain(path: &[u8], text: &[u8]) -> bool {
    let Some(at) = path.len().checked_sub(text.len()) else { return false };
    let (before, end) = path.split_at(at);
    before.last().is_none_or(|&c| c == b'.')
        && end.iter().zip(text).all(|(&c, &t)| c == t || t == b'.')
}

fn too_many(key: &str) -> Error {
    let reason = format!("more than {MAX_REGEXES} patterns; list the modules' paths instead");
    Error::InvalidAdapter { what: key.into(), reason }
}
