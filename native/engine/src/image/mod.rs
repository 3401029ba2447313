//! Where the initial content of a volume comes from.

pub mod extents;
pub mod file;

use crate::bdev::LocalFuture;
use crate::error::Result;
use crate::sys::buf::IoData;
pub use extents::Extents;

/// What tells one image from another and from itself after a change, also after a restart: nothing in it depends on
/// where the image is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageIdentity {
    /// The kind of the image, as in `images/`.
    pub kind: &'static str,
    pub size_bytes: u64,
    /// Whatever changes with the content: time of modification, ETag, digest; at most 256 bytes.
    pub tag: String,
}

/// The read-only source of a volume. Safe to use from every reactor at once.
pub trait Image: Send + Sync {
    /// The path or address, for people.
    fn name(&self) -> &str;

    fn size_bytes(&self) -> u64;

    fn identity(&self) -> ImageIdentity;

    /// Where the image holds data; everything else reads as zeros.
    fn data_extents(&self) -> &Extents;

    /// Read exactly `len` bytes inside the image, verified by `recheck` after they were read.
    ///
    /// # Errors
    /// `Io` for a short or failed read (INV-7), and what `recheck` says.
    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoData>>;

    /// Fail when the image is no longer what was opened.
    ///
    /// # Errors
    /// `Io` saying that the image has changed.
    fn recheck(&self) -> Result<()>;

    /// The same for a reactor: it is not held up where the image's storage may be slow to say.
    ///
    /// # Errors
    /// As `recheck`.
    fn recheck_elsewhere(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(self.recheck()))
    }

    /// Whether reads bypass the page cache.
    fn directio_in_effect(&self) -> bool;
}
