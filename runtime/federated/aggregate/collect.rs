//! Deltas and parts as they come in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::super::invalid;
use super::super::sealed::Sealed;
use super::super::wire::{self, Delta, Key};
use super::admit::{Admitted, Refusal, Round};
use super::exact::{Sum, Sums};
use super::options::Robust;
use super::partial;
use super::probes::{Change, Probe, Probes, probes};
use super::report::Entry;
use crate::adapter::{Factor, ModulePath};
use crate::error::Result;
use crate::parallel;

/// Deltas that are read and added up at once, several cores at a time.
const AT_ONCE: usize = 8;

/// A delta that goes into the sums, or out of them again.
struct Addend {
    delta: Delta,
    shrink: f64,
    /// Below 0, it goes out.
    weight: f64,
}

/// The sums of a module.
#[derive(Default)]
struct ModuleSums<'a> {
    factors: Vec<(Factor, &'a mut Sums)>,
    probe: Option<&'a mut Probe>,
}

/// A delta that is in the sums.
pub(super) struct Taken {
    pub(super) entry: usize,
    /// Where to read it again; `None` for one that came within a part.
    pub(super) path: Option<PathBuf>,
    pub(super) name: String,
    pub(super) admitted: Admitted,
}

/// What came in so far.
pub(super) struct Collected<'a> {
    pub(super) round: Round<'a>,
    pub(super) entries: Vec<Entry>,
    /// By the key that signed.
    pub(super) taken: BTreeMap<String, Taken>,
    /// Weighted sums of the modes that add up.
    pub(super) sums: BTreeMap<Key, Sums>,
    pub(super) weight: Sum,
    pub(super) probes: Option<Probes>,
    /// By name: the deltas of the modes that need all of them.
    pub(super) kept: BTreeMap<String, (Delta, Admitted)>,
    pub(super) n_bytes: u64,
    /// Taken, but not in the sums yet.
    waiting: Vec<Addend>,
    /// Memory of deltas that are in the sums, for others.
    rooms: Vec<Vec<u8>>,
}

impl<'a> Collected<'a> {
    pub(super) fn new(round: Round<'a>) -> Self {
        let (manifest, adds) = (&round.parent.manifest, is_sum(&round));
        let sums = round.parent.modules.iter().flat_map(|module| {
            let factors = [(Factor::A, module.a.len()), (Factor::B, module.b.len())];
            let wanted = factors.into_iter().filter(|(f, _)| manifest.next.factors.has(*f));
            wanted.map(|(factor, n)| ((module.path, factor), Sums::new(n)))
        });
        let sums = if adds { sums.collect() } else { BTreeMap::new() };
        let probes =
            (adds && round.options.mode == super::Mode::FedAvg).then(|| probes(round.parent));
        Self {
            round,
            entries: Vec::new(),
            taken: BTreeMap::new(),
            sums,
            weight: Sum::default(),
            probes,
            kept: BTreeMap::new(),
            n_bytes: 0,
            waiting: Vec::new(),
            rooms: Vec::new(),
        }
    }

    /// Whether only sums are kept.
    pub(super) fn is_sum(&self) -> bool {
        is_sum(&self.round)
    }

    pub(super) fn add_files(&mut self, files: &[PathBuf]) -> Result<()> {
        for files in files.chunks(AT_ONCE) {
            self.rooms.resize_with(AT_ONCE, Vec::new);
            let rooms = self.rooms.drain(..);
            let read = parallel::map(files.iter().zip(rooms).collect(), Read::new);
            for (path, read) in files.iter().zip(read) {
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                match read {
                    Read::Delta(delta) => self.add(file, Some(path), *delta)?,
                    Read::Part(sealed) => partial::add(self, file, &sealed)?,
                    Read::Unreadable(reason) => {
                        self.entries.push(Entry::refused(file, Refusal::Unreadable { reason }));
                    }
                }
            }
            self.sum();
        }
        Ok(())
    }

    /// Takes a delta, or notes why not. Of several that a key signed, the one with the first name
    /// is taken, in whatever order they come.
    pub(super) fn add(&mut self, file: String, path: Option<&Path>, delta: Delta) -> Result<()> {
        self.n_bytes += delta.n_bytes() as u64;
        let key = delta.manifest.signer.to_string();
        let mut entry = Entry::new(file, &delta);
        let admitted = match self.round.admit(&delta) {
            Ok(admitted) => admitted,
            Err(refusal) => {
                entry.refusal = Some(refusal);
                self.entries.push(entry);
                return Ok(());
            }
        };
        let before = self.taken.get(&key).map(|taken| taken.name.as_str().cmp(delta.name()));
        if let Some(order) = before {
            if order.is_le() {
                let again = order.is_eq();
                entry.refusal = Some(if again { Refusal::Duplicate } else { Refusal::SecondOfKey });
                self.entries.push(entry);
                return Ok(());
            }
            self.remove(&key, Refusal::SecondOfKey)?;
        }
        (entry.weight, entry.staleness) = (admitted.weight, admitted.staleness);
        entry.shrunk_to = (admitted.shrink < 1.0).then(|| admitted.shrink * delta.norm());
        let taken = Taken {
            entry: self.entries.len(),
            path: path.map(Into::into),
            name: delta.name().into(),
            admitted,
        };
        self.entries.push(entry);
        self.taken.insert(key, taken);
        match self.is_sum() {
            true => self.waiting.push(Addend::new(delta, admitted, 1.0)),
            false => drop(self.kept.insert(delta.name().into(), (delta, admitted))),
        }
        Ok(())
    }

