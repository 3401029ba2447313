//! A reactor that is kept busy: when replies that are put together leave, and what becomes of requests that came meanwhile.

mod nbd_support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nbd_support::*;
use ubi_engine::bdev::aio::Cache;
use ubi_engine::bdev::{Above, Bdev, BdevInfo, IoStat, LocalFuture, ZeroFlags};
use ubi_engine::error::Result;
use ubi_engine::sys::buf::{IoBuf, IoData};

const BLOCK: u64 = 4096;
/// Requests that are answered in one batch, and the one in the second half of them that waits for the client.
const REQUESTS: u64 = 32;
const WAITS: u64 = 20;
const HALF: u64 = 16;

/// A disk in memory whose read of one block goes on when it is told to.
struct Waiting {
    inner: Arc<dyn Bdev>,
    go_on: Mutex<Receiver<()>>,
    /// Whether it was told in time.
    told: Sender<bool>,
}

impl Bdev for Waiting {
    fn info(&self) -> &BdevInfo {
        self.inner.info()
    }

    fn try_read(&self, offset: u64, buf: &mut [u8], above: Option<&Above<'_>>) -> Option<Result<()>> {
        if offset == WAITS * BLOCK {
            let go_on = self.go_on.lock().expect("one reader");
            let told = go_on.recv_timeout(Duration::from_secs(5)).is_ok();
            self.told.send(told).expect("the test listens");
        }
        self.inner.try_read(offset, buf, above)
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        self.inner.read(offset, len)
    }

    fn write(&self, offset: u64, data: IoData, fua: bool) -> LocalFuture<'_, Result<()>> {
        self.inner.write(offset, data, fua)
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        self.inner.flush()
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        self.inner.write_zeroes(offset, len, flags)
    }

    fn discard(&self, offset: u64, len: u64, fua: bool) -> LocalFuture<'_, Result<()>> {
        self.inner.discard(offset, len, fua)
    }

    fn prefetch(&self, offset: u64, len: u64) -> LocalFuture<'_, Result<()>> {
        self.inner.prefetch(offset, len)
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        self.inner.close()
    }

    fn iostat(&self) -> &IoStat {
        self.inner.iostat()
    }
}

/// Export such a disk as "w": what tells it to go on, and what says whether that came in time.
fn export_waiting(server: &Server) -> (Sender<()>, Receiver<bool>) {
    let ((go_on, wait), (tell, told)) = (channel(), channel());
    server.export("w", Arc::new(Waiting { inner: server.malloc(512), go_on: Mutex::new(wait), told: tell }));
    (go_on, told)
}

/// Send a read of each of the first blocks, all of them at once.
fn send_requests(client: &mut Client) {
    let requests: Vec<u8> =
        (0..REQUESTS).flat_map(|block| client.request(client::READ, 0, block, block * BLOCK, BLOCK)).collect();
    client.stream.write_all(&requests).expect("all of them at once");
}

#[test]
fn a_client_with_nothing_to_do_gets_half_of_many_replies_while_the_rest_is_put_together() {
    for dialect in [Dialect::Simple, Dialect::Extended] {
        let server = Server::with_reactors(engines()[0], 1); // of two, both may be busy
        let (go_on, told) = export_waiting(&server);
        let mut client = server.connect("w", &Wish::new(dialect));
        send_requests(&mut client);
        for block in 0..HALF {
            assert_eq!(client.reply(block * BLOCK, BLOCK).cookie, block, "{dialect:?}");
        }
        go_on.send(()).expect("the disk waits");
        assert!(told.recv().expect("it has read"), "{dialect:?}: the first half came only with the second");
        for block in HALF..REQUESTS {
            assert_eq!(client.reply(block * BLOCK, BLOCK).cookie, block, "{dialect:?}");
        }
    }
}

#[test]
fn a_client_that_has_replies_left_to_take_gets_no_half_of_many() {
    let server = Server::with_reactors(engines()[0], 1);
    let (go_on, told) = export_waiting(&server);
    let mut client = server.connect("w", &Wish::new(Dialect::Simple));
    client.send(client::READ, 0, 99, 0, BLOCK, &[]);
    let mut first = vec![0; 16 + BLOCK as usize];
    let mut taker = client.stream.try_clone().expect("another descriptor");
    taker.read_exact(&mut first[..1]).expect("the first reply is here, and not taken");
    send_requests(&mut client);
    taker.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    std::thread::sleep(Duration::from_millis(200));
    taker.read_exact(&mut first[1..]).expect("the rest of it");
    let early = taker.read(&mut [0; 16]).map_err(|error| error.kind());
    assert!(matches!(early, Err(ErrorKind::WouldBlock)), "{early:?}: half a batch came before the disk went on");
    go_on.send(()).expect("the disk waits");
    assert!(told.recv().expect("it has read"));
    taker.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    for block in 0..REQUESTS {
        assert_eq!(client.reply(block * BLOCK, BLOCK).cookie, block);
    }
}

/// Its client has begun another one and left, all of it before the server looks.
#[test]
fn a_whole_large_write_is_carried_out_although_its_client_left_in_the_middle_of_the_next() {
    let (large, size) = (128 * KIB, SIZE);
    let server = Server::with_reactors(engines()[0], 1);
    let (go_on, told) = export_waiting(&server);
    server.export("cached", server.aio("cached", size, 512, Cache::Writeback));
    let mut client = server.connect("cached", &Wish::new(Dialect::Simple));
    client.write(0, &vec![1; large as usize]); // so that the next header comes alone
    let mut busy = server.connect("w", &Wish::new(Dialect::Simple));
    busy.send(client::READ, 0, 0, WAITS * BLOCK, BLOCK, &[]);
    std::thread::sleep(Duration::from_millis(50));
    let mut bytes = client.request(client::WRITE, 0, 1, large, large);
    bytes.extend(vec![2; large as usize]);
    bytes.extend(client.request(client::WRITE, 0, 2, 2 * large, large));
    client.stream.write_all(&bytes).expect("a socket holds so much");
    client.stream.shutdown(Shutdown::Write).expect("shutdown");
    go_on.send(()).expect("the disk waits");
    assert!(told.recv().expect("it has read"));
    let replied = client.reply(0, 0);
    assert_eq!((replied.cookie, replied.error), (1, 0));
    let mut witness = server.connect("cached", &Wish::new(Dialect::Simple));
    assert!(witness.read(large, large) == vec![2; large as usize]);
    assert!(witness.read(2 * large, large).iter().all(|&byte| byte == 0));
}
