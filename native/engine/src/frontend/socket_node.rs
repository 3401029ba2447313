//! The file of a listening Unix socket: made under another name, put in place when clients may come, replaced when dead.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::file::path_of;
use crate::sys::socket::Socket;

/// What a socket is born with, and stays with unless its daemon was told otherwise.
const PRIVATE: u32 = 0o600;

/// Who may connect to a frontend's Unix socket; connecting takes the permission to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits.
    pub mode: u32,
    /// The group that the socket belongs to; None: the one that the system gives it.
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    fn default() -> Self {
        Self { mode: PRIVATE, group: None }
    }
}

/// A socket's file and whose it is: it has a temporary name until it is published.
pub struct SocketNode {
    path: PathBuf,
    temporary: PathBuf,
    dev: u64,
    ino: u64,
}

impl SocketNode {
    /// Listen under a temporary name, with mode 0600 from birth; it has its group, then its mode, before it is published.
    ///
    /// # Errors
    /// `Busy` when somebody listens at `path`, `AlreadyExists` when something else has the name, `InvalidParams` when
    /// the path is too long, `Permission` when it may not be given to the group. Nothing is left then.
    pub fn listen(path: &Path, backlog: i32, access: SocketAccess) -> Result<(Self, Socket)> {
        refuse_occupied(path)?;
        let temporary = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        let socket = Socket::listen_unix(&temporary, backlog).map_err(|error| listen_error(path, &error))?;
        let given = give(&temporary, access).map_err(|error| give_error(path, access, &error));
        let meta = given.inspect_err(|_| drop(std::fs::remove_file(&temporary)))?;
        Ok((Self { path: path.to_owned(), temporary, dev: meta.dev(), ino: meta.ino() }, socket))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Give the socket its name. Renamed, not made there: whoever connects meets the old one or this, never nothing.
    ///
    /// # Errors
    /// As `listen`; it keeps its temporary name.
    pub fn publish(&self) -> Result<()> {
        refuse_occupied(&self.path)?;
        std::fs::rename(&self.temporary, &self.path).map_err(|error| Error::from_io(self.path.display(), &error))
    }

    /// Remove the file under either name, unless it is another's by now.
    pub fn remove(&self) {
        for path in [&self.path, &self.temporary] {
            let ours =
                std::fs::symlink_metadata(path).is_ok_and(|meta| meta.dev() == self.dev && meta.ino() == self.ino);
            if ours {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Give a new socket its group and then its mode: at no time can anybody connect who shall not.
///
/// All of it by one descriptor of the node, so that nothing else that takes the name by then is touched.
fn give(path: &Path, access: SocketAccess) -> io::Result<Metadata> {
    let node: File = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    let meta = node.metadata()?;
    if access == SocketAccess::default() {
        return Ok(meta);
    }
    if !meta.file_type().is_socket() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists));
    }
    let by_descriptor = path_of(node.as_raw_fd());
    if access.group.is_some() {
        std::os::unix::fs::chown(&by_descriptor, None, access.group)?;
    }
    std::fs::set_permissions(&by_descriptor, Permissions::from_mode(access.mode))?;
    node.metadata()
}

fn give_error(path: &Path, access: SocketAccess, error: &io::Error) -> Error {
    match (access.group, error.kind()) {
        (Some(group), io::ErrorKind::PermissionDenied) => {
            let message = format!("{}: this user may not give its sockets to group {group}", path.display());
            Error::with_errno(ErrorKind::Permission, libc::EPERM, message)
        }
        _ => Error::from_io(path.display(), error),
    }
}

/// Refuse a path that somebody listens on, or that is no socket.
fn refuse_occupied(path: &Path) -> Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        let message = format!("{} exists and is not a socket; remove it or choose another path", path.display());
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    if Socket::is_live_unix(path) {
        let message = format!("{}: another program listens there", path.display());
        return Err(Error::new(ErrorKind::Busy, message));
    }
    Ok(())
}

fn listen_error(path: &Path, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::InvalidInput {
        let message = format!("{} is too long for a socket (100 bytes are safe)", path.display());
        return Error::new(ErrorKind::InvalidParams, message);
    }
    Error::from_io(format_args!("listen on {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("stat").permissions().mode() & 0o777
    }

    #[test]
    fn a_socket_has_its_group_and_mode_before_it_has_its_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("s");
        let group = std::fs::metadata(dir.path()).expect("stat").gid(); // one that any user may give to
        let access = SocketAccess { mode: 0o660, group: Some(group) };
        let (node, _socket) = SocketNode::listen(&path, 1, access).expect("listen");
        assert!(!path.exists());
        let meta = std::fs::metadata(&node.temporary).expect("stat");
        assert_eq!((mode(&node.temporary), meta.gid()), (0o660, group));
        node.publish().expect("publish");
        assert_eq!(mode(&path), 0o660);
        assert!(matches!(SocketNode::listen(&path, 1, access), Err(error) if error.kind() == ErrorKind::Busy));
        node.remove();
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
    }

    #[test]
    fn a_socket_is_private_unless_told_otherwise() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (node, _socket) = SocketNode::listen(&dir.path().join("s"), 1, SocketAccess::default()).expect("listen");
        node.publish().expect("publish");
        assert_eq!(mode(node.path()), 0o600);
        node.remove();
    }

    #[test]
    fn a_group_that_is_not_ours_to_give_to_is_named() {
        let access = SocketAccess { mode: 0o660, group: Some(4242) };
        let error = give_error(Path::new("/s"), access, &io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!((error.kind(), error.errno()), (ErrorKind::Permission, libc::EPERM));
        assert!(error.message().contains("group 4242"), "{error}");
    }

    #[test]
    fn only_a_socket_is_given_away() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").expect("file");
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("chmod");
        std::os::unix::fs::symlink(&file, &link).expect("link");
        let access = SocketAccess { mode: 0o666, group: None };
        assert!(give(&file, access).is_err());
        assert!(give(&link, access).is_err());
        assert_eq!(mode(&file), 0o600);
    }
}
