//! Storage operations that a task can wait for, whatever carries them out.
//!
//! An operation owns its memory and its file until the kernel is done with them: the driver keeps the
//! [`Op`] until completion, also when the waiting task is gone.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::buf::{IoBuf, IoData};
use crate::sys::file::{FallocateMode, StorageFile};
pub use crate::sys::op::{Completion, Op, run_blocking};
use crate::sys::sg_list::SgList;

/// Where a driver leaves a completion and finds whom to wake.
#[derive(Default)]
pub struct Slot {
    done: Cell<Option<Completion>>,
    waker: RefCell<Option<Waker>>,
}

impl Slot {
    pub fn complete(&self, completion: Completion) {
        self.done.set(Some(completion));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Carries out operations for one thread.
pub trait Driver {
    /// Start `op`; call `slot.complete` on this thread when it has ended, once.
    fn submit(&self, op: Op, slot: Rc<Slot>);
}

thread_local! {
    static DRIVER: RefCell<Option<Rc<dyn Driver>>> = const { RefCell::new(None) };
}

/// Removes the thread's driver when dropped.
pub struct Installed(());

impl Drop for Installed {
    fn drop(&mut self) {
        DRIVER.with_borrow_mut(|driver| *driver = None);
    }
}

/// Make `driver` carry out this thread's operations.
pub fn install(driver: Rc<dyn Driver>) -> Installed {
    DRIVER.with_borrow_mut(|current| *current = Some(driver));
    Installed(())
}

/// Start `op` and wait for it.
///
/// # Panics
/// When the thread has no driver.
pub async fn submit(op: Op) -> Completion {
    let slot = Rc::new(Slot::default());
    let driver = DRIVER.with_borrow(|driver| driver.clone()).expect("called on a reactor's thread");
    driver.submit(op, Rc::clone(&slot));
    poll_fn(move |context| match slot.done.take() {
        Some(completion) => Poll::Ready(completion),
        None => {
            *slot.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        }
    })
    .await
}

/// Read exactly `len` bytes at `offset`; a file that ends before is an error (INV-7).
pub async fn read_exact(file: &Arc<StorageFile>, offset: u64, len: usize) -> Result<IoBuf> {
    let mut buf = IoBuf::new(len);
    let mut filled = 0;
    while filled < len {
        let op = Op::Read { file: Arc::clone(file), offset: offset + filled as u64, buf, start: filled };
        let completion = submit(op).await;
        let Op::Read { buf: returned, .. } = completion.op else { unreachable!("a driver returns the operation") };
        buf = returned;
        match completion.result {
            Ok(0) => {
                let message = format!("{}: ends at {}, read of {len} at {offset}", file.name(), offset + filled as u64);
                return Err(Error::new(ErrorKind::Io, message));
            }
            Ok(count) => filled += count,
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                return Err(Error::from_io(format_args!("{}: read of {len} at {offset}", file.name()), &error));
            }
        }
    }
    Ok(buf)
}

/// Write all of `data` at `offset`.
pub async fn write_all(file: &Arc<StorageFile>, offset: u64, data: IoData, dsync: bool) -> Result<()> {
    let len = data.len();
    let mut done = 0;
    while done < len {
        let rest = data.slice(done, len - done);
        let op = Op::Write { file: Arc::clone(file), offset: offset + done as u64, data: rest, dsync };
        match submit(op).await.result {
            Ok(0) => {
                let message = format!("{}: write of {len} at {offset} makes no progress", file.name());
                return Err(Error::new(ErrorKind::Io, message));
            }
            Ok(count) => done += count,
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                return Err(Error::from_io(format_args!("{}: write of {len} at {offset}", file.name()), &error));
            }
        }
    }
    Ok(())
}

/// Read into all of `target` from `offset` on; a file that ends before is an error (INV-7).
pub async fn read_sg(file: &Arc<StorageFile>, offset: u64, mut target: SgList) -> Result<()> {
    let (len, mut position) = (target.len(), offset);
    while !target.is_empty() {
        let completion = submit(Op::ReadSg { file: Arc::clone(file), offset: position, target }).await;
        let Op::ReadSg { target: returned, .. } = completion.op else { unreachable!("a driver returns the operation") };
        target = returned;
        match completion.result {
            Ok(0) => {
                let message = format!("{}: ends at {position}, read of {len} at {offset}", file.name());
                return Err(Error::new(ErrorKind::Io, message));
            }
            Ok(count) => {
                target.advance(count);
                position += count as u64;
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                return Err(Error::from_io(format_args!("{}: read of {len} at {offset}", file.name()), &error));
            }
        }
    }
    Ok(())
}

/// Write all of `source` at `offset`.
pub async fn write_sg(file: &Arc<StorageFile>, offset: u64, mut source: SgList, dsync: bool) -> Result<()> {
    let (len, mut position) = (source.len(), offset);
    while !source.is_empty() {
        let completion = submit(Op::WriteSg { file: Arc::clone(file), offset: position, source, dsync }).await;
        let Op::WriteSg { source: returned, .. } = completion.op else {
            unreachable!("a driver returns the operation")
        };
        source = returned;
        match completion.result {
            Ok(0) => {
                let message = format!("{}: write of {len} at {offset} makes no progress", file.name());
                return Err(Error::new(ErrorKind::Io, message));
            }
            Ok(count) => {
                source.advance(count);
                position += count as u64;
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                return Err(Error::from_io(format_args!("{}: write of {len} at {offset}", file.name()), &error));
            }
        }
    }
    Ok(())
}

/// fdatasync. Never retried: a second call may report success for data that the kernel dropped.
pub async fn sync(file: &Arc<StorageFile>) -> Result<()> {
    match submit(Op::Sync { file: Arc::clone(file) }).await.result {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::from_io(format_args!("{}: fdatasync", file.name()), &error)),
    }
}

/// Punch, zero or allocate a range.
pub async fn fallocate(file: &Arc<StorageFile>, mode: FallocateMode, offset: u64, len: u64) -> Result<()> {
    loop {
        match submit(Op::Fallocate { file: Arc::clone(file), mode, offset, len }).await.result {
            Ok(_) => return Ok(()),
            Err(error) if is_transient(&error) => {}
            Err(error) => {
                let what = format_args!("{}: {mode:?} of {len} at {offset}", file.name());
                return Err(Error::from_io(what, &error));
            }
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// Runs each operation at once on the calling thread; for tests and for tools that have nothing else to do.
pub struct BlockingDriver;

impl Driver for BlockingDriver {
    fn submit(&self, op: Op, slot: Rc<Slot>) {
        slot.complete(run_blocking(op));
    }
}
