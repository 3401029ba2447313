//! Exclusive use of a base: locks on the very description that carries the I/O.
//!
//! The kernel keeps flock and OFD locks until the last operation in flight on the description has ended, also
//! when its process is dead; a lock on any other descriptor says nothing about that. Never `F_SETLK` (POSIX).

use std::io;

use super::file::StorageFile;

/// Take flock and an OFD lock on all bytes, without waiting: shared for a read-only base.
///
/// # Errors
/// `WouldBlock` when somebody else holds either.
pub fn try_lock(file: &StorageFile, shared: bool) -> io::Result<()> {
    let operation = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
    // SAFETY: the descriptor is open.
    let result = unsafe { libc::flock(file.raw_fd(), operation | libc::LOCK_NB) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let taken = ofd_lock(file, if shared { libc::F_RDLCK } else { libc::F_WRLCK });
    if taken.is_err() {
        // SAFETY: the descriptor is open.
        let _ = unsafe { libc::flock(file.raw_fd(), libc::LOCK_UN) };
    }
    taken
}

fn ofd_lock(file: &StorageFile, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid flock structure: all of the file, l_pid 0 as OFD locks ask.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: `lock` is valid for reads.
    let result = unsafe { libc::fcntl(file.raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EACCES) => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
        error => Err(error),
    }
}

/// Whether anybody else has the file open, locks or no locks: a write lease is only given to the sole opener.
///
/// None where leases do not work (not the owner, network file systems, block devices).
pub fn opened_elsewhere(file: &StorageFile) -> Option<bool> {
    // SAFETY: the call takes integers only.
    let result = unsafe { libc::fcntl(file.raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return (error.raw_os_error() == Some(libc::EAGAIN)).then_some(true);
    }
    // SAFETY: the call takes integers only.
    let _ = unsafe { libc::fcntl(file.raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    Some(false)
}

/// Who holds a lock on the file, as far as /proc/locks tells: "pid 123 (name)".
pub fn holder(file: &StorageFile) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let meta = file.metadata().ok()?;
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    let mut pids = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let at = fields.iter().position(|field| *field == wanted)?;
        fields.get(at.checked_sub(1)?)?.parse::<i64>().ok()
    });
    let pid = pids.find(|&pid| pid > 0)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("pid {pid} ({})", name.trim()))
}

#[cfg(test)]
mod tests {
    use super::super::file::OpenOptions;
    use super::*;

    #[test]
    fn a_second_description_is_refused_and_the_holder_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("base");
        std::fs::write(&path, [0u8; 512]).expect("write");
        let write = OpenOptions { write: true, ..OpenOptions::default() };
        let first = StorageFile::open(&path, write).expect("open");
        try_lock(&first, false).expect("the first lock");
        assert_eq!(opened_elsewhere(&first), Some(false));
        let second = StorageFile::open(&path, write).expect("open");
        let error = try_lock(&second, false).expect_err("locked");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(holder(&second).expect("a holder").contains(&std::process::id().to_string()));
        assert_eq!(opened_elsewhere(&first), Some(true));
        drop(first);
        try_lock(&second, false).expect("free again");
    }
}
