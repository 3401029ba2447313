//! The step from plaintext to TLS on a real socket: what was sent too early counts for nothing.

mod nbd_support;

use std::io::{Read, Write};
use std::time::Duration;

use nbd_support::client::*;
use nbd_support::*;
use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVerifyMode};
use std::os::unix::net::UnixStream;
use ubi_engine::frontend::nbd::listener::NbdListener;
use ubi_engine::frontend::nbd::tls::TlsOptions;

const KEY: [u8; 32] = [0x5a; 32];

/// A listener beside the server's own that wants TLS with a pre-shared key.
fn listen(server: &Server, required: bool) -> (NbdListener, std::path::PathBuf) {
    let (keys, path) = (server.dir.path().join("keys"), server.dir.path().join(format!("tls-{required}")));
    std::fs::write(&keys, format!("alice:{}\n", "5a".repeat(32))).expect("keys");
    let tls = TlsOptions { required, certificates: None, verify_peer: false, psk_file: Some(keys) };
    let listener = server.listen(&path, tls);
    listener.add_export(export_options("m", server.malloc(512))).expect("export");
    listener.open().expect("open");
    (listener, path)
}

/// The greeting, the client's flags, and STARTTLS granted.
fn granted(path: &std::path::Path) -> UnixStream {
    let mut stream = greeted(path);
    stream.write_all(&3u32.to_be_bytes()).expect("flags");
    assert_eq!(ask(&mut stream, OPT_STARTTLS, b""), [(REP_ACK, Vec::new())]);
    stream
}

fn encrypt(stream: UnixStream) -> SslStream<UnixStream> {
    let mut connector = SslConnector::builder(SslMethod::tls_client()).expect("connector");
    connector.set_verify(SslVerifyMode::NONE);
    connector.set_psk_client_callback(|_, _, identity, key| {
        identity[..6].copy_from_slice(b"alice\0");
        key[..KEY.len()].copy_from_slice(&KEY);
        Ok(KEY.len())
    });
    connector.build().connect("server", stream).expect("TLS")
}

#[test]
fn what_comes_in_one_piece_with_starttls_ends_the_connection() {
    on_every_engine(|server| {
        for required in [false, true] {
            let (_listener, path) = listen(server, required);
            for early in [option(OPT_STRUCTURED_REPLY, b""), option(OPT_GO, &go_data("m", &[])), vec![0x16]] {
                let mut stream = greeted(&path);
                let bytes = [3u32.to_be_bytes().to_vec(), option(OPT_STARTTLS, b""), early].concat();
                stream.write_all(&bytes).expect("send");
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer);
                assert_eq!(answer, b"", "not even the answer to STARTTLS");
            }
            assert!(encrypted_go(&path), "the listener lives");
        }
    });
}

/// Whether an encrypted client is let in and reads zeros.
fn encrypted_go(path: &std::path::Path) -> bool {
    let mut tls = encrypt(granted(path));
    tls.write_all(&option(OPT_GO, &go_data("m", &[]))).expect("go");
    let mut answers = Vec::new();
    while !answers.ends_with(&[0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0]) {
        let mut byte = [0];
        tls.read_exact(&mut byte).expect("an answer");
        answers.push(byte[0]);
    }
    let mut read = 0x2560_9513u32.to_be_bytes().to_vec();
    read.extend([0; 4]);
    read.extend(7u64.to_be_bytes());
    read.extend([0; 8]);
    read.extend(1_000_000u32.to_be_bytes());
    tls.write_all(&read).expect("read");
    let mut reply = vec![1; 16 + 1_000_000];
    tls.read_exact(&mut reply).expect("a reply");
    reply[16..].iter().all(|&byte| byte == 0)
}

#[test]
fn plaintext_after_starttls_and_half_handshakes_end_alone() {
    on_every_engine(|server| {
        let (_listener, path) = listen(server, true);
        let hello = [&[0x16, 3, 1, 0, 100, 1, 0, 0, 96][..], &[0; 50]].concat();
        for sent in
            [option(OPT_GO, &go_data("m", &[])), b"GET / HTTP/1.0\r\n\r\n".to_vec(), hello.clone(), vec![0; 70_000]]
        {
            let mut stream = granted(&path);
            let _ = stream.write_all(&sent);
            stream.shutdown(std::net::Shutdown::Write).expect("half-close");
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.is_empty() || answer[0] == 0x15, "nothing but an alert of TLS: {answer:?}");
        }
        for end in 0..hello.len() {
            granted(&path).write_all(&hello[..end]).expect("send");
        }
        assert!(encrypted_go(&path));
    });
}

#[test]
fn nothing_is_told_before_tls_where_that_is_required() {
    on_every_engine(|server| {
        let (_listener, path) = listen(server, true);
        const TLS_REQD: u32 = 0x8000_0005;
        let mut stream = greeted(&path);
        stream.write_all(&3u32.to_be_bytes()).expect("flags");
        for number in [OPT_LIST, OPT_STRUCTURED_REPLY, OPT_EXTENDED_HEADERS] {
            assert_eq!(ask(&mut stream, number, b"")[0].0, TLS_REQD);
        }
        for name in ["m", "absent", ""] {
            assert_eq!(ask(&mut stream, OPT_GO, &go_data(name, &[]))[0].0, TLS_REQD);
            assert_eq!(ask(&mut stream, OPT_SET_META_CONTEXT, &meta_data(name, &[]))[0].0, TLS_REQD);
        }
        stream.write_all(&option(OPT_EXPORT_NAME, b"m")).expect("send");
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        assert!(encrypted_go(&path));
    });
}
