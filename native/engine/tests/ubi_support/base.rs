//! A base in memory: it records what is done to it, can be held up and made to fail, and knows what a process death
//! and a power cut leave.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ubi_engine::bdev::{Above, Bdev, BdevInfo, IoStat, LocalFuture, Survives, ZeroFlags};
use ubi_engine::error::{Error, ErrorKind, Result};
use ubi_engine::reactor::exec;
use ubi_engine::reactor::sync::Promise;
use ubi_engine::sys::buf::{IoBuf, IoData};

use super::pages::Pages;
use super::{DATA, POISON, Random};

/// What is done to the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
}

/// One operation on the base, in order of its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub access: Access,
    pub range: Range<u64>,
}

impl Op {
    pub fn is_metadata(&self) -> bool {
        self.access == Access::Write && self.range.start < DATA
    }

    pub fn is_data(&self) -> bool {
        self.range.start >= DATA && matches!(self.access, Access::Write | Access::Zero | Access::Discard)
    }
}

/// A change that was submitted and is not on stable storage.
struct Unsynced {
    offset: u64,
    bytes: Vec<u8>,
    is_complete: bool,
}

#[derive(Default)]
struct State {
    /// What a read sees, and what a process death leaves.
    content: Pages,
    /// What a power cut leaves for sure.
    stable: Pages,
    unsynced: BTreeMap<u64, Unsynced>,
    next_id: u64,
    log: Vec<Op>,
    /// (what, how many more of them pass, errno, how many fail)
    faults: Vec<(Access, Range<u64>, usize, i32, usize)>,
    holds: Vec<(Access, Range<u64>, Arc<Promise<()>>)>,
    /// Random delays and faults, one in this many.
    random: Option<(Random, Option<u64>)>,
}

/// See the module.
pub struct MemBase {
    info: BdevInfo,
    state: Mutex<State>,
    stat: IoStat,
}

impl MemBase {
    /// A base with room for `volume_bytes` beside the metadata: zeros where the metadata goes, POISON elsewhere.
    pub fn new(block_size: u32, volume_bytes: u64) -> Arc<Self> {
        let mut content = vec![0; DATA as usize];
        content.resize((DATA + volume_bytes) as usize, POISON);
        Self::with_content(block_size, content)
    }

    pub fn with_content(block_size: u32, content: Vec<u8>) -> Arc<Self> {
        Self::made(block_size, content, |_| {})
    }

