//! Random requests of several clients against a model, over clean closes, process deaths and power cuts.
//!
//! The model knows of every sector what may be there: after a process death the last acknowledged change or a later
//! one that was submitted; after a power cut the last change that a FLUSH or FUA covers or a later one that was
//! submitted; never anything else. A read gives what was acknowledged before it or something later. Clients share
//! stripes but not sectors, so that the order of the changes to one sector is known. A failing run prints its seed; UBI_TEST_SEED runs it again.

mod ubi_support;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ubi_engine::bdev::ubi::{UbiBdev, UbiOptions};
use ubi_engine::bdev::{Bdev, ZeroFlags};
use ubi_engine::reactor::exec;
use ubi_support::*;

const STRIPE: u64 = 64 * KIB;
const SECTOR: u64 = 512;
const CLIENTS: u64 = 4;
/// Power cuts that are looked at in one session.
const CUTS: u64 = 6;

/// What a change made of a sector: 512 times the 8 bytes of `tag`, or what the image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Image,
    Tag(u64),
}

/// The changes of one sector in order of their submission.
#[derive(Clone)]
struct Sector {
    values: Vec<Value>,
    /// Index of the last acknowledged change.
    acknowledged: usize,
    /// Index of the last change that a completed FLUSH or FUA covers.
    durable: usize,
}

/// How the base is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Close,
    ProcessDeath,
    PowerCut,
}

/// What a run is made of.
#[derive(Debug, Clone)]
struct Plan {
    block: u64,
    image_bytes: u64,
    volume_bytes: u64,
    /// Bytes in a row that belong to one client.
    chunk: u64,
    copy_on_read: bool,
    unmap_reads_zero: bool,
    buffered: bool,
    fault_one_in: Option<u64>,
}

impl Plan {
    fn new(random: &mut Random) -> Self {
        let block = *random.pick(&[512, 4096]);
        let image_bytes = STRIPE * (1 + random.below(3)) + *random.pick(&[0, 0, 512, 700, 4096, 40_000]);
        let volume_bytes = image_bytes.next_multiple_of(4096) + random.below(3) * 32 * KIB;
        Self {
            block,
            image_bytes,
            volume_bytes,
            chunk: *random.pick(&[4 * KIB, 16 * KIB, STRIPE, 2 * STRIPE]),
            copy_on_read: random.one_in(2),
            unmap_reads_zero: !random.one_in(4),
            buffered: random.one_in(2),
            fault_one_in: random.one_in(3).then(|| 20 + random.below(100)),
        }
    }

    fn owner(&self, position: u64) -> u64 {
        position / self.chunk % CLIENTS
    }
}

struct Model {
    plan: Plan,
    image: Arc<MemImage>,
    sectors: RefCell<Vec<Sector>>,
    next_tag: RefCell<u64>,
}

impl Model {
    fn new(plan: Plan, random: &mut Random) -> Rc<Self> {
        let content = pattern(random.next(), plan.image_bytes);
        let image = if random.one_in(2) {
            let start = random.below(plan.image_bytes / 4096) * 4096;
            MemImage::sparse(
                content,
                &[0..8192.min(start), start..plan.image_bytes - random.below(8192).min(plan.image_bytes - start)],
            )
        } else {
            MemImage::new(content)
        };
        let count = plan.volume_bytes / SECTOR;
        let sectors = (0..count).map(|_| Sector { values: vec![Value::Image], acknowledged: 0, durable: 0 }).collect();
        Rc::new(Self { plan, image, sectors: RefCell::new(sectors), next_tag: RefCell::new(1) })
    }

    fn bytes(&self, sector: u64, value: Value) -> Vec<u8> {
        match value {
            Value::Tag(tag) => tag.to_le_bytes().repeat(SECTOR as usize / 8),
            Value::Image => {
                let start = (sector * SECTOR).min(self.plan.image_bytes) as usize;
                let end = ((sector + 1) * SECTOR).min(self.plan.image_bytes) as usize;
                let mut bytes = self.image.content[start..end].to_vec();
                bytes.resize(SECTOR as usize, 0);
                bytes
            }
        }
    }

