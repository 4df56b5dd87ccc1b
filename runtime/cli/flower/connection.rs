//! HTTP, the only place of this program that speaks it.

use std::path::Path;
use std::time::Duration;

use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use epiphyte::error::{Error, Result};
use epiphyte::federated::flower::Request;

/// How long a connection is kept without a request: a SuperLink closes it after five seconds, and a
/// request that is on its way then is lost.
const KEPT: Duration = Duration::from_secs(4);
/// How long a request may take.
const LONGEST: Duration = Duration::from_secs(60);
/// Bytes of an answer that are read. An object has 5 MiB unless a server is set otherwise.
const MAX_ANSWER: u64 = 256 << 20;

/// A SuperLink.
pub(super) struct Connection {
    agent: ureq::Agent,
    address: String,
}

/// What it answered.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) date: Option<String>,
    pub(super) body: Vec<u8>,
}

impl Connection {
    /// To a server at `url`, whose certificate one of `roots` (a PEM) must have signed; without
    /// them one of Mozilla's.
    ///
    /// Errors: [`Error::InvalidArgument`] for what is no address, [`Error::InvalidFile`] for a file
    /// without a certificate.
    pub(super) fn new(url: &str, roots: Option<&Path>) -> Result<Self> {
        let invalid = |reason: String| Err(Error::InvalidArgument { name: "url", reason });
        let is_plain = url.starts_with("http://");
        if !is_plain && !url.starts_with("https://") {
            return invalid(format!("`{url}`; give one like https://superlink.example:8000"));
        }
        if is_plain && roots.is_some() {
            return invalid("`http://` has no certificate to check; give `https://`".into());
        }
        let certificates = roots.map_or(Ok(RootCerts::WebPki), certificates)?;
        let tls = TlsConfig::builder().root_certs(certificates).build();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(LONGEST))
            .max_idle_age(KEPT)
            .user_agent(concat!("epiphyte/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        let address = url.trim_end_matches('/').to_string();
        Ok(Self { agent: config.into(), address })
    }

    /// Makes a request; why there was no answer, for people.
    ///
    /// Errors: [`Error::SuperLink`] for a certificate that is not trusted.
    pub(super) fn post(&self, request: &Request) -> Result<Result<Answered, String>> {
        let mut builder = self.agent.post(format!("{}{}", self.address, request.path));
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        let answered = builder.send(&request.body[..]).and_then(|mut response| {
            let date = response.headers().get("date").and_then(|date| date.to_str().ok());
            let (status, date) = (response.status().as_u16(), date.map(String::from));
            let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec()?;
            Ok(Answered { status, date, body })
        });
        match answered.map_err(|e| e.to_string()) {
            Err(reason) if reason.contains("certificate") => {
                let remedy = "name the root that signed it with `--root-certificates`";
                let reason = format!("{reason}; {remedy}");
                Err(Error::SuperLink { call: "connect", reason })
            }
            answered => Ok(answered),
        }
    }
}

fn certificates(path: &Path) -> Result<RootCerts> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let found: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if found.is_empty() {
        let reason = "no certificate is in it; give the PEM of the root that signed the server's";
        return Err(Error::InvalidFile { path: path.into(), reason: reason.into() });
    }
    Ok(RootCerts::new_with_certs(&found))
}
