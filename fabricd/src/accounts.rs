//! What users and directory trees have, as it is counted.

use kos_core::quota::{self, Usage};
use kos_core::read;
use kos_types::Result;

use crate::Node;

/// Lines of users, and of trees, in the usage file.
const ACCOUNTS_MAX: usize = 1000;

/// What a user or a directory with a quota has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountUsage {
    /// `user` and a number, or `tree` and a path below the root.
    pub name: String,
    /// What it has and may have.
    pub usage: Usage,
}

impl Node {
    /// What users and directories with a quota have, at most [`ACCOUNTS_MAX`] of each.
    ///
    /// # Errors
    /// `Io`.
    pub fn accounts(&self) -> Result<Vec<AccountUsage>> {
        let db = &*self.inner().db;
        let mut out = Vec::new();
        for (uid, usage) in quota::users(db, ACCOUNTS_MAX)? {
            out.push(AccountUsage { name: format!("user {uid}"), usage });
        }
        for (dir, usage) in quota::all_trees(db, ACCOUNTS_MAX)? {
            let path = read::path(db, dir)?;
            out.push(AccountUsage { name: format!("tree {}", String::from_utf8_lossy(&path)), usage });
        }
        Ok(out)
    }
}