    /// The same with other properties.
    pub fn made(block_size: u32, content: Vec<u8>, change: impl FnOnce(&mut BdevInfo)) -> Arc<Self> {
        let mut info = BdevInfo {
            name: "base0".into(),
            block_size,
            num_blocks: (content.len() as u64 / u64::from(block_size)).into(),
            readonly: false,
            write_cache: true,
            unmap: true,
            write_zeroes: true,
            flush: true,
            unmap_reads_zero: true,
            buffered: false,
            survives: Survives::Power,
        };
        change(&mut info);
        let content = Pages::new(&content);
        let state = State { stable: content.clone(), content, ..State::default() };
        Arc::new(Self { info, state: Mutex::new(state), stat: IoStat::default() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// What is on the base now.
    pub fn content(&self) -> Vec<u8> {
        let state = self.state();
        state.content.get(0..state.content.len() as u64)
    }

    /// A part of it.
    pub fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        self.state().content.get(range)
    }

    /// Change a byte behind everybody's back, durably.
    pub fn poke(&self, offset: u64, byte: u8) {
        let mut state = self.state();
        state.content.put(offset, &[byte]);
        state.stable.put(offset, &[byte]);
    }

    /// The operations since the last call.
    pub fn take_log(&self) -> Vec<Op> {
        std::mem::take(&mut self.state().log)
    }

    /// How many operations of a kind the log has.
    pub fn count(&self, access: Access) -> usize {
        self.state().log.iter().filter(|op| op.access == access).count()
    }

    /// Let the `after` next accesses that touch `range` pass, then fail `times` of them with `errno`.
    pub fn fail(&self, access: Access, range: Range<u64>, after: usize, errno: i32, times: usize) {
        self.state().faults.push((access, range, after, errno, times));
    }

    /// Whether every fault that was ordered has happened.
    pub fn was_hit(&self) -> bool {
        self.state().faults.iter().all(|(_, _, _, _, times)| *times == 0)
    }

    /// No more faults.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Let no access that touches `range` go on, until the promise is set.
    pub fn hold(&self, access: Access, range: Range<u64>) -> Arc<Promise<()>> {
        let release = Promise::new();
        self.state().holds.push((access, range, Arc::clone(&release)));
        release
    }

    /// From now on operations take random times, and one in `fault_one_in` fails.
    pub fn be_random(&self, random: Random, fault_one_in: Option<u64>) {
        self.state().random = Some((random, fault_one_in));
    }

    /// What a process death leaves: everything that completed, and any of what was in flight.
    pub fn after_process_death(&self, random: &mut Random) -> Arc<Self> {
        let state = self.state();
        let (mut content, stable) = (state.content.clone(), state.stable.clone());
        let mut unsynced = BTreeMap::new();
        for (&id, change) in &state.unsynced {
            let landed = change.is_complete || random.one_in(2);
            if landed {
                if !change.is_complete {
                    content.put(change.offset, &change.bytes);
                }
                let change = Unsynced { offset: change.offset, bytes: change.bytes.clone(), is_complete: true };
                unsynced.insert(id, change);
            }
        }
        let next_id = state.next_id;
        let state = State { content, stable, unsynced, next_id, ..State::default() };
        Arc::new(Self { info: self.info.clone(), state: Mutex::new(state), stat: IoStat::default() })
    }

    /// What a power cut leaves: what was flushed, and any sectors of what was not.
    pub fn after_power_cut(&self, random: &mut Random) -> Arc<Self> {
        let state = self.state();
        let mut content = state.stable.clone();
        for change in state.unsynced.values() {
            let keep_all = random.one_in(3);
            for (index, sector) in change.bytes.chunks(512).enumerate() {
                if keep_all || random.one_in(2) {
                    content.put(change.offset + index as u64 * 512, sector);
                }
            }
        }
        let state = State { stable: content.clone(), content, ..State::default() };
        Arc::new(Self { info: self.info.clone(), state: Mutex::new(state), stat: IoStat::default() })
    }

    /// Log an operation, wait while it is held, fail it if that is its lot.
    async fn enter(&self, access: Access, range: Range<u64>) -> Result<()> {
        let (hold, delay, failed) = {
            let mut state = self.state();
            state.log.push(Op { access, range: range.clone() });
            let hold = state
                .holds
                .iter()
                .find(|(held, place, release)| *held == access && touches(place, &range) && release.get().is_none());
            let hold = hold.map(|(_, _, release)| Arc::clone(release));
            let (delay, unlucky) = state.draw();
            (hold, delay, state.fault(access, &range).or(unlucky))
        };
        if let Some(release) = hold {
            release.wait().await;
        }
        if !delay.is_zero() {
            exec::sleep(delay).await;
        }
        match failed {
            Some(errno) => Err(Error::with_errno(ErrorKind::Io, errno, format!("{access:?} at {range:?} fails"))),
            None => Ok(()),
        }
    }

    /// A change: submitted, some time in flight, complete.
    async fn change(&self, access: Access, offset: u64, bytes: Vec<u8>) -> Result<()> {
        let id = {
            let mut state = self.state();
            state.next_id += 1;
            let id = state.next_id;
            state.unsynced.insert(id, Unsynced { offset, bytes: bytes.clone(), is_complete: false });
            id
        };
        let result = self.enter(access, offset..offset + bytes.len() as u64).await;
        let mut state = self.state();
        let mut change = state.unsynced.remove(&id).expect("still there");
        if result.is_err() {
            // A failed write may have changed anything it was to change, here its first half in whole sectors.
            change.bytes.truncate(bytes.len() / 1024 * 512);
        }
        change.is_complete = true;
        state.content.put(offset, &change.bytes);
        // Numbered again: overlapping changes reach stable storage in the order in which they completed.
        state.next_id += 1;
        let id = state.next_id;
        state.unsynced.insert(id, change);
        result
    }

    async fn sync(&self) -> Result<()> {
        let covered: Vec<u64> = {
            let state = self.state();
            state.unsynced.iter().filter(|(_, change)| change.is_complete).map(|(&id, _)| id).collect()
        };
        let result = self.enter(Access::Flush, 0..0).await;
        let mut state = self.state();
        for id in covered {
            // A failed flush drops what it could not write, as the kernel does.
            let Some(change) = state.unsynced.remove(&id) else { continue };
            if result.is_ok() {
                state.stable.put(change.offset, &change.bytes);
            }
        }
        result
    }

    fn check(&self, offset: u64, len: u64) {
        let block = u64::from(self.info.block_size);
        assert!(offset.is_multiple_of(block) && len.is_multiple_of(block) && len > 0, "{len} at {offset} in blocks");
        assert!(offset + len <= self.info.size_bytes(), "{len} at {offset} inside the base");
    }
}

impl State {
    /// A random delay, and sometimes an error.
    fn draw(&mut self) -> (Duration, Option<i32>) {
        let Some((random, fault_one_in)) = &mut self.random else { return (Duration::ZERO, None) };
        let delay = Duration::from_micros(random.below(4) * random.below(500));
        (delay, fault_one_in.filter(|&times| random.one_in(times)).map(|_| libc::EIO))
    }

    fn fault(&mut self, access: Access, range: &Range<u64>) -> Option<i32> {
        for (kind, place, after, errno, times) in &mut self.faults {
            if *kind != access || !touches(place, range) || *times == 0 {
                continue;
            }
            if *after > 0 {
                *after -= 1;
                continue;
            }
            *times -= 1;
            return Some(*errno);
        }
        None
    }
}

fn touches(place: &Range<u64>, range: &Range<u64>) -> bool {
    range.is_empty() || (range.start < place.end && place.start < range.end)
}

impl Bdev for MemBase {
    fn info(&self) -> &BdevInfo {
        &self.info
    }

    fn try_read(&self, offset: u64, buf: &mut [u8], _above: Option<&Above<'_>>) -> Option<Result<()>> {
        self.check(offset, buf.len() as u64);
        let mut state = self.state();
        if state.random.as_mut().is_none_or(|(random, _)| random.one_in(2)) {
            return None;
        }
        let range = offset..offset + buf.len() as u64;
        buf.copy_from_slice(&state.content.get(range.clone()));
        state.log.push(Op { access: Access::Read, range });
        Some(Ok(()))
    }

    fn try_write(&self, offset: u64, data: &[u8], _above: Option<&Above<'_>>) -> Option<Result<()>> {
        self.check(offset, data.len() as u64);
        let mut state = self.state();
        if state.random.as_mut().is_none_or(|(random, _)| random.one_in(2)) {
            return None;
        }
        state.content.put(offset, data);
        state.next_id += 1;
        let id = state.next_id;
        state.unsynced.insert(id, Unsynced { offset, bytes: data.to_vec(), is_complete: true });
        state.log.push(Op { access: Access::Write, range: offset..offset + data.len() as u64 });
        Some(Ok(()))
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoBuf>> {
        self.check(offset, len as u64);
        Box::pin(async move {
            self.enter(Access::Read, offset..offset + len as u64).await?;
            Ok(IoBuf::from_slice(&self.bytes(offset..offset + len as u64)))
        })
    }

    fn write(&self, offset: u64, data: IoData, fua: bool) -> LocalFuture<'_, Result<()>> {
        self.check(offset, data.len() as u64);
        Box::pin(async move {
            self.change(Access::Write, offset, data.to_vec()).await?;
            if fua { self.sync().await } else { Ok(()) }
        })
    }

    fn flush(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(self.sync())
    }

    fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> LocalFuture<'_, Result<()>> {
        self.check(offset, len);
        Box::pin(async move {
            self.change(Access::Zero, offset, vec![0; len as usize]).await?;
            if flags.fua { self.sync().await } else { Ok(()) }
        })
    }

    fn discard(&self, offset: u64, len: u64, fua: bool) -> LocalFuture<'_, Result<()>> {
        self.check(offset, len);
        let byte = if self.info.unmap_reads_zero { 0 } else { POISON };
        Box::pin(async move {
            self.change(Access::Discard, offset, vec![byte; len as usize]).await?;
            if fua { self.sync().await } else { Ok(()) }
        })
    }

    fn prefetch(&self, _offset: u64, _len: u64) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn close(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn iostat(&self) -> &IoStat {
        &self.stat
    }
}
