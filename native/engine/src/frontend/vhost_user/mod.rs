//! The vhost-user-blk frontend: a virtual machine's disk, served from the guest's own memory.
//!
//! - [`controller`]: the socket and its sessions
//! - [`session`], [`proto`]: one frontend, and its messages without I/O
//! - [`memory`], [`ring`], [`inflight`], [`log`]: what the guest shares, every access checked
//! - [`queue`], [`request`], [`device`]: a ring at work
//! - [`config`]: the config space
//!
//! The message layer is this program's: the crates that have one neither recover what was in flight, nor finish it
//! before a ring stops, nor let a ring live on a reactor.

pub mod config;
pub mod controller;
mod device;
pub mod inflight;
pub mod log;
pub mod memory;
pub mod proto;
mod queue;
mod request;
pub mod ring;
mod session;
