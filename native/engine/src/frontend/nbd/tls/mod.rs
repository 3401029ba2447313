//! TLS for a listener: whether clients may or must use it, and by which credentials.
//!
//! - [`credentials`]: files to an OpenSSL context, checked when the listener is made and again when they change
//! - [`wire`]: TLS records on a socket that never blocks
//!
//! Source: NBD proto.md, "TLS support"; the file names are those of qemu's and nbdkit's x509 directories.

mod credentials;
mod wire;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use openssl::ssl::Ssl;

use crate::error::{Error, ErrorKind, Result};
use crate::events::{Events, Level};
use crate::reactor::sync::lock;
use credentials::{Loaded, Stamp};
pub use wire::{Step, TlsConnection};

/// How a listener speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// Clients that do not use it are refused everything (NBD: FORCEDTLS); otherwise it is up to them (SELECTIVETLS).
    pub required: bool,
    /// A directory with server-cert.pem and server-key.pem, with ca-cert.pem for `verify_peer`, and ca-crl.pem if any.
    pub certificates: Option<PathBuf>,
    /// Let in only clients whose certificate the CA has signed. Clients with a pre-shared key need none.
    pub verify_peer: bool,
    /// A file of `user:key` lines with the keys in hexadecimal, as psktool writes it.
    pub psk_file: Option<PathBuf>,
}

/// A listener's credentials; new connections get those that the files hold by then.
pub struct TlsServer {
    options: TlsOptions,
    /// The listener's address, for events.
    address: String,
    events: Option<Arc<Events>>,
    current: Mutex<(Stamp, Loaded)>,
}

impl TlsServer {
    /// Load and check the credentials.
    ///
    /// # Errors
    /// `NotFound` or `Permission` for a file that is not there or cannot be read; `InvalidParams` for one that is
    /// malformed, a certificate that has expired or is not valid yet, a key of another certificate, no credentials.
    pub fn load(options: TlsOptions, address: &str, events: Option<Arc<Events>>) -> Result<Self> {
        if options.certificates.is_none() && options.psk_file.is_none() {
            return Err(Error::new(ErrorKind::InvalidParams, "TLS needs certificates or pre-shared keys"));
        }
        let stamp = Stamp::of(&options);
        let loaded = Loaded::from_files(&options)?;
        Ok(Self { options, address: address.to_owned(), events, current: Mutex::new((stamp, loaded)) })
    }

    pub fn is_required(&self) -> bool {
        self.options.required
    }

    /// The server's side of a new connection. Reads the files again when they have changed; where they are damaged by
    /// now, the credentials that were good stay and operators are told. Blocks on the file system.
    ///
    /// # Errors
    /// `Internal`: OpenSSL could not make it.
    pub fn new_session(&self) -> Result<Ssl> {
        let stamp = Stamp::of(&self.options);
        let mut current = lock(&self.current);
        if current.0 != stamp {
            match Loaded::from_files(&self.options) {
                Ok(loaded) => {
                    current.1 = loaded;
                    self.tell(Level::Info, "TLS credentials were read again: they have changed".into());
                }
                Err(error) => {
                    self.tell(Level::Warning, format!("TLS credentials have changed and are not used: {error}"));
                }
            }
            current.0 = stamp;
        }
        current.1.session().map_err(|error| Error::new(ErrorKind::Internal, format!("TLS: {error}")))
    }

    /// Tell operators of something about this listener.
    pub fn tell(&self, level: Level, message: String) {
        if let Some(events) = &self.events {
            events.post(level, &self.address, message);
        }
    }
}
