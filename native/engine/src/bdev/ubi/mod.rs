//! The ubi overlay: a copy-on-access image over a base bdev, in bdev_ubi's on-disk format.
//!
//! - [`geometry`]: sizes and positions
//! - [`layout`], [`sectors`], [`superblock`]: the bytes of the metadata area; [`examine`]: what to do with what is there,
//!   [`refusal`]: or why not; [`inspect`]: the same for tools
//! - [`map_check`]: whether a map goes with its base
//! - [`metadata`]: opening, formatting, adopting; [`superblocks`]: changes of state on disk
//! - [`standing`]: marking open and closing; [`host`], [`state_dir`]: boot and volatile maps
//! - [`stripes`]: the state of every stripe
//! - [`volume`]: what the parts share
//! - [`read`], [`change`], [`fetch`], [`flush`]: what is done to it
//! - [`status`], [`extents`]: what it tells
//!
//! Nothing here knows threads or a real clock: tasks, timers and wakers are the executor's, bytes move through
//! `Bdev` and `Image`. Any number of reactors may use one volume at once.
//!
//! Invariants (docs/safety.md): INV-1 header after data; INV-2 no old bytes; INV-3 a fetch never overwrites a
//! guest's write; INV-4 every request ends once; INV-5 FLUSH covers all before it; INV-6 unknown metadata is refused;
//! INV-7 no error becomes success.

