//! The `malloc` bdev: memory that lives as long as the daemon.

use super::stat::{self, Above, Op};
use super::{Bdev, BdevInfo, IoStat, LocalFuture, Survives, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::buf::{IoBuf, IoData};
use crate::sys::memory::SharedMemory;
use crate::sys::sg_list::SgList;

/// A RAM disk.
pub struct MallocBdev {
    info: BdevInfo,
    memory: SharedMemory,
    stat: IoStat,
}

impl MallocBdev {
    /// A zero-filled disk of `num_blocks` blocks.
    ///
    /// # Errors
    /// `InvalidParams` for no blocks or a block size that is not a multiple of 512; `NoSpace` with ENOMEM when the
    /// memory is not there.
    pub fn new(name: &str, num_blocks: u64, block_size: u32) -> Result<Self> {
        let info = memory_info(name, num_blocks, block_size)?;
        let no_memory = || {
            let message = format!("{name}: no memory for {num_blocks} blocks of {block_size} bytes");
            Error::with_errno(ErrorKind::NoSpace, libc::ENOMEM, message)
        };
        let bytes = num_blocks.checked_mul(u64::from(block_size)).ok_or_else(no_memory)?;
        let memory = SharedMemory::new(usize::try_from(bytes).map_err(|_| no_memory())?).map_err(|_| no_memory())?;
        Ok(Self { info, memory, stat: IoStat::default() })
    }
}

/// What memory-backed bdevs have in common.
pub(super) fn memory_info(name: &str, num_blocks: u64, block_size: u32) -> Result<BdevInfo> {
    if num_blocks == 0 || block_size == 0 || !block_size.is_multiple_of(512) {
        let message = format!("{name}: {num_blocks} blocks of {block_size} bytes: blocks are multiples of 512 bytes");
        return Err(Error::new(ErrorKind::InvalidParams, message));
    }
    if num_blocks.checked_mul(u64::from(block_size)).is_none_or(|bytes| bytes > i64::MAX.cast_unsigned()) {
        let message = format!("{name}: {num_blocks} blocks of {block_size} bytes are more than a disk can have");
        return Err(Error::with_errno(ErrorKind::NoSpace, libc::ENOMEM, message));
    }
    Ok(BdevInfo {
        name: name.into(),
        block_size,
        num_blocks: num_blocks.into(),
        readonly: false,
        write_cache: false,
        unmap: true,
        write_zeroes: true,
        flush: true,
        unmap_reads_zero: true,
        buffered: true,
        survives: Survives::Nothing,
    })
}

impl Bdev for MallocBdev {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn try_read(&self, offset: u64, buf: &mut [u8], above: Option<&Above<'_>>) -> Option<Result<()>> {
        let began = stat::begin();
        self.memory.read(offset, buf);
        self.stat.done_in_place(Op::Read, buf.len() as u64, began, above);
        Some(Ok(()))
    }

    fn try_write(&self, offset: u64, data: &[u8], above: Option<&Above<'_>>) -> Option<Result<()>> {
        let began = stat::begin();
        self.memory.write(offset, data);
        self.stat.done_in_place(Op::Write, data.len() as u64, began, above);
        Some(Ok(()))
    }

    fn expect_read(&self, offset: u64, len: usize) {
        self.memory.bring_nearer(offset, len);
    }

    fn try_read_sg(&self, offset: u64, target: &SgList, above: Option<&Above<'_>>) -> Option<Result<()>> {
        let began = stat::begin();
        self.memory.read_sg(offset, target);
        self.stat.done_in_place(Op::Read, target.len() as u64, began, above);
        Some(Ok(()))
    }

    fn try_write_sg(&self, offset: u64, source: &SgList, above: Option<&Above<'_>>) -> Option<Result<()>> {
        let began = stat::begin();
        self.memory.write_sg(offset, source);
        self.stat.done_in_place(Op::Write, source.len() as u64, began, above);
        Some(Ok(()))
    }

    fn read_sg(&self, offset: u64, target: SgList) -> Option<LocalFuture<'_, Result<()>>> {
        let began = stat::begin();
        self.memory.read_sg(offset, &target);
        Some(self.stat.answer(Op::Read, target.len() as u64, began))
    }

    fn write_sg(&self, offset: u64, source: SgList, _fua: bool) -> Option<LocalFuture<'_, Result<()>>> {
        let began = stat::begin();
        self.memory.write_sg(offset, &source);
        Some(self.stat.answer(Op::Write, source.len() as u64, began))
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        let mut buf = IoBuf::new(len);
        let began = stat::begin();
        self.memory.read(offset, &mut buf);
        self.stat.done(Op::Read, len as u64, began, &Ok(()));
        Box::pin(std::future::ready(Ok(buf)))
    }

    fn write(&self, offset: u64, data: IoData, _fua: bool) -> LocalFuture<'_, Result<()>> {
        let began = stat::begin();
        self.memory.write(offset, &data);
        self.stat.answer(Op::Write, data.len() as u64, began)
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        self.stat.answer(Op::Flush, 0, stat::begin())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        let began = stat::begin();
        self.memory.zero(offset, len);
        self.stat.answer(Op::Write, len, began)
    }

    fn discard(&self, offset: u64, len: u64, _fua: bool) -> LocalFuture<'_, Result<()>> {
        let began = stat::begin();
        self.memory.zero(offset, len);
        self.stat.answer(Op::Unmap, len, began)
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn iostat(&self) -> &IoStat {
        &self.stat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_that_cannot_be_is_refused() {
        let errno = |blocks, size| MallocBdev::new("m", blocks, size).err().map(|error| error.errno());
        assert_eq!(errno(0, 512), Some(libc::EINVAL));
        assert_eq!(errno(8, 0), Some(libc::EINVAL));
        assert_eq!(errno(8, 1000), Some(libc::EINVAL));
        assert_eq!(errno(u64::MAX, 512), Some(libc::ENOMEM));
        assert_eq!(errno(1 << 50, 4096), Some(libc::ENOMEM));
        assert_eq!(errno(8, 512), None);
    }

    #[test]
    fn what_is_written_is_read_and_what_is_discarded_is_zero() {
        let disk = MallocBdev::new("m", 64, 512).expect("create");
        assert!(matches!(disk.try_write(1024, &[5; 512], None), Some(Ok(()))));
        let mut buf = [1u8; 1536];
        assert!(matches!(disk.try_read(512, &mut buf, None), Some(Ok(()))));
        assert_eq!((buf[511], buf[512], buf[1023], buf[1024]), (0, 5, 5, 0));
        drop(disk.discard(1024, 512, false));
        assert!(matches!(disk.try_read(512, &mut buf, None), Some(Ok(()))));
        assert_eq!(buf, [0; 1536]);
    }
}
