//! Federated averaging without a coordinator of its own: what leaves a device ([`Delta`]), what
//! comes back ([`Published`]), and what makes one out of many ([`aggregate`]). Nothing here knows a
//! GPU or a network: bytes go in and come out.

pub mod aggregate;
mod client;
pub mod flower;
mod layout;
mod linalg;
mod manifest;
pub mod privacy;
mod published;
mod quantise;
mod random;
mod residual;
mod sealed;
pub mod secure;
mod sign;
pub mod simulate;
mod wire;

pub use client::{DeltaOptions, make};
pub use layout::{Layout, RankScaling};
pub use manifest::{Clip, Factors, Losses, Manifest, Noise, Parent, bucket};
pub use published::{Accept, Published, RoundPlan, VersionManifest, start};
pub use quantise::Quantisation;
pub use residual::Residual;
#[doc(hidden)]
pub use sealed::sign_again;
pub use sign::{KeyKind, PublicKey, Signer, SigningKey};
pub use wire::Delta;

use crate::error::Error;

/// An error about a delta or a version: the thing, and what to do.
fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::InvalidDelta { what: what.into(), reason: reason.into() }
}
