//! One open file description for storage: opened once, shared, closed when the last user is gone.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::sg_list::SgList;

/// How a descriptor is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    pub write: bool,
    /// O_DIRECT.
    pub direct: bool,
    /// O_EXCL without O_CREAT: the exclusive claim on a block device.
    pub exclusive: bool,
}

/// fallocate(2) modes in use; all keep the file's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallocateMode {
    /// Deallocate; reads as zeros.
    PunchHole,
    /// Read as zeros, keep or make the allocation.
    ZeroRange,
}

impl FallocateMode {
    /// The flag word of fallocate(2).
    pub fn bits(self) -> i32 {
        match self {
            FallocateMode::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            FallocateMode::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
}

/// Alignment that O_DIRECT asks for, from STATX_DIOALIGN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAlign {
    /// Of memory addresses, bytes.
    pub memory: u32,
    /// Of file offsets and lengths, bytes.
    pub offset: u32,
}

/// What identifies a file's content for as long as nobody changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    pub dev: u64,
    pub ino: u64,
    pub rdev: u64,
    pub size: u64,
    pub mtime_ns: i128,
    pub ctime_ns: i128,
}

/// A file or block device opened for storage.
#[derive(Debug)]
pub struct StorageFile {
    file: File,
    name: String,
    direct: bool,
    /// Its file system is a program's or another machine's, or does not say what it is.
    remote: bool,
}

/// File systems whose requests wait for a program or another machine, also when told not to wait: FUSE, NFS, CIFS,
/// SMB, Ceph, 9p, AFS. Source: linux/magic.h.
const REMOTE_FILE_SYSTEMS: [i64; 8] =
    [0x6573_5546, 0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x0102_1997, 0x5346_414f, 0x517b];

/// A path that names what an open descriptor (O_PATH will do) stands for, whatever has become of its name since.
///
/// Source: proc_pid_fd(5): opening it opens the same inode.
pub fn path_of(descriptor: RawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{descriptor}"))
}

fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl StorageFile {
    /// Open `path` (O_CLOEXEC always).
    pub fn open(path: &Path, options: OpenOptions) -> io::Result<Self> {
        Self::open_as(path, path, options)
    }

    /// Open `source`, which is a name of its own or one of [`path_of`]; `name` is what messages call it.
    pub fn open_as(source: &Path, name: &Path, options: OpenOptions) -> io::Result<Self> {
        let c_path = CString::new(source.as_os_str().as_bytes())?;
        let mut flags = libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
        flags |= if options.write { libc::O_RDWR } else { libc::O_RDONLY };
        if options.direct {
            flags |= libc::O_DIRECT;
        }
        if options.exclusive {
            flags |= libc::O_EXCL;
        }
        // SAFETY: the path is a valid NUL-terminated string for the duration of the call.
        let fd = unsafe { libc::open(c_path.as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut opened = Self { file, name: name.display().to_string(), direct: options.direct, remote: false };
        opened.set_flags()?;
        opened.remote = opened.file_system().is_none_or(|kind| REMOTE_FILE_SYSTEMS.contains(&kind));
        Ok(opened)
    }

    /// Take O_NONBLOCK back, which is for the opening alone: io_uring would answer EAGAIN for ever where the file
    /// system cannot read without waiting. Times of access are not kept where that is ours to say (O_NOATIME): each read
    /// would compare them with the clock.
    fn set_flags(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open; F_GETFL has no argument.
        let flags = unsafe { libc::fcntl(self.raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = flags & !libc::O_NONBLOCK;
        match self.set_flag_word(flags | libc::O_NOATIME) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.set_flag_word(flags), // another's file
            other => other,
        }
    }

    fn set_flag_word(&self, flags: libc::c_int) -> io::Result<()> {
        // SAFETY: the descriptor is open; F_SETFL takes the flag word.
        let result = unsafe { libc::fcntl(self.raw_fd(), libc::F_SETFL, flags) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether an operation may wait for a program or another machine: never to be started on a reactor itself.
    pub fn is_remote(&self) -> bool {
        self.remote
    }

    /// The magic number of the file system, None where it does not say.
    fn file_system(&self) -> Option<i64> {
        // SAFETY: all-zero bytes are a valid statfs, a plain structure of integers.
        let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: `stat` is valid for writes.
        let result = unsafe { libc::fstatfs(self.raw_fd(), &raw mut stat) };
        (result == 0).then_some(stat.f_type)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// stat(2) through std.
    pub fn metadata(&self) -> io::Result<std::fs::Metadata> {
        self.file.metadata()
    }

    /// The file's identity now.
    pub fn identity(&self) -> io::Result<FileIdentity> {
        use std::os::unix::fs::MetadataExt;
        let meta = self.metadata()?;
        let time_ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Ok(FileIdentity {
            dev: meta.dev(),
            ino: meta.ino(),
            rdev: meta.rdev(),
            size: self.size_bytes()?,
            mtime_ns: time_ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: time_ns(meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Size of a regular file or a block device.
    pub fn size_bytes(&self) -> io::Result<u64> {
        use std::os::unix::fs::FileTypeExt;
        let meta = self.metadata()?;
        if !meta.file_type().is_block_device() {
            return Ok(meta.len());
        }
        const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
        let mut size = 0u64;
        // SAFETY: BLKGETSIZE64 writes one u64 to the address, which is valid for it.
        let result = unsafe { libc::ioctl(self.raw_fd(), BLKGETSIZE64, &raw mut size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(size) }
    }

    /// Logical block size of a block device (BLKSSZGET).
    pub fn device_block_size(&self) -> io::Result<u32> {
        const BLKSSZGET: libc::c_ulong = 0x1268;
        let mut size: libc::c_int = 0;
        // SAFETY: BLKSSZGET writes one int to the address, which is valid for it.
        let result = unsafe { libc::ioctl(self.raw_fd(), BLKSSZGET, &raw mut size) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        u32::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
    }

    /// The sequence number of a block device (BLKGETDISKSEQ, Linux 5.15): another one whenever something else, or the same
    /// thing once more, is attached under its name. 0 where the kernel does not say.
    pub fn device_sequence(&self) -> u64 {
        const BLKGETDISKSEQ: libc::c_ulong = 0x8008_1280;
        let mut sequence = 0u64;
        // SAFETY: BLKGETDISKSEQ writes one u64 to the address, which is valid for it.
        let result = unsafe { libc::ioctl(self.raw_fd(), BLKGETDISKSEQ, &raw mut sequence) };
        if result < 0 { 0 } else { sequence }
    }

    fn statx(&self, mask: u32) -> Option<libc::statx> {
        // SAFETY: all-zero bytes are a valid statx, a plain structure of integers.
        let mut stat: libc::statx = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, the empty path with AT_EMPTY_PATH names it, `stat` is valid for writes.
        let result = unsafe { libc::statx(self.raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut stat) };
        (result == 0 && stat.stx_mask & mask != 0).then_some(stat)
    }

    /// When the file was made, ns since 1970 (STATX_BTIME); 0 where its file system does not say.
    pub fn made_ns(&self) -> u64 {
        let made = self.statx(libc::STATX_BTIME).map(|stat| stat.stx_btime);
        let ns = made.map(|made| i128::from(made.tv_sec) * 1_000_000_000 + i128::from(made.tv_nsec));
        ns.and_then(|ns| u64::try_from(ns).ok()).unwrap_or(0)
    }

    /// O_DIRECT alignment, None where the file system does not say or has no O_DIRECT.
    pub fn direct_align(&self) -> Option<DirectAlign> {
        let stat = self.statx(libc::STATX_DIOALIGN).filter(|stat| stat.stx_dio_offset_align != 0)?;
        Some(DirectAlign { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align })
    }

    /// Whether the file lives in memory (tmpfs, ramfs, memfd): every access is a copy.
    pub fn is_in_memory(&self) -> bool {
        const RAMFS_MAGIC: i64 = 0x8584_58f6;
        let is_device = self.device_block_size().is_ok();
        !is_device && self.file_system().is_some_and(|kind| [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&kind))
    }

    /// No readahead beyond what is asked for (POSIX_FADV_RANDOM): it would leave large folios in the cache, which
    /// make later small writes several times dearer.
    pub fn advise_random(&self) {
        // SAFETY: the descriptor is open; the advice changes nothing but readahead.
        let _ = unsafe { libc::posix_fadvise(self.raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
    }

    /// Whether the whole range is in the page cache just now (cachestat(2), Linux 6.5; false before).
    pub fn is_cached(&self, offset: u64, len: u64) -> bool {
        const SYS_CACHESTAT: libc::c_long = 451;
        const PAGE: u64 = 4096;
        let range = [offset, len];
        let mut stat = [0u64; 5];
        // SAFETY: the call reads two u64 and writes five, at addresses valid for that; the flags are 0.
        let result = unsafe { libc::syscall(SYS_CACHESTAT, self.raw_fd(), range.as_ptr(), stat.as_mut_ptr(), 0) };
        let pages = (offset + len).div_ceil(PAGE) - offset / PAGE;
        result == 0 && stat[0] >= pages
    }

    /// pread(2); may read less.
    pub fn pread(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // SAFETY: the pointer and length are those of a live, exclusive slice.
        let result = unsafe { libc::pread(self.raw_fd(), buf.as_mut_ptr().cast(), buf.len(), offset.cast_signed()) };
        check(result as libc::c_long)
    }

    /// pwrite(2), or pwritev2(2) with RWF_DSYNC; may write less.
    pub fn pwrite(&self, data: &[u8], offset: u64, dsync: bool) -> io::Result<usize> {
        let flags = if dsync { libc::RWF_DSYNC } else { 0 };
        let iov = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: the iovec describes a live slice that the kernel only reads.
        let result = unsafe { libc::pwritev2(self.raw_fd(), &raw const iov, 1, offset.cast_signed(), flags) };
        check(result as libc::c_long)
    }

    /// preadv2(2) with RWF_NOWAIT: only what is in the page cache. Ok(short) or EAGAIN otherwise.
    pub fn pread_nowait(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        // SAFETY: the iovec describes a live, exclusive slice.
        let result = unsafe { libc::preadv2(self.raw_fd(), &raw const iov, 1, offset.cast_signed(), libc::RWF_NOWAIT) };
        check(result as libc::c_long)
    }

    /// preadv2(2) into memory that others share, with `nowait` only what is in the page cache; may read less.
    pub fn preadv(&self, target: &SgList, offset: u64, nowait: bool) -> io::Result<usize> {
        let (iovecs, flags) = (target.iovecs(), if nowait { libc::RWF_NOWAIT } else { 0 });
        if let ([one], 0) = (iovecs, flags) {
            // SAFETY: the iovec describes a mapping that the list keeps and that nobody has references into.
            let result = unsafe { libc::pread(self.raw_fd(), one.iov_base, one.iov_len, offset.cast_signed()) };
            return check(result as libc::c_long);
        }
        let (first, count) = (iovecs.as_ptr(), iovecs.len() as libc::c_int);
        // SAFETY: the iovecs describe mappings that the list keeps and that nobody has references into.
        let result = unsafe { libc::preadv2(self.raw_fd(), first, count, offset.cast_signed(), flags) };
        check(result as libc::c_long)
    }

    /// pwritev2(2) from memory that others share, with RWF_DSYNC if asked for; may write less.
    pub fn pwritev(&self, source: &SgList, offset: u64, dsync: bool) -> io::Result<usize> {
        let (iovecs, flags) = (source.iovecs(), if dsync { libc::RWF_DSYNC } else { 0 });
        if let ([one], 0) = (iovecs, flags) {
            // SAFETY: the iovec describes a mapping that the list keeps; the kernel only reads it.
            let result = unsafe { libc::pwrite(self.raw_fd(), one.iov_base, one.iov_len, offset.cast_signed()) };
            return check(result as libc::c_long);
        }
        let (first, count) = (iovecs.as_ptr(), iovecs.len() as libc::c_int);
        // SAFETY: the iovecs describe mappings that the list keeps; the kernel only reads them.
        let result = unsafe { libc::pwritev2(self.raw_fd(), first, count, offset.cast_signed(), flags) };
        check(result as libc::c_long)
    }

    pub fn fdatasync(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open.
        let result = unsafe { libc::fdatasync(self.raw_fd()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub fn fallocate(&self, mode: FallocateMode, offset: u64, len: u64) -> io::Result<()> {
        // SAFETY: the descriptor is open; the kernel checks the range.
        let result = unsafe { libc::fallocate(self.raw_fd(), mode.bits(), offset.cast_signed(), len.cast_signed()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next offset at or after `offset` that holds data (SEEK_DATA); None when only a hole is left.
    pub fn seek_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.seek(offset, libc::SEEK_DATA)
    }

    /// The next offset at or after `offset` that is a hole (SEEK_HOLE); the file's end counts as one.
    pub fn seek_hole(&self, offset: u64) -> io::Result<Option<u64>> {
        self.seek(offset, libc::SEEK_HOLE)
    }

    fn seek(&self, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
        // SAFETY: the descriptor is open; its position is used by nobody.
        let result = unsafe { libc::lseek(self.raw_fd(), offset.cast_signed(), whence) };
        match u64::try_from(result) {
            Ok(position) => Ok(Some(position)),
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_read_leaves_the_time_of_access_and_waits_as_others_do() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("f");
        std::fs::write(&path, [5; 512]).expect("write");
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let times = std::fs::FileTimes::new().set_accessed(long_ago);
        File::options().write(true).open(&path).expect("open").set_times(times).expect("times");
        let file = StorageFile::open(&path, OpenOptions::default()).expect("open");
        assert_eq!(file.pread(&mut [0; 512], 0).expect("read"), 512);
        assert_eq!(file.metadata().expect("stat").accessed().expect("a time"), long_ago);
        // SAFETY: the descriptor is open; F_GETFL has no argument.
        let flags = unsafe { libc::fcntl(file.raw_fd(), libc::F_GETFL) };
        assert_eq!(flags & libc::O_NONBLOCK, 0);
    }
}
