//! One history: a volume is formatted or opened, queues ask for things, base and image answer in an order that the seed
//! chooses, processes die and power is lost; and after every event the cuts that are possible there are looked at.

mod client;
mod lives;

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::sync::Arc;

use ubi_engine::bdev::Bdev;
use ubi_engine::bdev::ubi::{self, UbiBdev, UbiOptions};
use ubi_engine::error::Result as EngineResult;
use ubi_engine::image::Image;
use ubi_engine::reactor::exec::Executor;

use super::Random;
use super::base::{Kind, SimBase, injected};
use super::bdev_ubi::BdevUbi;
use super::checker::Checker;
use super::coverage::{Subject, Subjects};
use super::cut::Depth;
use super::host::SimHost;
use super::image::SimImage;
use super::oracle::Oracle;
use super::script::{Request, Step};
use super::setting::{STRIPE, Setting};
use super::survivor::{is_sync_failure, repair};
use super::tags::{Tag, mix};

/// More events than any history of these lengths needs.
const EVENTS_MAX: u32 = 20_000;
/// An operation that fails does so again when it is tried again, but not for ever.
const OPENS_MAX: u32 = 8;

/// Everything that a history depends on.
#[derive(Debug, Clone)]
pub struct Case {
    pub setting: Arc<Setting>,
    pub script: Vec<Step>,
    pub seed: u64,
    /// Times that a process dies or power is lost, and the rest of the script goes on afterwards.
    pub lives: u32,
    /// Most of its ends are process deaths while superblocks change: what is written then tells of all the rest.
    pub is_hasty: bool,
    pub depth: Depth,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Running { start: u64 },
    Ended,
}

/// The end of something that a task did.
enum Ending {
    Opened(EngineResult<Arc<UbiBdev>>),
    Closed(EngineResult<()>),
    Repaired(EngineResult<()>),
    Read(usize, EngineResult<Vec<Tag>>),
    Done(usize, EngineResult<()>),
}

type Endings = Rc<RefCell<Vec<Ending>>>;

/// See the module.
pub struct History<'a> {
    case: &'a Case,
    checker: &'a mut Checker,
    random: Random,
    exec: Rc<Executor>,
    base: Arc<SimBase>,
    image: Arc<SimImage>,
    host: Arc<SimHost>,
    /// bdev_ubi has had the volume since it was closed.
    adopts: bool,
    is_repairing: bool,
    volume: Option<Arc<UbiBdev>>,
    oracle: Oracle,
    progress: Vec<Progress>,
    endings: Endings,
    is_opening: bool,
    is_formatted: bool,
    /// The step that closes and opens the volume, while it runs.
    reopening: Option<usize>,
    opens: u32,
    lives: u32,
    has_faults: bool,
    sync_failed: bool,
    /// With a map that knows: the next open on this boot has to be refused.
    must_refuse: bool,
    /// At any time: the disk may say so long after.
    ever_failed: bool,
    /// A sync failed in an earlier life: the 0.1 layout cannot tell, so FLUSH promises nothing from then on.
    sync_failed_before: bool,
    image_changed: bool,
    /// A map was cut short in this boot, and the process that had it lives: whether stores are told, and how many stripes were
    /// on the base then.
    lost_map: Option<(bool, u64)>,
    has_lost_map: bool,
    /// The base as it was at some time in this boot, marked open.
    saved: Option<Vec<Tag>>,
    /// What stays true for the rest of the history.
    past: Subjects,
    last_cut: (u64, u64),
    events: u32,
    trace: u64,
    log: Option<Vec<String>>,
}

impl<'a> History<'a> {
    pub fn new(case: &'a Case, checker: &'a mut Checker, logged: bool) -> Self {
        let setting = &case.setting;
        let base = SimBase::new(setting, setting.used_base());
        let mut past = Subjects::default();
        past.add_if(Subject::NoSync, setting.no_sync);
        past.add_if(Subject::NoCopyOnRead, !setting.copy_on_read);
        past.add_if(Subject::LargeBlocks, setting.block() > 1);
        past.add_if(Subject::Hole, setting.has_hole);
        past.add_if(Subject::Garbage, !setting.unmap_reads_zero);
        past.add_if(Subject::NoMap, !setting.has_maps);
        past.add_if(Subject::WriteThrough, setting.write_through);
        past.add_if(Subject::PastStripes, setting.volume > 2 * STRIPE);
        Self {
            case,
            checker,
            random: Random::new(case.seed),
            exec: Executor::new(|| {}),
            image: SimImage::new(setting, Some(Arc::clone(&base))),
            host: SimHost::new(setting.has_maps).copy(Some(Arc::clone(&base))),
            adopts: false,
            is_repairing: false,
            base,
            volume: None,
            oracle: Oracle::new(&setting.fresh()),
            progress: vec![Progress::Waiting; case.script.len()],
            endings: Endings::default(),
            is_opening: false,
            is_formatted: false,
            reopening: None,
            opens: 0,
            lives: case.lives,
            has_faults: setting.image_changes,
            sync_failed: false,
            must_refuse: false,
            ever_failed: false,
            sync_failed_before: false,
            image_changed: false,
            lost_map: None,
            has_lost_map: false,
            saved: None,
            past,
            last_cut: (u64::MAX, 0),
            events: 0,
            trace: 0,
            log: logged.then(Vec::new),
        }
    }

