//! Memory that the phone wants back: what goes at which level, and what was freed. Each is made or
//! read again when it is next needed.

use std::sync::atomic::Ordering;

use super::Engine;
use super::lifecycle::Model;
use super::seat::Seat;
use crate::gpu::Class;

/// How badly memory is wanted. Each level does what those before it do, and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemoryLevel {
    /// Prompts that nobody uses are forgotten, and the cache is made as small as those in use
    /// allow.
    Moderate,
    /// Adapters leave the device, those in use too, unless they could not be had again (their file
    /// is gone or was written to).
    Low,
    /// Keys and values of all sessions go. What was said stays, and is computed again.
    Critical,
    /// The model leaves the device, with all that works on it, unless it could not be read again
    /// (it was opened from memory and not kept). Training keeps factors and moments, and nothing
    /// else.
    Complete,
}

impl MemoryLevel {
    /// Of Android's `ComponentCallbacks2.onTrimMemory(level)`; one that is not known is taken for
    /// the nearest below it.
    pub fn from_trim_memory(level: i32) -> Self {
        match level {
            // TRIM_MEMORY_UI_HIDDEN is no shortage, though above those of running apps.
            ..10 | 20..40 => Self::Moderate,
            // TRIM_MEMORY_RUNNING_LOW.
            10..15 => Self::Low,
            // TRIM_MEMORY_RUNNING_CRITICAL, TRIM_MEMORY_BACKGROUND.
            15..20 | 40..60 => Self::Critical,
            // TRIM_MEMORY_MODERATE, TRIM_MEMORY_COMPLETE: among the next to be ended.
            60.. => Self::Complete,
        }
    }

    /// Of iOS's memory warning, which has no degrees: in the background the app is among the next
    /// to be ended.
    pub fn from_memory_warning(background: bool) -> Self {
        if background { Self::Complete } else { Self::Critical }
    }
}

/// Bytes of device memory of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassBytes {
    /// What they were for.
    pub class: Class,
    /// How many.
    pub bytes: u64,
}

/// What came of [`Engine::memory_pressure`].
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryReport {
    /// What was asked for.
    pub level: MemoryLevel,
    /// What was freed, class by class; those of which nothing was are not there.
    pub freed: Vec<ClassBytes>,
    /// Adapters that are still on the device.
    pub adapters_left: usize,
    /// The model is still on the device.
    pub model_left: bool,
    /// Bytes that everything of the engine takes now.
    pub device_bytes: u64,
}

impl MemoryReport {
    /// Bytes of all classes.
    pub fn freed_bytes(&self) -> u64 {
        self.freed.iter().map(|freed| freed.bytes).sum()
    }

    /// Bytes of one class.
    pub fn freed_of(&self, class: Class) -> u64 {
        let of_class = self.freed.iter().filter(|freed| freed.class == class);
        of_class.map(|freed| freed.bytes).sum()
    }
}

impl Engine {
    /// Gives memory back to the phone. All comes back when it is next needed, and nothing that is
    /// said changes by it: results are the same on the reference tier bit for bit, within rounding
    /// elsewhere. (Only a session that has changed its adapters with [`super::KvPolicy::Keep`] goes
    /// on from [`MemoryLevel::Critical`] as if it had changed them with
    /// [`super::KvPolicy::Recompute`].)
    ///
    /// From any thread. Waits for the passes at hand, at most one decode step and one pass of a
    /// prompt, and at [`MemoryLevel::Complete`] for the submission at hand of training, whose step
    /// is taken again; does all this, too, in the background, where it moves nothing on the device:
    /// pages in use stay where they are.
    pub fn memory_pressure(&self, level: MemoryLevel) -> MemoryReport {
        self.lifecycle.memory_warnings.fetch_add(1, Ordering::Relaxed);
        let _kept = self.recoveries.close();
        let unload = level == MemoryLevel::Complete && self.base.can_be_read_again();
        let _benches = unload.then(|| {
            // A step that was stopped once is let be.
            let stops = !self.benches.step_is_due();
            let _interruption = stops.then(|| self.lifecycle.interrupt_training());
            self.benches.gate.close()
        });
        let _spaces = [self.steps.take(), self.prompts.take()];
        let before = self.class_bytes();
        let mut seat = self.seat();
        if unload {
            self.benches.put_away();
        }
        if level >= MemoryLevel::Low {
            seat.registry_mut().evict_all();
        }
        let gpu = self.gpu();
        let relieved = match &mut *seat {
            Seat::Taken(executor) => executor.relieve(gpu, level, !self.lifecycle.is_background()),
            Seat::Empty(_) => Ok(()),
        };
        // One that is half rebound must not run.
        let broken = relieved.is_err() && self.base.can_be_read_again();
        if seat.is_taken() && (unload || broken) {
            seat.clear(gpu);
            self.lifecycle.set_model(Model::Away);
        }
        let (adapters_left, model_left) = (seat.registry().residents(), seat.is_taken());
        drop(seat);
        // What the device was still at is done, and the driver has its memory back.
        if let Err(error) = relieved.and_then(|()| gpu.wait(None)) {
            log::warn!("to free memory: {error}");
        }
        let after = self.class_bytes();
        let freed = before.into_iter().zip(after).map(|(before, after)| ClassBytes {
            class: before.class,
            bytes: before.bytes.saturating_sub(after.bytes),
        });
        let freed = freed.filter(|freed| freed.bytes > 0).collect();
        self.lifecycle.tell();
        let device_bytes = self.device_bytes();
        MemoryReport { level, freed, adapters_left, model_left, device_bytes }
    }

    /// Bytes of device memory that everything of this engine takes now, class by class.
    pub fn class_bytes(&self) -> Vec<ClassBytes> {
        let gpus = || std::iter::once(&self.first).chain(self.second.get());
        let bytes = |class| gpus().map(|gpu| gpu.counters.allocated.class_bytes(class)).sum();
        Class::ALL.into_iter().map(|class| ClassBytes { class, bytes: bytes(class) }).collect()
    }
}
