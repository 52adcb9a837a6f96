//! Which copies of sealed files each session was lent. Whether a copy is in use the kernel knows better; but of
//! those that an earlier daemon lent it can tell nobody.

use std::collections::{BTreeMap, HashMap};

use kos_rpc::limits::{LENT_FILES_MAX, LENT_TIMES_MAX};
use kos_types::Ino;

/// How often each session was lent a file's copy.
#[derive(Debug, Default)]
pub(crate) struct Loans(BTreeMap<u64, HashMap<Ino, u32>>);

impl Loans {
    /// One more; false when the session has too many.
    pub(crate) fn begin(&mut self, session: u64, ino: Ino) -> bool {
        let own = self.0.entry(session).or_default();
        if own.len() >= LENT_FILES_MAX && !own.contains_key(&ino) {
            return false;
        }
        let times = own.entry(ino).or_default();
        let may = *times < LENT_TIMES_MAX;
        *times += u32::from(may);
        may
    }

    /// One less.
    pub(crate) fn end(&mut self, session: u64, ino: Ino) {
        let Some(own) = self.0.get_mut(&session) else { return };
        if let Some(times) = own.get_mut(&ino) {
            *times -= 1;
            if *times == 0 {
                own.remove(&ino);
            }
        }
    }

    /// The session has the file not open any more.
    pub(crate) fn closed(&mut self, session: u64, ino: Ino) {
        if let Some(own) = self.0.get_mut(&session) {
            own.remove(&ino);
        }
    }

    /// The session is over.
    pub(crate) fn forget(&mut self, session: u64) {
        self.0.remove(&session);
    }

    /// Whether anybody has one of this file.
    pub(crate) fn any(&self, ino: Ino) -> bool {
        self.0.values().any(|own| own.contains_key(&ino))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_a_bounded_number_of_them() {
        let mut loans = Loans::default();
        let lent = (0..1000).filter(|_| loans.begin(1, Ino(2))).count();
        assert_eq!(lent, LENT_TIMES_MAX as usize);
        let files = (0..2 * LENT_FILES_MAX as u64).filter(|&ino| loans.begin(2, Ino(ino))).count();
        assert_eq!(files, LENT_FILES_MAX);
        assert!(loans.begin(3, Ino(2)), "each session for itself");
        (0..1000).for_each(|_| loans.end(1, Ino(2)));
        loans.closed(2, Ino(2));
        assert!(loans.any(Ino(2)) && loans.begin(1, Ino(2)));
        loans.end(1, Ino(2));
        loans.forget(3);
        assert!(!loans.any(Ino(2)));
    }
}
