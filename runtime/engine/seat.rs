//! The model's seat on the device: taken, or empty until a call needs the model and it is read
//! again. A device that is lost is opened again once.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::executor::Executor;
use super::lifecycle::Model;
use super::residents::{Absent, ReadAgain, Registry, SetId};
use super::session::Returned;
use super::turns;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::model::weights::Weights;
use crate::progress::Loading;

/// Who has the device. Adapters are known whether the model is there or not.
pub(super) enum Seat {
    Taken(Box<Executor>),
    Empty(Box<Registry>),
}

impl Seat {
    pub(super) fn is_taken(&self) -> bool {
        matches!(self, Self::Taken(_))
    }

    pub(super) fn registry(&self) -> &Registry {
        match self {
            Self::Taken(executor) => &executor.registry,
            Self::Empty(registry) => registry,
        }
    }

    pub(super) fn registry_mut(&mut self) -> &mut Registry {
        match self {
            Self::Taken(executor) => &mut executor.registry,
            Self::Empty(registry) => registry,
        }
    }

    /// Takes the model and all keys and values off the device.
    pub(super) fn clear(&mut self, gpu: &Gpu) {
        if let Self::Taken(executor) = self {
            executor.forget_all();
            let kept = executor.registry.take_all(gpu);
            *self = Self::Empty(Box::new(kept));
        }
    }

    /// Takes back what a session no longer needs.
    fn take_back(&mut self, Returned { pages, set }: &Returned) {
        if let Self::Taken(executor) = self {
            executor.release(pages);
        }
        self.registry_mut().release(*set);
    }
}

/// A turn at the model. It is made of a taken seat, which nobody else empties meanwhile.
pub(super) struct Turn<'e>(turns::Turn<'e, Seat>);

impl Deref for Turn<'_> {
    type Target = Executor;

    fn deref(&self) -> &Executor {
        match &*self.0 {
            Seat::Taken(executor) => executor,
            Seat::Empty(_) => unreachable!("a turn is made of a taken seat"),
        }
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut Executor {
        match &mut *self.0 {
            Seat::Taken(executor) => executor,
            Seat::Empty(_) => unreachable!("a turn is made of a taken seat"),
        }
    }
}

