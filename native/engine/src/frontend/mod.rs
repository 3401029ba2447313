//! How clients reach a bdev.

pub mod budget;
pub mod nbd;
pub mod socket_node;
pub mod vhost_user;