    /// Which of a sector's values the bytes are; the oldest allowed is that with index `from`.
    fn check(&self, number: u64, sector: &Sector, bytes: &[u8], from: usize, what: &str) -> Value {
        let allowed = &sector.values[from..];
        let found = allowed.iter().rev().find(|&&value| self.bytes(number, value) == bytes);
        *found.unwrap_or_else(|| {
            let found = if bytes.contains(&POISON) { "old bytes of the base" } else { "other bytes" };
            let (first, all) = (&bytes[..8], &sector.values);
            panic!("{what}: sector {number} has {found} {first:02x?}, not one of {allowed:?} of {all:?}")
        })
    }

    /// The index of the last acknowledged change of each sector of a range.
    fn acknowledged(&self, start: u64, end: u64) -> Vec<usize> {
        let range = (start / SECTOR) as usize..(end / SECTOR) as usize;
        self.sectors.borrow()[range].iter().map(|sector| sector.acknowledged).collect()
    }

    /// Note a submitted change of some sectors; returns its bytes and where it is in each sector's list.
    fn submit(&self, start: u64, end: u64, zero: bool) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut indices = Vec::new();
        for sector in start / SECTOR..end / SECTOR {
            let mut tag = self.next_tag.borrow_mut();
            let value = if zero { Value::Tag(0) } else { Value::Tag(*tag) };
            *tag += 1;
            bytes.extend(self.bytes(sector, value));
            let values = &mut self.sectors.borrow_mut()[sector as usize].values;
            values.push(value);
            indices.push(values.len() - 1);
        }
        (bytes, indices)
    }

    fn acknowledge(&self, start: u64, indices: &[usize], durable: bool) {
        let mut sectors = self.sectors.borrow_mut();
        for (sector, &index) in sectors[(start / SECTOR) as usize..].iter_mut().zip(indices) {
            sector.acknowledged = sector.acknowledged.max(index);
            if durable {
                sector.durable = sector.durable.max(index);
            }
        }
    }
}

/// One client's requests until its time is over.
async fn client(model: Rc<Model>, bdev: Arc<UbiBdev>, number: u64, mut random: Random, requests: u64) {
    for _ in 0..requests {
        exec::sleep(Duration::from_micros(random.below(800))).await;
        match random.below(12) {
            0..=3 => read_and_check(&model, &bdev, &mut random).await,
            4..=9 => change(&model, &bdev, number, &mut random).await,
            10 => {
                let (start, end) = any_range(&model.plan, &mut random);
                let _ = bdev.prefetch(start, end - start).await;
            }
            _ => flush(&model, &bdev).await,
        }
    }
}

fn any_range(plan: &Plan, random: &mut Random) -> (u64, u64) {
    let blocks = plan.volume_bytes / plan.block;
    let start = random.below(blocks);
    let most = *random.pick(&[1, 8, 32, 300]);
    (start * plan.block, (start + 1 + random.below(most).min(blocks - start - 1)) * plan.block)
}

/// A range of one client, as long as possible from a random place.
fn own_range(plan: &Plan, number: u64, random: &mut Random) -> Option<(u64, u64)> {
    let (start, end) = any_range(plan, random);
    let whole_chunk = random.one_in(3);
    let start = if whole_chunk { start / plan.chunk * plan.chunk } else { start };
    let end = if whole_chunk { plan.volume_bytes } else { end };
    if plan.owner(start) != number {
        return None;
    }
    let end = end.min((start / plan.chunk + 1) * plan.chunk).min(plan.volume_bytes);
    (start < end).then_some((start, end))
}

