//! Durations as people write them: `30s`, `2m`, `1h30m`, `500ms`, or a bare number of seconds.

use std::time::Duration;

/// Reads a duration (GEP-2257, and a bare number of seconds).
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a duration: write 500ms, 30s, 2m or 1h30m");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u32 = rest[..digits].parse().map_err(|_| bad())?;
        let unit = &rest[digits..];
        let unit = &unit[..unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len())];
        let one = match unit {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            "ms" => Duration::from_millis(1),
            _ => return Err(bad()),
        };
        total = one.checked_mul(number).and_then(|part| total.checked_add(part)).ok_or_else(bad)?;
        rest = &rest[digits + unit.len()..];
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

/// A span in the two largest units that say something: `3s`, `4m10s`, `2h5m`, `89d`.
pub(crate) fn short(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (3.., _, _) => format!("{days}d"),
        (1.., _, _) => format!("{days}d{hours}h"),
        (0, 1.., _) => format!("{hours}h{minutes}m"),
        (0, 0, 1..) => format!("{minutes}m{}s", seconds % 60),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(parse("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("1s500ms"), Ok(Duration::from_millis(1500)));
        for bad in ["", "s", "1d", "5 m", "-1s", "99999999999h", "1.5s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [
            (0.2, "0s"),
            (59.0, "59s"),
            (250.0, "4m10s"),
            (7_500.0, "2h5m"),
            (90_000.0, "1d1h"),
            (1e7, "115d"),
        ] {
            assert_eq!(short(seconds), text);
        }
    }
}