    /// Live through it. Returns a number that every event has a part in.
    ///
    /// # Errors
    /// What broke a promise, with the events that led to it if they are logged.
    pub fn run(self) -> Result<u64, String> {
        // An assertion of the overlay that fails leaves it as it is: what it still holds is not worth a second one.
        let mut this = ManuallyDrop::new(self);
        let result = this.live();
        this.end_process();
        let this = ManuallyDrop::into_inner(this);
        match result {
            Ok(()) => Ok(this.trace),
            Err(wrong) => {
                let log = this.log.unwrap_or_default();
                Err(format!("{wrong}\n{:#?}\nevents:\n  {}", this.case, log.join("\n  ")))
            }
        }
    }

    fn live(&mut self) -> Result<(), String> {
        self.start_open();
        loop {
            loop {
                self.go_on();
                self.take_endings()?;
                self.check_lost_map()?;
                if !self.exec.has_ready() {
                    break;
                }
            }
            self.cut()?;
            self.put_back()?;
            let times = if self.case.is_hasty && self.changes_superblocks() { 3 } else { 24 };
            if self.lives > 0 && self.random.one_in(times) {
                self.lives -= 1;
                self.die()?;
                continue;
            }
            self.events += 1;
            if self.events > EVENTS_MAX {
                return Err("INV-4: no end after very many events".into());
            }
            if !self.choose()? {
                return Ok(());
            }
        }
    }

    /// Let every task run until it waits for the scheduler.
    fn go_on(&self) {
        let _entered = self.exec.enter();
        self.exec.run_ready(); // timers do not count as ready before
        while self.exec.has_ready() {
            self.exec.run_ready();
        }
    }

    fn spawn(&self, task: impl Future<Output = Ending> + 'static) {
        let endings = Rc::clone(&self.endings);
        let _entered = self.exec.enter();
        self.exec.spawn(async move {
            let ending = task.await;
            endings.borrow_mut().push(ending);
        });
    }

    fn note(&mut self, event: impl FnOnce() -> String, numbers: [u64; 3]) {
        self.trace = numbers.iter().fold(self.trace, |trace, number| mix(trace ^ number));
        if let Some(log) = &mut self.log {
            log.push(event());
        }
    }

    fn start_open(&mut self) {
        self.note(|| "open".into(), [1, 0, 0]);
        self.opens += 1;
        self.is_opening = true;
        let base: Arc<dyn Bdev> = Arc::clone(&self.base) as Arc<dyn Bdev>;
        let image: Arc<dyn Image> = Arc::clone(&self.image) as Arc<dyn Image>;
        let options = self.case.setting.options(Arc::clone(&self.host), self.adopts);
        let options = UbiOptions { discard_unpublished: self.has_lost_map, ..options };
        self.spawn(async move { Ending::Opened(ubi::open(base, image, options).await) });
    }

    // Events.

    /// Let one thing happen; false when nothing is left to happen.
    fn choose(&mut self) -> Result<bool, String> {
        let in_flight = self.base.in_flight();
        let startable = self.startable();
        let choices = in_flight + startable.len();
        if choices == 0 {
            return self.pass_time();
        }
        if self.case.setting.image_changes && !self.image_changed && self.random.one_in(16) {
            self.note(|| "the image changes".into(), [2, 0, 0]);
            self.image_changed = true;
            self.past.add(Subject::ChangedImage);
            self.image.change();
        }
        if self.case.setting.loses_map && !self.has_lost_map && self.host.has_map() && self.random.one_in(16) {
            self.lose_map();
        }
        if self.case.setting.inline {
            let takes = self.random.one_in(2);
            self.base.take_inline(takes);
        }
        let choice = self.random.below(choices as u64) as usize;
        match choice.checked_sub(in_flight) {
            None => self.advance(choice),
            Some(index) => self.start(startable[index]),
        }
        Ok(true)
    }

