//! What the load generators have in common.
//!
//! - [`histogram`]: latencies in buckets
//! - [`program`]: from a command line to an exit code
//! - [`random`]: numbers that are the same for the same seed
//! - [`words`]: words of a command line
//! - [`sys`]: the few system calls that the standard library lacks

#![deny(unsafe_code)]

pub mod histogram;
pub mod program;
pub mod random;
pub mod sys;
pub mod words;
