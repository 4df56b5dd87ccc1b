//! Models: weights on the device, and the forward pass over them.

pub mod activations;
pub mod attend;
pub mod decoder;
pub mod kv_cache;
pub mod linear;
pub mod linear_backward;
pub(crate) mod lora;
pub mod pages;
pub mod site;
pub mod weights;
