//! A disk that survived a cut, opened by the production code and read whole. Everything answers at once.

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use ubi_engine::bdev::ubi::{self, UbiOptions};
use ubi_engine::bdev::{Bdev, BdevInfo, IoStat, LocalFuture, ZeroFlags};
use ubi_engine::error::Result;
use ubi_engine::image::Image;
use ubi_engine::sys::buf::{IoBuf, IoData};

use super::image::SimImage;
use super::setting::{Setting, slots};
use super::tags::{SECTOR, Tag};

/// A base on which every operation completes when it is submitted.
pub struct Disk {
    info: BdevInfo,
    tags: Mutex<Vec<Tag>>,
    stat: IoStat,
}

impl Disk {
    fn tags(&self) -> MutexGuard<'_, Vec<Tag>> {
        self.tags.lock().expect("not poisoned")
    }

    fn range(&self, offset: u64, len: u64) -> Range<usize> {
        assert!(offset + len <= self.info.size_bytes(), "{len} at {offset} inside the base");
        slots(offset, len)
    }
}

/// How to look at survivors of one setting.
pub struct Survivors {
    setting: Arc<Setting>,
    disk: Arc<Disk>,
    image: Arc<SimImage>,
    options: UbiOptions,
}

impl Survivors {
    pub fn new(setting: &Arc<Setting>) -> Self {
        let disk = Disk { info: setting.info(), tags: Mutex::default(), stat: IoStat::default() };
        let options = UbiOptions { copy_on_read: false, ..setting.options() };
        Self { setting: Arc::clone(setting), disk: Arc::new(disk), image: SimImage::new(setting, None), options }
    }

    /// Open a disk by the production code and read all of it. Needs an entered executor.
    ///
    /// # Errors
    /// What the overlay said: every survivor has to open and to be readable.
    pub fn read(&self, disk: &[Tag]) -> std::result::Result<Vec<Tag>, String> {
        self.disk.tags().clear();
        self.disk.tags().extend_from_slice(disk);
        let base: Arc<dyn Bdev> = Arc::clone(&self.disk) as Arc<dyn Bdev>;
        let image: Arc<dyn Image> = Arc::clone(&self.image) as Arc<dyn Image>;
        let volume = at_once(ubi::open(base, image, self.options.clone()))
            .map_err(|error| format!("a survivor does not open: {error}"))?;
        let bytes = at_once(volume.read(0, self.setting.volume * SECTOR))
            .map_err(|error| format!("a survivor cannot be read: {error}"))?;
        Ok(Tag::all_of(&bytes))
    }

    /// The disk as the last `read` left it: a new one is formatted by then.
    pub fn disk(&self) -> Vec<Tag> {
        self.disk.tags().clone()
    }
}

/// The value of a future that does not wait.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("an operation waits, and everything answers at once"),
    }
}

fn ready<T: 'static>(value: T) -> LocalFuture<'static, T> {
    Box::pin(std::future::ready(value))
}

impl Bdev for Disk {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        let mut buf = IoBuf::new(len);
        Tag::fill_all(&self.tags()[self.range(offset, len as u64)], &mut buf);
        ready(Ok(buf))
    }

    fn write(&self, offset: u64, data: IoData, _fua: bool) -> LocalFuture<'_, Result<()>> {
        let range = self.range(offset, data.len() as u64);
        self.tags()[range].copy_from_slice(&Tag::all_of(&data));
        ready(Ok(()))
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        ready(Ok(()))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        let range = self.range(offset, len);
        self.tags()[range].fill(Tag::ZERO);
        ready(Ok(()))
    }

    fn discard(&self, _offset: u64, _len: u64, _fua: bool) -> LocalFuture<'_, Result<()>> {
        ready(Ok(()))
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> LocalFuture<'_, Result<()>> {
        ready(Ok(()))
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        ready(Ok(()))
    }

    fn iostat(&self) -> &IoStat {
        &self.stat
    }
}
