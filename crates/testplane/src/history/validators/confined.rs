//! No reader of a namespace sees what is not that namespace's.

use super::{Rule, Violation};
use crate::history::{Examined, Scope};

/// Each event is in no stream but its own.
///
/// A reader of a namespace receives events that are truly of this namespace and say so; a reader of all namespaces, of
/// the one that they say. Nobody there receives an event of none. On `events` no object says a namespace.
///
/// # Errors
/// The first event that is in the wrong stream.
pub fn confined(run: &Examined<'_>) -> Result<(), Violation> {
    for reader in run.readers() {
        for (session, delivery) in reader.deliveries() {
            let said = delivery.added.namespace.as_deref();
            let truth = delivery.event.map(|event| run.event(event).sent.namespace.as_deref());
            let violation =
                |expected| Err(reader.violation(Rule::Confined, session, Some(delivery.added.place), expected));
            match &reader.transcript.scope {
                Scope::Cluster if said.is_some() => return violation(format!("no namespace, not {said:?}")),
                Scope::Cluster => {}
                Scope::Namespace(own) if said != Some(own) => {
                    return violation(format!("events that say {own}, not {said:?}"));
                }
                Scope::AllNamespaces if said.is_none() => return violation("events that say a namespace".to_owned()),
                // What nobody sent is in nobody's namespace; that it is there is for others to say.
                _ if truth.is_some_and(|truth| truth != said) => {
                    return violation(format!("events of {said:?}, not {}", name(run, &delivery)));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn name(run: &Examined<'_>, delivery: &crate::history::examined::Delivery<'_>) -> String {
    delivery.event.map_or_else(String::new, |event| run.event(event).name())
}
