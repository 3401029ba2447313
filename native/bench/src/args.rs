//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use ubi_bench::words;

pub const USAGE: &str = "usage: nbd-load (--uri URI | --socket PATH | --tcp HOST:PORT) [options]
  --uri URI          nbd+unix:///EXPORT?socket=PATH or nbd://HOST[:PORT]/EXPORT
  --export NAME      export (default: the default export)
  --rw KIND          randread, randwrite, read or write (randread); the last two are sequential
  --bs BYTES         bytes a request (4096); K, M and G are known here and below
  --qd N             requests in flight on each connection (32)
  --connections N    connections, a thread each (1)
  --seconds S        measured time (5)
  --ramp S           time before it that is not measured (0)
  --size BYTES       use this much of the export (all)
  --cpus LIST        pin connection i to entry i of the list, such as 0,1 (not pinned)
  --busy-poll        spin instead of sleeping until a reply comes
  --structured       ask for structured replies
  --seed N           of the random offsets (1)
Prints one JSON object.";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    Random,
    Sequential,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    Unix(PathBuf),
    Tcp(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Args {
    pub server: Server,
    pub export: String,
    pub write: bool,
    pub pattern: Pattern,
    /// Bytes of one request.
    pub block_size: u32,
    pub queue_depth: usize,
    pub connections: usize,
    pub seconds: Duration,
    pub ramp: Duration,
    /// Bytes; None: the whole export.
    pub size: Option<u64>,
    pub cpus: Vec<usize>,
    pub busy_poll: bool,
    pub structured: bool,
    pub seed: u64,
}

/// Options without a value.
const FLAGS: [&str; 2] = ["--busy-poll", "--structured"];

impl Args {
    /// # Errors
    /// What is wrong with the command line, for people.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            server: Server::Tcp(String::new()),
            export: String::new(),
            write: false,
            pattern: Pattern::Random,
            block_size: 4096,
            queue_depth: 32,
            connections: 1,
            seconds: Duration::from_secs(5),
            ramp: Duration::ZERO,
            size: None,
            cpus: Vec::new(),
            busy_poll: false,
            structured: false,
            seed: 1,
        };
        words::each_option(words, &FLAGS, |option, value| args.set(option, value))?;
        args.check()
    }

    fn set(&mut self, option: &str, value: &str) -> Result<(), String> {
        match option {
            "--busy-poll" => self.busy_poll = true,
            "--structured" => self.structured = true,
            "--uri" => (self.server, self.export) = parse_uri(value)?,
            "--socket" => self.server = Server::Unix(value.into()),
            "--tcp" => self.server = Server::Tcp(value.to_owned()),
            "--export" => value.clone_into(&mut self.export),
            "--rw" => {
                (self.write, self.pattern) = match value {
                    "randread" => (false, Pattern::Random),
                    "randwrite" => (true, Pattern::Random),
                    "read" => (false, Pattern::Sequential),
                    "write" => (true, Pattern::Sequential),
                    _ => return Err(format!("--rw {value}: not a kind of load")),
                }
            }
            "--bs" => {
                self.block_size =
                    u32::try_from(words::bytes(value)?).map_err(|_| format!("--bs {value}: too large"))?;
            }
            "--qd" => self.queue_depth = words::number(option, value)?,
            "--connections" => self.connections = words::number(option, value)?,
            "--seconds" => self.seconds = words::seconds(value)?,
            "--ramp" => self.ramp = words::seconds(value)?,
            "--size" => self.size = Some(words::bytes(value)?),
            "--cpus" => self.cpus = words::list(option, value)?,
            "--seed" => self.seed = words::number(option, value)?,
            _ => return Err(format!("{option}: not an option")),
        }
        Ok(())
    }

    fn check(self) -> Result<Self, String> {
        if self.server == Server::Tcp(String::new()) {
            return Err("no server is named".into());
        }
        if self.block_size == 0 || self.connections == 0 || self.seconds.is_zero() {
            return Err("--bs, --connections and --seconds are at least 1".into());
        }
        if !(1..=65536).contains(&self.queue_depth) {
            return Err("--qd is 1 to 65536".into());
        }
        Ok(self)
    }
}

fn parse_uri(uri: &str) -> Result<(Server, String), String> {
    let (scheme, rest) = uri.split_once("://").ok_or_else(|| format!("{uri}: not a URI"))?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, export) = path.split_once('/').unwrap_or((path, ""));
    let server = match scheme {
        "nbd+unix" => {
            let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="));
            Server::Unix(percent_decode(socket.ok_or_else(|| format!("{uri}: no ?socket=PATH"))?)?.into())
        }
        "nbd" if host.contains(':') => Server::Tcp(host.to_owned()),
        "nbd" => Server::Tcp(format!("{host}:10809")),
        _ => return Err(format!("{uri}: nbd:// and nbd+unix:// are known")),
    };
    Ok((server, percent_decode(export)?))
}

fn percent_decode(text: &str) -> Result<String, String> {
    let wrong = || format!("{text}: a bad % escape");
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next().ok_or_else(wrong)?, rest.next().ok_or_else(wrong)?];
        let digits = std::str::from_utf8(&digits).map_err(|_| wrong())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
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
            "--socket /s --export disk --rw write --bs 128K --qd 8 --connections 2 --seconds 1.5 --ramp 1 \
             --size 1G --cpus 0,1 --busy-poll --structured --seed 9",
        );
        let expected = Args {
            server: Server::Unix("/s".into()),
            export: "disk".into(),
            write: true,
            pattern: Pattern::Sequential,
            block_size: 128 << 10,
            queue_depth: 8,
            connections: 2,
            seconds: Duration::from_millis(1500),
            ramp: Duration::from_secs(1),
            size: Some(1 << 30),
            cpus: vec![0, 1],
            busy_poll: true,
            structured: true,
            seed: 9,
        };
        assert_eq!(args, Ok(expected));
    }

    #[test]
    fn uris_name_server_and_export() {
        let parsed = |uri: &str| parse(&format!("--uri {uri}")).map(|args| (args.server, args.export));
        let unix = Ok((Server::Unix("/a b".into()), "x/y".to_owned()));
        assert_eq!(parsed("nbd+unix:///x%2Fy?a=b&socket=/a%20b"), unix);
        assert_eq!(parsed("nbd://host/"), Ok((Server::Tcp("host:10809".into()), String::new())));
        assert_eq!(parsed("nbd://[::1]:7/d"), Ok((Server::Tcp("[::1]:7".into()), "d".to_owned())));
        for wrong in ["nbd+unix:///x", "http://x/", "x", "nbd://h/%4", "nbd://h/%zz"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let lines = ["", "--socket", "--socket /s --qd 0", "--socket /s --bs 0", "--socket /s --rw both", "--x 1"];
        for line in lines {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("--socket /s --size 99999999999G").is_err());
        assert!(parse("--socket /s --seconds -1").is_err());
    }
}
