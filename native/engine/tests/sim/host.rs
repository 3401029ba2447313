//! The simulated machine: its boot, and its volatile maps. They outlive processes, at once and without a flush, and are gone
//! when power is lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use ubi_engine::bdev::ubi::host::{Host, MapIdentity, Mapped, NewMap, VolatileMap};
use ubi_engine::bdev::ubi::uuid::Uuid;
use ubi_engine::bdev::{BaseIdentity, LocalFuture};
use ubi_engine::error::{Error, ErrorKind, Result};

use super::base::{Kind, SimBase};
use super::tags::mix;

struct SimMap {
    identity: MapIdentity,
    bytes: Vec<AtomicU8>,
    sync_failed: AtomicBool,
    is_marking_durable: AtomicBool,
    /// Its file is cut short or gone.
    is_lost: AtomicBool,
    /// And stores find out.
    is_broken: AtomicBool,
    version: Arc<AtomicU64>,
}

impl SimMap {
    fn copy(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            bytes: self.bytes.iter().map(|byte| AtomicU8::new(byte.load(Ordering::Relaxed))).collect(),
            sync_failed: AtomicBool::new(self.sync_failed.load(Ordering::Relaxed)),
            is_marking_durable: AtomicBool::new(self.is_marking_durable.load(Ordering::Relaxed)),
            is_lost: AtomicBool::default(),
            is_broken: AtomicBool::default(),
            version: Arc::default(),
        }
    }

    fn hash(&self) -> u64 {
        let head = [&self.sync_failed, &self.is_marking_durable].map(|noted| u64::from(noted.load(Ordering::Relaxed)));
        let bytes = self
            .bytes
            .iter()
            .fold(head[0] | head[1] << 1, |hash, byte| mix(hash ^ u64::from(byte.load(Ordering::Relaxed))));
        mix(bytes ^ self.identity.epoch)
    }
}

impl VolatileMap for SimMap {
    fn get(&self, stripe: u32) -> Option<Mapped> {
        Mapped::from_byte(self.bytes[stripe as usize].load(Ordering::Relaxed))
    }

