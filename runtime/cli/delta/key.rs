//! `epiphyte delta key`: a key for the command line. A phone's is made in its own key store.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Report;
use epiphyte::error::{Error, Result};
use epiphyte::federated::{KeyKind, Signer, SigningKey};

/// Make a key that signs, and print its public half
#[derive(Args)]
pub(super) struct KeyArgs {
    /// The new private key (PEM); a file that is there is left alone
    out: PathBuf,
    /// The kind of key
    #[arg(long, default_value = "ed25519")]
    kind: Kind,
    #[command(flatten)]
    report: Report,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Ed25519,
    P256,
}

pub(super) fn run(args: &KeyArgs) -> Result<()> {
    let kind = match args.kind {
        Kind::Ed25519 => KeyKind::Ed25519,
        Kind::P256 => KeyKind::P256,
    };
    let key = SigningKey::generate(kind)?;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let io = |e| Error::io(&args.out, e);
    let mut file = options.open(&args.out).map_err(io)?;
    file.write_all(key.to_pem()?.as_bytes()).map_err(io)?;
    let public = key.public_key().to_string();
    args.report.print(&public, &serde_json::json!({ "out": args.out, "public_key": public }))
}
