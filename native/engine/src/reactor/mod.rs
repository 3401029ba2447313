//! Event loops: an executor for one thread's tasks, and the storage operations that tasks wait for.

pub mod exec;
pub mod ops;
