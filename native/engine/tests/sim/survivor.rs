//! A disk that survived a cut, opened by the production code and read whole. Everything answers at once.

use std::cell::RefCell;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use ubi_engine::bdev::ubi::examine::Request;
use ubi_engine::bdev::ubi::host::Host;
use ubi_engine::bdev::ubi::repair::{self, Choice};
use ubi_engine::bdev::ubi::{self, UbiBdev, UbiOptions};
use ubi_engine::bdev::{BaseIdentity, Bdev, BdevInfo, IoStat, LocalFuture, ZeroFlags};
use ubi_engine::error::{Error, Result};
use ubi_engine::image::Image;
use ubi_engine::reactor::exec::Executor;
use ubi_engine::sys::buf::{IoBuf, IoData};

use super::host::SimHost;
use super::image::SimImage;
use super::setting::{Setting, slots};
use super::tags::{SECTOR, Tag, mix};

/// A base on which every operation completes when it is submitted.
pub struct Disk {
    info: BdevInfo,
    identity: BaseIdentity,
    tags: Mutex<Vec<Tag>>,
    stat: IoStat,
}

impl Disk {
    fn tags(&self) -> MutexGuard<'_, Vec<Tag>> {
        self.tags.lock().expect("not poisoned")
    }

    fn range(&self, offset: u64, len: u64) -> Range<usize> {
        assert!(offset + len <= self.info.size_bytes(), "{len} at {offset} inside the base");
        slots(offset, len)
    }
}

/// What a disk that survived is opened on, and how.
#[derive(Clone)]
pub struct Machine {
    pub host: Arc<SimHost>,
    /// bdev_ubi has had the volume since it was closed.
    pub adopts: bool,
    /// A sync has failed before the cut: an open may be refused until a repair.
    pub may_be_failed: bool,
    /// A repair that gives up what has no header is under way, or has been carried out.
    pub is_dropping: bool,
    /// The map may be lost: an open that is refused for that gives up what only the map knew.
    pub lacks_map: bool,
    /// Stripes whose headers the map said to be durable when the cut came, as bits.
    pub durable: u32,
    /// The epoch whose marking the map said to be durable then.
    pub marked_epoch: Option<u64>,
}

impl Machine {
    /// A number for all that an open depends on.
    pub fn hash(&self) -> u64 {
        mix(self.host.hash()
            ^ u64::from(self.adopts) << 1
            ^ u64::from(self.may_be_failed)
            ^ u64::from(self.is_dropping) << 2
            ^ u64::from(self.lacks_map) << 3
            ^ u64::from(self.durable) << 8
            ^ self.marked_epoch.map_or(0, |epoch| mix(epoch + 1)))
    }
}

/// How to look at survivors of one setting.
pub struct Survivors {
    setting: Arc<Setting>,
    disk: Arc<Disk>,
    image: Arc<SimImage>,
}

/// A survivor as it was read.
pub struct Opened {
    pub content: Vec<Tag>,
    /// A failed sync was remembered, and a repair had to be made before.
    pub is_repaired: bool,
    /// As `UbiStatus` has it.
    pub recovered: &'static str,
    volume: Arc<UbiBdev>,
}

impl Survivors {
    pub fn new(setting: &Arc<Setting>) -> Self {
        let (info, identity) = (setting.info(), setting.identity());
        let disk = Disk { info, identity, tags: Mutex::default(), stat: IoStat::default() };
        Self { setting: Arc::clone(setting), disk: Arc::new(disk), image: SimImage::new(setting, None) }
    }

    /// Open a disk by the production code and read all of it. Needs an entered executor.
    ///
    /// # Errors
    /// What the overlay said: every survivor has to open and to be readable.
    pub fn read(&self, disk: &[Tag], machine: &Machine) -> std::result::Result<Opened, String> {
        self.disk.tags().clear();
        self.disk.tags().extend_from_slice(disk);
        let host = machine.host.copy(None);
        let mut is_repaired = false;
        let mut opened = self.open(&host, machine.adopts, false);
        if machine.lacks_map && opened.as_ref().is_err_and(|error| error.message().contains("volatile map")) {
            opened = self.open(&host, machine.adopts, true);
        }
        if machine.may_be_failed && opened.as_ref().is_err_and(is_sync_failure) {
            at_once(repair(&*self.disk, &host, &self.setting))
                .map_err(|error| format!("a survivor of a failed sync cannot be repaired: {error}"))?;
            is_repaired = true;
            opened = self.open(&host, machine.adopts, false);
        }
        let volume = opened.map_err(|error| format!("a survivor does not open: {error}"))?;
        let bytes = at_once(volume.read(0, self.setting.volume * SECTOR))
            .map_err(|error| format!("a survivor cannot be read: {error}"))?;
        let recovered = volume.status().recovered;
        Ok(Opened { content: Tag::all_of(&bytes), is_repaired, recovered, volume })
    }

