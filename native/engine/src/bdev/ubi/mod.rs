//! The ubi overlay: a copy-on-access image over a base bdev.

/// A ubi bdev.
pub struct UbiBdev;
