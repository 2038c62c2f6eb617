//! The promises of `docs/API.md`, each with the validator that finds where a run broke it.
//!
//! They are named after etcd's. Each looks at one promise, so that a fault shows as what it is; a loss may well be found
//! by two of them.

use std::fmt;

mod bookmarkable;
mod confined;
mod ordered;
mod reliable;
mod resumable;
#[cfg(test)]
mod tests;
mod unique;

pub use bookmarkable::bookmarkable;
pub use confined::confined;
pub use ordered::ordered;
pub use reliable::reliable_or_gap;
pub use resumable::resumable;
pub use unique::unique;

use super::Examined;

/// Finds the first place where a run breaks a promise.
pub type Validator = fn(&Examined<'_>) -> Result<(), Violation>;

/// All of them.
pub const ALL: [Validator; 6] = [ordered, unique, reliable_or_gap, resumable, bookmarkable, confined];

/// Which promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// None of the server's: the ledger is of no use.
    Ledger,
    /// There is one order, and every reader sees events in it.
    Ordered,
    /// Every reader sees each event once, and as it was sent.
    Unique,
    /// Every reader sees all that it selects, or is told of the gap.
    ReliableOrGap,
    /// Who goes on from a place gets exactly what follows it, or is told that it is gone.
    Resumable,
    /// A bookmark is a place between what came before it and what comes after it.
    Bookmarkable,
    /// Who reads a namespace sees nothing of another one or of none.
    Confined,
}

/// Where a run breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub rule: Rule,
    /// Who was promised it.
    pub reader: String,
    /// On which of the reader's connections, from 0.
    pub session: usize,
    /// At which place, where it is one.
    pub place: Option<u64>,
    /// What was expected there, and what is there.
    pub expected: String,
}

/// What the validators found: at most one violation of each promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, reader, session, place, expected } = self;
        write!(f, "{rule:?}: reader {reader}, session {session}")?;
        if let Some(place) = place {
            write!(f, ", place {place}")?;
        }
        write!(f, ": expected {expected}")
    }
}

impl std::error::Error for Violation {}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|violation| writeln!(f, "{violation}"))
    }
}

impl std::error::Error for Violations {}