/// Read anything: what was acknowledged before the read, or something later.
async fn read_and_check(model: &Model, bdev: &Arc<UbiBdev>, random: &mut Random) {
    let (start, end) = any_range(&model.plan, random);
    let before = model.acknowledged(start, end);
    let mut inline = vec![0; (end - start) as usize];
    let bytes = match bdev.try_read(start, &mut inline, None) {
        Some(result) => result.map(|()| inline),
        None => bdev.read(start, (end - start) as usize).await.map(|buf| buf.to_vec()),
    };
    let Ok(bytes) = bytes else {
        assert!(model.plan.fault_one_in.is_some(), "no fault was made");
        return;
    };
    let sectors = model.sectors.borrow();
    for ((number, bytes), from) in (start / SECTOR..).zip(bytes.chunks(SECTOR as usize)).zip(before) {
        model.check(number, &sectors[number as usize], bytes, from, "a read");
    }
}

async fn change(model: &Model, bdev: &Arc<UbiBdev>, number: u64, random: &mut Random) {
    let Some((start, end)) = own_range(&model.plan, number, random) else { return };
    let (fua, kind) = (random.one_in(5), random.below(8));
    let len = end - start;
    let (bytes, indices) = model.submit(start, end, kind < 2);
    let result = match kind {
        0 => bdev.discard(start, len, fua).await,
        1 => bdev.write_zeroes(start, len, ZeroFlags { no_hole: random.one_in(2), fua, fast: false }).await,
        _ => match if fua { None } else { bdev.try_write(start, &bytes, None) } {
            Some(result) => result,
            None => bdev.write(start, data(&bytes), fua).await,
        },
    };
    match result {
        // A discard may leave what was there: it is never more than submitted.
        Ok(()) if kind != 0 => model.acknowledge(start, &indices, fua),
        Ok(()) => {}
        Err(error) => assert!(model.plan.fault_one_in.is_some(), "no fault was made: {error}"),
    }
}

async fn flush(model: &Model, bdev: &Arc<UbiBdev>) {
    let before = model.acknowledged(0, model.plan.volume_bytes);
    match bdev.flush().await {
        Ok(()) => {
            for (sector, covered) in model.sectors.borrow_mut().iter_mut().zip(before) {
                sector.durable = sector.durable.max(covered);
            }
        }
        Err(error) => assert!(model.plan.fault_one_in.is_some(), "no fault was made: {error}"),
    }
}

/// What power cuts during a session would have left, and what was promised then.
type Left = Rc<RefCell<Vec<(Arc<MemBase>, Vec<Sector>)>>>;

/// Open, let the clients run, end in some way. Returns the base as the next session finds it.
///
/// A base whose flush failed is not opened again without a power cut: to remember that across processes is the
/// superblock's matter.
async fn session(
    model: Rc<Model>,
    base: Arc<MemBase>,
    end: End,
    left: Left,
    mut random: Random,
) -> (Arc<MemBase>, End, Vec<Sector>) {
    let options = UbiOptions { copy_on_read: model.plan.copy_on_read, ..options() };
    let bdev = opened_or_repaired(&base, &model.image, options).await;
    base.be_random(Random::new(random.next()), model.plan.fault_one_in);
    model.image.be_random(Random::new(random.next()), model.plan.fault_one_in);
    let requests = 1 + random.below(60);
    let clients = (0..CLIENTS).map(|number| {
        start(client(Rc::clone(&model), Arc::clone(&bdev), number, Random::new(random.next()), requests))
    });
    let clients: Vec<_> = clients.collect();
    if end != End::Close {
        for _ in 0..CUTS {
            exec::sleep(Duration::from_micros(random.below(requests * 2500 / CUTS))).await;
            let sectors = model.sectors.borrow().clone();
            left.borrow_mut().push((base.after_power_cut(&mut random), sectors));
        }
        let end = if bdev.status().sync_failed { End::PowerCut } else { end };
        return leave(&model, &base, end, &mut random);
    }
    for client in &clients {
        client.wait().await;
    }
    let covered = model.acknowledged(0, model.plan.volume_bytes);
    if bdev.close().await.is_ok() {
        assert_eq!(bdev.status().stripes_present, bdev.status().stripes_published);
        for (sector, covered) in model.sectors.borrow_mut().iter_mut().zip(covered) {
            sector.durable = covered;
        }
    }
    let end = if bdev.status().sync_failed { End::PowerCut } else { end };
    leave(&model, &base, end, &mut random)
}

