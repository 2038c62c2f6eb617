//! Which senders there are: every source, and the name in a certificate that it belongs to.
//!
//! Bound to the name and not to the certificate, so that a renewed certificate goes on where the old one left off. A binding
//! lasts as long as the process. It reads no certificate (`certs` does) and knows nothing of batches.

use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::gauge::Gauge;

use crate::rejection::IngestRejection;

/// Sources at most. One for each kube-apiserver: several times as many as the largest control planes have.
pub const MAX_SOURCES: usize = 32;

/// One of the sources that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source(u8);

/// The sources that have sent something.
#[derive(Debug, Default)]
pub(super) struct Sources {
    bound: Mutex<Vec<Binding>>,
    count: Gauge,
}

#[derive(Debug)]
struct Binding {
    /// As the path names it; `None` where it does not, and the source is its owner's name itself.
    name: Option<Box<str>>,
    /// The allowed name in the certificate that used it first.
    owner: Box<str>,
}

impl Sources {
    /// No sources yet; `count` says how many there are.
    pub(super) fn new(count: Gauge) -> Self {
        Self { bound: Mutex::default(), count }
    }

    /// The source of this name, or without one the source that is `sender` itself. Who comes first gets it.
    ///
    /// # Errors
    /// If the source belongs to another sender, or would be one more than [`MAX_SOURCES`].
    pub(super) fn claim(&self, name: Option<&str>, sender: &str) -> Result<Source, IngestRejection> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        // What a path says and what a certificate says never meet, so nobody takes another's name by writing it into a path.
        let known = bound.iter().position(|source| match name {
            Some(name) => source.name.as_deref() == Some(name),
            None => source.name.is_none() && *source.owner == *sender,
        });
        let index = match known {
            Some(index) if *bound[index].owner != *sender => return Err(IngestRejection::SourceBound),
            Some(index) => index,
            None if bound.len() >= MAX_SOURCES => return Err(IngestRejection::TooManySources),
            None => {
                bound.push(Binding { name: name.map(Into::into), owner: sender.into() });
                self.count.inc();
                bound.len() - 1
            }
        };
        Ok(Source(u8::try_from(index).expect("there are at most MAX_SOURCES")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_belongs_to_the_name_that_used_it_first() {
        let sources = Sources::default();
        let one = sources.claim(Some("one"), "a").unwrap();
        assert_eq!(sources.claim(Some("one"), "a"), Ok(one));
        assert_eq!(sources.claim(Some("one"), "b"), Err(IngestRejection::SourceBound));
        let two = sources.claim(Some("two"), "b").unwrap();
        assert_ne!(one, two);
        assert_eq!(sources.claim(Some("two"), "a"), Err(IngestRejection::SourceBound));
        assert_eq!(sources.count.get(), 2);
    }

    #[test]
    fn a_name_in_a_path_is_not_the_same_name_in_a_certificate() {
        let sources = Sources::default();
        let by_path = sources.claim(Some("b"), "a").unwrap();
        let by_certificate = sources.claim(None, "b").unwrap();
        assert_ne!(by_path, by_certificate);
        assert_eq!(sources.claim(Some("b"), "b"), Err(IngestRejection::SourceBound));
        assert_eq!(sources.claim(None, "b"), Ok(by_certificate));
        assert_ne!(sources.claim(None, "a"), Ok(by_certificate), "each name is a source of its own");
    }

    #[test]
    fn there_is_an_end_to_sources_and_those_that_are_known_go_on() {
        let sources = Sources::default();
        let names: Vec<_> = (0..MAX_SOURCES).map(|number| number.to_string()).collect();
        let claimed: Vec<_> = names.iter().map(|name| sources.claim(Some(name), "a").unwrap()).collect();
        assert_eq!(sources.claim(Some("more"), "a"), Err(IngestRejection::TooManySources));
        assert_eq!(sources.claim(None, "a"), Err(IngestRejection::TooManySources));
        for (name, source) in names.iter().zip(claimed) {
            assert_eq!(sources.claim(Some(name), "a"), Ok(source));
        }
        assert_eq!(sources.count.get(), 32);
    }
}
