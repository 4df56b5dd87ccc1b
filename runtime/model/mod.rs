//! Models: weights on the device, and the forward pass over them.

pub mod activations;
pub mod attend;
pub mod kv_cache;
pub mod linear;
pub mod linear_backward;
pub mod llama;
pub(crate) mod lora;
pub mod site;
pub mod weights;