    /// Whether the production code refuses a disk, and writes nothing.
    ///
    /// # Errors
    /// It opens, or it is refused and was written to.
    pub fn refuses(&self, disk: &[Tag], machine: &Machine) -> std::result::Result<(), String> {
        self.disk.tags().clear();
        self.disk.tags().extend_from_slice(disk);
        let opened = self.open(&machine.host.copy(None), machine.adopts, false);
        match opened {
            Ok(volume) => Err(format!("is opened, recovered by {:?}", volume.status().recovered)),
            Err(_) if self.disk.tags()[..] == *disk => Ok(()),
            Err(error) => Err(format!("is written to and refused: {error}")),
        }
    }

    fn open(&self, host: &Arc<SimHost>, adopts: bool, discard_unpublished: bool) -> Result<Arc<UbiBdev>> {
        let base: Arc<dyn Bdev> = Arc::clone(&self.disk) as Arc<dyn Bdev>;
        let image: Arc<dyn Image> = Arc::clone(&self.image) as Arc<dyn Image>;
        let options = self.setting.options(Arc::clone(host), adopts);
        let options = UbiOptions { copy_on_read: false, discard_unpublished, ..options };
        at_once(ubi::open(base, image, options))
    }

    /// Close what was opened, and give the disk that it leaves. Needs an entered executor.
    ///
    /// # Errors
    /// What the overlay said.
    pub fn close(&self, opened: Opened, exec: &Executor) -> std::result::Result<Vec<Tag>, String> {
        let (volume, ended) = (opened.volume, Rc::new(RefCell::new(None)));
        let answer = Rc::clone(&ended);
        exec.spawn(async move { *answer.borrow_mut() = Some(volume.close().await) });
        while exec.has_ready() {
            exec.run_ready();
        }
        let ended = ended.borrow_mut().take().ok_or("a survivor does not close")?;
        ended.map_err(|error| format!("a survivor cannot be closed: {error}"))?;
        Ok(self.disk.tags().clone())
    }
}

/// Whether an open was refused because of a failed sync.
pub fn is_sync_failure(error: &Error) -> bool {
    error.message().contains("failed to flush")
}

/// Repair a volume after a failed sync, as the setting's operator wants it.
///
/// # Errors
/// What the repair said.
pub async fn repair(base: &dyn Bdev, host: &Arc<SimHost>, setting: &Setting) -> Result<()> {
    let choice = if setting.keeps { Choice::Keep } else { Choice::Drop };
    let request = Request { base: "base".into(), boot_id: host.boot_id(), ..Request::default() };
    let plan = repair::plan(base, &**host, &request, choice).await?;
    repair::apply(base, &**host, &request, choice, plan.token).await
}

/// The value of a future that does not wait.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("an operation waits, and everything answers at once"),
    }
}

fn ready<T: 'static>(value: T) -> LocalFuture<'static, T> {
    Box::pin(std::future::ready(value))
}

impl Bdev for Disk {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        let mut buf = IoBuf::new(len);
        Tag::fill_all(&self.tags()[self.range(offset, len as u64)], &mut buf);
        ready(Ok(buf))
    }

    fn write(&self, offset: u64, data: IoData, _fua: bool) -> LocalFuture<'_, Result<()>> {
        let range = self.range(offset, data.len() as u64);
        self.tags()[range].copy_from_slice(&Tag::all_of(&data));
        ready(Ok(()))
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        ready(Ok(()))
    }

    fn write_zeroes(&self, offset: u64, len: u64, _flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        let range = self.range(offset, len);
        self.tags()[range].fill(Tag::ZERO);
        ready(Ok(()))
    }

    fn discard(&self, _offset: u64, _len: u64, _fua: bool) -> LocalFuture<'_, Result<()>> {
        ready(Ok(()))
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> LocalFuture<'_, Result<()>> {
        ready(Ok(()))
    }

    fn identity(&self) -> Option<BaseIdentity> {
        Some(self.identity)
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        ready(Ok(()))
    }

    fn iostat(&self) -> &IoStat {
        &self.stat
    }
}
