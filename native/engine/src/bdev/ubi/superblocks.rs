//! The two slots on the base: which is newer, and how the state of a volume changes from one to the next.

use super::layout;
use super::sectors::{self, SECTOR};
use super::superblock::{SLOT_BYTES, SLOTS_AT, Slot, Superblock, VolumeState};
use super::uuid::Uuid;
use crate::bdev::Bdev;
use crate::error::Result;
use crate::sys::buf::{IoBuf, IoData};

/// What the slots hold.
#[derive(Debug, Clone)]
pub struct Superblocks {
    current: Superblock,
    /// The slot that must not be touched: it has the newest superblock that is durable.
    newest: usize,
    /// The highest sequence number that was ever tried.
    sequence: u64,
}

impl Superblocks {
    /// As they were read.
    pub fn found(newest: usize, current: Superblock, slots: &[Slot; 2]) -> Self {
        let sequences = slots.iter().filter_map(Slot::valid).map(|superblock| superblock.sequence);
        let sequence = sequences.max().unwrap_or(current.sequence);
        Self { current, newest, sequence }
    }

    /// Of a volume that has none yet.
    pub fn new(first: Superblock) -> Self {
        Self { current: first, newest: 1, sequence: 0 }
    }

    /// The newest facts that are durable.
    pub fn current(&self) -> &Superblock {
        &self.current
    }

    /// Write facts into a slot, as the newest.
    pub async fn write(&mut self, base: &dyn Bdev, slot: usize, facts: &Superblock) -> Result<()> {
        self.sequence += 1;
        let superblock = Superblock { sequence: self.sequence, ..facts.clone() };
        base.write(SLOTS_AT[slot], self.slot_bytes(base, &superblock), false).await
    }

    /// The newest slot could not be made durable; the other one, which says the same, is.
    pub fn trust_other(&mut self) {
        self.newest = 1 - self.newest;
    }

    /// Write the newest superblock once more as it is; nothing when there is none yet.
    pub async fn write_again(&self, base: &dyn Bdev) -> Result<()> {
        if self.current.sequence == 0 {
            return Ok(());
        }
        base.write(SLOTS_AT[self.newest], self.slot_bytes(base, &self.current), false).await
    }

    fn slot_bytes(&self, base: &dyn Bdev, superblock: &Superblock) -> IoData {
        let mut bytes = zeroed_slot(base);
        bytes[..SLOT_BYTES].copy_from_slice(&superblock.encode());
        IoData::new(bytes)
    }

    /// Facts that were written into a slot are durable.
    pub fn written(&mut self, slot: usize, facts: Superblock) {
        self.newest = slot;
        self.current = Superblock { sequence: self.sequence, ..facts };
    }

    /// Change the state of a volume: the older slot, a flush, then the first page (with its minor version, where that
    /// changes) and the other slot, a flush. A cut anywhere leaves the state before or the one after.
    ///
    /// # Errors
    /// What base and flush said; which of the two it is then, the next change or open finds out.
    pub async fn change(
        &mut self,
        base: &dyn Bdev,
        facts: Superblock,
        first_page: Option<IoData>,
        flush: impl AsyncFn() -> Result<()>,
    ) -> Result<()> {
        let (first, second) = (1 - self.newest, self.newest);
        let first = if fault!(NewestOverwritten) { second } else { first };
        self.write(base, first, &facts).await?;
        flush().await?;
        self.written(first, facts.clone());
        if let Some(page) = first_page.filter(|_| !fault!(MinorStays)) {
            base.write(0, page, false).await?;
        }
        self.write(base, 1 - first, &facts).await?;
        flush().await?;
        self.written(1 - first, facts);
        Ok(())
    }
}

fn zeroed_slot(base: &dyn Bdev) -> IoBuf {
    IoBuf::zeroed(SLOT_BYTES.max(base.info().block_size as usize))
}

/// Make a slot absent.
///
/// # Errors
/// What the base said.
pub async fn clear(base: &dyn Bdev, slot: usize) -> Result<()> {
    base.write(SLOTS_AT[slot], IoData::new(zeroed_slot(base)), false).await
}

/// The first page of an area with another minor version and the check that goes with it.
pub fn first_page(area: &[u8], uuid: Uuid, minor: u16, page: usize) -> IoData {
    let mut bytes = IoBuf::from_slice(&area[..page]);
    layout::put_minor(&mut bytes, minor);
    sectors::seal(uuid, 0, &mut bytes[..SECTOR]);
    IoData::new(bytes)
}

/// The facts of an open volume whose map counts no more, also if it turns up again.
pub fn disowned(current: &Superblock) -> Superblock {
    Superblock { epoch: current.epoch + 1, map_path: Vec::new(), ..current.clone() }
}

/// The facts of a clean close of a volume with these header sectors, whatever their minor version is.
pub fn closed(current: &Superblock, area: &[u8], stripes: u32) -> Superblock {
    let mut area = area.to_vec();
    let first = sectors::closed(current.uuid, &area);
    area[..SECTOR].copy_from_slice(&first);
    Superblock {
        state: VolumeState::Clean,
        boot_id: Uuid::NIL,
        adopts_changed: false,
        set_headers: sectors::count_set(&area, stripes),
        digests: sectors::digests(&area, stripes),
        map_path: Vec::new(),
        ..current.clone()
    }
}
