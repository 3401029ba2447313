//! The `file` image: a raw disk image in a regular file or on a block device.
//!
//! Read only, without a lock, so that nobody's lock is in the way. Volumes on one image share one open file, and
//! identical reads that are in flight at the same time become one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::{Extents, Image, ImageIdentity};
use crate::bdev::LocalFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::reactor::offload;
use crate::reactor::ops::{self, Op};
use crate::reactor::sync::{Promise, lock};
use crate::sys::buf::{BUF_ALIGN, IoBuf, IoData};
use crate::sys::file::{FileIdentity, OpenOptions, StorageFile};

/// An image as one volume holds it: its own name, the shared file.
pub struct FileImage {
    name: String,
    file: Arc<SharedFile>,
}

/// None: the reader is gone without having read.
type Flight = Promise<Option<Result<IoData>>>;
/// Offset and length of a read.
type Span = (u64, usize);

/// One open image file.
struct SharedFile {
    file: Arc<StorageFile>,
    identity: FileIdentity,
    is_device: bool,
    /// Alignment of offsets and lengths for O_DIRECT; None: buffered.
    direct_align: Option<u64>,
    extents: Extents,
    flights: Mutex<HashMap<Span, Arc<Flight>>>,
}

type Registry = Mutex<HashMap<(FileIdentity, bool), Weak<SharedFile>>>;

/// The open images of the process, by identity and by whether O_DIRECT was asked for.
fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::default)
}

impl FileImage {
    /// Open an image; with `directio` past the page cache where its file system can do that. Blocks for as long
    /// as opening takes.
    ///
    /// # Errors
    /// `InvalidParams` (EINVAL, as bdev_ubi answers) naming the image and what is wrong: missing, unreadable, a
    /// directory, anything else that is neither a regular file nor a block device.
    pub fn open(path: &Path, directio: bool) -> Result<Arc<Self>> {
        Self::open_by(path, path, directio)
    }

    /// The same by another name of the file, such as that of a descriptor; messages go on calling it by its path.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_by(source: &Path, path: &Path, directio: bool) -> Result<Arc<Self>> {
        let is_device = check_kind(source, path)?;
        let (file, direct_align) = open_file(source, path, directio)?;
        let identity = identity_of(&file, is_device).map_err(|error| unusable(path, &error))?;
        let key = (identity, directio);
        if let Some(shared) = lock(registry()).get(&key).and_then(Weak::upgrade) {
            return Ok(Arc::new(Self { name: path.display().to_string(), file: shared }));
        }
        let extents = if is_device { Extents::all(identity.size) } else { Extents::of_file(&file, identity.size) };
        let flights = Mutex::default();
        let opened = SharedFile { file: Arc::new(file), identity, is_device, direct_align, extents, flights };
        Ok(Arc::new(Self { name: path.display().to_string(), file: share(key, opened) }))
    }
}

/// Put a file into the registry, unless another thread was first.
fn share(key: (FileIdentity, bool), opened: SharedFile) -> Arc<SharedFile> {
    let mut registry = lock(registry());
    if let Some(shared) = registry.get(&key).and_then(Weak::upgrade) {
        return shared;
    }
    registry.retain(|_, image| image.strong_count() > 0);
    let shared = Arc::new(opened);
    registry.insert(key, Arc::downgrade(&shared));
    shared
}

/// Whether it is a block device; looked at before opening, since opening a FIFO or a tape has effects of its own.
fn check_kind(source: &Path, path: &Path) -> Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata(source).map_err(|error| unusable(path, &error))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(kind.is_block_device());
    }
    let what = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a character device"
    };
    let message =
        format!("image {} is {what}; give a raw image in a regular file or on a block device", path.display());
    Err(Error::new(ErrorKind::InvalidParams, message))
}

fn open_file(source: &Path, path: &Path, directio: bool) -> Result<(StorageFile, Option<u64>)> {
    if directio {
        let direct = StorageFile::open_as(source, path, OpenOptions { direct: true, ..OpenOptions::default() });
        let align = direct.as_ref().ok().and_then(StorageFile::direct_align).map(|align| u64::from(align.offset));
        let usable = align.filter(|&align| align.is_power_of_two() && align <= BUF_ALIGN as u64);
        if let (Ok(file), Some(align)) = (direct, usable) {
            return Ok((file, Some(align)));
        }
    }
    let file = StorageFile::open_as(source, path, OpenOptions::default()).map_err(|error| unusable(path, &error))?;
    Ok((file, None))
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::InvalidParams, format!("image {}: {error}", path.display()))
}

/// A device's node has times of its own that tell nothing of the content.
fn identity_of(file: &StorageFile, is_device: bool) -> std::io::Result<FileIdentity> {
    let identity = file.identity()?;
    Ok(if is_device { FileIdentity { mtime_ns: 0, ctime_ns: 0, ..identity } } else { identity })
}

