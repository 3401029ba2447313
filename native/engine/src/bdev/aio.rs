//! The `aio` bdev: a regular file or a block device.
//!
//! Opened once, locked, and every byte goes through that one description: then the kernel keeps the lock until
//! the last operation has ended, also after the process died (design: "One description").

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::extent::{Extent, ExtentList, ExtentState};
use super::inline::InlineWrites;
use super::stat::{self, Above, LentReads, Op};
use super::{BaseIdentity, Bdev, BdevInfo, IoStat, LEND_MIN, Lent, LocalFuture, Survives, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::reactor::{offload, ops};
use crate::sys::buf::{IoBuf, IoData};
use crate::sys::file::{FallocateMode, OpenOptions, StorageFile};
use crate::sys::lock;
use crate::sys::pipe::Pipe;
use crate::sys::sg_list::SgList;

/// Largest block size that any frontend can announce, bytes.
const MAX_BLOCK_SIZE: u32 = 65536;
/// One piece of a zero fill where the file system cannot zero by itself.
const ZERO_PIECE: usize = 1 << 20;
/// Most that one prefetch request reads.
const PREFETCH_MAX: u64 = 32 << 20;
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Whether I/O goes through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// O_DIRECT.
    None,
    Writeback,
}

/// What to open and how.
#[derive(Debug, Clone)]
pub struct AioOptions {
    pub name: String,
    pub path: PathBuf,
    /// Bytes; None: the device's own (a regular file has none).
    pub block_size: Option<u32>,
    pub readonly: bool,
    pub cache: Cache,
    /// Offer unmap, as SPDK's `fallocate` option does.
    pub fallocate: bool,
    /// How long to wait for another process to let go of the base.
    pub lock_wait: Duration,
}

/// A file or block device as a bdev.
pub struct AioBdev {
    info: BdevInfo,
    file: Arc<StorageFile>,
    /// Memory-backed: every access is a copy and can be made inline.
    in_memory: bool,
    /// Through the cache of this very machine: an attempt in place returns soon, whatever the storage does.
    inline: bool,
    is_device: bool,
    memory_align: usize,
    /// Of each piece of memory, bytes.
    length_align: usize,
    stat: Arc<IoStat>,
    inline_writes: InlineWrites,
}

impl AioBdev {
    /// Open and lock the base. Blocks while another process holds the lock, for at most `lock_wait`.
    ///
    /// # Errors
    /// `NotFound`, `InvalidParams` (EISDIR, EINVAL), `Busy` naming the holder, `Unsupported` without O_DIRECT.
    pub fn open(options: &AioOptions) -> Result<Self> {
        Self::open_by(&options.path, options)
    }

