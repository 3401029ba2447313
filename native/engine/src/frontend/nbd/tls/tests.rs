//! The handshake of both sides in memory: who is let in by which credentials.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use openssl::asn1::Asn1Time;
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, Private};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::{X509, X509NameBuilder};

use super::*;
use crate::sys::socket::Socket;

struct Signed {
    certificate: X509,
    key: PKey<Private>,
}

/// A certificate by `issuer`, or by itself, valid from `from` to `to` days from now.
fn sign(name: &str, issuer: Option<&Signed>, (from, to): (i64, i64)) -> Signed {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("curve");
    let key = PKey::from_ec_key(EcKey::generate(&group).expect("key")).expect("key");
    let mut subject = X509NameBuilder::new().expect("name");
    subject.append_entry_by_nid(Nid::COMMONNAME, name).expect("name");
    let subject = subject.build();
    let mut builder = X509::builder().expect("builder");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let day = |days: i64| Asn1Time::from_unix(now.cast_signed() + days * 86400).expect("time");
    builder.set_version(2).expect("version");
    builder.set_subject_name(&subject).expect("subject");
    builder.set_issuer_name(issuer.map_or(&*subject, |issuer| issuer.certificate.subject_name())).expect("issuer");
    builder.set_pubkey(&key).expect("key");
    builder.set_not_before(&day(from)).expect("time");
    builder.set_not_after(&day(to)).expect("time");
    if issuer.is_none() {
        let ca = openssl::x509::extension::BasicConstraints::new().critical().ca().build().expect("extension");
        builder.append_extension(ca).expect("extension");
    }
    builder.sign(issuer.map_or(&key, |issuer| &issuer.key), MessageDigest::sha256()).expect("sign");
    Signed { certificate: builder.build(), key }
}

fn write_server(dir: &Path, ca: &Signed, server: &Signed) {
    let write = |name: &str, pem: Vec<u8>| std::fs::write(dir.join(name), pem).expect("write");
    write("ca-cert.pem", ca.certificate.to_pem().expect("pem"));
    write("server-cert.pem", server.certificate.to_pem().expect("pem"));
    write("server-key.pem", server.key.private_key_to_pem_pkcs8().expect("pem"));
}

fn options(dir: &Path) -> TlsOptions {
    TlsOptions { required: true, certificates: Some(dir.to_owned()), verify_peer: true, psk_file: None }
}

/// Let `client` shake hands with the server; whether both were content, and what the client read afterwards.
fn meet(server: &TlsServer, client: Option<&Signed>, version: SslVersion) -> (bool, Vec<u8>) {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    theirs.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    ours.set_nonblocking(true).expect("nonblocking");
    let socket = Arc::new(Socket::from(std::os::fd::OwnedFd::from(ours)));
    let mut connector = SslConnector::builder(SslMethod::tls_client()).expect("connector");
    connector.set_verify(SslVerifyMode::NONE);
    connector.set_min_proto_version(Some(version)).expect("version");
    connector.set_max_proto_version(Some(version)).expect("version");
    if let Some(client) = client {
        connector.set_certificate(&client.certificate).expect("certificate");
        connector.set_private_key(&client.key).expect("key");
    }
    let connector = connector.build();
    let other = std::thread::spawn(move || {
        let mut answer = Vec::new();
        let mut stream = match connector.connect("server", theirs) {
            Ok(stream) => stream,
            Err(_) => return (false, answer),
        };
        // TLS 1.3: only what the server says next shows whether it was content with the certificate.
        let is_content = std::io::Read::read_to_end(&mut stream, &mut answer).is_ok();
        (is_content, answer)
    });
    let mut tls = TlsConnection::new(server.new_session().expect("session"), socket).expect("connection");
    let outcome = loop {
        let step = tls.accept();
        while !tls.flush().unwrap_or(true) {}
        match step {
            Ok(Step::NeedsInput) if !other.is_finished() => std::thread::yield_now(),
            step => break step,
        }
    };
    if matches!(outcome, Ok(Step::Done)) {
        let data = vec![7; 300_000];
        let mut sent = 0;
        while sent < data.len() {
            sent += tls.send(&data[sent..]).unwrap_or(0);
        }
        while !tls.flush().expect("flush") {}
        tls.close();
        while tls.has_unsent() {
            tls.flush().expect("flush");
        }
    }
    drop(tls);
    let (is_content, answer) = other.join().expect("the client");
    (matches!(outcome, Ok(Step::Done)) && is_content, answer)
}

