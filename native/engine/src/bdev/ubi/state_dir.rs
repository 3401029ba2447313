//! Volatile maps as files `<state-dir>/<uuid>.<epoch>.map`; docs/on-disk-format.md has their bytes.

use std::io;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::host::{Host, MapIdentity, Mapped, NewMap, VolatileMap};
use super::superblock::MAP_PATH_MAX;
use super::uuid::{self, Uuid};
use crate::bdev::{BaseIdentity, LocalFuture};
use crate::error::{Error, ErrorKind, Result};
use crate::reactor::offload;
use crate::sys::file::{OpenOptions, StorageFile};
use crate::sys::shared_map::{self, SharedMap};

const MAGIC: &[u8; 8] = b"ubi_map\0";
const VERSION: u32 = 2;
const VERSION_AT: Range<usize> = 8..12;
const HEADER_BYTES: usize = 4096;
const BOOT_ID_AT: Range<usize> = 16..32;
const UUID_AT: Range<usize> = 32..48;
const EPOCH_AT: Range<usize> = 48..56;
const BASE_AT: Range<usize> = 56..88;
const HOLDER_AT: usize = 88;
const SYNC_FAILED_AT: usize = 92;
const MARKING_DURABLE_AT: usize = 93;
/// Epochs that are tried when another base's map has the name: copies of one base have one UUID.
const EPOCHS_TRIED: u64 = 1024;

/// A directory of this machine.
pub struct StateDir {
    /// None: maps cannot be made, but those that superblocks name can be opened.
    path: Option<PathBuf>,
    boot_id: Option<Uuid>,
}

impl StateDir {
    /// Keep maps in `path`, which is made absolute; it need not be there yet.
    pub fn new(path: Option<&Path>) -> Self {
        let path = path.and_then(|path| std::path::absolute(path).ok());
        Self { path, boot_id: uuid::boot_id() }
    }
}

struct MapFile(SharedMap, PathBuf);

impl VolatileMap for MapFile {
    fn get(&self, stripe: u32) -> Option<Mapped> {
        Mapped::from_byte(self.0.load(HEADER_BYTES + stripe as usize))
    }

    fn set(&self, stripe: u32, to: Mapped) {
        self.0.store(HEADER_BYTES + stripe as usize, to as u8);
    }

    fn hold(&self) {
        for (at, byte) in std::process::id().to_le_bytes().into_iter().enumerate() {
            self.0.store(HOLDER_AT + at, byte);
        }
    }

    fn is_broken(&self) -> bool {
        self.0.is_broken()
    }

    fn is_in_place(self: Arc<Self>) -> LocalFuture<'static, bool> {
        Box::pin(offload::run(move || self.0.is_in_place(&self.1)))
    }

    fn sync_failed(&self) -> bool {
        self.0.load(SYNC_FAILED_AT) != 0
    }

    fn set_sync_failed(&self) {
        self.0.store(SYNC_FAILED_AT, 1);
    }

    fn is_marking_durable(&self) -> bool {
        self.0.load(MARKING_DURABLE_AT) == 1
    }

    fn set_marking_durable(&self, is_durable: bool) {
        self.0.store(MARKING_DURABLE_AT, is_durable.into());
    }
}

impl MapFile {
    fn create(path: &Path, wanted: &MapIdentity, begin: &[Mapped]) -> io::Result<Self> {
        let mut content = header(wanted).to_vec();
        content.extend(begin.iter().map(|mapped| *mapped as u8));
        let map = SharedMap::create(path, &content, map_bytes(wanted.stripes))?;
        let file = Self(map, path.to_owned());
        file.hold();
        Ok(file)
    }

    /// Open a file whose header says all that is wanted.
    fn open(path: &Path, wanted: &MapIdentity) -> std::result::Result<Self, String> {
        let map = SharedMap::open(path, map_bytes(wanted.stripes)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "is not there".to_owned(),
            io::ErrorKind::InvalidData => "has another length than a map of this volume".to_owned(),
            io::ErrorKind::PermissionDenied => "is not a file of this user alone".to_owned(),
            _ => format!("cannot be opened ({error})"),
        })?;
        let expected = header(wanted);
        let is_as_expected = |mut range: Range<usize>| range.all(|at| map.load(at) == expected[at]);
        if !is_as_expected(0..VERSION_AT.end) {
            let version = u32::from_le_bytes(
                VERSION_AT.map(|at| map.load(at)).collect::<Vec<_>>().try_into().expect("four bytes"),
            );
            return Err(format!("is of layout {version}, and only {VERSION} is known: use the ubi_rpc that made it"));
        }
        if !is_as_expected(VERSION_AT.end..BASE_AT.start) {
            return Err("is that of another boot, epoch or volume".into());
        }
        if !is_as_expected(BASE_AT) {
            return Err("is that of another base: of another file or device, or it was attached again since".into());
        }
        Ok(Self(map, path.to_owned()))
    }
}

