//! A base and an image too large to be held: of the base only the metadata area exists, the image is all holes.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use ubi_engine::bdev::{Bdev, BdevInfo, IoStat, LocalFuture, ZeroFlags};
use ubi_engine::error::Result;
use ubi_engine::image::{Extents, Image, ImageIdentity};
use ubi_engine::sys::buf::{IoBuf, IoData};

use super::{DATA, MemBase};

/// See the module.
pub struct BigBase {
    info: BdevInfo,
    area: Mutex<Vec<u8>>,
    metadata_writes: Mutex<Vec<Range<u64>>>,
    stat: IoStat,
}

impl BigBase {
    pub fn new(volume_bytes: u64, area: Vec<u8>) -> Arc<Self> {
        let info = MemBase::new(512, 512).info().clone();
        info.num_blocks.set((DATA + volume_bytes) / 512);
        let metadata_writes = Mutex::default();
        Arc::new(Self { info, area: Mutex::new(area), metadata_writes, stat: IoStat::default() })
    }

    /// The metadata area.
    pub fn area(&self) -> Vec<u8> {
        self.area.lock().expect("not poisoned").clone()
    }

    /// Where the metadata area was written since the last call.
    pub fn take_metadata_writes(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.metadata_writes.lock().expect("not poisoned"))
    }
}

fn done<'a>() -> LocalFuture<'a, Result<()>> {
    Box::pin(std::future::ready(Ok(())))
}

impl Bdev for BigBase {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        let area = self.area.lock().expect("not poisoned");
        let buf = IoBuf::from_slice(&area[offset as usize..offset as usize + len]);
        Box::pin(std::future::ready(Ok(buf)))
    }

    fn write(&self, offset: u64, data: IoData, _fua: bool) -> LocalFuture<'_, Result<()>> {
        if offset < DATA {
            self.area.lock().expect("not poisoned")[offset as usize..offset as usize + data.len()]
                .copy_from_slice(&data);
            self.metadata_writes.lock().expect("not poisoned").push(offset..offset + data.len() as u64);
        }
        done()
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        done()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        done()
    }

    fn discard(&self, _offset: u64, _len: u64, _fua: bool) -> LocalFuture<'_, Result<()>> {
        done()
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> LocalFuture<'_, Result<()>> {
        done()
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        done()
    }

    fn iostat(&self) -> &IoStat {
        &self.stat
    }
}

/// As many bytes of holes.
pub struct BigImage(pub u64);

impl Image for BigImage {
    fn name(&self) -> &str {
        "big"
    }

    fn size_bytes(&self) -> u64 {
        self.0
    }

    fn identity(&self) -> ImageIdentity {
        ImageIdentity { kind: "big", size_bytes: self.0, tag: String::new() }
    }

    fn data_extents(&self) -> &Extents {
        static NONE: OnceLock<Extents> = OnceLock::new();
        NONE.get_or_init(Extents::default)
    }

    fn read(&self, _offset: u64, _len: usize) -> LocalFuture<'_, Result<IoData>> {
        unreachable!("there is nothing to read in holes")
    }

    fn recheck(&self) -> Result<()> {
        Ok(())
    }

    fn directio_in_effect(&self) -> bool {
        false
    }
}
