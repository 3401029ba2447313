//! What a volume needs of the machine it runs on: which boot it is, and a place that outlives the process.

use std::sync::Arc;

use super::uuid::Uuid;
use crate::bdev::{BaseIdentity, LocalFuture};
use crate::error::{Error, ErrorKind, Result};

/// Which map a volume means; all of it is in the map's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapIdentity {
    pub boot_id: Uuid,
    pub uuid: Uuid,
    pub epoch: u64,
    pub base: BaseIdentity,
    pub stripes: u32,
}

/// What a map says of a stripe: its byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Mapped {
    /// The base does not hold it, and its header is not set.
    Missing = 0,
    /// The base holds it. Its header may be there, but not for sure.
    OnBase = 1,
    /// Its header is durable on the base: a base without it is not the one that the map was last used with.
    Durable = 2,
}

impl Mapped {
    /// None for a byte that no map has.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Mapped::Missing, Mapped::OnBase, Mapped::Durable].into_iter().find(|mapped| *mapped as u8 == byte)
    }
}

/// Which stripes are on the base: a byte each, which outlives the process and dies with the kernel.
pub trait VolatileMap: Send + Sync {
    /// None for a byte that no map has.
    fn get(&self, stripe: u32) -> Option<Mapped>;

    /// Note what becomes true of a stripe. A store to memory.
    fn set(&self, stripe: u32, to: Mapped);

    /// Note that this process uses it, for people.
    fn hold(&self) {}

    /// What was noted or asked of late is worth nothing: somebody has cut the map short. A load from memory.
    fn is_broken(&self) -> bool {
        false
    }

    /// Look whether the next process would find it, whole.
    fn is_in_place(self: Arc<Self>) -> LocalFuture<'static, bool> {
        Box::pin(std::future::ready(!self.is_broken()))
    }

    /// A flush of the base has failed in this epoch.
    fn sync_failed(&self) -> bool;

    fn set_sync_failed(&self);

    /// Both superblocks and the minor version that go with this map are durable, and nobody has begun to change them.
    fn is_marking_durable(&self) -> bool;

    /// Note that it becomes true, after the flush behind them, or that it ends, before the next write of a superblock. A
    /// store to memory.
    fn set_marking_durable(&self, is_durable: bool);
}

/// A map that was made.
pub struct NewMap {
    pub map: Arc<dyn VolatileMap>,
    /// The epoch that was asked for, or a later one where that has a map of another base.
    pub epoch: u64,
    pub path: Vec<u8>,
}

/// See the module. Safe to use from every reactor at once.
pub trait Host: Send + Sync {
    /// The boot that runs; None when the kernel does not say.
    fn boot_id(&self) -> Option<Uuid>;

    /// A UUID that nobody has had before.
    fn new_uuid(&self) -> Uuid;

    /// Make a map that says `begin` of the stripes. One that is left of this base, of this epoch or the one before, or of
    /// another boot, is removed: whoever closed the volume has died before it could do so.
    ///
    /// # Errors
    /// Why no map can be had; the volume then does without.
    fn create_map(&self, wanted: MapIdentity, begin: Vec<Mapped>) -> LocalFuture<'_, Result<NewMap>>;

    /// Open the map that a superblock names, if it is this volume's.
    ///
    /// # Errors
    /// What became of it, as the end of a sentence that begins with its path: "is not there".
    fn open_map(
        &self,
        path: Vec<u8>,
        wanted: MapIdentity,
    ) -> LocalFuture<'_, std::result::Result<Arc<dyn VolatileMap>, String>>;

    /// Remove a map of this volume and base, or of another boot. That of another base stays: a superblock may be a copy,
    /// and name the map of the volume that it was copied from. So does what cannot be removed.
    fn remove_map(&self, path: Vec<u8>, uuid: Uuid, base: Option<BaseIdentity>) -> LocalFuture<'_, ()>;
}

/// A machine without a place for maps.
pub struct NoMaps {
    pub boot_id: Option<Uuid>,
}

impl Host for NoMaps {
    fn boot_id(&self) -> Option<Uuid> {
        self.boot_id
    }

    fn new_uuid(&self) -> Uuid {
        super::uuid::random()
    }

    fn create_map(&self, _wanted: MapIdentity, _begin: Vec<Mapped>) -> LocalFuture<'_, Result<NewMap>> {
        let error = Error::new(ErrorKind::Unsupported, "no state directory is given");
        Box::pin(std::future::ready(Err(error)))
    }

    fn open_map(
        &self,
        _path: Vec<u8>,
        _wanted: MapIdentity,
    ) -> LocalFuture<'_, std::result::Result<Arc<dyn VolatileMap>, String>> {
        Box::pin(std::future::ready(Err("cannot be looked at without a state directory".into())))
    }

    fn remove_map(&self, _path: Vec<u8>, _uuid: Uuid, _base: Option<BaseIdentity>) -> LocalFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