fn map_bytes(stripes: u32) -> usize {
    HEADER_BYTES + stripes as usize
}

fn header(wanted: &MapIdentity) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let parts: [&[u8]; 7] = [
        MAGIC,
        &VERSION.to_le_bytes(),
        &wanted.stripes.to_le_bytes(),
        &wanted.boot_id.0,
        &wanted.uuid.0,
        &wanted.epoch.to_le_bytes(),
        &base_bytes(&wanted.base),
    ];
    let all = parts.concat();
    bytes[..all.len()].copy_from_slice(&all);
    bytes
}

fn file_name(uuid: Uuid, epoch: u64) -> String {
    format!("{uuid}.{epoch}.map")
}

/// Whether a file is a map of the volume that may go: it is of another boot, or of this very base, whose lock we hold.
/// A copy of a base has its UUID, and its superblocks name the map of the original.
fn may_go(path: &Path, uuid: Uuid, boot_id: Option<Uuid>, base: Option<&BaseIdentity>) -> bool {
    use std::os::unix::fs::FileExt;
    let mut found = [0; HOLDER_AT];
    let read = std::fs::symlink_metadata(path)
        .and_then(
            |meta| if meta.is_file() { std::fs::File::open(path) } else { Err(io::ErrorKind::InvalidData.into()) },
        )
        .and_then(|file| file.read_exact_at(&mut found, 0));
    let is_of_boot = boot_id.is_none_or(|boot_id| found[BOOT_ID_AT] == boot_id.0);
    let is_of_base = base.is_some_and(|base| found[BASE_AT] == base_bytes(base));
    let is_map = found[..8] == *MAGIC && found[VERSION_AT] == VERSION.to_le_bytes() && found[UUID_AT] == uuid.0;
    read.is_ok() && is_map && (!is_of_boot || is_of_base)
}

fn base_bytes(base: &BaseIdentity) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (at, part) in [base.dev, base.ino, base.rdev, base.made].into_iter().enumerate() {
        bytes[at * 8..][..8].copy_from_slice(&part.to_le_bytes());
    }
    bytes
}

fn create(dir: &Path, mut wanted: MapIdentity, begin: &[Mapped]) -> Result<NewMap> {
    let first = wanted.epoch;
    // Left by a process that died between a clean close and the map's removal: an older state of the base would go with it.
    remove_left(&dir.join(file_name(wanted.uuid, first.saturating_sub(1))), &wanted);
    for epoch in first..first.saturating_add(EPOCHS_TRIED) {
        wanted.epoch = epoch;
        let path = dir.join(file_name(wanted.uuid, epoch));
        if path.as_os_str().len() > MAP_PATH_MAX {
            return Err(Error::new(ErrorKind::InvalidParams, format!("the path {} is too long", path.display())));
        }
        remove_left(&path, &wanted);
        match MapFile::create(&path, &wanted, begin) {
            Ok(map) => return Ok(NewMap { map: Arc::new(map), epoch, path: path.into_os_string().into_vec() }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::from_io(format_args!("make {}", path.display()), &error)),
        }
    }
    let message = format!("{} has very many maps of volume {} from other bases", dir.display(), wanted.uuid);
    Err(Error::new(ErrorKind::AlreadyExists, message))
}

/// Remove a map that no superblock counts on any more.
fn remove_left(path: &Path, wanted: &MapIdentity) {
    if may_go(path, wanted.uuid, Some(wanted.boot_id), Some(&wanted.base)) {
        let _ = std::fs::remove_file(path);
    }
}

/// Open the map at a path that a superblock names: only a file with a map's own name.
fn open(path: &[u8], wanted: &MapIdentity) -> std::result::Result<Arc<dyn VolatileMap>, String> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    if path.file_name().and_then(|name| name.to_str()) != Some(file_name(wanted.uuid, wanted.epoch).as_str()) {
        return Err("has not the name of a map of this volume".into());
    }
    Ok(Arc::new(MapFile::open(path, wanted)?))
}

fn remove(path: &[u8], uuid: Uuid, boot_id: Option<Uuid>, base: Option<&BaseIdentity>) {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_ours = name.starts_with(&format!("{uuid}.")) && name.ends_with(".map");
    if is_ours && may_go(path, uuid, boot_id, base) {
        let _ = std::fs::remove_file(path);
    }
}