    fn set(&self, stripe: u32, to: Mapped) {
        self.bytes[stripe as usize].store(to as u8, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }

    fn set_sync_failed(&self) {
        self.sync_failed.store(true, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    fn is_marking_durable(&self) -> bool {
        self.is_marking_durable.load(Ordering::Relaxed)
    }

    fn set_marking_durable(&self, is_durable: bool) {
        self.is_marking_durable.store(is_durable, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    fn is_in_place(self: Arc<Self>) -> LocalFuture<'static, bool> {
        Box::pin(std::future::ready(!self.is_lost.load(Ordering::Relaxed)))
    }
}

/// See the module.
pub struct SimHost {
    boot: u8,
    has_directory: bool,
    maps: Mutex<BTreeMap<Vec<u8>, Arc<SimMap>>>,
    /// Where its calls wait for their turn; without one they answer at once.
    waits_at: Option<Arc<SimBase>>,
    version: Arc<AtomicU64>,
}

impl SimHost {
    /// The first boot of a machine.
    pub fn new(has_directory: bool) -> Arc<Self> {
        let (maps, version) = Default::default();
        Arc::new(Self { boot: 1, has_directory, maps, waits_at: None, version })
    }

    fn maps(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Arc<SimMap>>> {
        self.maps.lock().expect("not poisoned")
    }

    /// As it is now, for another process: what becomes of the copy is not seen here.
    pub fn copy(&self, waits_at: Option<Arc<SimBase>>) -> Arc<Self> {
        let version = Arc::new(AtomicU64::new(self.version()));
        let copy = |map: &Arc<SimMap>| Arc::new(SimMap { version: Arc::clone(&version), ..map.copy() });
        let maps = self.maps().iter().map(|(path, map)| (path.clone(), copy(map))).collect();
        let (boot, has_directory) = (self.boot, self.has_directory);
        Arc::new(Self { boot, has_directory, maps: Mutex::new(maps), waits_at, version })
    }

    /// After a loss of power.
    pub fn booted_again(&self) -> Arc<Self> {
        let version = Arc::new(AtomicU64::new(self.version() + 1));
        let (boot, has_directory) = (self.boot + 1, self.has_directory);
        Arc::new(Self { boot, has_directory, maps: Mutex::default(), waits_at: None, version })
    }

    /// Changes with every map.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    pub fn has_map(&self) -> bool {
        !self.maps().is_empty()
    }

    /// A map does not say that the marking is durable.
    pub fn has_marking_in_doubt(&self) -> bool {
        self.maps().values().any(|map| !map.is_marking_durable())
    }

    pub fn has_map_at(&self, path: &[u8]) -> bool {
        self.maps().contains_key(path)
    }

    /// Cut every map short; stores find out when they are `told`, else only who looks at the file.
    pub fn lose_maps(&self, told: bool) {
        for (_, map) in std::mem::take(&mut *self.maps()) {
            map.is_lost.store(true, Ordering::Relaxed);
            map.is_broken.store(told, Ordering::Relaxed);
        }
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    /// The epoch of which a map says that its marking is durable.
    pub fn marked_epoch(&self) -> Option<u64> {
        let maps = self.maps();
        maps.values().filter(|map| map.is_marking_durable()).map(|map| map.identity.epoch).max()
    }

    /// Stripes whose headers a map says to be durable, as bits.
    pub fn durable(&self) -> u32 {
        let maps = self.maps();
        let durable = maps.values().flat_map(|map| map.bytes.iter().zip(0..));
        durable.fold(0, |bits, (byte, stripe)| {
            bits | u32::from(byte.load(Ordering::Relaxed) == Mapped::Durable as u8) << stripe
        })
    }

    /// A number for all that an open depends on.
    pub fn hash(&self) -> u64 {
        self.maps().values().fold(u64::from(self.boot), |hash, map| mix(hash ^ map.hash()))
    }

    async fn turn(&self) -> Result<()> {
        match &self.waits_at {
            Some(base) => base.submit(Kind::Host, 0..0, Vec::new(), false).await.map(drop),
            None => Ok(()),
        }
    }

    fn path(wanted: &MapIdentity) -> Vec<u8> {
        format!("/maps/{}.{}.map", wanted.uuid, wanted.epoch).into_bytes()
    }
}

impl Host for SimHost {
    fn boot_id(&self) -> Option<Uuid> {
        Some(Uuid([self.boot; 16]))
    }

    fn new_uuid(&self) -> Uuid {
        Uuid([0x42; 16])
    }

    fn create_map(&self, wanted: MapIdentity, begin: Vec<Mapped>) -> LocalFuture<'_, Result<NewMap>> {
        Box::pin(async move {
            if !self.has_directory {
                return Err(Error::new(ErrorKind::Unsupported, "there is no directory"));
            }
            self.turn().await?;
            let path = Self::path(&wanted);
            let before = MapIdentity { epoch: wanted.epoch.saturating_sub(1), ..wanted.clone() };
            let is_left = self.maps().get(&Self::path(&before)).is_some_and(|map| map.identity == before);
            if is_left {
                self.maps().remove(&Self::path(&before));
            }
            let epoch = wanted.epoch;
            let bytes = begin.into_iter().map(|mapped| AtomicU8::new(mapped as u8)).collect();
            let (sync_failed, is_marking_durable, is_lost, is_broken) = Default::default();
            let version = Arc::clone(&self.version);
            let map = SimMap { identity: wanted, bytes, sync_failed, is_marking_durable, is_lost, is_broken, version };
            let map = Arc::new(map);
            self.maps().insert(path.clone(), Arc::clone(&map));
            self.version.fetch_add(1, Ordering::Relaxed);
            Ok(NewMap { map, epoch, path })
        })
    }

    fn open_map(
        &self,
        path: Vec<u8>,
        wanted: MapIdentity,
    ) -> LocalFuture<'_, std::result::Result<Arc<dyn VolatileMap>, String>> {
        Box::pin(async move {
            let found = self.maps().get(&path).filter(|map| map.identity == wanted).cloned();
            found.map(|map| map as Arc<dyn VolatileMap>).ok_or_else(|| "is not there".to_owned())
        })
    }

    fn remove_map(&self, path: Vec<u8>, uuid: Uuid, base: Option<BaseIdentity>) -> LocalFuture<'_, ()> {
        Box::pin(async move {
            let boot_id = self.boot_id();
            let is_ours = |map: &SimMap| {
                let identity = &map.identity;
                identity.uuid == uuid && (Some(identity.boot_id) != boot_id || Some(&identity.base) == base.as_ref())
            };
            if self.turn().await.is_ok() && self.maps().get(&path).is_some_and(|map| is_ours(map)) {
                self.maps().remove(&path);
                self.version.fetch_add(1, Ordering::Relaxed);
            }
        })
    }
}
