//! Where the bytes of files are that were read lately, so that a small read need not look it up in the
//! tables, which takes longer than reading it.
//!
//! It never answers what is not so any more: a map is forgotten before a change of its file is
//! written, and none is kept that was looked up while one was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kos_types::{Extent, ExtentMap, Ino, Result, Source};

/// Bytes of a file that one map covers: few stripes, so that looking it up costs no more than a few reads.
const WINDOW_BYTES: u64 = 64 << 20;
/// Extents of one map; a window of more is looked up range by range.
const EXTENTS_MAX: usize = 256;
/// Extents kept: about 3 MiB. All are forgotten when there are more.
const KEPT_MAX: usize = 64 << 10;

/// Maps of windows of files.
#[derive(Default)]
pub(crate) struct Maps(Mutex<State>);

#[derive(Default)]
struct State {
    kept: HashMap<Ino, HashMap<u64, Window>>,
    /// Extents in `kept`, and one for each window.
    extents: usize,
    /// Files that are being changed, once for each change.
    changing: Vec<Ino>,
    /// Lookups under way, by their numbers; one whose file is changed is struck off.
    lookups: HashMap<u64, Ino>,
    next: u64,
}

/// None for a window that is not worth keeping.
type Window = Option<Arc<ExtentMap>>;

impl State {
    fn forget(&mut self, ino: Ino) {
        let gone = self.kept.remove(&ino).into_iter().flatten();
        self.extents -= gone.map(|(_, window)| weight(&window)).sum::<usize>();
    }

    fn keep(&mut self, ino: Ino, number: u64, window: Window) {
        if self.extents + weight(&window) > KEPT_MAX {
            self.kept.clear();
            self.extents = 0;
        }
        self.extents += weight(&window);
        let old = self.kept.entry(ino).or_default().insert(number, window);
        // Looked up twice at the same time.
        self.extents -= old.as_ref().map_or(0, weight);
    }
}

fn weight(window: &Window) -> usize {
    1 + window.as_ref().map_or(0, |map| map.extents.len())
}

impl Maps {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `len` bytes from `off` on are, as [`kos_types::Fabric::extents`] answers; `look_up` asks the
    /// tables that for any range of the file.
    ///
    /// # Errors
    /// Those of `look_up`.
    pub(crate) fn extents(
        &self,
        ino: Ino,
        off: u64,
        len: u64,
        look_up: impl Fn(u64, u64) -> Result<ExtentMap>,
    ) -> Result<ExtentMap> {
        let number = off / WINDOW_BYTES;
        let fits = len <= WINDOW_BYTES - off % WINDOW_BYTES;
        // A snapshot's files are read rarely, and go at once with it.
        if !fits || ino.view() != 0 {
            return look_up(off, len);
        }
        let lookup = {
            let mut state = self.state();
            match state.kept.get(&ino).and_then(|windows| windows.get(&number)) {
                Some(Some(map)) => {
                    let map = Arc::clone(map);
                    drop(state);
                    return Ok(cut(&map, off, off + len));
                }
                Some(None) => None,
                None if state.changing.contains(&ino) => None,
                None => {
                    state.next += 1;
                    let lookup = state.next;
                    state.lookups.insert(lookup, ino);
                    Some(lookup)
                }
            }
        };
        let Some(lookup) = lookup else { return look_up(off, len) };
        let found = look_up(number * WINDOW_BYTES, WINDOW_BYTES);
        let mut state = self.state();
        let unchanged = state.lookups.remove(&lookup).is_some();
        let map = found?;
        let is_kept = map.extents.len() <= EXTENTS_MAX
            && !map.extents.iter().any(|extent| matches!(extent.source, Source::Inline(_)));
        let whole = is_kept.then(|| Arc::new(map));
        if unchanged {
            state.keep(ino, number, whole.clone());
        }
        drop(state);
        // What is not kept may be cut short before `off`.
        whole.map_or_else(|| look_up(off, len), |map| Ok(cut(&map, off, off + len)))
    }

    /// Do what changes these files.
    pub(crate) fn change<T>(&self, files: &[Ino], act: impl FnOnce() -> T) -> T {
        if files.is_empty() {
            return act();
        }
        {
            let mut state = self.state();
            for &ino in files {
                state.forget(ino);
                state.changing.push(ino);
            }
            state.lookups.retain(|_, looked_up| !files.contains(looked_up));
        }
        let done = act();
        let mut state = self.state();
        for ino in files {
            if let Some(at) = state.changing.iter().position(|changing| changing == ino) {
                state.changing.swap_remove(at);
            }
        }
        done
    }
}