    /// The same by another name of the file, such as that of a descriptor; messages go on calling it by its path.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_by(source: &Path, options: &AioOptions) -> Result<Self> {
        let kind = check_kind(source, &options.path)?;
        let file = open_file(source, options, kind)?;
        wait_for_lock(&file, options)?;
        let file = if fault!(UnlockedDescriptor) {
            std::mem::forget(file); // the lock stays, on a description that carries no I/O
            open_file(source, options, kind)?
        } else {
            file
        };
        let in_memory = file.is_in_memory();
        let align = if options.cache == Cache::None && !in_memory { file.direct_align() } else { None };
        let (block_size, num_blocks) = geometry(&file, kind, options, align.map_or(1, |align| align.offset))?;
        let info = BdevInfo {
            name: options.name.clone(),
            block_size,
            num_blocks: num_blocks.into(),
            readonly: options.readonly,
            write_cache: true,
            unmap: options.fallocate && !options.readonly,
            write_zeroes: true,
            flush: true,
            unmap_reads_zero: true,
            buffered: options.cache == Cache::Writeback || in_memory,
            survives: if in_memory { Survives::Process } else { Survives::Power },
        };
        if info.buffered {
            file.advise_random();
        }
        let inline = info.buffered && !file.is_remote();
        Ok(Self {
            info,
            inline,
            file: Arc::new(file),
            in_memory,
            is_device: kind == Kind::BlockDevice,
            memory_align: align.map_or(1, |align| align.memory.max(1) as usize),
            length_align: align.map_or(1, |align| align.offset.max(1) as usize),
            stat: Arc::default(),
            inline_writes: InlineWrites::new(),
        })
    }

    /// Whether another process has the file open without locking it; None where that cannot be told.
    pub fn opened_elsewhere(&self) -> Option<bool> {
        lock::opened_elsewhere(&self.file)
    }

    /// Whether a write should be tried in place, now.
    fn may_write_inline(&self, len: usize) -> bool {
        self.inline && self.inline_writes.may(len)
    }

    /// Carry out and count a write in place. A short or failed one is repeated as a whole: the same place once more.
    fn write_inline(
        &self,
        len: usize,
        above: Option<&Above<'_>>,
        write: impl FnOnce() -> std::io::Result<usize>,
    ) -> Option<Result<()>> {
        if !self.may_write_inline(len) {
            return None;
        }
        if !self.in_memory {
            self.inline_writes.begin();
        }
        let began = stat::begin();
        if write().ok()? != len {
            return None;
        }
        let took = self.stat.done_in_place(Op::Write, len as u64, began, above);
        if !self.in_memory {
            self.inline_writes.end(took);
        }
        Some(Ok(()))
    }

    /// Make the range zero with the first of the kernel's ways that this file has.
    ///
    /// A block device may carry out ZERO_RANGE by writing: who wants it fast has to do without.
    async fn zero(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<()> {
        let ways: &[FallocateMode] = match (flags.no_hole, flags.fast && self.is_device) {
            (true, true) => &[],
            (true, false) => &[FallocateMode::ZeroRange],
            (false, true) => &[FallocateMode::PunchHole],
            (false, false) => &[FallocateMode::PunchHole, FallocateMode::ZeroRange],
        };
        for &mode in ways {
            match ops::fallocate(&self.file, mode, offset, len).await {
                Err(error) if error.errno() == libc::EOPNOTSUPP => {}
                other => return other,
            }
        }
        if flags.fast { Err(ZeroFlags::not_fast(&self.info.name)) } else { self.write_zero_pieces(offset, len).await }
    }

    async fn write_zero_pieces(&self, offset: u64, len: u64) -> Result<()> {
        let piece = usize::try_from(len).unwrap_or(ZERO_PIECE).min(ZERO_PIECE);
        let zeros = IoData::new(IoBuf::zeroed(piece));
        let mut done = 0;
        while done < len {
            let now = usize::try_from(len - done).unwrap_or(piece).min(piece);
            ops::write_all(&self.file, offset + done, zeros.slice(0, now), false).await?;
            done += now as u64;
        }
        Ok(())
    }

    async fn prefetch_pieces(&self, offset: u64, len: u64) -> Result<()> {
        if !self.info.buffered || self.in_memory {
            return Ok(());
        }
        let end = offset + len.min(PREFETCH_MAX);
        let mut position = offset;
        while position < end {
            let piece = usize::try_from(end - position).unwrap_or(ZERO_PIECE).min(ZERO_PIECE);
            ops::read_exact(&self.file, position, piece).await?;
            position += piece as u64;
        }
        Ok(())
    }
}

impl Bdev for AioBdev {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn try_read(&self, offset: u64, buf: &mut [u8], above: Option<&Above<'_>>) -> Option<Result<()>> {
        if !self.inline {
            return None;
        }
        let began = stat::begin();
        let answer = if self.in_memory { self.file.pread(buf, offset) } else { self.file.pread_nowait(buf, offset) };
        // Anything but a full read is left to the asynchronous way, which finishes it or says what is wrong.
        if answer.ok()? != buf.len() {
            return None;
        }
        self.stat.done_in_place(Op::Read, buf.len() as u64, began, above);
        Some(Ok(()))
    }

    fn try_write(&self, offset: u64, data: &[u8], above: Option<&Above<'_>>) -> Option<Result<()>> {
        self.write_inline(data.len(), above, || self.file.pwrite(data, offset, false))
    }

