//! A job's `status` file.

use std::fmt::Write as _;

use kos_types::{Job, Time};

/// TOML: every key is always there, with an empty string for what is not known yet.
pub(crate) fn text(job: &Job) -> String {
    let mut out = String::new();
    let empty = || "\"\"".to_owned();
    let time = |at: Option<Time>| at.map_or_else(empty, rfc3339);
    let fields = [
        ("id", job.id.0.to_string()),
        ("name", quoted(&String::from_utf8_lossy(&job.name))),
        ("state", quoted(&job.state.to_string())),
        ("exit", job.exit.map_or_else(empty, |exit| exit.to_string())),
        ("reason", quoted(&job.reason)),
        ("node", quoted(&job.node)),
        ("attempt", job.attempt.to_string()),
        ("uid", job.submitter.uid.to_string()),
        ("gid", job.submitter.gid.to_string()),
        ("submitted", rfc3339(job.submitted)),
        ("started", time(job.started)),
        ("ended", time(job.ended)),
    ];
    for (key, value) in fields {
        let _ = writeln!(out, "{key} = {value}");
    }
    out
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// In UTC, to the millisecond.
fn rfc3339(time: Time) -> String {
    let (days, secs) = (time.secs.div_euclid(86_400), time.secs.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    let millis = time.nanos / 1_000_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01. Years begin in March, so that the leap day is the last.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_400_YEARS: i64 = 146_097;
    const DAYS_TO_1970: i64 = 719_468;
    let days = days + DAYS_TO_1970;
    let (era, day) = (days.div_euclid(DAYS_400_YEARS), days.rem_euclid(DAYS_400_YEARS));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use kos_types::{Ino, JobId, JobState, Submitter};

    use super::*;

    #[test]
    fn times_are_the_calendars() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(Time { secs, nanos: 999_999 }), text);
        }
    }

    #[test]
    fn every_key_is_there() {
        let job = Job {
            id: JobId(7),
            state: JobState::Ready,
            cancel: false,
            dropped: b"x".to_vec(),
            name: b"a \"b\"\\\n".to_vec(),
            submitter: Submitter { uid: 1, gid: 2, groups: Vec::new() },
            dir: Ino(99),
            attempt: 0,
            exit: None,
            reason: String::new(),
            node: String::new(),
            submitted: Time::default(),
            started: None,
            ended: None,
        };
        let text = text(&job);
        assert!(
            text.contains("id = 7\n") && text.contains("exit = \"\"\n") && text.contains("ended = \"\"\n")
        );
        assert!(text.contains("name = \"a \\\"b\\\"\\\\\\u000A\"\n"), "{text}");
    }
}
