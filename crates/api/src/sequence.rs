//! An event's place in the bus.

use std::fmt;
use std::str::FromStr;

/// An event's place in the bus, which is its `metadata.resourceVersion`.
///
/// Places grow with time and across restarts, since a bus starts at the wall clock's microseconds. They have holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(u64);

impl Sequence {
    /// The place that is numbered `number`.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The place `count` further on. Saturates: a microsecond clock reaches the end of `u64` in the year 586,524.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The place before it, issued or not.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Sequence {
    type Err = std::num::ParseIntError;

    /// Decimal digits, as Go's `strconv.ParseUint` takes them: no sign.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Rust accepts a leading `+`, Go does not: make it the error that a bad digit is.
        text.replace('+', "x").parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_digits_are_a_sequence() {
        assert_eq!("18446744073709551615".parse(), Ok(Sequence(u64::MAX)));
        for bad in ["", "+1", "-1", "1.0", " 1", "0x1", "18446744073709551616"] {
            assert!(bad.parse::<Sequence>().is_err(), "{bad:?}");
        }
    }
}