    fn try_read_sg(&self, offset: u64, target: &SgList, above: Option<&Above<'_>>) -> Option<Result<()>> {
        if !self.inline {
            return None;
        }
        let began = stat::begin();
        if self.file.preadv(target, offset, !self.in_memory).ok()? != target.len() {
            return None;
        }
        self.stat.done_in_place(Op::Read, target.len() as u64, began, above);
        Some(Ok(()))
    }

    fn try_write_sg(&self, offset: u64, source: &SgList, above: Option<&Above<'_>>) -> Option<Result<()>> {
        self.write_inline(source.len(), above, || self.file.pwritev(source, offset, false))
    }

    fn takes_pipe(&self, _offset: u64, len: usize) -> bool {
        self.may_write_inline(len)
    }

    fn try_write_pipe(&self, offset: u64, pipe: &Pipe, above: Option<&Above<'_>>) -> Option<Result<()>> {
        let len = pipe.len();
        self.write_inline(len, above, || pipe.drain_to(&self.file, offset).map(|()| len))
    }

    fn read_sg(&self, offset: u64, target: SgList) -> Option<LocalFuture<'_, Result<()>>> {
        if !target.is_aligned(self.memory_align, self.length_align) {
            return None;
        }
        Some(Box::pin(async move {
            let (began, len) = (stat::begin(), target.len() as u64);
            let result = ops::read_sg(&self.file, offset, target).await;
            self.stat.done(Op::Read, len, began, &result);
            result
        }))
    }

    fn write_sg(&self, offset: u64, source: SgList, fua: bool) -> Option<LocalFuture<'_, Result<()>>> {
        if !source.is_aligned(self.memory_align, self.length_align) {
            return None;
        }
        Some(Box::pin(async move {
            let (began, len) = (stat::begin(), source.len() as u64);
            let result = ops::write_sg(&self.file, offset, source, fua).await;
            self.stat.done(Op::Write, len, began, &result);
            result
        }))
    }

    fn lend(&self, offset: u64, len: usize) -> Option<Lent> {
        let began = stat::begin();
        if !self.inline || len < LEND_MIN || !(self.in_memory || self.file.is_cached(offset, len as u64)) {
            return None;
        }
        // Nothing but a hole is worth no sending: whoever reads it sees the zeros and can say so in a few bytes.
        let is_hole = |data: Option<u64>| data.is_none_or(|start| start >= offset + len as u64);
        if self.file.seek_data(offset).is_ok_and(is_hole) {
            return None;
        }
        let mut reads = LentReads::default();
        reads.add(&self.stat, began, len as u64);
        Some(Lent { file: Arc::clone(&self.file), offset, reads })
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        Box::pin(async move {
            let began = stat::begin();
            let result = ops::read_exact(&self.file, offset, len).await;
            self.stat.done(Op::Read, len as u64, began, &result);
            result
        })
    }

    fn write(&self, offset: u64, data: IoData, fua: bool) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let (began, len) = (stat::begin(), data.len() as u64);
            let aligned = (data.as_ptr() as usize).is_multiple_of(self.memory_align);
            let data = if aligned { data } else { IoData::new(IoBuf::from_slice(&data)) };
            let result = ops::write_all(&self.file, offset, data, fua).await;
            self.stat.done(Op::Write, len, began, &result);
            result
        })
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let began = stat::begin();
            let result = ops::sync(&self.file).await;
            self.stat.done(Op::Flush, 0, began, &result);
            result
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let began = stat::begin();
            let mut result = self.zero(offset, len, flags).await;
            if result.is_ok() && flags.fua {
                result = ops::sync(&self.file).await;
            }
            self.stat.done(Op::Write, len, began, &result);
            result
        })
    }

    fn discard(&self, offset: u64, len: u64, fua: bool) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move {
            let began = stat::begin();
            let mut result = self.zero(offset, len, ZeroFlags::default()).await;
            if result.is_ok() && fua {
                result = ops::sync(&self.file).await;
            }
            self.stat.done(Op::Unmap, len, began, &result);
            result
        })
    }

    fn prefetch(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<()>> {
        Box::pin(self.prefetch_pieces(offset, len))
    }

    /// The file system is asked on another thread: it may have to read its own metadata.
    fn extents(&self, offset: u64, len: u64, max: usize) -> LocalFuture<'_, Result<Vec<Extent>>> {
        let (file, block) = (Arc::clone(&self.file), u64::from(self.info.block_size));
        let seek = move || seek_extents(&file, offset..offset + len, block, max);
        Box::pin(async move { Ok(offload::run(seek).await) })
    }

    fn identity(&self) -> Option<BaseIdentity> {
        let identity = self.file.identity().ok()?;
        Some(match identity.rdev {
            0 => BaseIdentity { dev: identity.dev, ino: identity.ino, rdev: 0, made: self.file.made_ns() },
            rdev => BaseIdentity { dev: 0, ino: 0, rdev, made: self.file.device_sequence() },
        })
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move { if self.info.readonly { Ok(()) } else { ops::sync(&self.file).await } })
    }

    fn is_remote(&self) -> bool {
        self.file.is_remote()
    }

    fn iostat(&self) -> &IoStat {
        &self.stat
    }

    /// Only the storage says how large it is. Less than there was is refused: requests may be under way there.
    fn resize(&self, _num_blocks: Option<u64>) -> Result<()> {
        let info = &self.info;
        let size = self.file.size_bytes().map_err(|error| Error::from_io(self.file.name(), &error))?;
        let (num_blocks, had) = (size / u64::from(info.block_size), info.num_blocks.get());
        if num_blocks < had {
            let message = format!("{}: {num_blocks} blocks are left of the {had} that it was opened with", info.name);
            return Err(Error::new(ErrorKind::Busy, message));
        }
        info.num_blocks.set(num_blocks);
        Ok(())
    }
}