impl Image for FileImage {
    fn name(&self) -> &str {
        &self.name
    }

    fn size_bytes(&self) -> u64 {
        self.file.identity.size
    }

    fn identity(&self) -> ImageIdentity {
        let FileIdentity { size, mtime_ns, .. } = self.file.identity;
        let tag = if self.file.is_device { String::new() } else { format!("mtime:{mtime_ns}") };
        ImageIdentity { kind: "file", size_bytes: size, tag }
    }

    fn data_extents(&self) -> &Extents {
        &self.file.extents
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoData>> {
        Box::pin(self.file.read(offset, len))
    }

    fn recheck(&self) -> Result<()> {
        self.file.recheck()
    }

    fn recheck_elsewhere(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(self.file.recheck_elsewhere())
    }

    fn directio_in_effect(&self) -> bool {
        self.file.direct_align.is_some()
    }
}

impl SharedFile {
    async fn read(&self, offset: u64, len: usize) -> Result<IoData> {
        loop {
            let (flight, is_first) = self.board((offset, len));
            if is_first {
                let landing = Landing { file: self, span: (offset, len), flight };
                let result = self.read_verified(offset, len).await;
                landing.flight.set(Some(result.clone()));
                return result;
            }
            if let Some(result) = flight.wait().await {
                return result;
            }
        }
    }

    /// The read in flight of these bytes, or a new one.
    fn board(&self, span: Span) -> (Arc<Flight>, bool) {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&span) {
            return (Arc::clone(flight), false);
        }
        let flight = Promise::new();
        flights.insert(span, Arc::clone(&flight));
        (flight, true)
    }

    /// Read, then make sure that it was still the image: a change during the read must not pass.
    async fn read_verified(&self, offset: u64, len: usize) -> Result<IoData> {
        let result = match self.direct_align {
            Some(align) => self.read_direct(offset, len, align).await,
            None => ops::read_exact(&self.file, offset, len).await.map(IoData::new),
        };
        self.recheck_elsewhere().await?;
        result
    }

    /// Read the aligned range around the wanted one; the file may end inside it.
    async fn read_direct(&self, offset: u64, len: usize, align: u64) -> Result<IoData> {
        let start = offset - offset % align;
        let skip = (offset - start) as usize;
        let mut buf = IoBuf::new((skip + len).next_multiple_of(align as usize));
        let mut filled = 0;
        while filled < skip + len {
            let op = Op::Read { file: Arc::clone(&self.file), offset: start + filled as u64, buf, start: filled };
            let completion = ops::submit(op).await;
            let Op::Read { buf: returned, .. } = completion.op else { unreachable!("a driver returns the operation") };
            buf = returned;
            let count = match completion.result {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => continue,
                Err(error) => {
                    let what = format_args!("image {}: read of {len} at {offset}", self.file.name());
                    return Err(Error::from_io(what, &error));
                }
                Ok(count) => count,
            };
            filled += count;
            let at_end = count == 0 || !filled.is_multiple_of(align as usize);
            if at_end && filled < skip + len {
                let end = start + filled as u64;
                let message = format!("image {}: ends at {end}, read of {len} at {offset}", self.file.name());
                return Err(Error::new(ErrorKind::Io, message));
            }
        }
        Ok(IoData::new(buf).slice(skip, len))
    }

    fn recheck(&self) -> Result<()> {
        check_unchanged(&self.file, self.is_device, self.identity)
    }

    /// Ask on another thread where the answer may come from a program or another machine.
    async fn recheck_elsewhere(&self) -> Result<()> {
        if !self.file.is_remote() {
            return self.recheck();
        }
        let (file, is_device, identity) = (Arc::clone(&self.file), self.is_device, self.identity);
        offload::run(move || check_unchanged(&file, is_device, identity)).await
    }
}

fn check_unchanged(file: &StorageFile, is_device: bool, then: FileIdentity) -> Result<()> {
    let name = file.name();
    let now =
        identity_of(file, is_device).map_err(|error| Error::from_io(format_args!("image {name}: fstat"), &error))?;
    if now == then {
        return Ok(());
    }
    let change = match (now.size, then.size) {
        (now, then) if now != then => format!("its size was {then} bytes and is {now}"),
        _ => "it was modified".into(),
    };
    let message = format!("image {name} has changed since the volume was opened: {change}; restore it");
    Err(Error::new(ErrorKind::Io, message))
}

