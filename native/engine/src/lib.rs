//! The data plane: every guest byte moves here and nothing else does.
//!
//! - [`bdev`]: block devices behind one trait, the ubi overlay among them
//! - [`image`]: where a ubi bdev's initial content comes from
//! - [`events`]: what operators are told
//! - [`frontend`]: how clients reach a bdev
//! - [`reactor`]: the event loops and the asynchronous storage operations
//! - [`sys`]: the only code with `unsafe`: system calls, aligned memory, io_uring
//! - [`engine`]: all of it as the control plane holds it
//! - [`error`]: the error kinds, the same list as in Python
//! - [`fault`]: what tests can break, never in a build that is used

#![deny(unsafe_code)]

#[macro_use]
pub mod fault;

pub mod bdev;
pub mod engine;
pub mod error;
pub mod events;
pub mod frontend;
pub mod image;
pub mod reactor;
pub mod sys;
