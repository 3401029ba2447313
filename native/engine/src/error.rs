//! Errors: a kind for control flow, an errno for the wire, a message for people.

use std::fmt;
use std::io;

/// Why an operation failed; the same list as `ErrorKind` in `ubi_rpc/errors.py`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    InvalidParams,
    InvalidState,
    NotFound,
    AlreadyExists,
    Busy,
    NoSpace,
    Permission,
    Unsupported,
    Corrupt,
    Io,
    Timeout,
    Cancelled,
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the Python list.
    pub const ALL: [ErrorKind; 13] = [
        ErrorKind::InvalidParams,
        ErrorKind::InvalidState,
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::Busy,
        ErrorKind::NoSpace,
        ErrorKind::Permission,
        ErrorKind::Unsupported,
        ErrorKind::Corrupt,
        ErrorKind::Io,
        ErrorKind::Timeout,
        ErrorKind::Cancelled,
        ErrorKind::Internal,
    ];

    /// The name that both languages use.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorKind::InvalidParams => "invalid_params",
            ErrorKind::InvalidState => "invalid_state",
            ErrorKind::NotFound => "not_found",
            ErrorKind::AlreadyExists => "already_exists",
            ErrorKind::Busy => "busy",
            ErrorKind::NoSpace => "no_space",
            ErrorKind::Permission => "permission",
            ErrorKind::Unsupported => "unsupported",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Io => "io",
            ErrorKind::Timeout => "timeout",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Internal => "internal",
        }
    }

    fn default_errno(self) -> i32 {
        match self {
            ErrorKind::InvalidParams | ErrorKind::Corrupt => libc::EINVAL,
            ErrorKind::InvalidState | ErrorKind::Permission => libc::EPERM,
            ErrorKind::NotFound => libc::ENODEV,
            ErrorKind::AlreadyExists => libc::EEXIST,
            ErrorKind::Busy => libc::EBUSY,
            ErrorKind::NoSpace => libc::ENOSPC,
            ErrorKind::Unsupported => libc::EOPNOTSUPP,
            ErrorKind::Io | ErrorKind::Internal => libc::EIO,
            ErrorKind::Timeout => libc::ETIMEDOUT,
            ErrorKind::Cancelled => libc::ECANCELED,
        }
    }
}

/// A failed operation. Cheap to clone, because one failed fetch or round answers many requests.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    errno: i32,
    message: std::sync::Arc<str>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with its kind's usual errno.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, errno: kind.default_errno(), message: message.into().into() }
    }

    /// The same with an errno of its own (positive).
    pub fn with_errno(kind: ErrorKind, errno: i32, message: impl Into<String>) -> Self {
        Self { kind, errno, message: message.into().into() }
    }

    /// A failed system call: what was tried, and what the kernel said.
    pub fn from_io(what: impl fmt::Display, source: &io::Error) -> Self {
        let errno = source.raw_os_error().unwrap_or(libc::EIO);
        let kind = match errno {
            libc::ENOENT => ErrorKind::NotFound,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => ErrorKind::NoSpace,
            libc::EACCES | libc::EPERM | libc::EROFS => ErrorKind::Permission,
            libc::EISDIR => ErrorKind::InvalidParams,
            libc::EBUSY | libc::ETXTBSY => ErrorKind::Busy,
            libc::EOPNOTSUPP => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self { kind, errno, message: format!("{what}: {source}").into() }
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The positive errno that frontends translate.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
