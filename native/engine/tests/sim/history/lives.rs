//! The ends of processes and of power, what comes after them, and what a cut at any moment would leave.

use std::sync::Arc;

use ubi_engine::bdev::ubi::UbiBdev;
use ubi_engine::bdev::ubi::superblock::VolumeState;
use ubi_engine::reactor::exec::Executor;

use super::{Endings, History, Progress};
use crate::sim::base::{Kind, Op, SimBase};
use crate::sim::bdev_ubi::BdevUbi;
use crate::sim::checker::headers;
use crate::sim::coverage::{Subject, Subjects};
use crate::sim::image::SimImage;
use crate::sim::oracle::Cut;
use crate::sim::script::Request;
use crate::sim::setting::STRIPE;
use crate::sim::survivor::Machine;
use crate::sim::tags::{Tag, hash, mix};

impl History<'_> {
    // Lives.

    /// The process is gone: its tasks, its volume, its executor.
    pub(super) fn end_process(&mut self) {
        let _entered = self.exec.enter();
        self.volume = None;
        self.exec.drop_tasks();
        self.endings.borrow_mut().clear();
    }

    pub(super) fn begin_process(&mut self) {
        let now = self.exec.now();
        self.exec = Executor::new(|| {});
        self.exec.set_now(now);
        self.endings = Endings::default();
        self.sync_failed_before |= self.sync_failed;
        self.image = SimImage::new(&self.case.setting, Some(Arc::clone(&self.base)));
        self.host = self.host.copy(Some(Arc::clone(&self.base)));
        self.lost_map = None;
        self.must_refuse &= !self.is_repairing;
        self.is_repairing = false;
        if self.image_changed {
            self.image.change();
        }
        self.start_open();
    }

    /// The process dies or power is lost; one of the survivors is what goes on.
    pub(super) fn die(&mut self) -> Result<(), String> {
        let setting = &self.case.setting;
        let is_process_death = if self.case.is_hasty { !self.random.one_in(6) } else { self.random.one_in(2) };
        let cut = if is_process_death { Cut::ProcessDeath } else { Cut::PowerLoss };
        let uncertain = match cut {
            Cut::ProcessDeath => self.base.at_process_death(),
            Cut::PowerLoss => self.base.at_power_loss(),
        };
        let disk = uncertain.survivor(setting.tear, &mut self.random);
        let machine = self.machine(cut);
        let found = self.checker.examine(setting, (cut, &disk, &machine), &self.oracle)?;
        self.host = Arc::clone(&machine.host);
        self.note(|| format!("{cut:?}"), [10, cut as u64, hash(&disk)]);
        self.end_process();
        for progress in &mut self.progress {
            if matches!(progress, Progress::Running { .. }) {
                *progress = Progress::Ended;
            }
        }
        self.reopening = None;
        self.opens = 0;
        match cut {
            Cut::ProcessDeath => {
                self.past.add(Subject::SecondLife);
                if machine.lacks_map {
                    self.oracle.give_up_what_is_not_found(&found);
                } else {
                    self.oracle.survive_process_death(&found);
                }
                self.base = self.base.after_process_death(&disk);
            }
            Cut::PowerLoss => {
                self.past.add(Subject::AfterPower);
                self.oracle.survive_power_loss(&found);
                self.base = SimBase::new(setting, disk);
                self.sync_failed = false;
                self.must_refuse = false;
                self.sync_failed_before = false;
                self.saved = None;
                self.has_lost_map = false;
            }
        }
        self.begin_process();
        Ok(())
    }

    /// Somebody cuts the volatile map short.
    pub(super) fn lose_map(&mut self) {
        let Some(status) = self.volume.as_ref().map(|volume| volume.status()) else { return };
        let told = self.random.one_in(2);
        self.note(|| format!("the map is cut short, told: {told}"), [14, u64::from(told), 0]);
        // Else it is that of a marking, by this process or by a dead one.
        let is_in_use = self.host.has_map_at(status.map_path.as_bytes());
        self.host.lose_maps(told);
        self.has_lost_map = true;
        self.lost_map = is_in_use.then_some((told, status.stripes_present));
        self.past.add(Subject::LostMap);
    }

    /// A map that is lost acknowledges nothing any more: no stripe that came after it, where stores are told, and none after
    /// the first round.
    pub(super) fn check_lost_map(&self) -> Result<(), String> {
        let (Some((told, present)), Some(volume)) = (self.lost_map, &self.volume) else { return Ok(()) };
        let status = volume.status();
        let is_noticed = if told { status.stripes_present > present } else { status.stripes_published > present };
        match is_noticed && status.acknowledged_by == "map" {
            true => Err("a map that was cut short goes on to acknowledge".into()),
            false => Ok(()),
        }
    }

    /// After a repair that gave something up the volume reads as what is left.
    pub(super) fn take_what_is_left(&mut self) -> Result<(), String> {
        let machine = self.machine(Cut::ProcessDeath);
        let disk = self.base.content();
        let found = self.checker.examine(&self.case.setting, (Cut::ProcessDeath, &disk, &machine), &self.oracle)?;
        self.oracle.survive_process_death(&found);
        Ok(())
    }

    /// Between a clean close and the next open bdev_ubi writes a stripe and reads another.
    pub(super) fn live_under_bdev_ubi(&mut self, index: usize) -> Result<(), String> {
        let setting = &self.case.setting;
        let mut disk = self.base.content();
        self.adopts = true;
        let mut volume = BdevUbi::open(setting, &mut disk)?;
        let block = setting.block();
        let at = self.random.below((STRIPE / block) as u64) as usize * block;
        let request = self.case.script.len() + index;
        self.note(|| format!("bdev_ubi writes {block} sectors at {at}"), [11, at as u64, 0]);
        self.oracle.submit(request, at..at + block, |sector| Tag::written(request, sector));
        volume.write(at..at + block, |sector| Tag::written(request, sector));
        self.oracle.submit_read(request, 0..setting.volume);
        let found = volume.read(0..if self.random.one_in(2) { setting.volume } else { STRIPE });
        self.oracle
            .end_read(request, Some(&found))
            .map_err(|wrong| format!("bdev_ubi after a clean close: {wrong}"))?;
        volume.close();
        self.oracle.end(request, at..at + block, true, true);
        self.base.replace(disk);
        let start = self.oracle.tick();
        self.oracle.flushed(start);
        self.past.add(Subject::BdevUbiLife);
        Ok(())
    }

    // Cuts.

    /// Look at what a cut at this moment may leave, unless nothing has changed since the last one.
    pub(super) fn cut(&mut self) -> Result<(), String> {
        let moment = (self.base.version() ^ self.host.version() << 40, self.oracle.tick_count());
        if moment == self.last_cut {
            return Ok(());
        }
        self.last_cut = moment;
        let subjects = self.subjects();
        let depth = self.case.depth;
        let death = self.base.at_process_death();
        let with = subjects.with(Subject::ProcessDeath);
        let machine = self.machine(Cut::ProcessDeath);
        let at = (Cut::ProcessDeath, &death, &machine);
        self.checker.look(&self.case.setting, at, &self.oracle, depth, with)?;
        let loss = self.base.at_power_loss();
        let with = subjects.with(Subject::PowerLoss);
        let machine = self.machine(Cut::PowerLoss);
        self.checker.look(&self.case.setting, (Cut::PowerLoss, &loss, &machine), &self.oracle, depth, with)
    }

    /// Save the base now and then, and look what becomes of an open when it is put back after a process death: once a header
    /// is durable that it has not, only a refusal keeps the map from being read into it. (Stripes that are only in the map
    /// leave no trace on the base; docs/safety.md.)
    pub(super) fn put_back(&mut self) -> Result<(), String> {
        let is_marked = |volume: &Arc<UbiBdev>| {
            let status = volume.status();
            status.state == VolumeState::Open && self.host.has_map_at(status.map_path.as_bytes())
        };
        // Chosen by what has happened: a history is the same with it and without.
        let choice = mix(self.trace);
        if choice.is_multiple_of(8) && self.volume.as_ref().is_some_and(is_marked) {
            let disk = self.base.content();
            self.saved = (!BdevUbi::would_open(&disk)).then_some(disk);
        }
        let Some(saved) = self.saved.as_ref().filter(|_| choice % 4 == 1) else { return Ok(()) };
        // A header page whose write failed may be durable all the same, and nobody knows it.
        if self.has_faults || headers(&self.base.durable()) & !headers(saved) == 0 {
            return Ok(());
        }
        let machine = self.machine(Cut::ProcessDeath);
        let refused = self.checker.must_refuse(&self.case.setting, saved, &machine);
        refused.map_err(|what| format!("an older state of the base, put back in the same boot, {what}"))
    }

    /// What a survivor of a cut at this moment is opened on.
    fn machine(&self, cut: Cut) -> Machine {
        let host = match cut {
            Cut::ProcessDeath => self.host.copy(None),
            Cut::PowerLoss => self.host.booted_again(),
        };
        let is_dropping = self.is_repairing && !self.case.setting.keeps;
        let (durable, marked_epoch) = (self.host.durable(), self.host.marked_epoch());
        // Once it is noticed, and the disk names it no more, every open has to succeed, with all that was acknowledged.
        let is_disowned = self.volume.as_ref().is_some_and(|volume| {
            let status = volume.status();
            status.acknowledged_by == "header" && status.map_path.is_empty()
        });
        let lacks_map = self.has_lost_map && cut == Cut::ProcessDeath && !is_disowned;
        let (adopts, may_be_failed) = (self.adopts, self.ever_failed);
        Machine { host, adopts, may_be_failed, is_dropping, lacks_map, durable, marked_epoch }
    }

    /// Whether bdev_ubi may have the volume now. After a close that is bound to be, unless a fault is in the way.
    pub(super) fn is_closed_on_disk(&self) -> Result<bool, String> {
        let is_closed = BdevUbi::would_open(&self.base.content());
        match is_closed || self.has_faults {
            true => Ok(is_closed),
            false => Err("a clean close leaves a volume that bdev_ubi does not open".into()),
        }
    }

    /// Superblocks are on their way to the disk, or a map does not say yet that they are there.
    pub(super) fn changes_superblocks(&self) -> bool {
        self.host.has_marking_in_doubt() || self.base.with_ops(|ops| ops.iter().any(Op::is_superblock))
    }

    /// What is going on just now.
    fn subjects(&self) -> Subjects {
        let mut subjects = self.past;
        subjects.add_if(Subject::Format, self.is_opening && !self.is_formatted);
        subjects.add_if(Subject::Adopt, self.is_opening && self.adopts);
        subjects.add_if(Subject::Takeover, self.is_opening && self.is_formatted && self.host.has_map());
        subjects.add_if(Subject::WithMap, self.host.has_map());
        subjects.add_if(Subject::Repair, self.is_repairing);
        subjects.add_if(Subject::Reopen, self.is_opening && self.is_formatted);
        subjects.add_if(Subject::CleanClose, self.reopening.is_some() && !self.is_opening);
        subjects.add_if(Subject::InlineWrite, self.base.inline_writes() > 0);
        for (step, progress) in self.case.script.iter().zip(&self.progress) {
            if matches!(progress, Progress::Running { .. }) {
                self.add_request(&step.request, &mut subjects);
            }
        }
        if !self.is_opening {
            let unsynced_headers = self.base.has_unsynced_headers();
            self.base.with_ops(|ops| {
                let headers = ops.iter().any(Op::is_metadata);
                let state = ops.iter().any(Op::is_superblock) && self.reopening.is_none();
                subjects.add_if(Subject::Mark, state && !self.sync_failed);
                subjects.add_if(Subject::SyncFailure, state && self.sync_failed);
                let sync = ops.iter().any(|op| op.kind == Kind::Flush);
                subjects.add_if(Subject::Fetch, ops.iter().any(|op| op.kind == Kind::ImageRead));
                subjects.add_if(Subject::Copy, ops.iter().any(Op::is_copy));
                subjects.add_if(Subject::RoundHeaders, headers);
                subjects.add_if(Subject::RoundFirstSync, sync && !unsynced_headers);
                subjects.add_if(Subject::RoundSecondSync, sync && unsynced_headers);
            });
        }
        subjects
    }

    fn add_request(&self, request: &Request, subjects: &mut Subjects) {
        subjects.add_if(Subject::Fua, request.is_fua());
        match request {
            Request::Read(_) => subjects.add(Subject::Read),
            Request::Write { range, .. } => {
                let setting = &self.case.setting;
                let image_end = setting.image_end();
                subjects.add_if(Subject::TailWrite, range.end > image_end);
                let covers = |start: usize, end: usize| range.start <= start && end <= range.end;
                let is_whole = covers(0, STRIPE) || covers(STRIPE, image_end);
                subjects.add(if is_whole { Subject::WholeWrite } else { Subject::PartialWrite });
            }
            Request::Zero { .. } => subjects.add(Subject::Zero),
            Request::Discard { .. } => subjects.add(Subject::Discard),
            Request::Flush => subjects.add(Subject::Flush),
            Request::Prefetch(_) => subjects.add(Subject::Prefetch),
            Request::Reopen { .. } => {}
        }
    }
}