    /// Nothing can happen but that time passes; INV-4 when nobody waits for it and somebody waits for an answer.
    fn pass_time(&mut self) -> Result<bool, String> {
        match self.exec.next_deadline() {
            Some(deadline) => {
                self.note(|| "time passes".into(), [3, 0, 0]);
                self.exec.set_now(deadline);
                if self.progress.iter().all(|progress| *progress == Progress::Ended) {
                    self.past.add(Subject::TimedRound);
                }
                Ok(true)
            }
            None if self.is_opening
                || self.is_repairing
                || self.progress.iter().any(|progress| matches!(progress, Progress::Running { .. })) =>
            {
                Err("INV-4: somebody waits, and nothing will ever wake him".into())
            }
            None => Ok(false),
        }
    }

    /// Let an operation land, in part or whole, or complete, or fail.
    fn advance(&mut self, index: usize) {
        let (kind, id, slots, landed) = self
            .base
            .with_ops(|ops| (ops[index].kind, ops[index].id, ops[index].slots.clone(), ops[index].has_landed()));
        let fails = self.case.setting.fault_one_in.is_some_and(|times| self.random.one_in(times));
        let way = if kind.changes() && !landed { self.random.below(10) } else { 9 };
        let what = match (fails, way) {
            (true, _) => "fails",
            (_, 0) => "lands in part",
            (_, 1 | 2) => "lands",
            _ => "completes",
        };
        self.note(|| format!("{kind:?} {id} of {slots:?} {what}"), [4, id, u64::from(fails) << 8 | way]);
        match (fails, way) {
            (true, _) => {
                self.land_part(index);
                self.note_fault(kind);
                self.base.complete(index, Some(injected(&format!("{kind:?}"))));
            }
            (_, 0) => self.land_part(index),
            (_, 1 | 2) => self.base.land(index, || true),
            _ => self.base.complete(index, None),
        }
    }

    fn land_part(&mut self, index: usize) {
        let mut random = self.random.clone();
        self.random.next();
        self.base.land(index, || random.one_in(2));
    }

    fn note_fault(&mut self, kind: Kind) {
        self.has_faults = true;
        match kind {
            Kind::Write | Kind::Zero | Kind::Discard => self.past.add(Subject::FailedWrite),
            Kind::ImageRead => self.past.add(Subject::FailedImage),
            Kind::Host => self.past.add(Subject::MapFailed),
            Kind::Flush => {
                self.sync_failed = true;
                self.ever_failed = true;
                let map_path = self.volume.as_ref().map(|volume| volume.status().map_path).unwrap_or_default();
                // The map of a marking that is not done has never counted, and no open looks into it.
                let is_marked = !BdevUbi::would_open(&self.base.content());
                self.must_refuse |= is_marked && self.host.has_map_at(map_path.as_bytes());
                self.past.add(Subject::FailedSync);
            }
            Kind::Read => {}
        }
    }

    // Requests.

    /// The steps that their queues may start now.
    fn startable(&self) -> Vec<usize> {
        if self.volume.is_none() || self.reopening.is_some() {
            return Vec::new();
        }
        let (mut startable, mut busy) = (Vec::new(), Vec::new());
        for (index, step) in self.case.script.iter().enumerate() {
            let progress = self.progress[index];
            if progress == Progress::Ended {
                continue;
            }
            if matches!(step.request, Request::Reopen { .. }) {
                // Nothing passes it, and it passes nothing.
                if busy.is_empty() && startable.is_empty() {
                    startable.push(index);
                }
                break;
            }
            if progress == Progress::Waiting && !busy.contains(&step.queue) {
                startable.push(index);
            }
            busy.push(step.queue);
        }
        startable
    }

    fn start(&mut self, index: usize) {
        let request = self.case.script[index].request.clone();
        self.note(|| format!("request {index}: {request:?}"), [5, index as u64, 0]);
        let volume = Arc::clone(self.volume.as_ref().expect("an open volume"));
        self.progress[index] = Progress::Running { start: self.oracle.tick() };
        if let Request::Read(range) = &request {
            self.oracle.submit_read(index, range.clone());
        }
        self.submit_changes(index, &request);
        match request {
            Request::Read(range) => self.spawn(async move { Ending::Read(index, client::read(&volume, range).await) }),
            Request::Reopen { .. } => {
                self.reopening = Some(index);
                self.volume = None;
                self.spawn(async move { Ending::Closed(volume.close().await) });
            }
            request => self.spawn(async move { Ending::Done(index, client::carry_out(&volume, index, request).await) }),
        }
    }

    fn submit_changes(&mut self, index: usize, request: &Request) {
        let range = request.changes();
        match request {
            Request::Write { .. } => self.oracle.submit(index, range, |sector| Tag::written(index, sector)),
            Request::Zero { .. } | Request::Discard { .. } => self.oracle.submit(index, range, |_| Tag::ZERO),
            Request::Read(_) | Request::Flush | Request::Prefetch(_) | Request::Reopen { .. } => {}
        }
    }

