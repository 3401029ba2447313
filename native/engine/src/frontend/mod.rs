//! How clients reach a bdev.

pub mod nbd;