/// Ends a flight, also when its reader is dropped half way: then those who wait read for themselves.
struct Landing<'a> {
    file: &'a SharedFile,
    span: Span,
    flight: Arc<Flight>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        lock(&self.file.flights).remove(&self.span);
        self.flight.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use super::*;
    use crate::reactor::exec::{block_on, join_all};

    fn image(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image.raw");
        std::fs::write(&path, bytes).expect("write");
        (dir, path)
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
    }

    #[test]
    fn every_byte_is_read_with_and_without_o_direct() {
        let content = pattern(70_001);
        let (_dir, path) = image(&content);
        for directio in [false, true] {
            let image = FileImage::open(&path, directio).expect("open");
            for (offset, len) in [(0, 70_001), (1, 4096), (69_000, 1001), (65_536, 4465), (70_000, 1), (512, 512)] {
                let image = Arc::clone(&image);
                let got = block_on(async move { image.read(offset as u64, len).await.expect("read").to_vec() });
                assert_eq!(got, content[offset..offset + len], "{len} at {offset}, directio {directio}");
            }
        }
    }

    #[test]
    fn volumes_on_one_image_share_the_open_file() {
        let (dir, path) = image(&pattern(10_000));
        let link = dir.path().join("link.raw");
        std::os::unix::fs::symlink(&path, &link).expect("symlink");
        let first = FileImage::open(&path, false).expect("open");
        let second = FileImage::open(&link, false).expect("open");
        assert!(Arc::ptr_eq(&first.file, &second.file));
        assert_eq!(second.name(), link.display().to_string());
        drop((first, second));
        std::fs::write(&path, pattern(20_000)).expect("write");
        assert_eq!(FileImage::open(&path, false).expect("open").size_bytes(), 20_000);
    }

    #[test]
    fn identical_reads_in_flight_become_one() {
        let (_dir, path) = image(&pattern(8192));
        let image = FileImage::open(&path, false).expect("open");
        let file = Arc::clone(&image.file);
        let buffers = block_on(async move {
            let (first, is_first) = file.board((0, 4096));
            assert!(is_first);
            let followers = (0..3).map(|_| image.read(0, 4096)).collect();
            let leader: LocalFuture<'_, Vec<Result<IoData>>> = Box::pin(async {
                crate::reactor::exec::yield_now().await;
                let landing = Landing { file: &file, span: (0, 4096), flight: first };
                landing.flight.set(Some(file.read_verified(0, 4096).await));
                Vec::new()
            });
            let all = join_all(vec![leader, Box::pin(join_all(followers))]).await;
            all.into_iter().flatten().map(|result| result.expect("read").as_ptr() as usize).collect::<Vec<_>>()
        });
        assert_eq!(buffers.len(), 3);
        assert!(buffers.iter().all(|&address| address == buffers[0]));
    }

    #[test]
    fn a_reader_that_goes_away_leaves_the_others_reading() {
        let (_dir, path) = image(&pattern(4096));
        let image = FileImage::open(&path, false).expect("open");
        let got = block_on(async move {
            let (flight, _) = image.file.board((0, 512));
            let landing = Landing { file: &image.file, span: (0, 512), flight };
            let mut landing = Some(landing);
            let leave: LocalFuture<'_, usize> = Box::pin(async {
                crate::reactor::exec::yield_now().await;
                landing.take();
                0
            });
            let follower: LocalFuture<'_, usize> =
                Box::pin(async { image.read(0, 512).await.expect("read for itself").len() });
            join_all(vec![leave, follower]).await
        });
        assert_eq!(got, [0, 512]);
    }

    #[test]
    fn a_changed_image_is_not_read() {
        let (_dir, path) = image(&pattern(8192));
        let image = FileImage::open(&path, false).expect("open");
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
        file.set_len(4096).expect("truncate");
        let message = |image: &Arc<FileImage>, offset| {
            let image = Arc::clone(image);
            block_on(async move { image.read(offset, 512).await.expect_err("changed").message().to_owned() })
        };
        assert!(message(&image, 7000).contains("its size was 8192 bytes and is 4096"));
        file.set_len(8192).expect("extend");
        file.write_all_at(&[1], 0).expect("write");
        assert!(message(&image, 0).contains("it was modified"));
    }

    #[test]
    fn what_is_no_image_is_refused_by_name_with_einval() {
        let (dir, path) = image(b"x");
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo");
        assert!(made.success());
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
        let missing = dir.path().join("missing");
        let cases: [(&Path, &str); 5] = [
            (dir.path(), "a directory"),
            (&fifo, "a FIFO"),
            (&socket, "a socket"),
            (Path::new("/dev/null"), "a character device"),
            (&missing, "No such file"),
        ];
        for (path, what) in cases {
            let error = FileImage::open(path, true).err().expect("refused");
            assert_eq!((error.kind(), error.errno()), (ErrorKind::InvalidParams, libc::EINVAL));
            assert!(error.message().contains(what) && error.message().contains(&path.display().to_string()), "{error}");
        }
        let _lock = std::fs::File::open(&path).expect("open");
        assert_eq!(FileImage::open(&path, false).expect("open").size_bytes(), 1);
    }
}