impl Engine {
    /// A turn at the device, of one submission: others wait for no more of it. The model need not
    /// be there, and nothing may be submitted.
    pub(super) fn seat(&self) -> turns::Turn<'_, Seat> {
        let counters = &self.gpu().counters;
        let submitted = || counters.submits.load(Ordering::Relaxed);
        let (mut seat, before) = self.seat.take_after(submitted);
        counters.turns.fetch_add(1, Ordering::Relaxed);
        counters.most_waited.fetch_max(submitted() - before, Ordering::Relaxed);
        let returned = std::mem::take(&mut *self.returned());
        returned.iter().for_each(|returned| seat.take_back(returned));
        seat
    }

    /// As [`Engine::seat`], with the model: it is read again if it is not there.
    ///
    /// Errors: [`Error::Background`]; [`Error::DeviceLost`]; as [`Engine::read_again`].
    pub(super) fn executor(&self) -> Result<Turn<'_>> {
        self.with_model(self.seat())
    }

    /// The same turn, with the model.
    ///
    /// Errors: as [`Engine::executor`].
    pub(super) fn with_model<'e>(&'e self, mut seat: turns::Turn<'e, Seat>) -> Result<Turn<'e>> {
        // In the turn: whoever goes to the background waits for the turns before.
        self.lifecycle.check()?;
        if let Seat::Empty(_) = *seat {
            self.read_again(&mut seat)?;
        }
        Ok(Turn(seat))
    }

    internal! {
        /// The model's weights on the device; it is read again if it is not there.
        ///
        /// Errors: as [`Engine::executor`].
        pub fn weights(&self) -> Result<Arc<Weights>> {
            self.executor().map(|executor| Arc::clone(executor.weights()))
        }
    }

    /// Reads the model file again and puts the model on the device.
    ///
    /// Errors: [`Error::BaseMismatch`] when the file is another by now; as [`Engine::open`].
    fn read_again(&self, seat: &mut Seat) -> Result<()> {
        let gpu = self.gpu();
        gpu.check()?;
        self.lifecycle.set_model(Model::Loading);
        let load = |weights| {
            let (base, setup) = (&self.base, &self.setup);
            Executor::load(gpu, base, weights, setup, &mut Loading::to_the_end(&mut |_| {}))
        };
        let executor = self.base.read_again(gpu).and_then(load);
        let mut executor = executor.inspect_err(|_| self.lifecycle.set_model(Model::Away))?;
        std::mem::swap(&mut executor.registry, seat.registry_mut());
        *seat = Seat::Taken(Box::new(executor));
        self.lifecycle.reloads.fetch_add(1, Ordering::Relaxed);
        self.lifecycle.set_model(Model::Here);
        Ok(())
    }

    /// As [`Engine::executor`], with the adapters of a set, which may have had to make room. Files
    /// are read before the turn.
    ///
    /// Errors: as [`Engine::executor`]; [`Error::Io`] and [`Error::InvalidAdapter`] for a file that
    /// is gone or has changed; [`Error::AdapterBudget`].
    pub(super) fn executor_with(&self, set: SetId) -> Result<Turn<'_>> {
        let mut read = ReadAgain::new();
        let mut executor = self.executor()?;
        while !executor.registry.is_resident(set) {
            let absent = executor.registry.absent_of(set, &read);
            if absent.is_empty() {
                executor.make_u(self.gpu())?;
                executor.registry.restore(self.gpu(), set, &read)?;
                executor.bind_adapters(self.gpu())?;
                break;
            }
            executor = self.read_between(executor, &absent, &mut read)?;
        }
        Ok(executor)
    }

    /// Ends a turn, reads adapters, and takes the next turn: nobody waits for files.
    ///
    /// Errors: as [`Engine::executor_with`].
    pub(super) fn read_between<'e>(
        &'e self,
        turn: Turn<'e>,
        absent: &[Absent],
        read: &mut ReadAgain,
    ) -> Result<Turn<'e>> {
        drop(turn);
        let shape = self.base.adapter_shape();
        absent.iter().try_for_each(|absent| absent.read_into(read, &shape))?;
        self.executor()
    }

    /// Runs `work`, and once more if the device was lost in it and could be opened again.
    ///
    /// Errors: those of `work`; [`Error::DeviceLost`].
    pub(crate) fn surviving<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let device = self.device_number();
        match work() {
            Ok(done) => Ok(done),
            Err(error @ (Error::Cancelled | Error::Background)) => Err(error),
            Err(_) if self.replaced(device) => work(),
            // What it was refused for is that the device is gone.
            Err(error) => Err(self.gpu().check().err().filter(is_loss).unwrap_or(error)),
        }
    }

    /// How many devices were lost before the one that is used now.
    pub(crate) fn device_number(&self) -> usize {
        usize::from(self.second.get().is_some())
    }

    /// Whether the device of that number is lost and there is another one now. It is opened here
    /// if it was the first.
    pub(crate) fn replaced(&self, device: usize) -> bool {
        if self.device_number() != device {
            return true;
        }
        if !self.gpu().is_lost() {
            return false;
        }
        let mut seat = self.seat();
        if self.device_number() != device {
            return true;
        }
        self.lifecycle.device_losses.store(device as u64 + 1, Ordering::Relaxed);
        seat.clear(self.gpu());
        seat.registry_mut().forget_device();
        let opened = match device {
            0 => self.first.reopen(),
            _ => Err(Error::DeviceLost("a second time".into())),
        };
        let reopened = opened.map(|gpu| self.second.set(gpu).is_ok());
        self.lifecycle.set_model(if reopened.is_ok() { Model::Away } else { Model::Lost });
        reopened.unwrap_or_else(|error| {
            log::warn!("after the device was lost: {error}");
            false
        })
    }
}

fn is_loss(error: &Error) -> bool {
    matches!(error, Error::DeviceLost(_))
}
