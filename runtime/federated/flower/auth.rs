//! How a node shows who it is: its key, a time, and a signature of the time, in three headers.

use std::time::Duration;

use base64ct::{Base64, Encoding};

use crate::calendar;
use crate::error::Result;
use crate::federated::Signer;

const DAY: u64 = 24 * 60 * 60;
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The headers of a request that is made at `now`, by the SuperLink's clock. A SuperLink takes
/// times from 305 seconds ago to 5 from now.
///
/// Errors: those of the signer.
pub(super) fn headers(
    public_key: &str,
    now: Duration,
    signer: &dyn Signer,
) -> Result<Vec<(&'static str, String)>> {
    let timestamp = timestamp(now);
    let signature = signer.sign(timestamp.as_bytes())?;
    Ok(vec![
        ("content-type", "application/protobuf".into()),
        ("flwr-public-key", Base64::encode_string(public_key.as_bytes())),
        ("flwr-signature", Base64::encode_string(&signature)),
        ("flwr-timestamp", timestamp),
    ])
}

/// Python's `isoformat` of a time in UTC.
fn timestamp(now: Duration) -> String {
    let (days, second) = (now.as_secs() / DAY, now.as_secs() % DAY);
    let (year, month, day) = calendar::civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let micros = now.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00")
}

/// Seconds since 1970 of the header `date` (RFC 9110): `Sun, 29 Nov 2026 02:18:34 GMT`.
pub(super) fn seconds_of(date: &str) -> Option<u64> {
    let (_, rest) = date.trim().split_once(", ")?;
    let [day, month, year, time, "GMT"] = rest.split(' ').collect::<Vec<_>>()[..] else {
        return None;
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let days = calendar::days((year.parse().ok()?, month, day.parse().ok()?))?;
    let [hour, minute, second] = time.split(':').collect::<Vec<_>>()[..] else { return None };
    let number = |text: &str, below: u64| text.parse::<u64>().ok().filter(|n| *n < below);
    Some(days * DAY + number(hour, 24)? * 3600 + number(minute, 60)? * 60 + number(second, 61)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_and_read_as_both_sides_do() {
        let now = Duration::new(1_795_918_714, 120_345_678);
        assert_eq!(timestamp(now), "2026-11-29T02:18:34.120345+00:00");
        assert_eq!(timestamp(Duration::ZERO), "1970-01-01T00:00:00.000000+00:00");
        assert_eq!(seconds_of("Sun, 29 Nov 2026 02:18:34 GMT"), Some(1_795_918_714));
        for bad in [
            "",
            "now",
            "Sun, 29 Nov 2026 02:18:34 CET",
            "Sun, 31 Nov 2026 02:18:34 GMT",
            "Sun, 29 Nov 2026 24:18:34 GMT",
            "Sun, 29 Nov 99999999999999999999 02:18:34 GMT",
            "Sun, 29 Nov 2026 02:18 GMT",
        ] {
            assert_eq!(seconds_of(bad), None, "{bad}");
        }
    }
}
