//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use ubi_bench::words;

pub const USAGE: &str = "usage: vhost-load --socket PATH [options]
  --rw KIND          randread, randwrite, randrw (as many reads as writes), read or write; the last two are
                     sequential (randread)
  --bs BYTES         bytes a request (4096); K, M and G are known here and below
  --qd N             requests in flight on each queue (32)
  --queues N         queues, a thread each (1)
  --ring N           entries of each ring, a power of two (256)
  --seconds S        measured time (5)
  --ramp S           time before it that is not measured (0)
  --until-eof        go on until the standard input ends, whatever --seconds says
  --size BYTES       use this much of the disk (all)
  --cpus LIST        pin queue i to entry i of the list, such as 0,1 (not pinned)
  --busy-poll        look at the ring all the time instead of sleeping until a notification comes
  --segments N       cut the data of a request in so many descriptors (1)
  --shift BYTES      place data so many bytes behind the start of a page (0)
  --direct           descriptors in the ring itself, not in an indirect table
  --verify           write what tells where and when it was written, and check everything that is read
  --reconnect        survive the death of the backend, with in-flight state; it has 60 s to come back
  --seed N           of the random offsets (1)
Prints one JSON object.";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Both,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Args {
    pub socket: PathBuf,
    pub access: Access,
    pub random: bool,
    /// Bytes of one request.
    pub block_size: u32,
    pub queue_depth: u16,
    pub queues: u16,
    pub ring_size: u16,
    pub seconds: Duration,
    pub ramp: Duration,
    pub until_eof: bool,
    /// Bytes; None: the whole disk.
    pub size: Option<u64>,
    pub cpus: Vec<usize>,
    pub busy_poll: bool,
    pub segments: u16,
    pub shift: u32,
    pub direct: bool,
    pub verify: bool,
    pub reconnect: bool,
    pub seed: u64,
}

/// Options without a value.
const FLAGS: [&str; 5] = ["--busy-poll", "--direct", "--verify", "--reconnect", "--until-eof"];

impl Args {
    /// # Errors
    /// What is wrong with the command line, for people.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            socket: PathBuf::new(),
            access: Access::Read,
            random: true,
            block_size: 4096,
            queue_depth: 32,
            queues: 1,
            ring_size: 256,
            seconds: Duration::from_secs(5),
            ramp: Duration::ZERO,
            until_eof: false,
            size: None,
            cpus: Vec::new(),
            busy_poll: false,
            segments: 1,
            shift: 0,
            direct: false,
            verify: false,
            reconnect: false,
            seed: 1,
        };
        words::each_option(words, &FLAGS, |option, value| args.set(option, value))?;
        args.check()
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        match option {
            "--busy-poll" => self.busy_poll = true,
            "--direct" => self.direct = true,
            "--verify" => self.verify = true,
            "--reconnect" => self.reconnect = true,
            "--until-eof" => self.until_eof = true,
            "--socket" => self.socket = value.into(),
            "--rw" => {
                (self.access, self.random) = match value {
                    "randread" => (Access::Read, true),
                    "randwrite" => (Access::Write, true),
                    "randrw" => (Access::Both, true),
                    "read" => (Access::Read, false),
                    "write" => (Access::Write, false),
                    _ => return Err(format!("--rw {value}: not a kind of load")),
                }
            }
            "--bs" => {
                self.block_size =
                    u32::try_from(words::bytes(value)?).map_err(|_| format!("--bs {value}: too large"))?;
            }
            "--qd" => self.queue_depth = words::number(option, value)?,
            "--queues" => self.queues = words::number(option, value)?,
            "--ring" => self.ring_size = words::number(option, value)?,
            "--seconds" => self.seconds = words::seconds(value)?,
            "--ramp" => self.ramp = words::seconds(value)?,
            "--size" => self.size = Some(words::bytes(value)?),
            "--cpus" => self.cpus = words::list(option, value)?,
            "--segments" => self.segments = words::number(option, value)?,
            "--shift" => self.shift = words::number(option, value)?,
            "--seed" => self.seed = words::number(option, value)?,
            _ => return Err(format!("{option}: not an option")),
        }
        Ok(())
    }

    /// Descriptors of a request in the ring itself.
    pub fn ring_descriptors(&self) -> u16 {
        if self.direct { 2 + self.segments } else { 1 }
    }

    fn check(self) -> Result<Self, String> {
        if self.socket.as_os_str().is_empty() {
            return Err("no socket is named".into());
        }
        if self.block_size == 0 || !self.block_size.is_multiple_of(512) || self.block_size > 32 << 20 {
            return Err("--bs is a number of 512-byte sectors, at most 32M".into());
        }
        if !(1..=64).contains(&self.segments) || u32::from(self.segments) > self.block_size / 512 || self.shift >= 4096
        {
            return Err("--segments is 1 to 64 and not more than sectors, --shift less than 4096".into());
        }
        if self.seconds.is_zero() || self.queue_depth == 0 || !(1..=64).contains(&self.queues) {
            return Err("--qd and --seconds are at least 1, --queues 1 to 64".into());
        }
        let entries = u32::from(self.queue_depth) * u32::from(self.ring_descriptors());
        if !self.ring_size.is_power_of_two() || entries > u32::from(self.ring_size) {
            return Err(format!("a ring of {} has no room for {entries} descriptors", self.ring_size));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn every_option_is_taken() {
        let args = parse(
            "--socket /s --rw randrw --bs 128K --qd 8 --queues 2 --ring 512 --seconds 1.5 --ramp 1 --until-eof \
             --size 1G --cpus 0,1 --busy-poll --segments 3 --shift 512 --direct --verify --reconnect --seed 9",
        );
        let expected = Args {
            socket: "/s".into(),
            access: Access::Both,
            random: true,
            block_size: 128 << 10,
            queue_depth: 8,
            queues: 2,
            ring_size: 512,
            seconds: Duration::from_millis(1500),
            ramp: Duration::from_secs(1),
            until_eof: true,
            size: Some(1 << 30),
            cpus: vec![0, 1],
            busy_poll: true,
            segments: 3,
            shift: 512,
            direct: true,
            verify: true,
            reconnect: true,
            seed: 9,
        };
        assert_eq!(args, Ok(expected));
    }

    #[test]
    fn nonsense_is_refused() {
        for options in ["--bs 0", "--bs 100", "--qd 0", "--queues 0", "--segments 9", "--shift 4096", "--ring 100"] {
            assert!(parse(&format!("--socket /s {options}")).is_err(), "{options}");
        }
        assert!(parse("").is_err());
        assert!(parse("--socket /s --direct --qd 100").is_err(), "three descriptors each");
        assert!(parse("--socket /s --qd 256").is_ok());
    }
}
