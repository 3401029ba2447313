//! How clients reach a bdev.

pub mod nbd;
mod socket_node;
pub mod vhost_user;
