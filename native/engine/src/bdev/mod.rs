//! Block devices: one trait, one file per kind.
//!
//! Requests are in bytes, multiples of the block size, inside the device: [`check_range`] is the border at
//! which frontends prove it. A request is first offered inline (`try_*`), which must never block for long;
//! when that is declined the asynchronous form runs on the current thread's executor. What is carried out inline is
//! counted by who does it for all bdevs that it came through ([`Above`]; None: a frontend asked).

pub mod aio;
pub mod extent;
mod inline;
pub mod malloc;
pub mod null;
pub mod stat;
pub mod ubi;

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use extent::{Extent, ExtentState};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::buf::{IoBuf, IoData};
use crate::sys::file::StorageFile;
use crate::sys::pipe::Pipe;
use crate::sys::sg_list::SgList;
use stat::LentReads;
pub use stat::{Above, IoStat};

/// A future that runs on one reactor and is never sent to another.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What acknowledged and flushed data outlive; the order is from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Survives {
    Nothing,
    Process,
    Kernel,
    Power,
}

impl Survives {
    pub fn as_str(self) -> &'static str {
        match self {
            Survives::Nothing => "nothing",
            Survives::Process => "process",
            Survives::Kernel => "kernel",
            Survives::Power => "power",
        }
    }
}

/// A number of blocks that may grow while requests run; every reader sees one size or the other.
#[derive(Debug)]
pub struct BlockCount(AtomicU64);

impl BlockCount {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Take a size that the storage has by now.
    pub fn set(&self, num_blocks: u64) {
        self.0.store(num_blocks, Ordering::Release);
    }
}

impl From<u64> for BlockCount {
    fn from(num_blocks: u64) -> Self {
        Self(AtomicU64::new(num_blocks))
    }
}

impl Clone for BlockCount {
    fn clone(&self) -> Self {
        self.get().into()
    }
}

/// What a bdev is and can do; fixed for its life, the size excepted.
#[derive(Debug, Clone)]
pub struct BdevInfo {
    pub name: String,
    /// Bytes; offsets and lengths of requests are multiples of it.
    pub block_size: u32,
    pub num_blocks: BlockCount,
    pub readonly: bool,
    /// A write is durable only after a flush.
    pub write_cache: bool,
    pub unmap: bool,
    pub write_zeroes: bool,
    pub flush: bool,
    /// Discarded blocks read as zeros afterwards.
    pub unmap_reads_zero: bool,
    /// I/O goes through the page cache: inline attempts make sense, large writes spoil the cache.
    pub buffered: bool,
    pub survives: Survives,
}

impl BdevInfo {
    pub fn size_bytes(&self) -> u64 {
        self.num_blocks.get() * u64::from(self.block_size)
    }
}

/// How zeros are to be made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Keep the space allocated (NBD_CMD_FLAG_NO_HOLE).
    pub no_hole: bool,
    /// Durable on return (FUA).
    pub fua: bool,
    /// Fail with `Unsupported` (ENOTSUP), at once and with nothing changed, unless this is faster than writing as many
    /// zeros: no stripe has to be fetched, no block to be merged, no zero to be written (NBD_CMD_FLAG_FAST_ZERO).
    pub fast: bool,
}

impl ZeroFlags {
    /// The answer to who wants zeros fast or not at all.
    pub fn not_fast(name: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::Unsupported, format!("{name}: zeroing this would not be fast"))
    }
}

/// What a read found where a part of it failed.
#[derive(Debug)]
pub struct PartialRead {
    /// The bytes; what it holds in a failed range is not the device's and must not be shown to anybody (INV-7).
    pub buf: IoBuf,
    /// Ranges of the device and why they could not be read, ascending; empty: `buf` is full.
    pub failures: Vec<(Range<u64>, Error)>,
}

impl PartialRead {
    /// A read of which nothing succeeded.
    pub fn failed(offset: u64, len: usize, error: Error) -> Self {
        Self { buf: IoBuf::new(0), failures: vec![(offset..offset + len as u64, error)] }
    }
}

/// Part of a file that holds a range of the bdev just now, for sendfile.
#[derive(Debug)]
pub struct Lent {
    pub file: Arc<StorageFile>,
    pub offset: u64,
    /// Dropped with this, once the bytes are sent.
    pub reads: LentReads,
}

/// What tells one base from another for as long as the kernel lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BaseIdentity {
    /// st_dev and st_ino of a file, 0 for a device.
    pub dev: u64,
    pub ino: u64,
    /// st_rdev of a device, 0 for a file.
    pub rdev: u64,
    /// Tells those apart that had one number one after the other: when a file was made (statx btime, ns), a device's
    /// sequence number (BLKGETDISKSEQ); 0 where the kernel does not say.
    pub made: u64,
}

/// Smallest read that is worth lending, bytes; below, a copy is cheaper than the extra call.
pub const LEND_MIN: usize = 32 << 10;

/// A block device.
pub trait Bdev: Send + Sync {
    fn info(&self) -> &BdevInfo;

    /// Read `buf.len()` bytes at once if that needs no waiting; None declines and changes nothing that matters
    /// (`buf` may hold anything then).
    fn try_read(&self, _offset: u64, _buf: &mut [u8], _above: Option<&Above<'_>>) -> Option<Result<()>> {
        None
    }

    /// Write at once if that needs no waiting; None declines, and nothing was written then.
    fn try_write(&self, _offset: u64, _data: &[u8], _above: Option<&Above<'_>>) -> Option<Result<()>> {
        None
    }

