//! `nbd-load`: what an NBD server can do when the client is not the bottleneck.
//!
//! fio's nbd engine makes a system call or two for each request. This client sends many requests with one call and
//! takes many replies with one, on a thread for each connection, and treats every server alike. It measures; it does
//! not check the data that it reads.
//!
//! - [`args`]: the command line
//! - [`negotiate`]: the handshake
//! - [`worker`]: one connection under load
//! - [`replies`]: completions out of a stream of bytes
//! - [`requests`]: requests into one send

#![deny(unsafe_code)]

mod args;
mod negotiate;
mod replies;
mod requests;
mod worker;

use std::process::ExitCode;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use args::Args;
use negotiate::Agreed;
use ubi_bench::{program, sys};
use worker::{Outcome, Window};

/// All workers begin this long after the last one is connected, so that all of them have the same window.
const LEAD: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    program::main("nbd-load", args::USAGE, Args::parse(std::env::args().skip(1)), run)
}

/// Load the server from every connection at once; the report is one JSON object.
fn run(args: &Arc<Args>) -> Result<String, String> {
    let connected = Arc::new(Barrier::new(args.connections + 1));
    let workers: Vec<_> = (0..args.connections)
        .map(|index| {
            let (args, connected) = (Arc::clone(args), Arc::clone(&connected));
            thread::spawn(move || work(&args, index, &connected))
        })
        .collect();
    connected.wait();
    let window = Window::after(LEAD, args);
    sleep_until(window.begin);
    let before = sys::cpu_time();
    sleep_until(window.end);
    let after = sys::cpu_time();
    let mut total = Outcome::default();
    for worker in workers {
        total.add(&worker.join().map_err(|_| "a worker panicked".to_owned())??);
    }
    Ok(report(args, &total, (after.0 - before.0, after.1 - before.1)))
}

fn sleep_until(when: Instant) {
    thread::sleep(when.saturating_duration_since(Instant::now()));
}

fn work(args: &Args, index: usize, connected: &Barrier) -> Result<Outcome, String> {
    let prepared = prepare(args, index);
    connected.wait();
    let window = Window::after(LEAD, args);
    worker::run(args, index, prepared?, &window)
}

fn prepare(args: &Args, index: usize) -> Result<Agreed, String> {
    if let Some(cpu) = args.cpus.get(index % args.cpus.len().max(1)) {
        sys::pin_to(*cpu).map_err(|error| format!("cpu {cpu}: {error}"))?;
    }
    negotiate::connect(args)
}

/// The figures as JSON. Rates are those of the measured window.
fn report(args: &Args, total: &Outcome, (user_s, sys_s): (f64, f64)) -> String {
    let seconds = args.seconds.as_secs_f64();
    let iops = total.requests as f64 / seconds;
    let mib_s = iops * f64::from(args.block_size) / f64::from(1 << 20);
    let (p50, p99) = (total.latency.quantile_us(0.5), total.latency.quantile_us(0.99));
    format!(
        "{{\"iops\": {iops:.1}, \"mib_s\": {mib_s:.2}, \"p50_us\": {p50:.2}, \"p99_us\": {p99:.2}, \
         \"requests\": {}, \"total\": {}, \"errors\": {}, \"recvs\": {}, \"seconds\": {seconds}, \"structured\": {}, \
         \"cpu_user_s\": {user_s:.4}, \"cpu_sys_s\": {sys_s:.4}}}",
        total.requests, total.total, total.errors, total.recvs, total.structured,
    )
}
