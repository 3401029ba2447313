//! The file of a listening Unix socket: made under another name, put in place when clients may come, replaced when dead.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::socket::Socket;

/// A socket's file and whose it is: it has a temporary name until it is published.
pub struct SocketNode {
    path: PathBuf,
    temporary: PathBuf,
    dev: u64,
    ino: u64,
}

impl SocketNode {
    /// Listen under a temporary name, with mode 0600 from birth.
    ///
    /// # Errors
    /// `Busy` when somebody listens at `path`, `AlreadyExists` when something else has the name, `InvalidParams` when
    /// the path is too long.
    pub fn listen(path: &Path, backlog: i32) -> Result<(Self, Socket)> {
        refuse_occupied(path)?;
        let temporary = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
        let _ = std::fs::remove_file(&temporary);
        let socket = Socket::listen_unix(&temporary, backlog).map_err(|error| listen_error(path, &error))?;
        let meta = std::fs::metadata(&temporary).map_err(|error| Error::from_io(path.display(), &error))?;
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
