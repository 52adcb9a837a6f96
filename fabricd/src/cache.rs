//! A bounded map that forgets what was not asked for lately.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

/// Two generations: a full young one becomes the old one, and what the old one held and nobody
/// asked for since is forgotten. Holds at most `2 * generation` values.
pub(crate) struct Cache<K, V> {
    generation: usize,
    maps: Mutex<(HashMap<K, V>, HashMap<K, V>)>,
}

impl<K: Hash + Eq + Copy, V: Clone> Cache<K, V> {
    pub(crate) fn new(generation: usize) -> Self {
        Self { generation, maps: Mutex::default() }
    }

    pub(crate) fn get(&self, key: K) -> Option<V> {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = maps.0.get(&key) {
            return Some(value.clone());
        }
        let value = maps.1.remove(&key)?;
        self.put(&mut maps, key, value.clone());
        Some(value)
    }

    pub(crate) fn insert(&self, key: K, value: V) {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        self.put(&mut maps, key, value);
    }

    pub(crate) fn remove(&self, key: K) {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.0.remove(&key);
        maps.1.remove(&key);
    }

    fn put(&self, maps: &mut (HashMap<K, V>, HashMap<K, V>), key: K, value: V) {
        if maps.0.len() >= self.generation {
            maps.1 = std::mem::take(&mut maps.0);
        }
        maps.0.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::Cache;

    #[test]
    fn it_is_bounded_and_keeps_what_is_asked_for() {
        let cache = Cache::new(10);
        for key in 0..1000 {
            cache.insert(key, key);
            assert_eq!(cache.get(0), Some(0), "asked for all the time");
        }
        let held = (0..1000).filter(|&key| cache.get(key).is_some()).count();
        assert!((10..=20).contains(&held), "{held}");
        cache.remove(0);
        assert_eq!(cache.get(0), None);
    }
}
