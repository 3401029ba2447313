//! Credentials: from files to an OpenSSL context.

use std::collections::HashMap;
use std::fmt::Display;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openssl::asn1::Asn1Time;
use openssl::error::ErrorStack;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslVerifyMode, SslVersion,
};
use openssl::x509::store::{X509Lookup, X509StoreBuilder};
use openssl::x509::verify::X509VerifyFlags;
use openssl::x509::{X509, X509Ref};

use super::TlsOptions;
use crate::error::{Error, ErrorKind, Result};

const SERVER_CERTIFICATE: &str = "server-cert.pem";
const SERVER_KEY: &str = "server-key.pem";
const CA_CERTIFICATE: &str = "ca-cert.pem";
/// Certificates that the CA has taken back; optional.
const CA_REVOCATIONS: &str = "ca-crl.pem";

/// TLS 1.2 suites, authenticated encryption with forward secrecy. TLS 1.3 has its own, all good.
const CERTIFICATE_CIPHERS: &str = "ECDHE+AESGCM:ECDHE+CHACHA20";
/// TLS 1.2 suites of pre-shared keys; the ones with CBC are all that has forward secrecy beside CHACHA20.
const PSK_CIPHERS: &str = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256:\
                           PSK-AES256-GCM-SHA384:PSK-AES128-GCM-SHA256";
/// TLS 1.3 suites where there are pre-shared keys: a key from outside is bound to SHA-256, so no other can take one.
const PSK_CIPHERSUITES: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
/// Longest key of a pre-shared key file, bytes. Source: OpenSSL, PSK_MAX_PSK_LEN.
const PSK_MAX: usize = 256;

/// Which files the credentials are in, and in what state they were; equal stamps: nothing has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Stamp(Vec<Option<[i64; 5]>>);

impl Stamp {
    pub fn of(options: &TlsOptions) -> Self {
        Self(files(options).iter().map(|path| state_of(path)).collect())
    }
}

fn files(options: &TlsOptions) -> Vec<PathBuf> {
    let names = [SERVER_CERTIFICATE, SERVER_KEY, CA_CERTIFICATE, CA_REVOCATIONS];
    let certificates = options.certificates.iter().flat_map(|dir| names.map(|name| dir.join(name)));
    certificates.chain(options.psk_file.clone()).collect()
}

fn state_of(path: &Path) -> Option<[i64; 5]> {
    let meta = std::fs::metadata(path).ok()?;
    Some([
        meta.dev().cast_signed(),
        meta.ino().cast_signed(),
        meta.size().cast_signed(),
        meta.mtime(),
        meta.ctime_nsec(),
    ])
}

/// Credentials that were found good.
pub struct Loaded(SslContext);

impl Loaded {
    /// # Errors
    /// See [`super::TlsServer::load`].
    pub fn from_files(options: &TlsOptions) -> Result<Self> {
        let mut builder = new_builder().map_err(|error| Error::new(ErrorKind::Internal, format!("TLS: {error}")))?;
        let mut ciphers = Vec::new();
        if let Some(dir) = &options.certificates {
            add_certificate(&mut builder, dir)?;
            if options.verify_peer {
                add_ca(&mut builder, dir)?;
            }
            ciphers.push(CERTIFICATE_CIPHERS);
        }
        if let Some(path) = &options.psk_file {
            add_keys(&mut builder, Arc::new(read_keys(path)?));
            builder.set_ciphersuites(PSK_CIPHERSUITES).map_err(|error| invalid("TLS ciphers", error))?;
            ciphers.push(PSK_CIPHERS);
        }
        builder.set_cipher_list(&ciphers.join(":")).map_err(|error| invalid("TLS ciphers", error))?;
        Ok(Self(builder.build()))
    }

    pub fn session(&self) -> std::result::Result<Ssl, ErrorStack> {
        Ssl::new(&self.0)
    }
}

