//! Which weights and which method merge adapters best, by the loss on examples that none of them
//! has seen.
//!
//! A search along one weight at a time: each parent's weight is tried while the others stay, the
//! best is kept, and that is repeated until nothing changes. What is tried is the merged adapter
//! itself, on the device.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::{Examples, Loss};
use crate::engine::{CancelToken, Change, Engine};
use crate::error::{Error, Result};
use crate::merge::{Merged, Parent, Recipe, merge};

/// What the adapter under trial is called on the device.
const TRIAL: &str = "epiphyte: merge under trial";

/// What to try.
#[derive(Clone, Debug)]
pub struct Search<'a> {
    /// Methods with their options.
    pub recipes: &'a [Recipe],
    /// Weights that each parent gets, beside the one it comes with.
    pub weights: &'a [f64],
    /// Times that every parent's weight is tried, at most.
    pub rounds: usize,
    /// Ends it between two examples.
    pub cancel: CancelToken,
}

/// A merge that was tried.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The method.
    pub method: &'static str,
    /// Of [`Search::recipes`], which.
    pub recipe: usize,
    /// Of the parents.
    pub weights: Vec<f64>,
    /// Mean by the tokens' weights, in nats a token; `None` for weights that the method refuses, or
    /// when it is no number.
    pub loss: Option<f64>,
}

/// What a search found.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Tuned {
    /// The best.
    pub merged: Merged,
    /// The trial that it is, among the others.
    pub best: usize,
    /// All, in the order in which they were tried; the first of each recipe has the weights that
    /// the parents came with.
    pub trials: Vec<Trial>,
}

/// How far a search is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneProgress {
    /// Merges tried.
    pub done: usize,
    /// In all, at most.
    pub most: usize,
    /// The lowest loss so far.
    pub best: Option<f64>,
}

/// Merges `parents` in several ways, measures each on `examples`, and gives the best.
///
/// Errors: [`Error::InvalidArgument`] for a search without recipes or examples without an answer;
/// the first refusal when no merge could be made; [`Error::Cancelled`]; as [`merge`],
/// [`Engine::add_adapter`] and [`super::evaluate`].
pub fn tune(
    engine: &Arc<Engine>,
    parents: &[Parent<'_>],
    search: &Search<'_>,
    examples: &Examples,
    progress: &mut dyn FnMut(TuneProgress),
) -> Result<Tuned> {
    let mut tuner = Tuner {
        engine,
        parents,
        search,
        examples,
        trials: Vec::new(),
        tried: HashMap::new(),
        refusal: None,
    };
    let best = tuner.run(progress);
    // Nobody has it any more.
    if engine.adapter_report(TRIAL).is_some() {
        engine.unload_adapter(TRIAL)?;
    }
    let best = best?;
    let Trial { recipe, weights, .. } = &tuner.trials[best];
    let merged = tuner.merge(*recipe, weights)?;
    Ok(Tuned { merged, best, trials: tuner.trials })
}

struct Tuner<'a> {
    engine: &'a Arc<Engine>,
    parents: &'a [Parent<'a>],
    search: &'a Search<'a>,
    examples: &'a Examples,
    trials: Vec<Trial>,
    /// Trials by recipe and the bits of their weights.
    tried: HashMap<(usize, Vec<u64>), usize>,
    /// Why the first merge that could not be made was refused.
    refusal: Option<Error>,
}

impl Tuner<'_> {
    /// Gives the best trial.
    fn run(&mut self, progress: &mut dyn FnMut(TuneProgress)) -> Result<usize> {
        let Search { recipes, weights, rounds, .. } = self.search;
        let of_round = self.parents.len() * weights.len();
        let most = recipes.len().saturating_mul(rounds.saturating_mul(of_round).saturating_add(1));
        progress(TuneProgress { done: 0, most, best: None });
        let mut heard = |tuner: &Self| {
            let best = tuner.best().and_then(|best| tuner.trials[best].loss);
            progress(TuneProgress { done: tuner.trials.len(), most, best });
        };
        for recipe in 0..recipes.len() {
            self.descend(recipe, &mut heard)?;
        }
        match (self.best(), self.refusal.take()) {
            (Some(best), _) => Ok(best),
            (None, Some(refusal)) => Err(refusal),
            (None, None) => {
                let reason = "no merge has a loss; give methods, and examples with an answer";
                Err(Error::InvalidArgument { name: "tune", reason: reason.into() })
            }
        }
    }

    /// Goes along each parent's weight in turn, until nothing changes.
    fn descend(&mut self, recipe: usize, heard: &mut dyn FnMut(&Self)) -> Result<()> {
        let mut at: Vec<f64> = self.parents.iter().map(|parent| parent.weight).collect();
        let mut least = self.try_out(recipe, &at)?;
        heard(self);
        for _ in 0..self.search.rounds {
            let before = at.clone();
            for parent in 0..at.len() {
                for &weight in self.search.weights {
                    let mut next = at.clone();
                    next[parent] = weight;
                    let loss = self.try_out(recipe, &next)?;
                    heard(self);
                    if loss.is_some_and(|loss| least.is_none_or(|least| loss < least)) {
                        (least, at) = (loss, next);
                    }
                }
            }
            if at == before {
                break;
            }
        }
        Ok(())
    }

    /// The loss of a merge, which is made at most once; `None` for one that has none.
    fn try_out(&mut self, recipe: usize, weights: &[f64]) -> Result<Option<f64>> {
        let key = (recipe, weights.iter().map(|weight| weight.to_bits()).collect::<Vec<_>>());
        if let Some(&trial) = self.tried.get(&key) {
            return Ok(self.trials[trial].loss);
        }
        let loss = match self.merge(recipe, weights) {
            Ok(merged) => self.loss(&merged)?,
            Err(refusal @ (Error::InvalidArgument { .. } | Error::InvalidAdapter { .. })) => {
                self.refusal.get_or_insert(refusal);
                None
            }
            Err(error) => return Err(error),
        };
        self.tried.insert(key, self.trials.len());
        let method = self.search.recipes[recipe].method.name();
        self.trials.push(Trial { method, recipe, weights: weights.to_vec(), loss });
        Ok(loss)
    }

    fn merge(&self, recipe: usize, weights: &[f64]) -> Result<Merged> {
        self.search.cancel.check()?;
        let parents: Vec<Parent<'_>> = self
            .parents
            .iter()
            .zip(weights)
            .map(|(parent, &weight)| Parent { weight, ..*parent })
            .collect();
        let shape = self.engine.base().config.base_shape();
        merge(&parents, &self.search.recipes[recipe], &shape, &mut |_, _| ())
    }

    fn loss(&self, merged: &Merged) -> Result<Option<f64>> {
        self.engine.add_adapter(TRIAL, &merged.adapter)?;
        let mut session = self.engine.session();
        session.set_adapters(&Change { adapters: &[(TRIAL, 1.0)], ..Change::default() })?;
        let mut loss = Loss::default();
        for example in &self.examples.data.examples {
            self.search.cancel.check()?;
            loss.add(example, &session)?;
        }
        Ok(loss.mean().filter(|loss| loss.is_finite()))
    }

    /// The trial with the lowest loss; of equal ones the first.
    fn best(&self) -> Option<usize> {
        let losses = self.trials.iter().enumerate();
        let losses = losses.filter_map(|(trial, tried)| Some((trial, tried.loss?)));
        losses.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(trial, _)| trial)
    }
}