/// The part of a map from `off` to `end`.
fn cut(map: &ExtentMap, off: u64, end: u64) -> ExtentMap {
    let first = map.extents.partition_point(|extent| extent.off + extent.len <= off);
    let inside = map.extents[first..].iter().take_while(|extent| off < end && extent.off < end);
    let part = |extent: &Extent| {
        let (from, to) = (extent.off.max(off), (extent.off + extent.len).min(end));
        let source = match &extent.source {
            &Source::Stripe(id, at) => Source::Stripe(id, at + from - extent.off),
            other => other.clone(),
        };
        Extent { off: from, len: to - from, source }
    };
    ExtentMap { size: map.size, extents: inside.map(part).collect() }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use kos_types::StripeId;

    use super::*;

    const FILE: Ino = Ino(7);

    /// A file of stripes of `step` bytes, each followed by a hole as long; its size is the version.
    fn look_up(step: u64, size: u64, off: u64, len: u64) -> ExtentMap {
        let end = off.saturating_add(len).min(size);
        let (mut extents, mut at) = (Vec::new(), off);
        while at < end {
            let number = at / step;
            let to = ((number + 1) * step).min(end);
            let stripe = Source::Stripe(StripeId(number), at - number * step);
            let source = if number.is_multiple_of(2) { stripe } else { Source::Hole };
            extents.push(Extent { off: at, len: to - at, source });
            at = to;
        }
        ExtentMap { size, extents }
    }

    #[test]
    fn every_part_is_as_the_tables_say_and_looked_up_once() {
        let (step, size) = (1 << 20, 100_000_000);
        let (maps, asked) = (Maps::default(), Cell::new(0));
        let ask = |off, len| {
            asked.set(asked.get() + 1);
            Ok(look_up(step, size, off, len))
        };
        for off in [
            0,
            1,
            step - 1,
            step,
            5 * step + 7,
            WINDOW_BYTES - 9000,
            WINDOW_BYTES,
            99_999_999,
            size,
            2 * size,
        ] {
            for len in [0, 1, 4096, 3 * step, WINDOW_BYTES, u64::MAX] {
                assert_eq!(
                    maps.extents(FILE, off, len, ask),
                    Ok(look_up(step, size, off, len)),
                    "{off} {len}"
                );
            }
        }
        let before = asked.get();
        for at in 0..1000 {
            assert!(maps.extents(FILE, at * 4096, 4096, ask).is_ok());
        }
        assert_eq!(asked.get(), before);
    }

    #[test]
    fn a_change_is_seen_at_once_and_what_was_looked_up_beside_it_is_not_kept() {
        let maps = Maps::default();
        let size = Cell::new(1000);
        let ask = |off, len| Ok(look_up(4096, size.get(), off, len));
        let seen = || maps.extents(FILE, 0, 4096, ask).expect("asks").size;
        assert_eq!(seen(), 1000);
        maps.change(&[Ino(8), FILE], || {
            assert_eq!(seen(), 1000, "not yet in force");
            size.set(2000);
            assert_eq!(seen(), 2000);
        });
        size.set(2001);
        assert_eq!(seen(), 2001, "nothing was kept meanwhile");
        size.set(0);
        assert_eq!(seen(), 2001, "and it is now");
        // A lookup that is overtaken by a change.
        maps.change(&[FILE], || size.set(1));
        let slow = maps.extents(FILE, 0, 4096, |off, len| {
            let old = look_up(4096, size.get(), off, len);
            maps.change(&[FILE], || size.set(size.get() + 1));
            Ok(old)
        });
        assert_eq!(slow.expect("asks").size, 1);
        assert_eq!(seen(), 2);
        let state = maps.state();
        assert!(state.changing.is_empty() && state.lookups.is_empty());
    }

    #[test]
    fn it_is_bounded() {
        let (maps, mut most) = (Maps::default(), 0);
        for number in 1..2000 {
            for step in [4096, 1 << 20] {
                let ask = |off, len| Ok(look_up(step, 1 << 30, off, len));
                let at = (number % 9) * WINDOW_BYTES;
                let found = maps.extents(Ino(number << 21 | step), at, 4096, ask);
                assert_eq!(found, Ok(look_up(step, 1 << 30, at, 4096)));
            }
            let state = maps.state();
            let kept: usize = state.kept.values().flat_map(|windows| windows.values().map(weight)).sum();
            assert_eq!(state.extents, kept);
            assert!(kept <= KEPT_MAX);
            most = most.max(kept);
        }
        assert!(most > KEPT_MAX / 2, "{most}");
    }
}