/// Where a file has data and holes (SEEK_DATA, SEEK_HOLE); what the file system does not tell is data.
fn seek_extents(file: &StorageFile, range: Range<u64>, block: u64, max: usize) -> Vec<Extent> {
    let mut list = ExtentList::new(max);
    let mut position = range.start;
    while position < range.end {
        let data = match next_data(file, position) {
            Ok(data) => data.unwrap_or(range.end..range.end),
            Err(_) => position..range.end,
        };
        let end = data.end.next_multiple_of(block).clamp(position + block, range.end);
        let states = (ExtentState::DATA, ExtentState::HOLE);
        if !list.push_data(position..end, block, std::iter::once(data), states) {
            break;
        }
        position = end;
    }
    list.into_vec()
}

/// The first run of data at or after `position`; None when there is none.
fn next_data(file: &StorageFile, position: u64) -> std::io::Result<Option<Range<u64>>> {
    let Some(start) = file.seek_data(position)? else { return Ok(None) };
    let end = file.seek_hole(start)?.unwrap_or(start);
    if end > start { Ok(Some(start..end)) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Regular,
    BlockDevice,
}

/// Look before opening: opening a FIFO or a tape has effects of its own.
fn check_kind(source: &Path, path: &Path) -> Result<Kind> {
    use std::os::unix::fs::FileTypeExt;
    let meta = std::fs::metadata(source).map_err(|error| Error::from_io(path.display(), &error))?;
    let kind = meta.file_type();
    if kind.is_file() {
        Ok(Kind::Regular)
    } else if kind.is_block_device() {
        Ok(Kind::BlockDevice)
    } else if kind.is_dir() {
        let message = format!("{} is a directory; give a regular file or a block device", path.display());
        Err(Error::with_errno(ErrorKind::InvalidParams, libc::EISDIR, message))
    } else {
        let message = format!("{} is neither a regular file nor a block device", path.display());
        Err(Error::new(ErrorKind::InvalidParams, message))
    }
}

fn open_file(source: &Path, options: &AioOptions, kind: Kind) -> Result<StorageFile> {
    let open = |direct| {
        let exclusive = kind == Kind::BlockDevice && !options.readonly;
        let flags = OpenOptions { write: !options.readonly, direct, exclusive };
        StorageFile::open_as(source, &options.path, flags)
    };
    open(options.cache == Cache::None).map_err(|error| match error.raw_os_error() {
        Some(libc::EINVAL) if options.cache == Cache::None => {
            let path = options.path.display();
            let message = format!("{path}: its file system has no O_DIRECT; create the bdev with cache \"writeback\"");
            Error::new(ErrorKind::Unsupported, message)
        }
        Some(libc::EBUSY) => {
            let message = format!("{} is in use (mounted, or claimed by another program)", options.path.display());
            Error::new(ErrorKind::Busy, message)
        }
        _ => Error::from_io(options.path.display(), &error),
    })
}

fn wait_for_lock(file: &StorageFile, options: &AioOptions) -> Result<()> {
    let deadline = Instant::now() + options.lock_wait;
    loop {
        let error = match lock::try_lock(file, options.readonly) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.kind() != std::io::ErrorKind::WouldBlock {
            return Err(Error::from_io(format_args!("lock {}", file.name()), &error));
        }
        let holder = lock::holder(file);
        let ours = holder.as_deref().is_some_and(|text| text.starts_with(&format!("pid {} ", std::process::id())));
        if ours || Instant::now() >= deadline {
            let holder =
                if ours { "another bdev of this daemon".into() } else { holder.unwrap_or_else(|| "unknown".into()) };
            let message = format!("{} is in use; its lock is held by {holder}", file.name());
            return Err(Error::new(ErrorKind::Busy, message));
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

/// Block size and number of blocks.
fn geometry(file: &StorageFile, kind: Kind, options: &AioOptions, direct_offset: u32) -> Result<(u32, u64)> {
    let invalid = |message: String| Err(Error::new(ErrorKind::InvalidParams, format!("{}: {message}", file.name())));
    let failed = |error: std::io::Error| Error::from_io(file.name(), &error);
    let detected = match kind {
        Kind::BlockDevice => Some(file.device_block_size().map_err(failed)?),
        Kind::Regular => None,
    };
    let Some(block_size) = options.block_size.filter(|&size| size != 0).or(detected) else {
        return invalid("a regular file has no block size of its own; give block_size (512 or 4096)".into());
    };
    if !(512..=MAX_BLOCK_SIZE).contains(&block_size) || !block_size.is_power_of_two() {
        return invalid(format!("block size {block_size} is not a power of two from 512 to {MAX_BLOCK_SIZE}"));
    }
    let needed = detected.unwrap_or(1).max(direct_offset);
    if block_size < needed {
        return invalid(format!("block size {block_size} is below the {needed} bytes that the storage works in"));
    }
    let size = file.size_bytes().map_err(failed)?;
    if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
        return invalid(format!("its {size} bytes are not a number of {block_size}-byte blocks"));
    }
    Ok((block_size, size / u64::from(block_size)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::exec::block_on;
    use crate::sys::file::path_of;

    #[test]
    fn a_rescan_takes_whole_blocks_that_the_file_grew_by_and_refuses_less() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("disk");
        let file = std::fs::File::create(&path).expect("file");
        file.set_len(1024).expect("length");
        let bdev = AioBdev::open(&options(&path, Cache::Writeback)).expect("bdev");
        file.set_len(512 * 5 + 100).expect("length");
        assert_eq!(bdev.info().num_blocks.get(), 2);
        bdev.resize(None).expect("rescan");
        assert_eq!(bdev.info().num_blocks.get(), 5);
        file.set_len(512).expect("length");
        assert_eq!(bdev.resize(None).expect_err("less").kind(), ErrorKind::Busy);
        assert_eq!(bdev.info().num_blocks.get(), 5);
    }

    fn options(path: &Path, cache: Cache) -> AioOptions {
        AioOptions {
            name: "aio0".into(),
            path: path.to_owned(),
            block_size: Some(512),
            readonly: false,
            cache,
            fallocate: true,
            lock_wait: Duration::ZERO,
        }
    }

    fn base(bytes: usize) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("base");
        std::fs::write(&path, vec![0xa5u8; bytes]).expect("write");
        (dir, path)
    }

    #[test]
    fn a_base_in_use_is_refused_and_the_holder_named() {
        let (_dir, path) = base(8192);
        let first = AioBdev::open(&options(&path, Cache::Writeback)).expect("open");
        let error = AioBdev::open(&options(&path, Cache::Writeback)).err().expect("busy");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.message().contains("another bdev of this daemon"), "{error}");
        drop(first);
        AioBdev::open(&options(&path, Cache::Writeback)).expect("free again");
    }

    #[test]
    fn what_a_descriptor_stands_for_is_opened_whatever_its_name_leads_to_by_then() {
        use std::os::fd::AsRawFd;
        let (dir, path) = base(8192);
        let found = std::fs::File::open(&path).expect("open");
        let (_other_dir, other) = base(4096);
        std::fs::rename(&path, dir.path().join("moved")).expect("rename");
        std::os::unix::fs::symlink(&other, &path).expect("symlink");
        let source = path_of(found.as_raw_fd());
        let bdev = AioBdev::open_by(&source, &options(&path, Cache::Writeback)).expect("open");
        assert_eq!(bdev.info().size_bytes(), 8192);
        assert_eq!(bdev.file.name(), path.display().to_string());
    }

    #[test]
    fn two_read_only_bdevs_share_a_base() {
        let (_dir, path) = base(8192);
        let readonly = AioOptions { readonly: true, ..options(&path, Cache::Writeback) };
        let _first = AioBdev::open(&readonly).expect("open");
        let _second = AioBdev::open(&readonly).expect("open");
        let error = AioBdev::open(&options(&path, Cache::Writeback)).err().expect("busy");
        assert_eq!(error.kind(), ErrorKind::Busy);
    }

    #[test]
    fn wrong_geometry_is_refused_with_its_errno() {
        let (dir, path) = base(5000);
        let errno = |options: &AioOptions| AioBdev::open(options).err().map(|error| error.errno());
        let good = options(&path, Cache::Writeback);
        assert_eq!(errno(&good), Some(libc::EINVAL), "size is no number of blocks");
        for block_size in [Some(256), Some(1000), Some(131_072), None] {
            let wrong = AioOptions { block_size, ..good.clone() };
            assert_eq!(errno(&wrong), Some(libc::EINVAL), "block size {block_size:?}");
        }
        let directory = AioOptions { path: dir.path().into(), ..good.clone() };
        assert_eq!(errno(&directory), Some(libc::EISDIR));
        let missing = AioOptions { path: dir.path().join("no"), ..good };
        assert_eq!(errno(&missing), Some(libc::ENOENT));
    }

    #[test]
    fn zeroes_and_discards_read_as_zeros_in_both_cache_modes() {
        for cache in [Cache::None, Cache::Writeback] {
            let (_dir, path) = base(64 << 10);
            let bdev = AioBdev::open(&options(&path, cache)).expect("open");
            let content = block_on(async move {
                bdev.write_zeroes(512, 1024, ZeroFlags::default()).await.expect("zeroes");
                bdev.write_zeroes(8192, 512, ZeroFlags { no_hole: true, fua: true, fast: true }).await.expect("zeroes");
                bdev.discard(16384, 4096, false).await.expect("discard");
                bdev.read(0, 64 << 10).await.expect("read")
            });
            for (index, &byte) in content.iter().enumerate() {
                let zero = (512..1536).contains(&index) || (8192..8704).contains(&index);
                let zero = zero || (16384..20480).contains(&index);
                assert_eq!(byte, if zero { 0 } else { 0xa5 }, "{cache:?} at {index}");
            }
        }
    }

    #[test]
    fn an_unaligned_slice_is_bounced_for_direct_io() {
        let (_dir, path) = base(64 << 10);
        let bdev = AioBdev::open(&options(&path, Cache::None)).expect("open");
        let content = block_on(async move {
            let data = IoData::new(IoBuf::from_slice(&[7u8; 1100]));
            bdev.write(1024, data.slice(70, 512), true).await.expect("write");
            bdev.read(1024, 512).await.expect("read").to_vec()
        });
        assert_eq!(content, [7u8; 512]);
    }
}