/// What is left of the base, and what each sector was at that very moment: clients that the end has overtaken still
/// run until the executor stops, and what they are told then was never heard.
fn leave(model: &Model, base: &MemBase, end: End, random: &mut Random) -> (Arc<MemBase>, End, Vec<Sector>) {
    let left = if end == End::PowerCut { base.after_power_cut(random) } else { base.after_process_death(random) };
    (left, end, model.sectors.borrow().clone())
}

/// Open what is left and check it; returns what each sector is.
async fn check_left(model: Rc<Model>, base: Arc<MemBase>, sectors: Vec<Sector>, end: End) -> Vec<Value> {
    let options = UbiOptions { copy_on_read: false, ..options() };
    let bdev = opened_or_repaired(&base, &model.image, options).await;
    let content = read(&bdev, 0, model.plan.volume_bytes).await;
    let check = |(number, (bytes, sector)): (u64, (&[u8], &Sector))| {
        let from = if end == End::PowerCut { sector.durable } else { sector.acknowledged };
        model.check(number, sector, bytes, from, &format!("after {end:?}"))
    };
    (0..).zip(content.chunks(SECTOR as usize).zip(&sectors)).map(check).collect()
}

/// The next session's history starts with what the last one left.
fn go_on(sector: &mut Sector, value: Value, end: End) {
    if end == End::PowerCut {
        *sector = Sector { values: vec![value], acknowledged: 0, durable: 0 };
    } else {
        // The kernel still holds what was not flushed: a later power cut may leave any of it.
        sector.values.push(value);
        sector.acknowledged = sector.values.len() - 1;
    }
}

fn scenario(seed: u64) {
    let mut random = Random::new(seed);
    let plan = Plan::new(&mut random);
    let content = {
        let mut content = vec![0; DATA as usize];
        content.resize((DATA + plan.volume_bytes) as usize, POISON);
        content
    };
    let (unmap, buffered) = (plan.unmap_reads_zero, plan.buffered);
    let mut base = MemBase::made(plan.block as u32, content, |info| {
        info.unmap_reads_zero = unmap;
        info.buffered = buffered;
    });
    let model = Model::new(plan, &mut random);
    for _ in 0..4 {
        let wanted = *random.pick(&[End::Close, End::ProcessDeath, End::PowerCut]);
        let next = Random::new(random.next());
        let left = Left::default();
        let (end, sectors);
        (base, end, sectors) = run(session(Rc::clone(&model), Arc::clone(&base), wanted, Rc::clone(&left), next));
        model.image.be_calm();
        for (base, sectors) in left.take() {
            run(check_left(Rc::clone(&model), base, sectors, End::PowerCut));
        }
        model.sectors.replace(sectors.clone());
        let values = run(check_left(Rc::clone(&model), Arc::clone(&base), sectors, end));
        for (sector, value) in model.sectors.borrow_mut().iter_mut().zip(values) {
            go_on(sector, value, end);
        }
    }
}

#[test]
fn random_requests_deaths_and_power_cuts_keep_every_promise() {
    let seed = Random::seed();
    let runs = std::env::var("UBI_TEST_RUNS").map_or(80, |text| text.parse().expect("UBI_TEST_RUNS is a number"));
    for index in 0..runs {
        let seed = seed.wrapping_add(index);
        let outcome = std::panic::catch_unwind(|| scenario(seed));
        if let Err(panic) = outcome {
            println!("repeat with UBI_TEST_SEED={seed} UBI_TEST_RUNS=1");
            std::panic::resume_unwind(panic);
        }
    }
}
