//! What audit-stream's benchmarks share. Each program in `bin` measures one thing beside a reference, in one run.

pub mod corpus;
