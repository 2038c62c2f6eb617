//! What the shipped binary costs, against the limits of the same machine in the same run: `hack/bench`.
//!
//! Each row measures ours and a reference in turn, so that whatever else the machine does meets both, and is judged by the
//! ratios of the rounds. The measured processes have one core and the bench has another. It decides nothing about whether the
//! project is well; that is what tests are for.

pub mod cores;
pub mod corpus;
pub mod figure;
pub mod readers;
pub mod reference;
pub mod rows;
pub mod stand;
pub mod usage;
