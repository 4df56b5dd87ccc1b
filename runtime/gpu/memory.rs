//! Where buffers come from: a device makes them, a [`Tally`] only counts them. What allocates takes
//! either, so that a plan is a run of the very code that it tells of.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::blocks::{Blocks, Place};
use super::device::{Caps, Gpu};
use super::tensor::{Tensor, padded};
use crate::error::{Error, Result};

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The model's, frozen or not.
    Weights,
    /// The factors A and B.
    Adapter,
    /// One a trained parameter.
    Gradients,
    /// The optimiser's moments.
    OptimizerStates,
    /// Grows with the tokens at work.
    Activations,
    /// Keys and values of conversations.
    KvCache,
    /// What is there for a moment, such as a copy on its way to the host; in a rule of thumb, its
    /// share for what it does not count.
    Overhead,
}

impl Class {
    /// Every class, in the order of a table.
    pub const ALL: [Self; 7] = [
        Self::Weights,
        Self::Adapter,
        Self::Gradients,
        Self::OptimizerStates,
        Self::Activations,
        Self::KvCache,
        Self::Overhead,
    ];

    /// For people.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Adapter => "adapter",
            Self::Gradients => "gradients",
            Self::OptimizerStates => "optimiser states",
            Self::Activations => "activations",
            Self::KvCache => "KV cache",
            Self::Overhead => "overhead",
        }
    }
}

/// Bytes in buffers that are there, by class.
#[derive(Debug, Default)]
pub struct Allocated([AtomicU64; Class::ALL.len()]);

impl Allocated {
    pub(super) fn of(&self, class: Class) -> &AtomicU64 {
        &self.0[class as usize]
    }

    /// Bytes of one class.
    pub fn class_bytes(&self, class: Class) -> u64 {
        self.of(class).load(Ordering::Relaxed)
    }

    /// Bytes of all.
    pub fn total_bytes(&self) -> u64 {
        self.0.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum()
    }
}

/// A buffer that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// What it is called.
    pub name: String,
    /// What it is for.
    pub class: Class,
    /// Row-major, in elements.
    pub shape: Vec<u64>,
    /// Bytes of an element.
    pub element_bytes: u64,
}

impl Buffer {
    /// f32 or u32 elements.
    pub fn words(class: Class, name: impl Into<String>, shape: &[usize]) -> Self {
        Self::of(class, name, shape, 4)
    }

    /// Elements of `element_bytes`.
    pub fn of(
        class: Class,
        name: impl Into<String>,
        shape: &[usize],
        element_bytes: usize,
    ) -> Self {
        let shape = shape.iter().map(|&n| n as u64).collect();
        Self { name: name.into(), class, shape, element_bytes: element_bytes as u64 }
    }

    /// Its size on the device; one beyond `u64` is the largest there is.
    pub fn bytes(&self) -> u64 {
        padded(self.shape.iter().fold(self.element_bytes, |bytes, &n| bytes.saturating_mul(n)))
    }
}

/// What buffers are made in.
pub trait Memory {
    /// A buffer that was made; it is given back when dropped.
    type Tensor;

    /// What the device can do, by which sizes are chosen.
    fn caps(&self) -> &Caps;

    /// A buffer of zeros.
    ///
    /// Errors: as [`Gpu::storage`].
    fn allocate(&self, buffer: &Buffer) -> Result<Self::Tensor>;

    /// A buffer of f32 or u32 zeros.
    ///
    /// Errors: as [`Gpu::storage`].
    fn words(&self, class: Class, name: &str, shape: &[usize]) -> Result<Self::Tensor> {
        self.allocate(&Buffer::words(class, name, shape))
    }
}

impl Memory for Gpu {
    type Tensor = Tensor;

    fn caps(&self) -> &Caps {
        self.caps()
    }

    fn allocate(&self, buffer: &Buffer) -> Result<Tensor> {
        self.storage_of(buffer.class, &buffer.name, buffer.bytes())
    }
}

/// Adds up what a device of certain abilities would be asked for.
///
/// A clone counts on from what there is now, by itself; what is there then stays there.
pub struct Tally {
    caps: Caps,
    counted: Rc<RefCell<Counted>>,
}

