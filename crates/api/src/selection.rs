//! All that a watcher selects by, as one: the field selector, the parameters that have an OR, the label selector.
//!
//! Which text a field holds is the caller's business, as it is in [`selector`](crate::selector).

use std::collections::{BTreeMap, BTreeSet};

use crate::Resource;
use crate::selector::{Field, FieldSelector, MAX_TERMS, MAX_VALUE_BYTES, Requirement, SelectorError};

/// Which events a watch yields. Empty, it selects everything. What was written in another order, twice, or as a parameter
/// instead of a field selector is equal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Must hold.
    all: FieldSelector,
    /// Of each set one must hold. In the order of the parameters' fields, sorted, and never one alone: that is part of `all`.
    any_of: Vec<Vec<FieldSelector>>,
    /// Whether the label selector asks for a label, which no audit event has.
    wants_label: bool,
}

/// A parameter that selects. It may be repeated; an empty value is as good as none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parameter {
    /// Any of these users.
    Username,
    /// All of these groups.
    Group,
    /// Any of these API groups.
    ApiGroup,
    /// Any of these resources.
    Resource,
    /// Any of these verbs.
    Verb,
    /// Any of these stages.
    Stage,
    /// Any of these attributed namespaces.
    Namespace,
}

/// Collects what a query says into a [`Selector`].
#[derive(Debug, Default)]
pub(crate) struct Selection {
    all: BTreeSet<Requirement>,
    any_of: BTreeMap<Field, BTreeSet<FieldSelector>>,
    pub(crate) wants_label: bool,
}

/// The API group that has no name.
const CORE: &str = "<core>";

/// The namespace of what has none.
const NO_NAMESPACE: &str = "<none>";

// === impl Parameter ===

impl Parameter {
    /// The parameter of a query's key, in a watch of this resource.
    pub(crate) fn named(name: &str, resource: Resource) -> Option<Self> {
        match name {
            "username" => Some(Self::Username),
            "group" => Some(Self::Group),
            "apiGroup" => Some(Self::ApiGroup),
            "resource" => Some(Self::Resource),
            "verbs" | "verb" => Some(Self::Verb),
            "stage" => Some(Self::Stage),
            // The path says which one where there is one.
            "namespace" if !resource.namespaced() => Some(Self::Namespace),
            _ => None,
        }
    }

    fn field(self) -> Field {
        match self {
            Self::Username => Field::Username,
            Self::Group => Field::Groups,
            Self::ApiGroup => Field::ObjectApiGroup,
            Self::Resource => Field::ObjectResource,
            Self::Verb => Field::Verb,
            Self::Stage => Field::Stage,
            Self::Namespace => Field::MetadataNamespace,
        }
    }

    /// What separates values. Names of users and groups may hold any character, the others no comma.
    fn separators(self) -> &'static [char] {
        match self {
            Self::Username | Self::Group => &[],
            Self::ApiGroup | Self::Resource | Self::Verb | Self::Stage | Self::Namespace => &[','],
        }
    }

    /// What an event must have to have the value.
    fn requirements(self, value: &str) -> Vec<Requirement> {
        let equal = |field, value: &str| Requirement { field, value: value.to_owned(), equal: true };
        match (self, value) {
            // A request that is not for a resource has no API group either.
            (Self::ApiGroup, CORE) => {
                let resource = Requirement { equal: false, ..equal(Field::ObjectResource, "") };
                vec![equal(Field::ObjectApiGroup, ""), resource]
            }
            (Self::Namespace, NO_NAMESPACE) => vec![equal(Field::MetadataNamespace, "")],
            _ => vec![equal(self.field(), value)],
        }
    }
}

// === impl Selection ===

impl Selection {
    /// What must hold, besides all else.
    pub(crate) fn require(&mut self, selector: &FieldSelector) {
        self.all.extend(selector.requirements().iter().cloned());
    }

    /// One occurrence of a parameter.
    ///
    /// # Errors
    /// If parameters alone come to more than [`MAX_TERMS`] requirements: no more than that is ever collected.
    pub(crate) fn add(&mut self, parameter: Parameter, value: &str) -> Result<(), SelectorError> {
        for value in value.split(parameter.separators()).filter(|value| !value.is_empty()) {
            let requirements = parameter.requirements(value);
            if parameter == Parameter::Group {
                self.all.extend(requirements);
            } else {
                self.any_of.entry(parameter.field()).or_default().insert(FieldSelector::of(requirements));
            }
            let alternatives = self.any_of.values().flatten();
            check_terms(self.all.len() + alternatives.flat_map(FieldSelector::requirements).count())?;
        }
        Ok(())
    }

    /// The whole.
    ///
    /// # Errors
    /// If it has more than [`MAX_TERMS`] requirements.
    pub(crate) fn finish(self) -> Result<Selector, SelectorError> {
        let Self { mut all, any_of, wants_label } = self;
        let mut choices = Vec::new();
        for alternatives in any_of.into_values().map(Vec::from_iter) {
            match &*alternatives {
                [only] => all.extend(only.requirements().iter().cloned()),
                _ => choices.push(alternatives),
            }
        }
        let all = FieldSelector::of(all.into_iter().collect());
        let selector = Selector { all, any_of: choices, wants_label };
        check_terms(selector.requirements().count())?;
        let value_bytes: usize = selector.requirements().map(|term| term.value.len()).sum();
        if value_bytes > MAX_VALUE_BYTES { Err(SelectorError::TooLong) } else { Ok(selector) }
    }
}

fn check_terms(count: usize) -> Result<(), SelectorError> {
    if count > MAX_TERMS { Err(SelectorError::TooManyTerms) } else { Ok(()) }
}

// === impl Selector ===

impl Selector {
    /// Whether it selects every event.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it selects no event, whatever happens: its label selector asks for a label.
    pub fn selects_nothing(&self) -> bool {
        self.wants_label
    }

    /// Every field that it looks at, some more than once.
    pub fn fields(&self) -> impl Iterator<Item = Field> {
        self.requirements().map(|requirement| requirement.field)
    }

    /// Whether an event is selected; `holds` says whether one of a field's values is the given text.
    pub fn matches(&self, mut holds: impl FnMut(Field, &str) -> bool) -> bool {
        let mut matches = |selector: &FieldSelector| selector.matches(&mut holds);
        !self.wants_label
            && matches(&self.all)
            && self.any_of.iter().all(|alternatives| alternatives.iter().any(&mut matches))
    }

    /// Each of them may be compared with every event.
    fn requirements(&self) -> impl Iterator<Item = &Requirement> {
        std::iter::once(&self.all).chain(self.any_of.iter().flatten()).flat_map(FieldSelector::requirements)
    }
}

impl From<FieldSelector> for Selector {
    fn from(all: FieldSelector) -> Self {
        Self { all, ..Self::default() }
    }
}

#[cfg(test)]
mod tests;
