//! The simulated base: operations wait until the scheduler lets them land and complete, and the base knows what a cut
//! at any moment may leave of them.
//!
//! Rules, as a kernel's page cache over a disk has them. An operation may land, whole or sector by sector, at any
//! time between its submission and its completion; reads see what has landed. A completed flush makes durable what
//! completed before the flush was submitted; every other landed or flying sector may or may not have reached the
//! disk. A failed write may have landed in part. A failed flush drops what it should have written: a later flush that
//! succeeds says nothing about it.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};

use ubi_engine::bdev::{Above, BaseIdentity, Bdev, BdevInfo, IoStat, LocalFuture, ZeroFlags};
use ubi_engine::error::{Error, ErrorKind, Result};
use ubi_engine::sys::buf::{IoBuf, IoData};

use super::cut::{Item, Uncertain};
use super::setting::{DATA_SLOT, HEADER_SLOTS, Setting, slots};
use super::tags::{SECTOR, Tag};

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
    /// Of the image, not of the base; it waits in the same place for its turn.
    ImageRead,
    /// Of the machine: a map is made or removed.
    Host,
}

impl Kind {
    pub fn changes(self) -> bool {
        matches!(self, Kind::Write | Kind::Zero | Kind::Discard)
    }
}

/// An operation in flight.
pub struct Op {
    pub id: u64,
    pub kind: Kind,
    pub slots: Range<usize>,
    /// What it writes, or what it has read.
    tags: Vec<Tag>,
    /// Sectors that have not landed, as positions in `tags`.
    todo: Vec<usize>,
    fua: bool,
    submitted: u64,
    waker: Option<Waker>,
}

impl Op {
    pub fn has_landed(&self) -> bool {
        self.todo.is_empty()
    }

    /// Whether it writes header pages.
    pub fn is_metadata(&self) -> bool {
        self.kind == Kind::Write && self.slots.start < HEADER_SLOTS
    }

    /// Whether it writes a superblock.
    pub fn is_superblock(&self) -> bool {
        self.kind == Kind::Write && (HEADER_SLOTS..DATA_SLOT).contains(&self.slots.start)
    }

    /// Whether it writes what an image has.
    pub fn is_copy(&self) -> bool {
        self.kind == Kind::Write && self.slots.start >= DATA_SLOT && {
            let middle = self.tags.len() / 2;
            self.tags[middle] == Tag::image(self.slots.start - DATA_SLOT + middle)
        }
    }
}

/// A sector that has landed and may not be durable.
#[derive(Clone)]
struct Landed {
    slot: usize,
    tag: Tag,
    op: u64,
    /// When its operation ended, well or not; MAX while it has not.
    completed: u64,
    /// A flush that should have covered it failed.
    is_lost: bool,
}

#[derive(Default)]
struct State {
    cache: Vec<Tag>,
    durable: Vec<Tag>,
    landed: Vec<Landed>,
    ops: Vec<Op>,
    outcomes: Vec<(u64, Result<Vec<Tag>>)>,
    time: u64,
    /// Changes with everything that changes what a cut may leave.
    version: u64,
    takes_inline: bool,
    inline_writes: u64,
}

/// See the module.
pub struct SimBase {
    info: BdevInfo,
    identity: BaseIdentity,
    state: Mutex<State>,
    stat: IoStat,
}