#[test]
fn only_clients_of_the_authority_are_let_in_and_everything_arrives() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (ca, other) = (sign("ca", None, (-1, 1)), sign("ca", None, (-1, 1)));
    write_server(dir.path(), &ca, &sign("server", Some(&ca), (-1, 1)));
    let server = TlsServer::load(options(dir.path()), "test", None).expect("load");
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let good = sign("client", Some(&ca), (-1, 1));
        let (is_let_in, answer) = meet(&server, Some(&good), version);
        assert!(is_let_in && answer == vec![7; 300_000]);
        assert!(!meet(&server, None, version).0, "no certificate");
        assert!(!meet(&server, Some(&sign("client", Some(&other), (-1, 1))), version).0, "another authority");
        assert!(!meet(&server, Some(&sign("client", Some(&ca), (-2, -1))), version).0, "expired");
    }
    let open = TlsServer::load(TlsOptions { verify_peer: false, ..options(dir.path()) }, "test", None).expect("load");
    assert!(meet(&open, None, SslVersion::TLS1_3).0);
}

#[test]
fn changed_files_count_for_the_next_connection_unless_they_are_damaged() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (old, new) = (sign("ca", None, (-1, 1)), sign("ca", None, (-1, 1)));
    let (old_client, new_client) = (sign("client", Some(&old), (-1, 1)), sign("client", Some(&new), (-1, 1)));
    write_server(dir.path(), &old, &sign("server", Some(&old), (-1, 1)));
    let events = Events::new().expect("events");
    let server = TlsServer::load(options(dir.path()), "test", Some(Arc::clone(&events))).expect("load");
    let enters = |client: &Signed| meet(&server, Some(client), SslVersion::TLS1_3).0;
    assert!(enters(&old_client) && !enters(&new_client));
    std::fs::write(dir.path().join("server-key.pem"), "no key").expect("write");
    assert!(enters(&old_client), "what was good stays");
    assert!(enters(&old_client));
    let told: Vec<Level> = events.drain().iter().map(|event| event.level).collect();
    assert_eq!(told, [Level::Warning], "once for each change");
    write_server(dir.path(), &new, &sign("server", Some(&new), (-1, 1)));
    assert!(enters(&new_client) && !enters(&old_client));
}

#[test]
fn dates_are_looked_at_when_credentials_are_loaded() {
    let dir = tempfile::tempdir().expect("tempdir");
    let ca = sign("ca", None, (-1, 1));
    let problem = |ca: &Signed, dates: (i64, i64)| {
        write_server(dir.path(), ca, &sign("server", Some(ca), dates));
        TlsServer::load(options(dir.path()), "test", None).err().map(|error| error.message().to_owned())
    };
    assert_eq!(problem(&ca, (-1, 1)), None);
    assert!(
        problem(&ca, (-2, -1)).is_some_and(|text| text.contains("server-cert.pem: the certificate has expired on"))
    );
    assert!(
        problem(&ca, (1, 2)).is_some_and(|text| text.contains("server-cert.pem: the certificate is not valid before"))
    );
    let expired = sign("ca", None, (-2, -1));
    assert!(
        problem(&expired, (-1, 1)).is_some_and(|text| text.contains("ca-cert.pem: the certificate has expired on"))
    );
    let none = TlsOptions { certificates: None, ..options(dir.path()) };
    assert_eq!(TlsServer::load(none, "test", None).err().map(|error| error.kind()), Some(ErrorKind::InvalidParams));
}
