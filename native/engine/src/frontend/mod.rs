//! How clients reach a bdev.