/// Remove the maps of other boots, which nobody believes any more: only files of this user alone that have a map's name
/// and the header that goes with it. Returns how many; none where the directory is another machine's as well.
///
/// # Errors
/// What reading the directory said; a file that cannot be looked at or removed stays.
pub fn sweep(dir: &Path) -> io::Result<usize> {
    let Some(boot_id) = uuid::boot_id() else { return Ok(0) };
    if StorageFile::open(dir, OpenOptions::default())?.is_remote() {
        return Ok(0);
    }
    let paths = std::fs::read_dir(dir)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    Ok(paths.filter(|path| is_of_other_boot(path, boot_id) && std::fs::remove_file(path).is_ok()).count())
}

fn is_of_other_boot(path: &Path, boot_id: Uuid) -> bool {
    let Some((uuid, epoch)) = path.file_name().and_then(|name| name.to_str()).and_then(parse_name) else {
        return false;
    };
    let mut found = [0; HOLDER_AT];
    shared_map::read_own(path, &mut found).is_ok()
        && found[..8] == *MAGIC
        && found[UUID_AT] == uuid.0
        && found[EPOCH_AT] == epoch.to_le_bytes()
        && found[BOOT_ID_AT] != boot_id.0
}

/// The reverse of `file_name`.
fn parse_name(name: &str) -> Option<(Uuid, u64)> {
    let (uuid, epoch) = name.strip_suffix(".map")?.split_once('.')?;
    let parsed = (uuid.parse().ok()?, epoch.parse().ok()?);
    (file_name(parsed.0, parsed.1) == name).then_some(parsed)
}

impl Host for StateDir {
    fn boot_id(&self) -> Option<Uuid> {
        self.boot_id
    }

    fn new_uuid(&self) -> Uuid {
        uuid::random()
    }

    fn create_map(&self, wanted: MapIdentity, begin: Vec<Mapped>) -> LocalFuture<'_, Result<NewMap>> {
        let Some(dir) = self.path.clone() else {
            let error = Error::new(ErrorKind::Unsupported, "no state directory is given");
            return Box::pin(std::future::ready(Err(error)));
        };
        Box::pin(async move { offload::run(move || create(&dir, wanted, &begin).map(Arc::new)).await.map(unshared) })
    }

    fn open_map(
        &self,
        path: Vec<u8>,
        wanted: MapIdentity,
    ) -> LocalFuture<'_, std::result::Result<Arc<dyn VolatileMap>, String>> {
        Box::pin(offload::run(move || open(&path, &wanted)))
    }

    fn remove_map(&self, path: Vec<u8>, uuid: Uuid, base: Option<BaseIdentity>) -> LocalFuture<'_, ()> {
        let boot_id = self.boot_id;
        Box::pin(offload::run(move || remove(&path, uuid, boot_id, base.as_ref())))
    }
}

