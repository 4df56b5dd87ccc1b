//! `epiphyte flower key`: a node's public key as Flower registers it.

use clap::Args;

use crate::delta::{KeyFile, Report};
use epiphyte::error::{Error, Result};
use epiphyte::federated::{KeyKind, Signer};

/// Print a key's public half as `flwr supernode register` takes it (OpenSSH)
#[derive(Args)]
pub(super) struct KeyArgs {
    #[command(flatten)]
    key: KeyFile,
    #[command(flatten)]
    report: Report,
}

pub(super) fn run(args: &KeyArgs) -> Result<()> {
    let public = args.key.read()?.public_key();
    if public.kind() != KeyKind::P256 {
        let reason = "Ed25519, which Flower does not take; make one with `delta key --kind p256`";
        return Err(Error::InvalidArgument { name: "key", reason: reason.into() });
    }
    let openssh = public.to_openssh();
    let object = serde_json::json!({ "openssh": openssh, "public_key": public.to_string() });
    args.report.print(&openssh, &object)
}
