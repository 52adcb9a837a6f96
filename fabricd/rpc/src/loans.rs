//! The copies that a client was lent and still reads in place. They outlive the server that lent them; what the next
//! one must know is that these files are not to be unsealed.

use std::collections::HashMap;

use kos_types::Ino;

use crate::limits::LENT_FILES_MAX;

#[derive(Debug)]
struct Loan {
    times: u32,
    /// Of the server that lent it.
    term: u64,
    /// It may have been unsealed and changed since.
    stale: bool,
}

/// By their file.
#[derive(Debug, Default)]
pub(crate) struct Loans(HashMap<Ino, Loan>);

impl Loans {
    /// One more is asked for, of the server of `term`; false when there are too many.
    pub(crate) fn begin(&mut self, ino: Ino, term: u64) -> bool {
        if self.0.len() >= LENT_FILES_MAX && !self.0.contains_key(&ino) {
            return false;
        }
        self.0.entry(ino).or_insert(Loan { times: 0, term, stale: false }).times += 1;
        true
    }

    /// One less: nobody reads it any more, or there was none.
    pub(crate) fn end(&mut self, ino: Ino) {
        if let Some(loan) = self.0.get_mut(&ino) {
            loan.times -= 1;
            if loan.times == 0 {
                self.0.remove(&ino);
            }
        }
    }

    /// What a server is to know of.
    pub(crate) fn all(&self) -> Vec<Ino> {
        self.0.keys().copied().collect()
    }

    /// The server of `term` did not know for a while what earlier ones had lent. Of what it lent itself it sees who
    /// has it open.
    pub(crate) fn forgotten(&mut self, term: u64) {
        self.0.values_mut().filter(|loan| loan.term != term).for_each(|loan| loan.stale = true);
    }

    /// Whether what is read of a file may be old.
    pub(crate) fn is_stale(&self, ino: Ino) -> bool {
        self.0.get(&ino).is_some_and(|loan| loan.stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_server_lent_is_stale_once_it_was_forgotten() {
        let mut loans = Loans::default();
        assert!(loans.begin(Ino(2), 1) && loans.begin(Ino(2), 1) && loans.begin(Ino(3), 2));
        loans.forgotten(1);
        assert!(!loans.is_stale(Ino(2)) && loans.is_stale(Ino(3)));
        loans.forgotten(2);
        assert!(loans.is_stale(Ino(2)));
        loans.end(Ino(2));
        assert!(loans.is_stale(Ino(2)), "one is open still");
        loans.end(Ino(2));
        assert!(!loans.is_stale(Ino(2)));
        assert_eq!(loans.all(), [Ino(3)]);
        loans.end(Ino(2));
    }

    #[test]
    fn they_are_bounded() {
        let mut loans = Loans::default();
        for ino in 0..LENT_FILES_MAX as u64 {
            assert!(loans.begin(Ino(ino), 1));
        }
        assert!(loans.begin(Ino(0), 1) && !loans.begin(Ino(u64::MAX), 1));
    }
}