#[derive(Clone, Default)]
struct Counted {
    /// In the order in which they were made; `None` where one was dropped.
    buffers: Vec<Option<(Buffer, Place)>>,
    blocks: Blocks,
}

/// A buffer of a [`Tally`]: its sum goes down when this is dropped.
pub struct Share {
    counted: Rc<RefCell<Counted>>,
    index: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        let counted = &mut *self.counted.borrow_mut();
        if let Some((_, place)) = counted.buffers[self.index].take() {
            counted.blocks.give_back(place);
        }
    }
}

impl Clone for Tally {
    fn clone(&self) -> Self {
        let counted = Rc::new(RefCell::new(self.counted.borrow().clone()));
        Self { caps: self.caps.clone(), counted }
    }
}

impl Tally {
    /// Nothing yet.
    pub fn new(caps: &Caps) -> Self {
        let blocks = Blocks::new(caps.block_bytes);
        let counted = Rc::new(RefCell::new(Counted { buffers: Vec::new(), blocks }));
        Self { caps: caps.clone(), counted }
    }

    /// Adds a buffer that stays.
    pub fn add(&self, buffer: Buffer) {
        let counted = &mut *self.counted.borrow_mut();
        let place = counted.blocks.take(buffer.bytes());
        counted.buffers.push(Some((buffer, place)));
    }

    /// What there is now.
    pub fn plan(&self) -> MemoryPlan {
        let counted = self.counted.borrow();
        let buffers = counted.buffers.iter().flatten().map(|(buffer, _)| buffer.clone());
        MemoryPlan { buffers: buffers.collect(), reserved_bytes: counted.blocks.bytes() }
    }
}

impl Memory for Tally {
    type Tensor = Share;

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn allocate(&self, buffer: &Buffer) -> Result<Share> {
        self.add(buffer.clone());
        let index = self.counted.borrow().buffers.len() - 1;
        Ok(Share { counted: Rc::clone(&self.counted), index })
    }
}

/// A sum of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What it adds up.
    pub buffers: Vec<Buffer>,
    /// What the driver is asked for: the buffers and what is left of the blocks they share.
    pub reserved_bytes: u64,
}

impl MemoryPlan {
    /// Bytes of the buffers.
    pub fn total_bytes(&self) -> u64 {
        self.buffers.iter().fold(0, |sum, buffer| sum.saturating_add(buffer.bytes()))
    }

    /// Bytes of one class.
    pub fn class_bytes(&self, class: Class) -> u64 {
        let of_class = self.buffers.iter().filter(|buffer| buffer.class == class);
        of_class.fold(0, |sum, buffer| sum.saturating_add(buffer.bytes()))
    }

    /// The classes that take anything, with their bytes.
    pub fn classes(&self) -> Vec<(Class, u64)> {
        let all = Class::ALL.into_iter().map(|class| (class, self.class_bytes(class)));
        all.filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// That it is at most `budget_bytes`, if there is a budget.
    ///
    /// Errors: [`Error::OverBudget`] with the sum and `remedy`.
    pub fn within(&self, budget_bytes: Option<u64>, remedy: impl Fn() -> String) -> Result<()> {
        match budget_bytes.filter(|&budget| self.total_bytes() > budget) {
            None => Ok(()),
            Some(budget) => Err(Error::OverBudget {
                needed: human_bytes(self.total_bytes()),
                budget: human_bytes(budget),
                sum: self.sum(),
                remedy: remedy(),
            }),
        }
    }

    /// The sum on one line.
    pub fn sum(&self) -> String {
        let part =
            |(class, bytes): (Class, u64)| format!("{} {}", class.label(), human_bytes(bytes));
        self.classes().into_iter().map(part).collect::<Vec<_>>().join(" + ")
    }
}

/// Bytes for people, in powers of 1000 as memory is advertised and textbooks count it.
pub fn human_bytes(bytes: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.into_iter().find(|(unit, _)| bytes as f64 >= *unit) {
        Some((unit, name)) => format!("{:.2} {name}", bytes as f64 / unit),
        None => format!("{bytes} B"),
    }
}