impl SimBase {
    pub fn new(setting: &Setting, tags: Vec<Tag>) -> Arc<Self> {
        let state = State { durable: tags.clone(), cache: tags, ..State::default() };
        Arc::new(Self {
            info: setting.info(),
            identity: setting.identity(),
            state: Mutex::new(state),
            stat: IoStat::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Number of operations in flight.
    pub fn in_flight(&self) -> usize {
        self.state().ops.len()
    }

    /// Look at what is in flight.
    pub fn with_ops<T>(&self, look: impl FnOnce(&[Op]) -> T) -> T {
        look(&self.state().ops)
    }

    /// Whether inline attempts succeed from now on.
    pub fn take_inline(&self, takes: bool) {
        self.state().takes_inline = takes;
    }

    pub fn inline_writes(&self) -> u64 {
        self.state().inline_writes
    }

    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// What reads see.
    pub fn content(&self) -> Vec<Tag> {
        self.state().cache.clone()
    }

    /// What is on stable storage for sure.
    pub fn durable(&self) -> Vec<Tag> {
        self.state().durable.clone()
    }

    /// Whether header sectors have landed that may not be durable.
    pub fn has_unsynced_headers(&self) -> bool {
        self.state().landed.iter().any(|landed| landed.slot < HEADER_SLOTS)
    }

    /// Let sectors of an operation land: all that `chosen` says of those that have not.
    pub fn land(&self, index: usize, mut chosen: impl FnMut() -> bool) {
        let mut state = self.state();
        state.version += 1;
        let State { ops, cache, landed, .. } = &mut *state;
        let op = &mut ops[index];
        let (first, id, tags) = (op.slots.start, op.id, &op.tags);
        op.todo.retain(|&position| {
            let lands = chosen();
            if lands {
                let (slot, tag) = (first + position, tags[position]);
                cache[slot] = tag;
                landed.push(Landed { slot, tag, op: id, completed: u64::MAX, is_lost: false });
            }
            !lands
        });
    }

    /// Complete an operation, with what had not landed of it if it succeeds.
    pub fn complete(&self, index: usize, failure: Option<Error>) {
        if failure.is_none() && !self.with_ops(|ops| ops[index].has_landed()) {
            self.land(index, || true);
        }
        let mut state = self.state();
        let mut op = state.ops.remove(index);
        state.time += 1;
        state.version += u64::from(op.kind.changes() || op.kind == Kind::Flush);
        let time = state.time;
        for landed in state.landed.iter_mut().filter(|landed| landed.op == op.id) {
            landed.completed = time;
        }
        match (op.kind, &failure) {
            (Kind::Flush, None) => state.make_durable(|landed| landed.completed <= op.submitted && !landed.is_lost),
            (Kind::Flush, Some(_)) => state.lose(op.submitted),
            (Kind::Read, None) => op.tags = state.cache[op.slots.clone()].to_vec(),
            (_, None) if op.fua => state.make_durable(|landed| landed.op == op.id),
            _ => {}
        }
        state.outcomes.push((op.id, failure.map_or(Ok(op.tags), Err)));
        drop(state);
        if let Some(waker) = op.waker {
            waker.wake();
        }
    }

    /// What a process death now leaves: all that has landed, and any part of what is in flight.
    pub fn at_process_death(&self) -> Uncertain {
        let state = self.state();
        Uncertain { certain: state.cache.clone(), items: state.flying() }
    }

    /// What a power cut now leaves: all that is durable, and any part of what was submitted since.
    pub fn at_power_loss(&self) -> Uncertain {
        let state = self.state();
        let landed = state.landed.iter().map(|landed| Item { slot: landed.slot, tag: landed.tag, op: landed.op });
        Uncertain { certain: state.durable.clone(), items: landed.chain(state.flying()).collect() }
    }

    /// The base after a process death that left `content` in the page cache: a flush covers all of it.
    pub fn after_process_death(&self, content: &[Tag]) -> Arc<Self> {
        let before = self.state();
        let mut landed = before.landed.clone();
        for (slot, (&tag, &was)) in content.iter().zip(&before.cache).enumerate() {
            if tag != was {
                landed.push(Landed { slot, tag, op: u64::MAX, completed: 0, is_lost: false });
            }
        }
        landed.iter_mut().for_each(|landed| landed.completed = 0);
        let (cache, durable) = (content.to_vec(), before.durable.clone());
        let (time, version, inline_writes) = (before.time, before.version + 1, before.inline_writes);
        let state = State { cache, durable, landed, time, version, inline_writes, ..State::default() };
        let (info, identity, stat) = (self.info.clone(), self.identity, IoStat::default());
        Arc::new(Self { info, identity, state: Mutex::new(state), stat })
    }

    /// Replace the content behind everybody's back, durably; nothing may be in flight.
    pub fn replace(&self, content: Vec<Tag>) {
        let mut state = self.state();
        assert!(state.ops.is_empty(), "nothing is in flight");
        state.durable.clone_from(&content);
        state.cache = content;
        state.landed.clear();
        state.version += 1;
    }

    /// Submit an operation and wait until the scheduler has completed it.
    pub async fn submit(&self, kind: Kind, slots: Range<usize>, tags: Vec<Tag>, fua: bool) -> Result<Vec<Tag>> {
        let id = {
            let mut state = self.state();
            state.time += 1;
            state.version += u64::from(kind.changes());
            let id = state.time;
            // A base that does not promise zeros leaves every other sector as it was.
            let is_kept =
                |position: &usize| tags[*position] == Tag::garbage(slots.start + position) && position % 2 == 1;
            let todo = (0..tags.len()).filter(|position| !is_kept(position)).collect();
            state.ops.push(Op { id, kind, slots, tags, todo, fua, submitted: id, waker: None });
            id
        };
        poll_fn(|context| {
            let mut state = self.state();
            if let Some(index) = state.outcomes.iter().position(|(done, _)| *done == id) {
                return Poll::Ready(state.outcomes.swap_remove(index).1);
            }
            let op = state.ops.iter_mut().find(|op| op.id == id).expect("in flight");
            op.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn slots(&self, offset: u64, len: u64) -> Range<usize> {
        let block = u64::from(self.info.block_size);
        assert!(offset.is_multiple_of(block) && len.is_multiple_of(block) && len > 0, "{len} at {offset} in blocks");
        assert!(offset + len <= self.info.size_bytes(), "{len} at {offset} inside the base");
        slots(offset, len)
    }
}

impl State {
    /// The newest covered content of each sector is the certain one; what landed before it is gone.
    fn make_durable(&mut self, is_covered: impl Fn(&Landed) -> bool) {
        let mut newest = vec![0; self.durable.len()];
        for (index, landed) in self.landed.iter().enumerate() {
            if is_covered(landed) {
                self.durable[landed.slot] = landed.tag;
                newest[landed.slot] = index + 1;
            }
        }
        let mut index = 0;
        self.landed.retain(|landed| {
            index += 1;
            index > newest[landed.slot]
        });
    }

    fn lose(&mut self, submitted: u64) {
        for landed in self.landed.iter_mut().filter(|landed| landed.completed <= submitted) {
            landed.is_lost = true;
        }
    }

    fn flying(&self) -> Vec<Item> {
        let sectors = self.ops.iter().filter(|op| op.kind.changes()).flat_map(|op| {
            op.todo.iter().map(|&position| Item { slot: op.slots.start + position, tag: op.tags[position], op: op.id })
        });
        sectors.collect()
    }
}

/// The error of an injected fault.
pub fn injected(what: &str) -> Error {
    Error::new(ErrorKind::Io, format!("{what} fails, as the simulation wants it"))
}

impl Bdev for SimBase {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn try_read(&self, offset: u64, buf: &mut [u8], _above: Option<&Above<'_>>) -> Option<Result<()>> {
        let slots = self.slots(offset, buf.len() as u64);
        let state = self.state();
        state.takes_inline.then(|| {
            Tag::fill_all(&state.cache[slots], buf);
            Ok(())
        })
    }

    fn try_write(&self, offset: u64, data: &[u8], _above: Option<&Above<'_>>) -> Option<Result<()>> {
        let slots = self.slots(offset, data.len() as u64);
        let mut state = self.state();
        state.takes_inline.then(|| {
            state.time += 1;
            state.inline_writes += 1;
            state.version += 1;
            let time = state.time;
            for (slot, tag) in slots.zip(Tag::all_of(data)) {
                state.cache[slot] = tag;
                state.landed.push(Landed { slot, tag, op: time, completed: time, is_lost: false });
            }
            Ok(())
        })
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        let slots = self.slots(offset, len as u64);
        Box::pin(async move {
            let tags = self.submit(Kind::Read, slots, Vec::new(), false).await?;
            let mut buf = IoBuf::new(len);
            Tag::fill_all(&tags, &mut buf);
            Ok(buf)
        })
    }

    fn write(&self, offset: u64, data: IoData, fua: bool) -> LocalFuture<'_, Result<()>> {
        let slots = self.slots(offset, data.len() as u64);
        Box::pin(async move { self.submit(Kind::Write, slots, Tag::all_of(&data), fua).await.map(drop) })
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async move { self.submit(Kind::Flush, 0..0, Vec::new(), false).await.map(drop) })
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        let slots = self.slots(offset, len);
        let tags = vec![Tag::ZERO; len as usize / SECTOR];
        Box::pin(async move { self.submit(Kind::Zero, slots, tags, flags.fua).await.map(drop) })
    }

    fn discard(&self, offset: u64, len: u64, fua: bool) -> LocalFuture<'_, Result<()>> {
        let slots = self.slots(offset, len);
        let tags = match self.info.unmap_reads_zero {
            true => vec![Tag::ZERO; slots.len()],
            false => slots.clone().map(Tag::garbage).collect(),
        };
        Box::pin(async move { self.submit(Kind::Discard, slots, tags, fua).await.map(drop) })
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn identity(&self) -> Option<BaseIdentity> {
        Some(self.identity)
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn iostat(&self) -> &IoStat {
        &self.stat
    }
}
