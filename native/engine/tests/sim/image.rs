//! The simulated image: its reads wait for their turn among the operations of the base, may fail, and the image may
//! change. Without a base to wait at it answers at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ubi_engine::bdev::LocalFuture;
use ubi_engine::error::{Error, ErrorKind, Result};
use ubi_engine::image::{Extents, Image, ImageIdentity};
use ubi_engine::sys::buf::{IoBuf, IoData};

use super::base::{Kind, SimBase};
use super::setting::{STRIPE, Setting};
use super::tags::SECTOR;

/// See the module.
pub struct SimImage {
    content: Arc<Vec<u8>>,
    extents: Extents,
    waits_at: Option<Arc<SimBase>>,
    has_changed: AtomicBool,
}

impl SimImage {
    pub fn new(setting: &Setting, waits_at: Option<Arc<SimBase>>) -> Arc<Self> {
        let content = Arc::new(setting.image_content());
        let start = if setting.has_hole { (STRIPE * SECTOR) as u64 } else { 0 };
        let extents = Extents::from_ranges(std::iter::once(start..content.len() as u64));
        Arc::new(Self { content, extents, waits_at, has_changed: AtomicBool::new(false) })
    }

    /// From now on the image is another one than was opened.
    pub fn change(&self) {
        self.has_changed.store(true, Ordering::Relaxed);
    }
}

impl Image for SimImage {
    fn name(&self) -> &str {
        "image"
    }

    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn identity(&self) -> ImageIdentity {
        ImageIdentity { kind: "simulated", size_bytes: self.size_bytes(), tag: String::new() }
    }

    fn data_extents(&self) -> &Extents {
        &self.extents
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoData>> {
        Box::pin(async move {
            if let Some(base) = &self.waits_at {
                base.submit(Kind::ImageRead, 0..0, Vec::new(), false).await?;
            }
            self.recheck()?;
            let bytes = &self.content[offset as usize..offset as usize + len];
            Ok(IoData::new(IoBuf::from_slice(bytes)))
        })
    }

    fn recheck(&self) -> Result<()> {
        match self.has_changed.load(Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Io, "the image has changed")),
            false => Ok(()),
        }
    }

    fn directio_in_effect(&self) -> bool {
        false
    }
}
