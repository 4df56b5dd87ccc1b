//! Everything that sessions and adapters do, at random and for as long as is asked, against what
//! must hold: outputs are those of a fresh run under the same adapters, memory stays where it was,
//! the budget is kept.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use epiphyte::adapter::Adapter;
use epiphyte::engine::{Change, KvPolicy};
use epiphyte::{DType, Engine, EngineOptions, Error, Sequence, Session, generate_batch};

use super::adapters::{shape, under};
use super::registry::sized;
use super::{CONTEXT, greedy, open, prefill, prompt};
use crate::common::Random;
use crate::common::skip::usual;

const IDS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Adapters that each id stands for in turn.
const VERSIONS: usize = 2;
/// Two runs on the f32 tier are each within 1e-3 of the largest logit of an exact one; see
/// `tests/model`.
const APART: f32 = 2e-3;
const ROUND: usize = 40;

type Set = Vec<(&'static str, f32)>;

/// A session and what it must be.
struct Member {
    session: Session,
    set: Set,
    /// Its history was kept over a swap: no fresh run is like it.
    mixed: bool,
}

struct Soak {
    engine: Arc<Engine>,
    budget: u64,
    /// Has room for every version of every adapter.
    alone: Arc<Engine>,
    dir: PathBuf,
    random: Random,
    versions: [usize; IDS.len()],
    loaded: [bool; IDS.len()],
    members: Vec<Member>,
    checked: usize,
    refused: usize,
}

fn version(id: usize, version: usize) -> Adapter {
    sized((10 * id + version) as u64, 3 + 2 * id + 5 * version)
}

fn number(id: &str) -> usize {
    IDS.iter().position(|other| *other == id).unwrap()
}

impl Soak {
    fn new(seed: u64, dir: PathBuf) -> Self {
        let options =
            || EngineOptions { kv_f32: true, skip_self_test: true, ..EngineOptions::default() };
        let alone = open(options());
        for (id, v) in (0..IDS.len()).flat_map(|id| (0..VERSIONS).map(move |v| (id, v))) {
            version(id, v)
                .save_peft(dir.join(format!("{}{v}", IDS[id])), DType::F32, &shape())
                .unwrap();
            alone.add_adapter(&format!("{}{v}", IDS[id]), &version(id, v)).unwrap();
        }
        // About half of what there is.
        let sizes = alone
            .adapters()
            .into_iter()
            .filter(|state| state.id.ends_with('0'))
            .map(|state| state.n_bytes);
        let budget = sizes.sum::<u64>() / 2;
        let engine = open(EngineOptions { adapter_budget: budget, ..options() });
        let (versions, loaded, members) = ([0; IDS.len()], [false; IDS.len()], Vec::new());
        let random = Random::new(seed);
        Self {
            engine,
            budget,
            alone,
            dir,
            random,
            versions,
            loaded,
            members,
            checked: 0,
            refused: 0,
        }
    }

    fn pick(&mut self) -> usize {
        self.random.below(self.members.len() as u32) as usize
    }

    fn random_set(&mut self) -> Set {
        let loaded: Vec<&str> =
            (0..IDS.len()).filter(|&i| self.loaded[i]).map(|i| IDS[i]).collect();
        let wanted = self.random.below(4);
        let mut chosen = BTreeSet::new();
        for _ in 0..wanted {
            chosen.insert(loaded[self.random.below(loaded.len() as u32) as usize]);
        }
        chosen
            .into_iter()
            .map(|id| (id, [1.0, 0.5, -0.75][self.random.below(3) as usize]))
            .collect()
    }

    /// Bytes of the adapters that are in use, or in `set`.
    fn used_bytes(&self, set: &Set) -> u64 {
        let used = |id: &str| {
            self.members
                .iter()
                .flat_map(|member| &member.set)
                .chain(set)
                .any(|(other, _)| *other == id)
        };
        self.engine
            .adapters()
            .iter()
            .filter(|state| used(&state.id))
            .map(|state| state.n_bytes)
            .sum()
    }

    /// What the session says from `from` on is what a fresh one says, as far as two roundings
    /// agree.
    fn check(&mut self, i: usize, from: usize) {
        let member = &self.members[i];
        let tokens = member.session.tokens().to_vec();
        if !member.mixed && from < tokens.len() {
            self.check_tokens(&member.set.clone(), &tokens, from);
        }
    }

    fn check_tokens(&mut self, set: &Set, tokens: &[u32], from: usize) {
        let name =
            |(id, weight): &(&str, f32)| (format!("{id}{}", self.versions[number(id)]), *weight);
        let names: Vec<(String, f32)> = set.iter().map(name).collect();
        let names: Vec<(&str, f32)> =
            names.iter().map(|(id, weight)| (id.as_str(), *weight)).collect();
        let mut fresh = under(&self.alone, &names, tokens);
        let each = |at: usize, logits: &[f32]| {
            let Some(token) = tokens.get(at + 1) else { return };
            let largest = logits.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let behind = best - logits[*token as usize];
            assert!(
                behind <= APART * largest,
                "{set:?}: token {at} of {} is {behind} behind the best",
                tokens.len()
            );
        };
        fresh.logits(from - 1, each).unwrap();
        self.checked += tokens.len() - from;
    }

    fn swap(&mut self) {
        let (i, set) = (self.pick(), self.random_set());
        let history = if self.random.below(3) == 0 { KvPolicy::Keep } else { KvPolicy::Recompute };
        let room = self.used_bytes(&set) <= self.budget;
        let member = &mut self.members[i];
        let prompted = member.session.tokens().len();
        // Between sessions' steps, or between two tokens of a generation.
        let changed = if self.random.below(2) == 0 {
            member.session.set_adapters(&Change { adapters: &set, history })
        } else {
            let mut generation = member.session.generate(greedy(6)).unwrap();
            (0..2).for_each(|_| drop(generation.next().unwrap().unwrap()));
            let changed = generation.set_adapters(&Change { adapters: &set, history });
            generation.for_each(|token| drop(token.unwrap()));
            changed
        };
        let (tokens, old) = (member.session.tokens().to_vec(), member.set.clone());
        let (same, was_mixed) = (old == set, member.mixed);
        match changed {
            Ok(()) => {
                assert!(room || same);
                member.mixed = history == KvPolicy::Keep && (!same || was_mixed);
                member.set = set;
            }
            Err(Error::AdapterBudget { .. }) => {
                assert!(!room && !same);
                self.refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
        if tokens.len() > prompted {
            if !was_mixed {
                self.check_tokens(&old, &tokens[..prompted + 2], prompted);
            }
            self.check(i, prompted + 2);
        }
    }

    fn generate_some(&mut self) {
        let together = 1 + self.random.below(self.members.len() as u32) as usize;
        let first = self.pick();
        let before: Vec<usize> =
            self.members.iter().map(|member| member.session.tokens().len()).collect();
        let chosen: Vec<usize> = (0..together).map(|k| (first + k) % self.members.len()).collect();
        let sequences = self.members.iter_mut().enumerate().filter(|(i, _)| chosen.contains(i));
        let mut lengths = Random::new(u64::from(self.random.below(1000)));
        let sequences = sequences
            .map(|(_, m)| Sequence {
                session: &mut m.session,
                options: greedy(1 + lengths.below(6) as usize),
            })
            .collect();
        generate_batch(sequences, |_, _| std::ops::ControlFlow::Continue(())).unwrap();
        chosen.into_iter().for_each(|i| self.check(i, before[i]));
    }

    /// Loads, replaces or unloads an adapter. One in use may be replaced too, but then two versions
    /// have its id, which `engine::registry` tests; here it is left alone.
    fn load(&mut self) {
        let id = self.random.below(IDS.len() as u32) as usize;
        let used =
            self.members.iter().any(|member| member.set.iter().any(|(other, _)| *other == IDS[id]));
        let unload =
            self.random.below(4) == 0 && self.loaded.iter().filter(|loaded| **loaded).count() > 2;
        if used && !unload {
            return;
        }
        let v = self.random.below(VERSIONS as u32) as usize;
        let name = format!("{}{v}", IDS[id]);
        let bytes = self
            .alone
            .adapters()
            .iter()
            .find(|state| state.id == name)
            .map_or(0, |state| state.n_bytes);
        let fits = self.used_bytes(&Vec::new()) + bytes <= self.budget;
        let changed = match self.random.below(2) {
            _ if unload => self.engine.unload_adapter(IDS[id]),
            0 => self.engine.load_adapter(IDS[id], self.dir.join(&name)).map(drop),
            _ => self.engine.add_adapter(IDS[id], &version(id, v)).map(drop),
        };
        match changed {
            Ok(()) => {
                assert!(!used && (fits || unload));
                self.loaded[id] = !unload;
                self.versions[id] = v;
            }
            Err(Error::AdapterInUse { .. }) => assert!(used && unload),
            Err(Error::AdapterBudget { .. }) => {
                assert!(!fits);
                self.refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    fn step(&mut self) {
        if self.members.is_empty() {
            let ids =
                prompt(u64::from(self.random.below(1000)), 1 + self.random.below(70) as usize);
            let session = super::session(&self.engine, &ids);
            return self.members.push(Member { session, set: Vec::new(), mixed: false });
        }
        let i = self.pick();
        match self.random.below(12) {
            0..3 => self.swap(),
            3..6 => self.generate_some(),
            6 => self.load(),
            7 => {
                let more =
                    prompt(u64::from(self.random.below(1000)), self.random.below(40) as usize);
                self.members[i].session.push_tokens(&more).unwrap();
            }
            8 => {
                // What is left of a mixed history may all be of one set, but no one knows.
                let len =
                    1 + self.random.below(self.members[i].session.tokens().len() as u32) as usize;
                self.members[i].session.truncate(len);
            }
            9 if self.members.len() < 6 => {
                let Member { session, set, mixed } = &self.members[i];
                let fork = Member { session: session.fork(), set: set.clone(), mixed: *mixed };
                self.members.push(fork);
            }
            10 => {
                let path = self.dir.join("session");
                self.members[i].session.save(&path).unwrap();
                self.members[i].session = self.engine.restore(&path).unwrap();
            }
            _ => {
                self.members.swap_remove(i);
            }
        }
        for member in &mut self.members {
            // Room for the next steps.
            if member.session.tokens().len() > CONTEXT - 60 {
                member.session.truncate(50);
            }
        }
        self.hold();
    }

    /// What holds after every step.
    fn hold(&self) {
        let states = self.engine.adapters();
        let resident: u64 =
            states.iter().filter(|state| state.resident).map(|state| state.n_bytes).sum();
        assert!(resident <= self.budget, "{resident} bytes of {}", self.budget);
        for state in states {
            let used =
                self.members.iter().any(|member| member.set.iter().any(|(id, _)| *id == state.id));
            assert_eq!(used, state.pinned, "{}", state.id);
            assert!(!used || state.resident, "{}", state.id);
        }
        for member in &self.members {
            let adapters = member.session.adapters();
            assert!(
                adapters
                    .iter()
                    .map(|(id, weight)| (id.as_str(), *weight))
                    .eq(member.set.iter().copied())
            );
        }
    }

    /// Memory once every buffer has been needed: as many pages as sessions may come to hold, and
    /// all the budget.
    fn most_bytes(&mut self) -> u64 {
        for (i, id) in IDS.iter().enumerate() {
            self.engine.add_adapter(id, &version(i, 0)).unwrap();
            self.loaded[i] = true;
        }
        let full: Vec<Session> = (0..8)
            .map(|seed| {
                let mut session = super::session(&self.engine, &prompt(seed, CONTEXT));
                prefill(&mut session);
                session
            })
            .collect();
        drop(full);
        self.engine.gpu().allocated_bytes() + self.budget
    }
}

#[test]
fn sessions_and_adapters_hold_whatever_comes() {
    let seconds = usual("EPIPHYTE_SOAK_SECONDS", 60, 1800);
    let seed = std::env::var("EPIPHYTE_SOAK_SEED").ok().and_then(|value| value.parse().ok());
    let seed = seed.unwrap_or(1);
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let dir = tempfile::tempdir().unwrap();
    let mut soak = Soak::new(seed, dir.path().to_path_buf());
    let most = soak.most_bytes();
    let mut rounds = 0;
    while rounds == 0 || Instant::now() < deadline {
        (0..ROUND).for_each(|_| soak.step());
        soak.members.clear();
        soak.hold();
        let bytes = soak.engine.gpu().allocated_bytes();
        assert!(bytes <= most, "{bytes} bytes after round {rounds}, where {most} are enough");
        rounds += 1;
    }
    println!(
        "{rounds} rounds of seed {seed}: {} tokens checked, {} refused for the budget",
        soak.checked, soak.refused
    );
    assert!(soak.checked > 0);
}
