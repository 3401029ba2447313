//! `vhost-load`: a virtual machine's block driver without the machine, for any vhost-user-blk backend.
//!
//! It shares memory with the backend, sets up queues and keeps them full, a thread for each. It measures, and with
//! `--verify` it checks every byte that it reads. With `--reconnect` it lives through the death of its backend, as a
//! monitor with in-flight recovery does.
//!
//! - [`args`]: the command line
//! - [`wire`], [`session`]: messages, and what is agreed with them
//! - [`ring`]: the driver's side of a queue
//! - [`worker`]: one queue under load
//! - [`pattern`]: what is written and expected
//! - [`sys`]: shared memory, descriptors over sockets, eventfds

#![deny(unsafe_code)]

mod args;
mod pattern;
mod ring;
mod session;
mod sys;
mod wire;
mod worker;

use std::io::Read;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use args::Args;
use session::{Inflight, Session, Shared};
use ubi_bench::program;
use wire::Connection;
use worker::{Outcome, Signals, Window, Worker};

/// Workers begin this long after they are made, so that all of them have the same window.
const LEAD: Duration = Duration::from_millis(20);
const LOOK_AT_WORKERS: Duration = Duration::from_millis(10);
/// How often a backend that is gone is looked for, and for how long.
const RECONNECT_EVERY: Duration = Duration::from_millis(1);
const RECONNECT_FOR: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    program::main("vhost-load", args::USAGE, Args::parse(std::env::args().skip(1)), run)
}

type Running = JoinHandle<Result<(Outcome, u16), String>>;

/// The driver, while its queues run.
struct Driver {
    args: Arc<Args>,
    shared: Arc<Shared>,
    signals: Arc<Signals>,
    inflight: Option<Inflight>,
    session: Session,
    reconnects: Vec<Reconnect>,
}

/// When a backend was lost and found again, by the clock that every process has.
struct Reconnect {
    lost_ns: u64,
    connected_ns: u64,
    ready_ns: u64,
}

fn run(args: &Arc<Args>) -> Result<String, String> {
    let connection = Connection::open(&args.socket).map_err(|error| format!("{}: {error}", args.socket.display()))?;
    let session = Session::negotiate(args, connection)?;
    let inflight = if args.reconnect { Some(session.make_inflight(args)?) } else { None };
    let shared = Arc::new(Shared::new(args).map_err(|error| format!("shared memory: {error}"))?);
    session.start(&shared, inflight.as_ref())?;
    let signals = Arc::new(Signals::default());
    let begin = Instant::now() + LEAD + args.ramp;
    let window = Window { begin, end: (!args.until_eof).then(|| begin + args.seconds) };
    let disk = (session.size_bytes, session.event_idx);
    let workers = (0..usize::from(args.queues)).map(|index| Worker::new(args, &shared, &signals, index, disk, window));
    let workers = workers.collect::<Result<Vec<_>, _>>()?;
    let workers: Vec<Running> = workers.into_iter().map(|worker| thread::spawn(move || worker.run())).collect();
    if args.until_eof {
        stop_at_eof(&signals);
    }
    let before = ubi_bench::sys::cpu_time();
    let args = Arc::clone(args);
    let mut driver = Driver { args, shared, signals, inflight, session, reconnects: Vec::new() };
    driver.watch(&workers)?;
    let after = ubi_bench::sys::cpu_time();
    let seconds = window.end.unwrap_or_else(Instant::now).duration_since(window.begin).as_secs_f64();
    let total = driver.finish(workers)?;
    Ok(driver.report(&total, seconds, after.0 - before.0 + after.1 - before.1))
}

fn stop_at_eof(signals: &Arc<Signals>) {
    let signals = Arc::clone(signals);
    thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        signals.stop.store(true, Ordering::Relaxed);
    });
}

impl Driver {
    /// Stand by until every worker is done; find the backend again when it is gone.
    fn watch(&mut self, workers: &[Running]) -> Result<(), String> {
        while !workers.iter().all(JoinHandle::is_finished) {
            if !self.session.is_gone_within(LOOK_AT_WORKERS) {
                continue;
            }
            let found = if self.args.reconnect { self.reconnect() } else { Err("the backend has hung up".into()) };
            if let Err(message) = found {
                self.signals.lost.store(true, Ordering::Relaxed);
                return Err(message);
            }
        }
        Ok(())
    }

    fn reconnect(&mut self) -> Result<(), String> {
        let lost_ns = sys::monotonic_ns();
        let began = Instant::now();
        loop {
            match self.try_to_reconnect(lost_ns) {
                Ok(reconnect) => {
                    self.reconnects.push(reconnect);
                    return Ok(());
                }
                // It may also have been the one that is dying who was still listening.
                Err(_) if began.elapsed() < RECONNECT_FOR => thread::sleep(RECONNECT_EVERY),
                Err(error) => return Err(format!("the backend does not come back: {error}")),
            }
        }
    }

    fn try_to_reconnect(&mut self, lost_ns: u64) -> Result<Reconnect, String> {
        let connection = Connection::open(&self.args.socket).map_err(|error| error.to_string())?;
        let connected_ns = sys::monotonic_ns();
        let session = Session::negotiate(&self.args, connection)?;
        session.start(&self.shared, self.inflight.as_ref())?;
        self.session = session;
        Ok(Reconnect { lost_ns, connected_ns, ready_ns: sys::monotonic_ns() })
    }

    /// Stop the queues, each where its driver has come to.
    fn finish(&self, workers: Vec<Running>) -> Result<Outcome, String> {
        let mut total = Outcome::default();
        for (index, worker) in workers.into_iter().enumerate() {
            let (outcome, available) = worker.join().map_err(|_| "a worker panicked".to_owned())??;
            total.add(&outcome);
            let base = self.session.stop_queue(index as u16)?;
            if base != available {
                return Err(format!("queue {index} has stopped at {base}, not at {available}"));
            }
        }
        Ok(total)
    }

    /// The figures as JSON. Rates are those of the measured window.
    fn report(&self, total: &Outcome, seconds: f64, cpu_s: f64) -> String {
        let iops = total.requests as f64 / seconds;
        let mib_s = iops * f64::from(self.args.block_size) / f64::from(1 << 20);
        let (p50, p99) = (total.latency.quantile_us(0.5), total.latency.quantile_us(0.99));
        let list = |values: Vec<String>| format!("[{}]", values.join(", "));
        let gaps = list(total.gaps.iter().map(|(begin, end)| format!("[{begin}, {end}]")).collect());
        let times = |one: &Reconnect| format!("[{}, {}, {}]", one.lost_ns, one.connected_ns, one.ready_ns);
        let reconnects = list(self.reconnects.iter().map(times).collect());
        format!(
            "{{\"iops\": {iops:.1}, \"mib_s\": {mib_s:.2}, \"p50_us\": {p50:.2}, \"p99_us\": {p99:.2}, \
             \"requests\": {}, \"total\": {}, \"errors\": {}, \"checked\": {}, \"wrong\": {}, \"kicks\": {}, \
             \"seconds\": {seconds:.3}, \"cpu_s\": {cpu_s:.4}, \"gaps_ns\": {gaps}, \"reconnects_ns\": {reconnects}}}",
            total.requests, total.total, total.errors, total.checked, total.wrong, total.kicks,
        )
    }
}