    /// Takes a delta out again.
    ///
    /// Errors: `InvalidDelta` when it came within a part, or its file has changed since.
    pub(super) fn remove(&mut self, key: &str, refusal: Refusal) -> Result<()> {
        let Some(taken) = self.taken.remove(key) else { return Ok(()) };
        if self.kept.remove(&taken.name).is_none() {
            let delta = taken.read_again()?;
            self.waiting.push(Addend::new(delta, taken.admitted, -1.0));
            self.sum();
        }
        if let Some(entry) = self.entries.get_mut(taken.entry) {
            (entry.weight, entry.refusal) = (0.0, Some(refusal));
        }
        Ok(())
    }

    /// Adds up what waits: each core some modules, of all deltas.
    fn sum(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.iter().for_each(|addend| self.weight.add(addend.weight));
        let mut modules = BTreeMap::<_, ModuleSums<'_>>::new();
        for ((path, factor), sums) in &mut self.sums {
            modules.entry(*path).or_default().factors.push((*factor, sums));
        }
        for (path, probe) in self.probes.iter_mut().flatten() {
            modules.entry(*path).or_default().probe = Some(probe);
        }
        parallel::map(modules.into_iter().collect(), |(path, mut sums)| {
            let mut rooms = [Vec::new(), Vec::new()];
            waiting.iter().for_each(|addend| sums.add(path, addend, &mut rooms));
        });
        self.probes.iter_mut().for_each(|probes| probes.retain(|_, probe| !probe.is_lost));
        self.rooms.extend(waiting.into_iter().map(|addend| addend.delta.into_bytes()));
    }
}

impl Addend {
    fn new(delta: Delta, admitted: Admitted, sign: f64) -> Self {
        Self { delta, shrink: admitted.shrink, weight: sign * admitted.weight }
    }
}

impl ModuleSums<'_> {
    /// `rooms` are for the numbers of A and B.
    fn add(&mut self, path: ModulePath, addend: &Addend, rooms: &mut [Vec<f32>; 2]) {
        let (Addend { delta, shrink, weight }, [room_a, room_b]) = (addend, rooms);
        // Empty for a factor that it does not hold; it was admitted with all that the round asks for.
        let a = delta.numbers((path, Factor::A), room_a).unwrap_or_default();
        let b = delta.numbers((path, Factor::B), room_b).unwrap_or_default();
        for (factor, sums) in &mut self.factors {
            sums.add(if *factor == Factor::A { a } else { b }, weight * shrink);
        }
        if let Some(probe) = &mut self.probe {
            probe.add(Change { a, b, shrink: *shrink }, *weight);
        }
    }
}

impl Taken {
    /// The same delta, read a second time and checked again: it goes out of the sums.
    fn read_again(&self) -> Result<Delta> {
        let path = self.path()?;
        let delta = Delta::open(path)?;
        match delta.name() == self.name {
            true => Ok(delta),
            false => Err(invalid(path.display().to_string(), "it changed while it was averaged")),
        }
    }

    /// The same delta, only to be looked at: not hashed again, the file is taken for what it was.
    pub(super) fn glance(&self, norm: f64) -> Result<Delta> {
        Delta::glance(self.path()?, &self.name, norm)
    }

    fn path(&self) -> Result<&Path> {
        let reason = "a device of it sent another delta too; split deltas by key, so that one part \
            has all of a device's";
        self.path.as_deref().ok_or_else(|| invalid("part", reason))
    }
}

fn is_sum(round: &Round<'_>) -> bool {
    round.options.mode.is_sum() && round.options.robust == Robust::Mean
}

/// A file that may be one of several things.
enum Read {
    Delta(Box<Delta>),
    Part(Box<Sealed>),
    Unreadable(String),
}

impl Read {
    fn new((path, room): (&PathBuf, Vec<u8>)) -> Self {
        let read = wire::read_into(room, path).and_then(Sealed::unhashed);
        let read = read.and_then(|sealed| match partial::is_part(&sealed) {
            true => Ok(Self::Part(Box::new(partial::open(sealed)?))),
            false => Ok(Self::Delta(Box::new(Delta::from_sealed(sealed)?))),
        });
        read.unwrap_or_else(|e| Self::Unreadable(e.to_string()))
    }
}