fn unshared(shared: Arc<NewMap>) -> NewMap {
    NewMap { map: Arc::clone(&shared.map), epoch: shared.epoch, path: shared.path.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: [Mapped; 10] = {
        let mut begin = [Mapped::Missing; 10];
        begin[0] = Mapped::Durable;
        begin
    };
    const MISSING: Option<Mapped> = Some(Mapped::Missing);

    fn wanted() -> MapIdentity {
        let base = BaseIdentity { dev: 1, ino: 2, rdev: 0, made: 4 };
        MapIdentity { boot_id: Uuid([1; 16]), uuid: Uuid([2; 16]), epoch: 7, base, stripes: 10 }
    }

    #[test]
    fn a_map_is_found_again_by_who_means_it_and_by_nobody_else() {
        let dir = tempfile::tempdir().expect("tempdir");
        let made = create(dir.path(), wanted(), &BEGIN).expect("made");
        made.map.set(9, Mapped::OnBase);
        let again = open(&made.path, &wanted()).expect("opened");
        assert_eq!([7, 8, 9].map(|stripe| again.get(stripe)), [MISSING, MISSING, Some(Mapped::OnBase)]);
        assert_eq!((again.get(0), again.sync_failed()), (Some(Mapped::Durable), false), "as it began");
        again.set_sync_failed();
        assert!(made.map.sync_failed());
        assert!(!again.is_marking_durable(), "not before it is flushed");
        made.map.set_marking_durable(true);
        assert!(again.is_marking_durable());
        let refused = |change: &dyn Fn(&mut MapIdentity)| {
            let mut other = wanted();
            change(&mut other);
            open(&made.path, &other).err().expect("refused")
        };
        assert!(refused(&|map| map.boot_id = Uuid([9; 16])).contains("another boot"));
        assert!(refused(&|map| map.base.ino = 3).contains("another base"));
        assert!(refused(&|map| map.base.made = 5).contains("another base"), "a file made anew in its place");
        assert!(refused(&|map| map.stripes = 11).contains("another length"));
        assert!(refused(&|map| map.epoch = 8).contains("name"));
        let MapIdentity { boot_id, uuid, base, .. } = wanted();
        remove(&made.path, Uuid([3; 16]), Some(boot_id), Some(&base));
        assert!(open(&made.path, &wanted()).is_ok(), "not that volume's");
        remove(&made.path, uuid, Some(boot_id), Some(&BaseIdentity { ino: 3, ..base }));
        remove(&made.path, uuid, None, None);
        assert!(open(&made.path, &wanted()).is_ok(), "not that base's: a copy names the map of its original");
        remove(&made.path, uuid, Some(boot_id), Some(&base));
        assert_eq!(open(&made.path, &wanted()).err().expect("gone"), "is not there");
    }

    #[test]
    fn a_left_map_of_this_base_is_replaced_and_a_copys_map_is_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let left = create(dir.path(), wanted(), &BEGIN).expect("made");
        left.map.set(3, Mapped::OnBase);
        let ours = create(dir.path(), wanted(), &BEGIN).expect("made again");
        assert!((ours.epoch, ours.map.get(3)) == (7, MISSING));
        let copy = MapIdentity { base: BaseIdentity { dev: 1, ino: 5, rdev: 0, made: 4 }, ..wanted() };
        assert_eq!(create(dir.path(), copy, &BEGIN).expect("made").epoch, 8);
        assert!(open(&ours.path, &wanted()).is_ok());
        let next = MapIdentity { epoch: 9, ..wanted() };
        assert_eq!(create(dir.path(), next, &BEGIN).expect("made").epoch, 9);
        assert!(dir.path().join(file_name(wanted().uuid, 8)).exists(), "the copy's, of the epoch before");
        let again = MapIdentity { epoch: 8, ..wanted() };
        assert_eq!(create(dir.path(), again, &BEGIN).expect("made").epoch, 9, "replaced");
        assert!(open(&ours.path, &wanted()).is_err(), "ours, of the epoch before");
        let after_boot = MapIdentity { boot_id: Uuid([5; 16]), ..wanted() };
        assert_eq!(create(dir.path(), after_boot, &BEGIN).expect("made").epoch, 7, "another boot's says nothing");
        assert!(create(&dir.path().join("no"), wanted(), &BEGIN).is_err());
    }

    #[test]
    fn maps_of_other_boots_are_swept_and_nothing_else() {
        let dir = tempfile::tempdir().expect("tempdir");
        let make = |boot_id, uuid| {
            let wanted = MapIdentity { boot_id, uuid: Uuid([uuid; 16]), ..wanted() };
            PathBuf::from(std::ffi::OsString::from_vec(create(dir.path(), wanted, &BEGIN).expect("made").path))
        };
        let this_boot = uuid::boot_id().expect("Linux says");
        let old = [make(Uuid([1; 16]), 1), make(Uuid([2; 16]), 2)];
        let live = make(this_boot, 3);
        let renamed = dir.path().join("other.7.map");
        std::fs::rename(make(Uuid([1; 16]), 4), &renamed).expect("renamed");
        let misnamed = dir.path().join(file_name(Uuid([9; 16]), 7));
        std::fs::rename(make(Uuid([1; 16]), 5), &misnamed).expect("renamed");
        let open_to_all = make(Uuid([1; 16]), 6);
        std::fs::set_permissions(&open_to_all, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
        let short = dir.path().join(file_name(Uuid([8; 16]), 7));
        std::fs::write(&short, b"ubi_map\0").expect("written");
        let link = dir.path().join(file_name(Uuid([1; 16]), 8));
        std::os::unix::fs::symlink(&old[0], &link).expect("a link");
        let kept = [&live, &renamed, &misnamed, &open_to_all, &short];
        assert_eq!(sweep(dir.path()).expect("swept"), 2);
        assert!(kept.iter().all(|path| path.exists()) && !old.iter().any(|path| path.exists()));
        assert!(link.symlink_metadata().is_ok());
        assert_eq!(sweep(dir.path()).expect("swept"), 0);
        assert!(sweep(&dir.path().join("no")).is_err());
    }

    #[test]
    fn what_no_map_of_this_layout_says_is_not_believed() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().expect("tempdir");
        let made = create(dir.path(), wanted(), &BEGIN).expect("made");
        let path = Path::new(std::ffi::OsStr::from_bytes(&made.path));
        let file = std::fs::OpenOptions::new().write(true).open(path).expect("there");
        file.write_all_at(&[3], HEADER_BYTES as u64 + 4).expect("written");
        assert_eq!(made.map.get(4), None);
        file.write_all_at(&[1], 8).expect("written");
        assert!(open(&made.path, &wanted()).err().expect("refused").contains("layout 1, and only 2 is known"));
    }
}
