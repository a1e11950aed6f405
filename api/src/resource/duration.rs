//! Durations as GEP-2257 writes them: `1h30m`, `300ms`; no days, nothing below a millisecond.

use std::{fmt, ops::Deref, str::FromStr};

use serde::{Deserialize, Serialize};

/// A duration in whole milliseconds, at most 99999h59m59s999ms.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration(std::time::Duration);

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a duration: write `300ms`, `10s` or `1h30m` (units h, m, s, ms; at most five digits each, four parts)"
)]
pub struct BadDuration(String);

const MAX_MILLIS: u64 = 100_000 * 3_600_000 - 1;
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Duration {
    /// No time; for most fields it means none or off.
    pub const ZERO: Duration = Duration(std::time::Duration::ZERO);

    /// From seconds.
    pub const fn from_secs(seconds: u32) -> Self {
        Duration(std::time::Duration::from_secs(seconds as u64))
    }

    /// From milliseconds.
    pub const fn from_millis(millis: u32) -> Self {
        Duration(std::time::Duration::from_millis(millis as u64))
    }

    /// From hours.
    pub const fn from_hours(hours: u16) -> Self {
        Duration::from_secs(hours as u32 * 3600)
    }

    /// As the standard library has it.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// `None` for zero, which means "no limit" in every timeout field.
    pub fn non_zero(self) -> Option<std::time::Duration> {
        (!self.0.is_zero()).then_some(self.0)
    }
}

impl Deref for Duration {
    type Target = std::time::Duration;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl From<Duration> for std::time::Duration {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

impl FromStr for Duration {
    type Err = BadDuration;
    fn from_str(text: &str) -> Result<Self, BadDuration> {
        parse(text).map(Duration).ok_or_else(|| BadDuration(text.chars().take(40).collect()))
    }
}

fn parse(mut rest: &str) -> Option<std::time::Duration> {
    let mut millis = 0;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == &rest[..letters])?;
        millis += number * unit;
        rest = &rest[letters..];
        if rest.is_empty() {
            return (millis <= MAX_MILLIS).then(|| std::time::Duration::from_millis(millis));
        }
    }
    None
}

impl fmt::Display for Duration {
    /// Canonical: units in descending order, each at most once, zero parts left out; `0s` for none.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_millis() as u64;
        if left == 0 {
            return out.write_str("0s");
        }
        for (name, unit) in UNITS {
            if left >= unit {
                write!(out, "{}{name}", left / unit)?;
                left %= unit;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Duration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

impl TryFrom<String> for Duration {
    type Error = BadDuration;
    fn try_from(text: String) -> Result<Self, BadDuration> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> String {
        duration.to_string()
    }
}

impl schemars::JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "format": "Duration",
            "description": "`300ms`, `10s`, `1h30m`: units h, m, s, ms (GEP-2257)"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_printed_as_gep_2257_says() {
        for (text, printed) in [
            ("0s", "0s"),
            ("0h", "0s"),
            ("90m", "1h30m"),
            ("1h30m", "1h30m"),
            ("2160h", "2160h"),
            ("1500ms", "1s500ms"),
            ("10s5h", "5h10s"),
            ("99999h59m59s999ms", "99999h59m59s999ms"),
        ] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), printed, "{text}");
        }
        for bad in ["", "1", "s", "1d", "1.5s", "-1s", "100000h", "1h1m1s1ms1s", "99999h99999h", "1 s", "1é"]
        {
            assert!(bad.parse::<Duration>().is_err(), "{bad}");
        }
    }
}
