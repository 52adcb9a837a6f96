//! What happened to the node, as lines for people: bounded, and kept over restarts.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kos_store::lane::Lanes;
use kos_types::{Error, Result};

/// Bytes kept; beyond it the older half goes.
const BYTES_MAX: usize = 512 << 10;
/// Bytes of one line.
const LINE_BYTES_MAX: usize = 1024;
/// Lines of one kind in one [`PERIOD`]; a dying disk must not push out everything else.
const BURST: u32 = 20;
const PERIOD: Duration = Duration::from_mins(1);
/// What is waited for the file, whose disk may hang.
const LIMIT: Duration = Duration::from_secs(5);

/// The log of events.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    disk: Lanes,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Everything that is kept; the file is a copy, which a full disk may cut short.
    text: String,
    /// The file lacks lines.
    is_behind: bool,
    bursts: HashMap<&'static str, Burst>,
}

#[derive(Debug)]
struct Burst {
    since: Instant,
    lines: u32,
}

fn append_to(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

impl Events {
    /// Go on with the log at `path`.
    ///
    /// # Errors
    /// `Io` when it can be neither read nor made.
    pub fn open(path: &Path) -> Result<Self> {
        let step = |e: io::Error| Error::io(&format!("events: {}", path.display()), &e);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(step)?;
        }
        let mut file = append_to(path).map_err(step)?;
        let bytes = fs::read(path).map_err(step)?;
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            // The last end came in the middle of a line.
            text.push('\n');
            file.write_all(b"\n").map_err(step)?;
        }
        let state = State { text, is_behind: false, bursts: HashMap::new() };
        Ok(Self { path: path.to_path_buf(), disk: Lanes::new("events"), state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened. It is in the daemon's log too.
    pub fn add(&self, kind: &'static str, text: &str) {
        kos_types::log!("fabricd: {kind}: {text}");
        let mut state = self.state();
        let Some(left_out) = state.admit(kind) else { return };
        let mut line = format!("{} {kind} {}", utc(SystemTime::now()), text.replace('\n', " "));
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX));
        if left_out > 0 {
            let _ = write!(line, " (and {left_out} more like it before)");
        }
        line.push('\n');
        state.text.push_str(&line);
        let is_long = state.text.len() > BYTES_MAX;
        if is_long {
            state.drop_older_half();
        }
        let whole = (is_long || state.is_behind).then(|| state.text.clone());
        let kept = self.keep(line, whole);
        state.is_behind = kept.is_err();
        if let Err(e) = kept {
            kos_types::log!("fabricd: {}: {e}; the event is kept in memory only", self.path.display());
        }
    }

    /// Add a line to the file, or write all of it anew.
    fn keep(&self, line: String, whole: Option<String>) -> Result<()> {
        self.disk.check()?;
        let path = self.path.clone();
        let write = move || match whole {
            Some(text) => {
                let new = path.with_extension("new");
                fs::write(&new, text)?;
                fs::rename(&new, &path)
            }
            None => append_to(&path)?.write_all(line.as_bytes()),
        };
        let written = self.disk.writes.ask(write, drop)?.wait_for(LIMIT)?;
        written.map_err(|e| Error::io("events", &e))
    }

    /// All lines, the oldest first: time, kind, text.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        self.state().text.clone().into_bytes()
    }
}

impl State {
    /// Whether there is room for one more of its kind, and how many there was none for before.
    fn admit(&mut self, kind: &'static str) -> Option<u32> {
        let now = Instant::now();
        let burst = self.bursts.entry(kind).or_insert(Burst { since: now, lines: 0 });
        let mut left_out = 0;
        if now.duration_since(burst.since) >= PERIOD {
            left_out = burst.lines.saturating_sub(BURST);
            *burst = Burst { since: now, lines: 0 };
        }
        burst.lines = burst.lines.saturating_add(1);
        (burst.lines <= BURST).then_some(left_out)
    }

    fn drop_older_half(&mut self) {
        let middle = self.text.len() - BYTES_MAX / 2;
        let line = self.text.as_bytes()[middle..].iter().position(|&byte| byte == b'\n');
        self.text.drain(..line.map_or(self.text.len(), |at| middle + at + 1));
    }
}

/// A time as RFC 3339 writes it, in UTC to the second.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Eras of 400 years begin on the first of March, so that leap days are last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> (tempfile::TempDir, Events) {
        let dir = tempfile::tempdir().expect("directory");
        let events = Events::open(&dir.path().join("log/events")).expect("opens");
        (dir, events)
    }

    fn lines(events: &Events) -> Vec<String> {
        String::from_utf8(events.text()).expect("text").lines().map(str::to_owned).collect()
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn events_survive_a_restart_and_a_torn_line() {
        let (dir, events) = events();
        events.add("start", "one");
        events.add("lost", "two\nlines");
        drop(events);
        let path = dir.path().join("log/events");
        append_to(&path).and_then(|mut file| file.write_all(b"torn")).expect("writes");
        let events = Events::open(&path).expect("opens");
        events.add("stop", "three");
        let lines = lines(&events);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[0].ends_with("Z start one") && lines[1].ends_with("Z lost two lines"), "{lines:?}");
        assert!(lines[2] == "torn" && lines[3].ends_with("Z stop three"), "{lines:?}");
        assert_eq!(fs::read(path).expect("reads"), events.text(), "the file is the same");
    }

    #[test]
    fn the_log_is_bounded_and_keeps_the_newest() {
        let (dir, events) = events();
        let long = "x".repeat(2 * LINE_BYTES_MAX);
        for number in 0..2 * BYTES_MAX / LINE_BYTES_MAX {
            events.state().bursts.clear();
            events.add("long", &format!("{number} {long}"));
        }
        events.add("short", "the end");
        let lines = lines(&events);
        assert!(events.text().len() <= BYTES_MAX && lines.len() > BYTES_MAX / LINE_BYTES_MAX / 4);
        assert!(lines.iter().all(|line| line.starts_with("20")), "no line is cut at its head");
        assert!(lines.last().is_some_and(|line| line.ends_with("short the end")));
        assert_eq!(fs::read(dir.path().join("log/events")).expect("reads"), events.text());
    }

    #[test]
    fn one_kind_does_not_push_out_the_others() {
        let (_dir, events) = events();
        for _ in 0..10 * BURST {
            events.add("repaired", "a shard");
        }
        events.add("stop", "at last");
        assert_eq!(lines(&events).len(), BURST as usize + 1);
        let earlier = Instant::now().checked_sub(PERIOD).expect("the machine runs longer");
        events.state().bursts.values_mut().for_each(|burst| burst.since = earlier);
        events.add("repaired", "another");
        assert!(lines(&events).last().is_some_and(|line| line.ends_with("(and 180 more like it before)")));
    }
}
