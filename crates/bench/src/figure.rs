//! One line of the result: what was measured of ours, what of the reference, their ratio, and whether that is good enough.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// The smaller the better.
    AtMost(f64),
    /// The larger the better.
    AtLeast(f64),
}

/// One round: ours, and the reference right before or after it.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// What was measured of audit-stream.
    pub ours: f64,
    /// What was measured of the reference.
    pub reference: f64,
}

/// One line. What has no reference is judged by itself.
#[derive(Debug, Serialize)]
pub struct Figure {
    figure: String,
    /// The median of the rounds, like `reference`.
    ours: f64,
    reference: Option<f64>,
    ratio: Option<f64>,
    /// The ends of the 95 % interval: of the ratio's mean, or of that of `ours`.
    low: f64,
    high: f64,
    #[serde(serialize_with = "as_text")]
    goal: Option<Goal>,
    /// Whether the better end of the interval reaches the goal.
    met: Option<bool>,
}

/// Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; it is 1.96 for many.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

impl Goal {
    fn met_by(self, low: f64, high: f64) -> bool {
        match self {
            Self::AtMost(most) => low <= most,
            Self::AtLeast(least) => high >= least,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::AtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

impl Figure {
    /// Judged by the ratio of ours to the reference, of which each round gives one.
    ///
    /// # Panics
    /// If there are no rounds.
    pub fn ratio(figure: impl Into<String>, rounds: &[Pair], goal: Option<Goal>) -> Self {
        // Ratios are averaged as logarithms: twice as much and half as much are nothing.
        let logs: Vec<f64> = rounds.iter().map(|pair| (pair.ours / pair.reference).ln()).collect();
        let (mean, half) = interval(&logs);
        let (low, high) = ((mean - half).exp(), (mean + half).exp());
        Self {
            figure: figure.into(),
            ours: median(rounds.iter().map(|pair| pair.ours)),
            reference: Some(median(rounds.iter().map(|pair| pair.reference))),
            ratio: Some(mean.exp()),
            low,
            high,
            goal,
            met: goal.map(|goal| goal.met_by(low, high)),
        }
    }

    /// Judged by itself.
    ///
    /// # Panics
    /// If there are no rounds.
    pub fn absolute(figure: impl Into<String>, rounds: &[f64], goal: Option<Goal>) -> Self {
        let (mean, half) = interval(rounds);
        let (low, high) = (mean - half, mean + half);
        let met = goal.map(|goal| goal.met_by(low, high));
        let ours = median(rounds.iter().copied());
        Self { figure: figure.into(), ours, reference: None, ratio: None, low, high, goal, met }
    }

    /// Whether it reaches its goal, if it has one.
    pub fn met(&self) -> Option<bool> {
        self.met
    }

    /// As a line of a table for people.
    pub fn row(&self) -> String {
        let or_dash = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
        let (goal, met) = match (self.goal, self.met) {
            (Some(goal), Some(met)) => (goal.to_string(), if met { "met" } else { "MISSED" }),
            _ => ("-".to_owned(), ""),
        };
        format!(
            "{:<72} {:>9} {:>9} {:>7} {:>17} {:>9} {met}",
            self.figure,
            short(self.ours),
            or_dash(self.reference),
            or_dash(self.ratio),
            format!("{} .. {}", short(self.low), short(self.high)),
            goal
        )
    }

    /// The names of the columns of [`Self::row`].
    pub fn header() -> String {
        format!(
            "{:<72} {:>9} {:>9} {:>7} {:>17} {:>9}",
            "figure", "ours", "reference", "ratio", "95 % interval", "goal"
        )
    }
}

/// Nanoseconds of CPU for each of so many things.
pub fn nanoseconds_each(cpu: Duration, things: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let things = things as f64;
    cpu.as_secs_f64() * 1e9 / things
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn as_text<S: Serializer>(goal: &Option<Goal>, serializer: S) -> Result<S::Ok, S::Error> {
    goal.map(|goal| goal.to_string()).serialize(serializer)
}

/// The mean, and half of the width of its 95 % interval; that of a single value is unknown, and taken as zero.
fn interval(values: &[f64]) -> (f64, f64) {
    assert!(!values.is_empty(), "nothing was measured");
    #[expect(clippy::cast_precision_loss, reason = "there are some rounds, not billions")]
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() == 1 {
        return (mean, 0.0);
    }
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let quantile = T.get(values.len() - 2).copied().unwrap_or(1.96);
    (mean, quantile * (variance / count).sqrt())
}

/// The value in the middle.
///
/// # Panics
/// If there is none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    percentile(&mut values.collect::<Vec<_>>(), 0.5)
}

/// The value that this share of all are not above; puts them in order.
///
/// # Panics
/// If there is none.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "some thousand"
    )]
    let index = (values.len() as f64 * share) as usize;
    values[index.min(values.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_paired_ratios() {
        let rounds = [(2.0, 1.0), (4.0, 2.0), (8.0, 4.0)].map(|(ours, reference)| Pair { ours, reference });
        let figure = Figure::ratio("x", &rounds, Some(Goal::AtMost(2.0)));
        // Whatever the machine does between the rounds, the ratio of each is the same.
        assert_eq!((figure.ratio, figure.low, figure.high, figure.met()), (Some(2.0), 2.0, 2.0, Some(true)));
        assert_eq!((figure.ours, figure.reference), (4.0, Some(2.0)));
        // By hand: mean 2, standard deviation 1, t = 4.303, so 2 ± 4.303 / √3.
        let figure = Figure::absolute("x", &[1.0, 2.0, 3.0], Some(Goal::AtLeast(4.5)));
        assert!((figure.high - (2.0 + 4.303 / 3.0_f64.sqrt())).abs() < 1e-9, "{}", figure.high);
        assert_eq!(figure.met(), Some(false));
    }

    #[test]
    fn a_line_has_the_keys_that_were_promised() {
        let line = serde_json::to_value(Figure::absolute("x", &[1.0], Some(Goal::AtMost(20.0)))).unwrap();
        let keys = ["figure", "ours", "reference", "ratio", "low", "high", "goal", "met"];
        assert!(
            keys.iter().all(|key| line.get(key).is_some()) && line.as_object().unwrap().len() == keys.len(),
            "{line}"
        );
        assert_eq!((&line["goal"], &line["met"]), (&"<= 20".into(), &true.into()));
    }
}
