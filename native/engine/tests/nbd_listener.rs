//! A listener is closed to clients until its exports are there: a client that reconnects never meets "unknown export".

mod nbd_support;

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nbd_support::client::*;
use nbd_support::*;
use ubi_engine::bdev::malloc::MallocBdev;
use ubi_engine::engine::{Engine, EngineOptions};
use ubi_engine::error::ErrorKind;
use ubi_engine::frontend::nbd::listener::{ListenOptions, NbdListener};

fn engine() -> Engine {
    let options = EngineOptions { cpus: Vec::new(), reactors: 1, io_engine: None, memory_budget_bytes: 64 << 20 };
    Engine::start(&options).expect("engine")
}

fn offer(listener: &NbdListener, name: &str) {
    let bdev = Arc::new(MallocBdev::new(name, SIZE / 512, 512).expect("malloc"));
    listener.add_export(export_options(name, bdev)).expect("add");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("read");
    entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text")).collect()
}

#[test]
fn a_dead_socket_stays_dead_until_the_exports_are_there() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).expect("bind")); // the node stays, as after a crash
    let engine = engine();
    let listener = engine.listen_nbd_unix(&path, ListenOptions::default()).expect("listen");
    let refused = UnixStream::connect(&path).expect_err("dead");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    offer(&listener, "one");
    offer(&listener, "two");
    listener.open().expect("open");
    listener.open().expect("open again");
    assert_eq!(names(dir.path()), ["s"]);
    for export in ["one", "two"] {
        Client::connect(&path, export, &Wish::new(Dialect::Structured)).read(0, 512);
    }
    listener.close();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_listener_that_was_never_opened_leaves_the_path_as_it_was() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("s");
    drop(UnixListener::bind(&path).expect("bind"));
    let engine = engine();
    let listener = engine.listen_nbd_unix(&path, ListenOptions::default()).expect("listen");
    offer(&listener, "one");
    assert_eq!(names(dir.path()).len(), 2);
    listener.close();
    assert_eq!(names(dir.path()), ["s"]);
}

#[test]
fn a_path_that_another_took_in_the_meantime_is_not_taken_from_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("s");
    let engine = engine();
    let listener = engine.listen_nbd_unix(&path, ListenOptions::default()).expect("listen");
    let other = UnixListener::bind(&path).expect("bind");
    assert_eq!(listener.open().expect_err("taken").kind(), ErrorKind::Busy);
    listener.close();
    UnixStream::connect(&path).expect("the other one is still there");
    drop(other);
}

#[test]
fn clients_of_a_port_wait_for_the_exports() {
    let engine = engine();
    let listener = engine.listen_nbd_tcp("127.0.0.1", 0, ListenOptions::default()).expect("listen");
    let mut early = TcpStream::connect(listener.address()).expect("connect");
    early.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    let mut greeting = [0; 18];
    early.read_exact(&mut greeting).expect_err("nobody answers yet");
    offer(&listener, "one");
    listener.open().expect("open");
    early.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    early.read_exact(&mut greeting).expect("answered");
    assert_eq!(&greeting[..8], b"NBDMAGIC");
}
