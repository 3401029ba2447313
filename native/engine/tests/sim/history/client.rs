//! What a queue does with the volume, as a frontend does it: inline if that is possible.

use std::ops::Range;
use std::sync::Arc;

use ubi_engine::bdev::ubi::UbiBdev;
use ubi_engine::bdev::{Bdev, ZeroFlags};
use ubi_engine::error::{Error, ErrorKind, Result};
use ubi_engine::sys::buf::{IoBuf, IoData};

use crate::sim::script::Request;
use crate::sim::tags::{SECTOR, Tag};

fn bytes(sectors: usize) -> u64 {
    (sectors * SECTOR) as u64
}

/// Read sectors.
pub async fn read(volume: &Arc<UbiBdev>, range: Range<usize>) -> Result<Vec<Tag>> {
    let mut buf = IoBuf::zeroed(range.len() * SECTOR);
    match volume.try_read(bytes(range.start), &mut buf, None) {
        Some(result) => result?,
        None => buf = volume.read(bytes(range.start), buf.len()).await?,
    }
    Ok(Tag::all_of(&buf))
}

/// Carry out what changes something; `index` says who wrote it.
pub async fn carry_out(volume: &Arc<UbiBdev>, index: usize, request: Request) -> Result<()> {
    match request {
        Request::Write { range, fua } => {
            let mut buf = IoBuf::new(range.len() * SECTOR);
            let tags: Vec<Tag> = range.clone().map(|sector| Tag::written(index, sector)).collect();
            Tag::fill_all(&tags, &mut buf);
            let inline = if fua { None } else { volume.try_write(bytes(range.start), &buf, None) };
            match inline {
                Some(result) => result,
                None => volume.write(bytes(range.start), IoData::new(buf), fua).await,
            }
        }
        Request::Zero { range, no_hole, fua } => {
            volume.write_zeroes(bytes(range.start), bytes(range.len()), ZeroFlags { no_hole, fua, fast: false }).await
        }
        Request::Discard { range, fua } => volume.discard(bytes(range.start), bytes(range.len()), fua).await,
        Request::Flush => volume.flush().await,
        Request::Prefetch(range) => volume.prefetch(bytes(range.start), bytes(range.len())).await,
        Request::Read(_) | Request::Reopen { .. } => {
            Err(Error::new(ErrorKind::Internal, "not a request that changes something"))
        }
    }
}
