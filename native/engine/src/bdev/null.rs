//! The `null` bdev: reads zeros, forgets writes. For measuring what is above it.

use super::extent::{Extent, ExtentState};
use super::malloc::memory_info;
use super::stat::{self, Above, Op};
use super::{Bdev, BdevInfo, IoStat, LocalFuture, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::buf::{IoBuf, IoData};
use crate::sys::sg_list::SgList;

/// A disk without content.
pub struct NullBdev {
    info: BdevInfo,
    stat: IoStat,
}

impl NullBdev {
    /// # Errors
    /// `InvalidParams` for no blocks or a block size that is not a multiple of 512.
    pub fn new(name: &str, num_blocks: u64, block_size: u32) -> Result<Self> {
        let info = BdevInfo { unmap: false, ..memory_info(name, num_blocks, block_size)? };
        Ok(Self { info, stat: IoStat::default() })
    }
}

impl Bdev for NullBdev {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn try_read(&self, _offset: u64, buf: &mut [u8], above: Option<&Above<'_>>) -> Option<Result<()>> {
        let began = stat::begin();
        buf.fill(0);
        self.stat.done_in_place(Op::Read, buf.len() as u64, began, above);
        Some(Ok(()))
    }

    fn try_write(&self, _offset: u64, data: &[u8], above: Option<&Above<'_>>) -> Option<Result<()>> {
        self.stat.done_in_place(Op::Write, data.len() as u64, stat::begin(), above);
        Some(Ok(()))
    }

    fn try_read_sg(&self, _offset: u64, target: &SgList, above: Option<&Above<'_>>) -> Option<Result<()>> {
        let began = stat::begin();
        target.zero();
        self.stat.done_in_place(Op::Read, target.len() as u64, began, above);
        Some(Ok(()))
    }

    fn try_write_sg(&self, _offset: u64, source: &SgList, above: Option<&Above<'_>>) -> Option<Result<()>> {
        self.stat.done_in_place(Op::Write, source.len() as u64, stat::begin(), above);
        Some(Ok(()))
    }

    fn read_sg(&self, _offset: u64, target: SgList) -> Option<LocalFuture<'_, Result<()>>> {
        let began = stat::begin();
        target.zero();
        Some(self.stat.answer(Op::Read, target.len() as u64, began))
    }

    fn write_sg(&self, _offset: u64, source: SgList, _fua: bool) -> Option<LocalFuture<'_, Result<()>>> {
        Some(self.stat.answer(Op::Write, source.len() as u64, stat::begin()))
    }

    fn read(&self, _offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        let began = stat::begin();
        let buf = IoBuf::zeroed(len);
        self.stat.done(Op::Read, len as u64, began, &Ok(()));
        Box::pin(std::future::ready(Ok(buf)))
    }

    fn write(&self, _offset: u64, data: IoData, _fua: bool) -> LocalFuture<'_, Result<()>> {
        self.stat.answer(Op::Write, data.len() as u64, stat::begin())
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        self.stat.answer(Op::Flush, 0, stat::begin())
    }

    fn write_zeroes(&self, _offset: u64, len: u64, _flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        self.stat.answer(Op::Write, len, stat::begin())
    }

    fn discard(&self, _offset: u64, len: u64, _fua: bool) -> LocalFuture<'_, Result<()>> {
        self.stat.answer(Op::Unmap, len, stat::begin())
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn extents(&self, _offset: u64, len: u64, _max: usize) -> LocalFuture<'_, Result<Vec<Extent>>> {
        Box::pin(std::future::ready(Ok(vec![Extent { len, state: ExtentState::HOLE }])))
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn iostat(&self) -> &IoStat {
        &self.stat
    }

    fn resize(&self, num_blocks: Option<u64>) -> Result<()> {
        let (name, had) = (&self.info.name, self.info.num_blocks.get());
        let wanted = num_blocks.unwrap_or(had);
        if wanted < had {
            let message = format!("{name}: {wanted} blocks are less than the {had} that it has");
            return Err(Error::new(ErrorKind::InvalidParams, message));
        }
        self.info.num_blocks.set(memory_info(name, wanted, self.info.block_size)?.num_blocks.get());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resize_grows_and_refuses_less_and_too_much() {
        let bdev = NullBdev::new("n", 8, 512).expect("bdev");
        bdev.resize(Some(16)).expect("growth");
        assert_eq!(bdev.info().num_blocks.get(), 16);
        assert!(bdev.resize(Some(15)).is_err());
        assert!(bdev.resize(Some(u64::MAX)).is_err());
        assert_eq!(bdev.info().num_blocks.get(), 16);
    }
}
