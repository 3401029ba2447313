//! Opening: what is on the base is read and judged, a new base is formatted.

use super::geometry::Geometry;
use super::layout::{self, Found};
use crate::bdev::{Bdev, ZeroFlags};
use crate::error::Result;
use crate::sys::buf::{IoBuf, IoData};

/// One read of the metadata area.
const READ_PIECE: usize = 1 << 20;
/// One piece of what a new volume zeroes past the image end.
const ZERO_PIECE: u64 = 1 << 30;

/// Read and check what the base has, or format it. Returns the used pages of the metadata area as they are on
/// stable storage.
///
/// # Errors
/// Those of [`layout::examine`] and [`layout::check_headers`], with nothing written; and those of the base.
pub async fn load_or_format(base: &dyn Bdev, geometry: &Geometry) -> Result<Vec<u8>> {
    let name = &base.info().name;
    let first = base.read(0, layout::page_bytes(geometry)).await?;
    if layout::examine(name, &first, geometry.stripe_size_kb)? == Found::New {
        return format(base, geometry).await;
    }
    let mut area = first.to_vec();
    let used = layout::used_bytes(geometry);
    while area.len() < used {
        let piece = (used - area.len()).min(READ_PIECE);
        area.extend_from_slice(&base.read(area.len() as u64, piece).await?);
    }
    layout::check_headers(name, &area, geometry)?;
    // What a process left in the page cache when it died is read, but not durable yet; from now on it counts as such.
    base.flush().await?;
    Ok(area)
}

/// Make a new volume: nothing that an earlier user of the base left may show (INV-2), and the magic comes last, so
/// that a format that was cut short is done again.
async fn format(base: &dyn Bdev, geometry: &Geometry) -> Result<Vec<u8>> {
    if !fault!(TailNotZeroed) {
        zero_past_image(base, geometry).await?;
    }
    let mut area = vec![0; layout::used_bytes(geometry)];
    for start in (0..area.len()).step_by(READ_PIECE) {
        let piece = (area.len() - start).min(READ_PIECE);
        // Written, not punched: a header never fails for want of space.
        base.write(start as u64, IoData::new(IoBuf::zeroed(piece)), false).await?;
    }
    if !fault!(MagicTooEarly) {
        base.flush().await?;
    }
    layout::put_identity(&mut area, geometry.stripe_size_kb);
    let sector = IoBuf::from_slice(&area[..geometry.block_bytes as usize]);
    base.write(0, IoData::new(sector), false).await?;
    base.flush().await?;
    Ok(area)
}

/// Past the image end the base is the truth from now on; the image's part of a shared block is still missing.
async fn zero_past_image(base: &dyn Bdev, geometry: &Geometry) -> Result<()> {
    let mut position = geometry.image_end - geometry.image_end % geometry.block_bytes;
    while position < geometry.volume_bytes {
        let len = (geometry.volume_bytes - position).min(ZERO_PIECE);
        base.write_zeroes(geometry.on_base(position), len, ZeroFlags::default()).await?;
        position += len;
    }
    Ok(())
}
