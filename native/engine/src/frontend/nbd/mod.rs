//! The NBD frontend: fixed newstyle over Unix and TCP sockets, many exports by name on one listener.
//!
//! - [`listener`]: sockets, accepting, the exports of a listener
//! - [`export`]: one name, its bdev, its clients
//! - [`connection`]: one client
//! - [`handshake`], [`proto`], [`context`]: the protocol itself, without I/O
//! - [`zeros`] cuts reads into chunks, [`status`] answers BLOCK_STATUS, [`unaligned`] carries out what is not in whole blocks
//! - [`stream`] a client's bytes, [`tls`] under TLS where that was agreed on
//! - [`output`], [`batch`], [`receive`]: a connection's memory

pub mod batch;
mod connection;
pub mod context;
pub mod export;
pub mod handshake;
pub mod listener;
mod output;
pub mod proto;
mod receive;
mod status;
mod stream;
pub mod tls;
mod unaligned;
mod zeros;

/// Largest payload of one request in bytes.
pub const MAX_PAYLOAD: u32 = super::budget::MAX_REQUEST_BYTES;
