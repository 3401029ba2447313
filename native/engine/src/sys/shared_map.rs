//! A small file that is mapped shared: what is stored in it outlives the process and dies with the kernel.
//!
//! Somebody may cut it short or remove it all the same: [`SharedMap::is_broken`] and [`SharedMap::is_in_place`] tell.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use super::sigbus::Guard;

/// See the module. Every byte may be read and written from every thread at once.
pub struct SharedMap {
    bytes: NonNull<AtomicU8>,
    len: usize,
    guard: Guard,
    /// st_dev and st_ino.
    file: (u64, u64),
}

// SAFETY: the mapping is reached through atomic bytes only, and lives until the last owner drops it.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Make a file of `len` bytes that begins with `head`, mode 0600, with all of its space reserved, so that no store can
    /// fail for want of it. Nothing is left after a failure.
    ///
    /// # Errors
    /// `AlreadyExists`, also for a symbolic link; and what making, filling and mapping it said.
    pub fn create(path: &Path, head: &[u8], len: usize) -> io::Result<Self> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let file = open(path, flags)?;
        let made = reserve(&file, len).and_then(|()| file.write_all_at(head, 0)).and_then(|()| Self::map(&file, len));
        if made.is_err() {
            let _ = std::fs::remove_file(path);
        }
        made
    }

    /// Map a file that this user has made before and nobody else can open.
    ///
    /// # Errors
    /// `NotFound`; `PermissionDenied` for a symbolic link, anything but a regular file, another's or an open one;
    /// `InvalidData` for another length.
    pub fn open(path: &Path, len: usize) -> io::Result<Self> {
        let (file, meta) = open_own(path, libc::O_RDWR)?;
        if meta.len() != len as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::map(&file, len)
    }

    fn map(file: &File, len: usize) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let meta = file.metadata()?;
        let guard = Guard::take()?;
        // SAFETY: a mapping at an address of the kernel's choice touches nothing of ours; the descriptor is open.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let bytes = NonNull::new(address.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: the range was just mapped and is unmapped by `drop` after `stop`; all access is to single atomic bytes.
        unsafe { guard.watch(bytes.as_ptr() as usize, len) };
        Ok(Self { bytes, len, guard, file: (meta.dev(), meta.ino()) })
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.len, "inside the map");
        // SAFETY: the offset lies within the mapping, asserted above.
        let pointer = unsafe { self.bytes.add(at) };
        // SAFETY: the mapping lives as long as `self`; every byte is a valid AtomicU8, and all access is atomic.
        unsafe { pointer.as_ref() }
    }

    pub fn load(&self, at: usize) -> u8 {
        self.byte(at).load(Ordering::Acquire)
    }

    pub fn store(&self, at: usize, value: u8) {
        self.byte(at).store(value, Ordering::Release);
    }

    /// A load or a store has met the end of a file that was cut short: nothing that was read or stored since counts.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.guard.is_broken()
    }

    /// Whether the file is where it was made, and whole: a page that is cut through takes stores that are lost.
    pub fn is_in_place(&self, path: &Path) -> bool {
        let is_it = |meta: std::fs::Metadata| (meta.dev(), meta.ino()) == self.file && meta.len() == self.len as u64;
        !self.is_broken() && std::fs::symlink_metadata(path).is_ok_and(is_it)
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        self.guard.stop();
        // SAFETY: the mapping is ours, and nobody holds a reference into it any more.
        let _ = unsafe { libc::munmap(self.bytes.as_ptr().cast(), self.len) };
    }
}

/// Read the first bytes of a file that this user has made before and nobody else can open.
///
/// # Errors
/// As [`SharedMap::open`]; `UnexpectedEof` for a shorter one.
pub fn read_own(path: &Path, head: &mut [u8]) -> io::Result<()> {
    open_own(path, libc::O_RDONLY)?.0.read_exact_at(head, 0)
}

fn open_own(path: &Path, access: libc::c_int) -> io::Result<(File, std::fs::Metadata)> {
    let file = open(path, access | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)?;
    let meta = file.metadata()?;
    // SAFETY: the call has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    let is_own = meta.is_file() && meta.uid() == user && meta.mode() & 0o077 == 0;
    if is_own { Ok((file, meta)) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

fn open(path: &Path, flags: libc::c_int) -> io::Result<File> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a valid NUL-terminated string for the duration of the call.
    let fd = unsafe { libc::open(c_path.as_ptr(), flags, 0o600) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        let is_link = error.raw_os_error() == Some(libc::ELOOP);
        return Err(if is_link { io::ErrorKind::PermissionDenied.into() } else { error });
    }
    // SAFETY: `fd` was just opened and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn reserve(file: &File, len: usize) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, len as libc::off_t) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_there_for_the_next_who_maps_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("map");
        let map = SharedMap::create(&path, b"head", 8192).expect("made");
        map.store(5000, 7);
        assert!(matches!(SharedMap::create(&path, b"", 1), Err(error) if error.kind() == io::ErrorKind::AlreadyExists));
        drop(map);
        let again = SharedMap::open(&path, 8192).expect("opened");
        assert_eq!([0, 3, 4, 5000].map(|at| again.load(at)), [b'h', b'd', 0, 7]);
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_cut_short_or_removed_is_noticed_and_ends_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, other) = (dir.path().join("map"), dir.path().join("other"));
        let map = SharedMap::create(&path, b"head", 8192).expect("made");
        let second = SharedMap::create(&other, b"head", 8192).expect("made");
        assert!(map.is_in_place(&path) && !map.is_in_place(&other));
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("there");
        file.set_len(8000).expect("cut inside a page");
        map.store(8100, 1);
        assert!(!map.is_broken() && !map.is_in_place(&path), "only a look at the file tells");
        file.set_len(0).expect("cut");
        map.store(5000, 7);
        assert!(map.is_broken() && !map.is_in_place(&path));
        assert_eq!(map.load(0), 0);
        std::fs::remove_file(&other).expect("removed");
        second.store(5000, 7);
        assert!(!second.is_broken() && !second.is_in_place(&other));
        assert_eq!(second.load(5000), 7);
    }

    #[test]
    fn what_is_not_ours_alone_is_not_mapped() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, link) = (dir.path().join("map"), dir.path().join("link"));
        drop(SharedMap::create(&path, b"", 4096).expect("made"));
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let refused = |path: &Path, len| SharedMap::open(path, len).err().expect("refused").kind();
        assert_eq!(refused(&link, 4096), io::ErrorKind::PermissionDenied);
        assert_eq!(refused(&path, 8192), io::ErrorKind::InvalidData);
        assert_eq!(refused(&dir.path().join("no"), 1), io::ErrorKind::NotFound);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).expect("chmod");
        assert_eq!(refused(&path, 4096), io::ErrorKind::PermissionDenied);
        let missing = dir.path().join("no/map");
        assert!(SharedMap::create(&missing, b"", 4096).is_err());
    }
}