    fn take_endings(&mut self) -> Result<(), String> {
        loop {
            let Some(ending) = self.endings.borrow_mut().pop() else { return Ok(()) };
            let error = match &ending {
                Ending::Opened(result) => result.as_ref().err(),
                Ending::Closed(result) | Ending::Repaired(result) | Ending::Done(_, result) => result.as_ref().err(),
                Ending::Read(_, result) => result.as_ref().err(),
            };
            if let Some(error) = error.filter(|_| !self.has_faults) {
                return Err(format!("something fails, and nothing has been made to fail: {error}"));
            }
            match ending {
                Ending::Opened(result) => self.opened(result)?,
                Ending::Closed(result) => self.closed(result)?,
                Ending::Repaired(result) => self.repaired(result)?,
                Ending::Read(index, result) => self.read_ended(index, result)?,
                Ending::Done(index, result) => self.ended(index, result),
            }
        }
    }

    fn opened(&mut self, result: EngineResult<Arc<UbiBdev>>) -> Result<(), String> {
        self.note(|| format!("opened: {:?}", result.as_ref().err()), [6, u64::from(result.is_ok()), 0]);
        self.is_opening = false;
        self.sync_failed_before |= self.sync_failed;
        match result {
            Ok(_) if self.must_refuse => return Err("a failed sync is forgotten: the next open is not refused".into()),
            Ok(volume) => {
                self.is_formatted = true;
                self.adopts = false;
                self.past.add_if(Subject::AfterTakeover, volume.status().recovered == "map");
                self.volume = Some(volume);
                if let Some(index) = self.reopening.take() {
                    self.progress[index] = Progress::Ended;
                    self.past.add(Subject::AfterClose);
                }
            }
            Err(error) if self.opens < OPENS_MAX && is_sync_failure(&error) => self.start_repair(),
            Err(_) if self.opens < OPENS_MAX && !self.image_changed => self.start_open(),
            Err(_) => self.progress.fill(Progress::Ended),
        }
        Ok(())
    }

    fn start_repair(&mut self) {
        self.note(|| "repair".into(), [12, 0, 0]);
        self.is_repairing = true;
        let (base, host, setting) = (Arc::clone(&self.base), Arc::clone(&self.host), Arc::clone(&self.case.setting));
        self.spawn(async move { Ending::Repaired(repair(&*base, &host, &setting).await) });
    }

    fn repaired(&mut self, result: EngineResult<()>) -> Result<(), String> {
        self.note(|| format!("repaired: {:?}", result.as_ref().err()), [13, u64::from(result.is_ok()), 0]);
        if !self.case.setting.keeps {
            self.take_what_is_left()?;
        }
        self.is_repairing = false;
        self.must_refuse = false; // also when it failed: what decides may have been written by then
        self.past.add_if(Subject::AfterRepair, result.is_ok());
        self.start_open();
        Ok(())
    }

    fn closed(&mut self, result: EngineResult<()>) -> Result<(), String> {
        self.note(|| format!("closed: {:?}", result.as_ref().err()), [7, u64::from(result.is_ok()), 0]);
        let index = self.reopening.expect("a step that closes");
        if result.is_ok() && !self.case.setting.no_sync {
            self.flushed(index);
        }
        self.end_process();
        let by_bdev_ubi = self.case.script[index].request == Request::Reopen { by_bdev_ubi: true };
        if by_bdev_ubi && result.is_ok() && !self.sync_failed && self.is_closed_on_disk()? {
            self.live_under_bdev_ubi(index)?;
        }
        self.begin_process();
        Ok(())
    }

    fn read_ended(&mut self, index: usize, result: EngineResult<Vec<Tag>>) -> Result<(), String> {
        self.note(|| format!("request {index} ends: {:?}", result.as_ref().err()), [8, index as u64, 0]);
        self.progress[index] = Progress::Ended;
        let ended = self.oracle.end_read(index, result.as_deref().ok());
        ended.map_err(|wrong| format!("request {index}: {wrong}"))
    }

    fn ended(&mut self, index: usize, result: EngineResult<()>) {
        self.note(|| format!("request {index} ends: {:?}", result.as_ref().err()), [9, index as u64, 0]);
        let request = &self.case.script[index].request;
        let counts = result.is_ok() && !matches!(request, Request::Discard { .. });
        let is_durable = request.is_fua() && !self.sync_failed_before;
        self.oracle.end(index, request.changes(), counts, is_durable);
        if result.is_ok() && *request == Request::Flush && !self.case.setting.no_sync {
            self.flushed(index);
        }
        self.progress[index] = Progress::Ended;
    }

    /// A FLUSH or a close has succeeded.
    fn flushed(&mut self, index: usize) {
        let Progress::Running { start } = self.progress[index] else { panic!("only a running request ends") };
        if !self.sync_failed_before {
            self.oracle.flushed(start);
        }
    }
}