/// What does not depend on the credentials: TLS 1.2 at least, and nothing is resumed, so that every connection proves anew
/// who it is.
fn new_builder() -> std::result::Result<SslContextBuilder, ErrorStack> {
    let mut builder = SslContextBuilder::new(SslMethod::tls_server())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_options(
        SslOptions::NO_TICKET
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_COMPRESSION
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_num_tickets(0)?;
    // To OpenSSL a pre-shared key is a session, which it takes from no other context where clients are verified.
    builder.set_session_id_context(b"ubi_rpc")?;
    Ok(builder)
}

fn invalid(what: impl Display, problem: impl Display) -> Error {
    Error::new(ErrorKind::InvalidParams, format!("{what}: {problem}"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::from_io(path.display(), &error))
}

fn add_certificate(builder: &mut SslContextBuilder, dir: &Path) -> Result<()> {
    let path = dir.join(SERVER_CERTIFICATE);
    let chain = read_certificates(&path)?;
    let failed = |error: ErrorStack| invalid(path.display(), error);
    let (own, others) = chain.split_first().ok_or_else(|| invalid(path.display(), "holds no certificate"))?;
    builder.set_certificate(own).map_err(failed)?;
    for other in others {
        builder.add_extra_chain_cert(other.clone()).map_err(failed)?;
    }
    let key_path = dir.join(SERVER_KEY);
    let key = read_key(&key_path)?;
    if !own.public_key().map_err(failed)?.public_eq(&key) {
        return Err(invalid(key_path.display(), format_args!("is not the key of {}", path.display())));
    }
    builder.set_private_key(&key).map_err(|error| invalid(key_path.display(), error))
}

/// Let in those clients alone whose certificate the CA has signed and not taken back.
fn add_ca(builder: &mut SslContextBuilder, dir: &Path) -> Result<()> {
    let path = dir.join(CA_CERTIFICATE);
    let failed = |error: ErrorStack| invalid(path.display(), error);
    let mut store = X509StoreBuilder::new().map_err(failed)?;
    for certificate in read_certificates(&path)? {
        builder.add_client_ca(&certificate).map_err(failed)?;
        store.add_cert(certificate).map_err(failed)?;
    }
    let revocations = dir.join(CA_REVOCATIONS);
    if revocations.exists() {
        let failed = |error: ErrorStack| invalid(revocations.display(), error);
        let lookup = store.add_lookup(X509Lookup::file()).map_err(failed)?;
        lookup.load_crl_file(&revocations, openssl::ssl::SslFiletype::PEM).map_err(failed)?;
        store.set_flags(X509VerifyFlags::CRL_CHECK).map_err(failed)?;
    }
    builder.set_verify_cert_store(store.build()).map_err(failed)?;
    builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    Ok(())
}

/// The certificates of a PEM file, each of them valid today.
fn read_certificates(path: &Path) -> Result<Vec<X509>> {
    let certificates =
        X509::stack_from_pem(&read(path)?).map_err(|_| invalid(path.display(), "holds no certificate in PEM form"))?;
    if certificates.is_empty() {
        return Err(invalid(path.display(), "holds no certificate in PEM form"));
    }
    for certificate in &certificates {
        check_dates(certificate).map_err(|problem| invalid(path.display(), problem))?;
    }
    Ok(certificates)
}

fn check_dates(certificate: &X509Ref) -> std::result::Result<(), String> {
    let now = Asn1Time::days_from_now(0).map_err(|error| error.to_string())?;
    if certificate.not_after() < now {
        return Err(format!("the certificate has expired on {}", certificate.not_after()));
    }
    if certificate.not_before() > now {
        return Err(format!("the certificate is not valid before {}", certificate.not_before()));
    }
    Ok(())
}

fn read_key(path: &Path) -> Result<PKey<Private>> {
    // An encrypted key would have OpenSSL ask the terminal for its passphrase; the callback says that there is none.
    PKey::private_key_from_pem_callback(&read(path)?, |_| Ok(0))
        .map_err(|_| invalid(path.display(), "holds no private key in PEM form without a passphrase"))
}

/// Pre-shared keys by user.
type Keys = HashMap<Vec<u8>, Vec<u8>>;

fn read_keys(path: &Path) -> Result<Keys> {
    let text = read(path)?;
    let mut keys = Keys::new();
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        // The line itself is not repeated: it is a secret.
        let (user, key) = parse_key(line).ok_or_else(|| {
            let number = number + 1;
            invalid(path.display(), format_args!("line {number} is not USER:KEY with a key of hexadecimal digits"))
        })?;
        keys.insert(user, key);
    }
    if keys.is_empty() { Err(invalid(path.display(), "holds no keys")) } else { Ok(keys) }
}

fn parse_key(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let colon = line.iter().rposition(|&byte| byte == b':')?;
    let (user, digits) = (&line[..colon], &line[colon + 1..]);
    let (pairs, rest) = digits.as_chunks::<2>();
    let is_sound = !user.is_empty() && !pairs.is_empty() && rest.is_empty() && pairs.len() <= PSK_MAX;
    let byte = |pair: &[u8; 2]| {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
    };
    is_sound.then(|| pairs.iter().map(byte).collect::<Option<Vec<u8>>>().map(|key| (user.to_vec(), key)))?
}

/// Serve TLS 1.2's PSK suites, and TLS 1.3's external keys, for which OpenSSL asks the same callback.
fn add_keys(builder: &mut SslContextBuilder, keys: Arc<Keys>) {
    builder.set_psk_server_callback(move |_, identity, target| {
        let key = identity.and_then(|identity| keys.get(identity));
        // No key for this user, or none that fits: 0 refuses.
        let Some(room) = key.and_then(|key| target.get_mut(..key.len()).map(|room| (room, key))) else { return Ok(0) };
        room.0.copy_from_slice(room.1);
        Ok(room.1.len())
    });
}