mod change;
pub mod examine;
mod extents;
mod fetch;
mod flush;
pub mod geometry;
pub mod host;
pub mod inspect;
pub mod layout;
mod map_check;
mod metadata;
mod read;
pub mod refusal;
pub mod repair;
pub mod sectors;
mod standing;
pub mod state_dir;
mod status;
mod stripes;
pub mod superblock;
mod superblocks;
pub mod uuid;
mod volume;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::extent::Extent;
use super::stat::{self, Above, Op};
use super::{Bdev, BdevInfo, IoStat, Lent, LocalFuture, PartialRead, Survives, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::events::{Events, Level};
use crate::image::Image;
use crate::sys::buf::{IoBuf, IoData};
use crate::sys::pipe::Pipe;
use crate::sys::sg_list::SgList;
use change::Change;
use host::{Host, Mapped};
pub use status::UbiStatus;
use stripes::{State, StripeMap};
use uuid::Uuid;
use volume::Volume;

/// What a volume is opened with, beside its base and its image.
#[derive(Clone)]
pub struct UbiOptions {
    pub name: String,
    /// KiB, a power of two from 64 to 1024; None: the volume's own, 1024 for a new one.
    pub stripe_size_kb: Option<u32>,
    /// A FLUSH is answered without making anything durable; it waives INV-5 and nothing else.
    pub no_sync: bool,
    /// A read of a missing stripe copies it.
    pub copy_on_read: bool,
    /// O_DIRECT was asked for the image.
    pub directio: bool,
    /// The UUID that a new volume gets and an old one must have.
    pub uuid: Option<Uuid>,
    /// Format although a superblock is there without a magic.
    pub wipe: bool,
    /// Take over what bdev_ubi has changed since the last clean close.
    pub adopt: bool,
    /// Where the volatile map of this boot is lost: open all the same, as after a power cut.
    pub discard_unpublished: bool,
    /// The machine: which boot it is, and where volatile maps live.
    pub host: Arc<dyn Host>,
    /// Where operators are told.
    pub events: Option<Arc<Events>>,
}

impl UbiOptions {
    /// As bdev_ubi_create has them when nothing is given, but for the image, which is read through the page cache.
    pub fn new(name: impl Into<String>, host: Arc<dyn Host>) -> Self {
        Self {
            name: name.into(),
            stripe_size_kb: None,
            no_sync: false,
            copy_on_read: true,
            directio: false,
            uuid: None,
            wipe: false,
            adopt: false,
            discard_unpublished: false,
            host,
            events: None,
        }
    }
}

/// A ubi bdev.
pub struct UbiBdev {
    volume: Arc<Volume>,
}

/// Open the volume on `base`, or format it if its magic is zero. Runs on a reactor.
///
/// # Errors
/// `InvalidParams` for sizes that do not fit or a base that holds something else, `Corrupt` for damaged metadata
/// (EINVAL both, nothing written), and what base and image said.
pub async fn open(base: Arc<dyn Bdev>, image: Arc<dyn Image>, options: UbiOptions) -> Result<Arc<UbiBdev>> {
    if base.info().readonly {
        let message = format!("base {} is read-only and cannot hold a volume", base.info().name);
        return Err(Error::new(ErrorKind::InvalidParams, message));
    }
    image.recheck_elsewhere().await?;
    let metadata::Loaded { geometry, area, superblocks, recovery, map, remark } =
        metadata::load(&*base, &*image, &options).await?;
    let stripes = StripeMap::new(geometry.stripes, |stripe| match area[layout::header_at(stripe)] {
        0 if map.as_ref().is_some_and(|map| map.mapped[stripe as usize] != Mapped::Missing) => State::Present,
        0 => State::Missing,
        _ => State::Published,
    });
    let unpublished = (0..geometry.stripes).filter(|&stripe| stripes.get(stripe) == State::Present).collect();
    let found = map.as_ref().map_or_else(Vec::new, |continued| continued.found(&area));
    let survives = base.info().survives;
    let info = BdevInfo {
        name: options.name.clone(),
        num_blocks: (geometry.volume_bytes / geometry.block_bytes).into(),
        flush: true,
        write_zeroes: true,
        unmap_reads_zero: false, // a discard inside a missing stripe changes nothing
        survives: if options.no_sync { survives.min(Survives::Process) } else { survives },
        ..base.info().clone()
    };
    let volume = Volume {
        options,
        info,
        geometry,
        base,
        image,
        stripes,
        fetches: fetch::Fetches::new(),
        rounds: flush::Rounds::new(area, unpublished, found),
        standing: standing::Standing::new(superblocks, recovery, map.map(|continued| continued.map)),
        counters: status::Counters::default(),
        stat: Arc::default(),
        tasks: volume::Tasks::default(),
        closing: AtomicBool::new(false),
    };
    if volume.options.directio && !volume.image.directio_in_effect() {
        volume.tell(Level::Info, &format!("image {} is read without O_DIRECT", volume.image.name()));
    }
    let volume = Arc::new(volume);
    if let Some(remark) = remark {
        volume.tell(Level::Warning, &remark);
    }
    if let Some(recovery) = recovery {
        volume.tell(Level::Info, &format!("was not closed; recovered by {}", recovery.as_str()));
    }
    volume.start_timer();
    Ok(Arc::new(UbiBdev { volume }))
}

impl UbiBdev {
    /// Progress and state just now.
    pub fn status(&self) -> UbiStatus {
        self.volume.status()
    }

    /// Take all of a base that has grown. What is new reads as zeros, whatever the base has there (INV-2): it is zeroed,
    /// and durably so, before anybody can reach it. Nothing happens where the base has not grown.
    ///
    /// # Errors
    /// What the base said. The size is the old one; it may be tried again.
    pub async fn grow(&self) -> Result<()> {
        let volume = &self.volume;
        let (had, has) = (volume.info.size_bytes(), volume.base.info().size_bytes() - layout::METADATA_BYTES);
        if has <= had {
            return Ok(());
        }
        metadata::zero_range(&*volume.base, volume.geometry.on_base(had)..volume.geometry.on_base(has)).await?;
        volume.flush_round().await?;
        volume.info.num_blocks.set(has / volume.geometry.block_bytes);
        volume.tell(Level::Info, &format!("grew from {had} to {has} bytes"));
        Ok(())
    }

    /// This bdev, for whoever counts a request that comes through it.
    #[inline]
    fn layer<'a>(&'a self, above: Option<&'a Above<'a>>) -> Above<'a> {
        Above { stat: &self.volume.stat, above }
    }

    /// Where the base has a range that may be read there.
    #[inline]
    fn for_reads(&self, offset: u64, len: u64) -> Option<(&dyn Bdev, u64)> {
        let volume = &*self.volume;
        let may = len != 0 && volume.is_on_base(offset, offset + len);
        may.then(|| (&*volume.base, volume.geometry.on_base(offset)))
    }

    /// Where the base has a range that may be written there, and acknowledged from there.
    #[inline]
    fn for_writes(&self, offset: u64, len: u64) -> Option<(&dyn Bdev, u64)> {
        let may = len != 0 && self.is_known(offset, offset + len);
        may.then(|| (&*self.volume.base, self.volume.geometry.on_base(offset)))
    }

    /// Whether a write to the range may go straight to the base and be acknowledged from there.
    #[inline]
    fn is_known(&self, start: u64, end: u64) -> bool {
        let volume = &*self.volume;
        if volume.rounds.has_failed() {
            return false;
        }
        volume.stripes.is_complete()
            || volume.standing.acknowledges(&volume.stripes, volume.geometry.stripes_of(start, end))
    }
}

impl Bdev for UbiBdev {
    fn info(&self) -> &BdevInfo {
        &self.volume.info
    }

    #[inline]
    fn try_read(&self, offset: u64, buf: &mut [u8], above: Option<&Above<'_>>) -> Option<Result<()>> {
        let (base, at) = self.for_reads(offset, buf.len() as u64)?;
        base.try_read(at, buf, Some(&self.layer(above)))
    }

    #[inline]
    fn try_write(&self, offset: u64, data: &[u8], above: Option<&Above<'_>>) -> Option<Result<()>> {
        let (base, at) = self.for_writes(offset, data.len() as u64)?;
        base.try_write(at, data, Some(&self.layer(above)))
    }

    #[inline]
    fn try_read_sg(&self, offset: u64, target: &SgList, above: Option<&Above<'_>>) -> Option<Result<()>> {
        let (base, at) = self.for_reads(offset, target.len() as u64)?;
        base.try_read_sg(at, target, Some(&self.layer(above)))
    }