    /// A read is tried soon, of any range whatever; who has its bytes in memory may have them come nearer. Cheap.
    fn expect_read(&self, _offset: u64, _len: usize) {}

    /// Read into memory that others share, at once if that needs no waiting; None declines (the memory may hold
    /// anything then).
    fn try_read_sg(&self, _offset: u64, _target: &SgList, _above: Option<&Above<'_>>) -> Option<Result<()>> {
        None
    }

    /// Write from memory that others share, at once if that needs no waiting; None declines. What is written may be a
    /// mix of what the memory held meanwhile, and if it is declined some of it may be written already.
    fn try_write_sg(&self, _offset: u64, _source: &SgList, _above: Option<&Above<'_>>) -> Option<Result<()>> {
        None
    }

    /// Read into memory that others share, if no other buffer is needed for that; None declines, and nothing happened.
    fn read_sg(&self, _offset: u64, _target: SgList) -> Option<LocalFuture<'_, Result<()>>> {
        None
    }

    /// Write from memory that others share, if its bytes are used once, in place and unseen; None declines, and nothing
    /// happened. With `fua` it is durable on return.
    fn write_sg(&self, _offset: u64, _source: SgList, _fua: bool) -> Option<LocalFuture<'_, Result<()>>> {
        None
    }

    /// Whether `try_write_pipe` is worth a try. What it says of now may be otherwise by then.
    fn takes_pipe(&self, _offset: u64, _len: usize) -> bool {
        false
    }

    /// Write all that a pipe holds at once if that needs no waiting; None declines. What is gone from the pipe then was
    /// written, from `offset` on; what is left was not.
    fn try_write_pipe(&self, _offset: u64, _pipe: &Pipe, _above: Option<&Above<'_>>) -> Option<Result<()>> {
        None
    }

    /// The cached file range that holds these bytes, `LEND_MIN` or more, if there is one that can be sent without waiting.
    fn lend(&self, _offset: u64, _len: usize) -> Option<Lent> {
        None
    }

    /// Read `len` bytes; the buffer that comes back is full (INV-7).
    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>>;

    /// Read `len` bytes and tell which of them could not be read, so that the rest is of use all the same.
    fn read_partly(&self, offset: u64, len: usize) -> LocalFuture<'_, PartialRead> {
        Box::pin(async move {
            match self.read(offset, len).await {
                Ok(buf) => PartialRead { buf, failures: Vec::new() },
                Err(error) => PartialRead::failed(offset, len, error),
            }
        })
    }

    /// Write all of `data`; with `fua` it is durable on return.
    fn write(&self, offset: u64, data: IoData, fua: bool) -> LocalFuture<'_, Result<()>>;

    /// Make every write that was acknowledged before this call durable (INV-5).
    fn flush(&self) -> LocalFuture<'_, Result<()>>;

    /// Make the range read as zeros.
    fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> LocalFuture<'_, Result<()>>;

    /// Hint that the range's content is not needed; what it reads afterwards is `unmap_reads_zero`'s matter.
    fn discard(&self, offset: u64, len: u64, fua: bool) -> LocalFuture<'_, Result<()>>;

    /// Hint that the range will be read soon.
    fn prefetch(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<()>>;

    /// Tell what is known of a range without reading or fetching any of it.
    ///
    /// `len` is not 0. The extents follow one another from `offset` on, in whole blocks and never past the range; they
    /// are at least one and at most `max`, and need not reach its end. What was acknowledged before the call is told.
    fn extents(&self, _offset: u64, len: u64, _max: usize) -> LocalFuture<'_, Result<Vec<Extent>>> {
        Box::pin(std::future::ready(Ok(vec![Extent { len, state: ExtentState::DATA }])))
    }

    /// What tells it from others for as long as the kernel lives; None when what it holds dies with the process.
    fn identity(&self) -> Option<BaseIdentity> {
        None
    }

    /// Finish, make durable, release descriptors and locks. No request is in flight and none follows.
    fn close(&self) -> LocalFuture<'_, Result<()>>;

    /// Whether the data are behind a network or another program: NFS, CIFS, FUSE and their like.
    ///
    /// What such storage keeps after a crash is not this kernel's to say, and neither is who else writes to it.
    fn is_remote(&self) -> bool {
        false
    }

    fn iostat(&self) -> &IoStat;

    /// Grow to `num_blocks`, or (None) to the size that the storage has by now. Blocks as long as the storage does.
    ///
    /// # Errors
    /// `Unsupported` for a kind whose size is fixed, `InvalidParams` or `Busy` for less than there is.
    fn resize(&self, _num_blocks: Option<u64>) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, format!("{}: its size is fixed", self.info().name)))
    }

    /// The state of a ubi overlay; None for other kinds.
    fn ubi(&self) -> Option<&ubi::UbiBdev> {
        None
    }
}

/// Refuse a range that is empty, unaligned or leaves the device, whatever a frontend was told.
///
/// # Errors
/// `InvalidParams` with EINVAL for misalignment, with ENOSPC for a range past the end.
pub fn check_range(info: &BdevInfo, offset: u64, len: u64) -> Result<()> {
    let block = u64::from(info.block_size);
    if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        let message = format!("{}: {len} bytes at {offset} are not aligned to {block}", info.name);
        return Err(Error::new(ErrorKind::InvalidParams, message));
    }
    match offset.checked_add(len) {
        Some(end) if end <= info.size_bytes() => Ok(()),
        _ => {
            let message = format!("{}: {len} bytes at {offset} leave the device", info.name);
            Err(Error::with_errno(ErrorKind::InvalidParams, libc::ENOSPC, message))
        }
    }
}
