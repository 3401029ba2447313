//! An image in memory: it records its reads, can be held up, changed and made to fail.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ubi_engine::bdev::LocalFuture;
use ubi_engine::error::{Error, ErrorKind, Result};
use ubi_engine::image::{Extents, Image, ImageIdentity};
use ubi_engine::reactor::exec;
use ubi_engine::reactor::sync::Promise;
use ubi_engine::sys::buf::{IoBuf, IoData};

use super::Random;

#[derive(Default)]
struct State {
    reads: Vec<Range<u64>>,
    in_flight: usize,
    most_in_flight: usize,
    failures: usize,
    has_changed: bool,
    hold: Option<Arc<Promise<()>>>,
    random: Option<(Random, Option<u64>)>,
}

/// See the module.
pub struct MemImage {
    pub content: Vec<u8>,
    extents: Extents,
    state: Mutex<State>,
}

impl MemImage {
    pub fn new(content: Vec<u8>) -> Arc<Self> {
        let extents = Extents::all(content.len() as u64);
        Arc::new(Self { content, extents, state: Mutex::default() })
    }

    /// An image that is known to be zero outside of these ranges.
    pub fn sparse(mut content: Vec<u8>, data: &[Range<u64>]) -> Arc<Self> {
        for (index, byte) in content.iter_mut().enumerate() {
            if !data.iter().any(|range| range.contains(&(index as u64))) {
                *byte = 0;
            }
        }
        Arc::new(Self { content, extents: Extents::from_ranges(data.iter().cloned()), state: Mutex::default() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// The reads since the last call.
    pub fn take_reads(&self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.state().reads)
    }

    /// Most reads that were in flight at once.
    pub fn most_in_flight(&self) -> usize {
        self.state().most_in_flight
    }

    /// Fail the next `times` reads.
    pub fn fail(&self, times: usize) {
        self.state().failures = times;
    }

    /// The image is not what it was when it was opened.
    pub fn change(&self) {
        self.state().has_changed = true;
    }

    /// Let no read that starts from now on return, until the promise is set.
    pub fn hold(&self) -> Arc<Promise<()>> {
        let release = Promise::new();
        self.state().hold = Some(Arc::clone(&release));
        release
    }

    /// Reads that start from now on are not held.
    pub fn hold_no_more(&self) {
        self.state().hold = None;
    }

    /// From now on reads take random times, and one in `fault_one_in` fails.
    pub fn be_random(&self, random: Random, fault_one_in: Option<u64>) {
        self.state().random = Some((random, fault_one_in));
    }

    /// No more random times and failures.
    pub fn be_calm(&self) {
        self.state().random = None;
    }

    async fn wait(&self) -> bool {
        let (hold, delay, fails) = {
            let mut state = self.state();
            let mut fails = state.failures > 0;
            state.failures = state.failures.saturating_sub(1);
            let mut delay = Duration::ZERO;
            if let Some((random, fault_one_in)) = &mut state.random {
                delay = Duration::from_micros(random.below(5) * random.below(1000));
                fails |= fault_one_in.is_some_and(|times| random.one_in(times));
            }
            (state.hold.clone(), delay, fails)
        };
        if let Some(release) = hold {
            release.wait().await;
        }
        if !delay.is_zero() {
            exec::sleep(delay).await;
        }
        fails
    }
}

impl Image for MemImage {
    fn name(&self) -> &str {
        "memory"
    }

    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn identity(&self) -> ImageIdentity {
        ImageIdentity { kind: "memory", size_bytes: self.size_bytes(), tag: String::new() }
    }

    fn data_extents(&self) -> &Extents {
        &self.extents
    }

    fn read(&self, offset: u64, len: usize) -> LocalFuture<'_, Result<IoData>> {
        Box::pin(async move {
            {
                let mut state = self.state();
                state.reads.push(offset..offset + len as u64);
                state.in_flight += 1;
                state.most_in_flight = state.most_in_flight.max(state.in_flight);
            }
            let fails = self.wait().await;
            self.state().in_flight -= 1;
            self.recheck()?;
            if fails {
                return Err(Error::new(ErrorKind::Io, format!("image read at {offset} fails")));
            }
            Ok(IoData::new(IoBuf::from_slice(&self.content[offset as usize..offset as usize + len])))
        })
    }

    fn recheck(&self) -> Result<()> {
        match self.state().has_changed {
            true => Err(Error::new(ErrorKind::Io, "image memory has changed")),
            false => Ok(()),
        }
    }

    fn directio_in_effect(&self) -> bool {
        false
    }
}