    #[inline]
    fn try_write_sg(&self, offset: u64, source: &SgList, above: Option<&Above<'_>>) -> Option<Result<()>> {
        let (base, at) = self.for_writes(offset, source.len() as u64)?;
        base.try_write_sg(at, source, Some(&self.layer(above)))
    }

    fn takes_pipe(&self, offset: u64, len: usize) -> bool {
        self.for_writes(offset, len as u64).is_some_and(|(base, at)| base.takes_pipe(at, len))
    }

    fn try_write_pipe(&self, offset: u64, pipe: &Pipe, above: Option<&Above<'_>>) -> Option<Result<()>> {
        let (base, at) = self.for_writes(offset, pipe.len() as u64)?;
        base.try_write_pipe(at, pipe, Some(&self.layer(above)))
    }

    fn read_sg(&self, offset: u64, target: SgList) -> Option<LocalFuture<'_, Result<()>>> {
        let (len, began) = (target.len() as u64, stat::begin());
        let (base, at) = self.for_reads(offset, len)?;
        let reading = base.read_sg(at, target)?;
        Some(Box::pin(async move {
            let result = reading.await;
            self.volume.stat.done(Op::Read, len, began, &result);
            result
        }))
    }

    /// A write of stripes that are all known to be on the base: nothing is fetched, merged or marked for it.
    fn write_sg(&self, offset: u64, source: SgList, fua: bool) -> Option<LocalFuture<'_, Result<()>>> {
        let (len, began) = (source.len() as u64, stat::begin());
        let (base, at) = self.for_writes(offset, len)?;
        let writing = base.write_sg(at, source, false)?;
        Some(Box::pin(async move {
            let mut result = writing.await;
            if result.is_ok() && fua && !fault!(FuaIgnored) {
                result = self.volume.flush_round().await;
            }
            self.volume.stat.done(Op::Write, len, began, &result);
            result
        }))
    }

    fn lend(&self, offset: u64, len: usize) -> Option<Lent> {
        let began = stat::begin();
        let (base, at) = self.for_reads(offset, len as u64)?;
        let mut lent = base.lend(at, len)?;
        lent.reads.add(&self.volume.stat, began, len as u64);
        Some(lent)
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        Box::pin(async move {
            let began = stat::begin();
            let result = self.volume.read_range(offset..offset + len as u64).await;
            self.volume.stat.done(Op::Read, len as u64, began, &result);
            result
        })
    }

    fn read_partly(&self, offset: u64, len: usize) -> LocalFuture<'_, PartialRead> {
        Box::pin(async move {
            let began = stat::begin();
            let read = self.volume.read_range_partly(offset..offset + len as u64).await;
            let result = read.failures.first().map_or(Ok(()), |(_, error)| Err(error.clone()));
            self.volume.stat.done(Op::Read, len as u64, began, &result);
            read
        })
    }

    fn write(&self, offset: u64, data: IoData, fua: bool) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let (began, len) = (stat::begin(), data.len() as u64);
            let change = Change::Write { data, origin: offset };
            let result = self.volume.change(offset..offset + len, change, fua).await;
            self.volume.stat.done(Op::Write, len, began, &result);
            result
        })
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let began = stat::begin();
            let result =
                if self.volume.options.no_sync { self.volume.rounds.check() } else { self.volume.flush_round().await };
            self.volume.stat.done(Op::Flush, 0, began, &result);
            result
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let began = stat::begin();
            let range = offset..offset + len;
            let checked = if flags.fast { self.volume.check_fast_zero(&range) } else { Ok(()) };
            let result = match checked {
                Ok(()) => self.volume.change(range, Change::Zero(flags), flags.fua).await,
                refused => refused,
            };
            self.volume.stat.done(Op::Write, len, began, &result);
            if result.is_ok() {
                self.volume.count_zeroed(len);
            }
            result
        })
    }

    fn discard(&self, offset: u64, len: u64, fua: bool) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let began = stat::begin();
            let result = self.volume.change(offset..offset + len, Change::Discard, fua).await;
            self.volume.stat.done(Op::Unmap, len, began, &result);
            result
        })
    }

    fn prefetch(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<()>> {
        Box::pin(self.volume.prefetch_range(offset..offset + len))
    }

    fn extents(&self, offset: u64, len: u64, max: usize) -> LocalFuture<'_, Result<Vec<Extent>>> {
        Box::pin(self.volume.extents(offset..offset + len, max))
    }

    /// Publish, and leave the disk closed and complete: bdev_ubi may have it.
    fn close(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            self.volume.closing.store(true, Ordering::Release);
            self.volume.tasks.wait_for_end().await;
            let mut result = if fault!(CloseWithoutRound) { Ok(()) } else { self.volume.flush_round().await };
            if result.is_ok() {
                result = self.volume.close_on_disk().await;
            }
            self.volume.tasks.wait_for_end().await;
            result
        })
    }

    fn iostat(&self) -> &IoStat {
        &self.volume.stat
    }

    fn ubi(&self) -> Option<&UbiBdev> {
        Some(self)
    }
}
