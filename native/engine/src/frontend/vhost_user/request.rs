//! A block request: what a chain of descriptors asks for, checked, and carried out on the bdev.
//!
//! Source: virtio 1.2, 5.2.6 ("Device Operation").

use super::config;
use super::memory::GuestMemory;
use super::ring::{Chain, Segment, Violation};
use crate::bdev::{self, Bdev, ZeroFlags};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::buf::{IoBuf, IoData};
use crate::sys::sg_list::SgList;

use smallvec::SmallVec;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

pub const STATUS_OK: u8 = 0;
pub const STATUS_IOERR: u8 = 1;
pub const STATUS_UNSUPP: u8 = 2;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;
const ID_BYTES: usize = 20;
const SECTOR: u64 = 512;
/// Data of one request; the budget has room for it whatever its limit is.
pub const MAX_DATA: usize = crate::frontend::budget::MAX_REQUEST_BYTES as usize;
/// Longer requests are not tried in place: they would hold up the others of their reactor.
const INLINE_BYTES: usize = 256 << 10;

/// Guest memory that a request moves data from or to.
type Segments = SmallVec<[Segment; 4]>;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
    },
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    /// Answered with a status and nothing else.
    Refused(u8),
}

/// A request whose chain is checked.
#[derive(Debug, Clone)]
pub struct Request {
    pub head: u16,
    pub command: Command,
    /// Data, without the header and the status.
    pub data: Segments,
    pub data_len: usize,
    /// Guest address of the status byte.
    status: u64,
}

/// Take `count` bytes off the front of `segments`.
fn skip_front(segments: &mut Segments, mut count: usize) {
    let mut whole = 0;
    for segment in segments.iter_mut() {
        let now = count.min(segment.len as usize);
        segment.address += now as u64;
        segment.len -= now as u32;
        count -= now;
        if segment.len > 0 {
            break;
        }
        whole += 1;
    }
    segments.drain(..whole);
}

/// Copy from the front of `segments`; false when they have less.
fn copy_front(memory: &GuestMemory, segments: &Segments, buf: &mut [u8]) -> bool {
    let mut done = 0;
    for segment in segments {
        let now = (buf.len() - done).min(segment.len as usize);
        if memory.read(segment.address, &mut buf[done..done + now]).is_none() {
            return false;
        }
        done += now;
        if done == buf.len() {
            return true;
        }
    }
    done == buf.len()
}

impl Request {
    /// Understand a chain.
    ///
    /// # Errors
    /// A chain that has no byte for the status, so that it cannot even be answered.
    pub fn parse(memory: &GuestMemory, mut chain: Chain) -> std::result::Result<Self, Violation> {
        let Some(last) = chain.writable.last_mut() else {
            return Err(Violation("a request without a status byte".into()));
        };
        last.len -= 1;
        let status = last.address + u64::from(last.len);
        if last.len == 0 {
            chain.writable.pop();
        }
        let mut request = Self {
            head: chain.head,
            command: Command::Refused(STATUS_IOERR),
            data: Segments::new(),
            data_len: 0,
            status,
        };
        let mut header = [0; HEADER_BYTES];
        if !copy_front(memory, &chain.readable, &mut header) {
            return Ok(request);
        }
        skip_front(&mut chain.readable, HEADER_BYTES);
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let (_, sector) = header.split_last_chunk::<8>().expect("16 bytes");
        request.understand(kind, u64::from_le_bytes(*sector), chain);
        Ok(request)
    }

    fn understand(&mut self, kind: u32, sector: u64, chain: Chain) {
        let offset = sector.checked_mul(SECTOR);
        let (command, data) = match (kind, offset) {
            (VIRTIO_BLK_T_IN, Some(offset)) => (Command::Read { offset }, chain.writable),
            (VIRTIO_BLK_T_OUT, Some(offset)) => (Command::Write { offset }, chain.readable),
            (VIRTIO_BLK_T_FLUSH, _) => (Command::Flush, Segments::new()),
            (VIRTIO_BLK_T_GET_ID, _) => (Command::GetId, chain.writable),
            (VIRTIO_BLK_T_DISCARD, _) => (Command::Discard, chain.readable),
            (VIRTIO_BLK_T_WRITE_ZEROES, _) => (Command::WriteZeroes, chain.readable),
            (VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT, None) => return,
            _ => {
                self.command = Command::Refused(STATUS_UNSUPP);
                return;
            }
        };
        let total: u64 = data.iter().map(|segment| u64::from(segment.len)).sum();
        let Ok(data_len) = usize::try_from(total) else { return };
        if data_len > MAX_DATA {
            return;
        }
        (self.command, self.data, self.data_len) = (command, data, data_len);
    }

    /// Bytes of ours that the request holds while it runs.
    pub fn memory_bytes(&self) -> usize {
        match self.command {
            Command::Read { .. } | Command::Write { .. } => self.data_len,
            _ => 0,
        }
    }

    /// Guest ranges that the device writes, for the log of dirty pages.
    pub fn written_ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let data: &[Segment] = match self.command {
            Command::Read { .. } | Command::GetId => &self.data,
            _ => &[],
        };
        data.iter().map(|segment| (segment.address, u64::from(segment.len))).chain([(self.status, 1)])
    }

    /// Tell the guest how it went; how many bytes were written, for the used ring.
    pub fn finish(&self, memory: &GuestMemory, outcome: &Outcome) -> u32 {
        let _ = memory.write(self.status, &[outcome.status]);
        outcome.written.saturating_add(1)
    }
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub status: u8,
    /// Bytes of data that the device wrote.
    pub written: u32,
}

impl Outcome {
    const OK: Self = Self { status: STATUS_OK, written: 0 };

    /// All of a read's data were written.
    fn full(request: &Request) -> Self {
        Self { status: STATUS_OK, written: request.data_len as u32 }
    }

    fn of(result: &Result<()>) -> Self {
        match result {
            Ok(()) => Self::OK,
            Err(error) if error.kind() == ErrorKind::Unsupported => Self { status: STATUS_UNSUPP, written: 0 },
            Err(_) => Self { status: STATUS_IOERR, written: 0 },
        }
    }

    fn read(result: &Result<()>, len: usize) -> Self {
        let outcome = Self::of(result);
        if outcome.status == STATUS_OK { Self { written: len as u32, ..outcome } } else { outcome }
    }
}

/// What became of a request that was tried in place.
pub enum Tried {
    Done(Outcome),
    /// It has to wait.
    Later,
}

/// What a request is carried out with.
pub struct Target<'a> {
    pub bdev: &'a dyn Bdev,
    pub memory: &'a GuestMemory,
    pub readonly: bool,
    /// Every write is durable before it is answered.
    pub write_through: bool,
}

/// One range of a DISCARD or WRITE_ZEROES.
struct Range {
    offset: u64,
    len: u64,
    flags: u32,
}

impl Target<'_> {
    fn check(&self, offset: u64, len: usize) -> Result<()> {
        if len == 0 {
            return Err(Error::new(ErrorKind::InvalidParams, "a request without data"));
        }
        bdev::check_range(self.bdev.info(), offset, len as u64)
    }

    fn refuse_readonly(&self) -> Result<()> {
        if self.readonly {
            return Err(Error::new(ErrorKind::Permission, format!("{} is read-only", self.bdev.info().name)));
        }
        Ok(())
    }

    /// Tell the bdev of a request that is carried out soon.
    pub fn expect(&self, request: &Request) {
        if let Command::Read { offset } = request.command {
            self.bdev.expect_read(offset, request.data_len);
        }
    }

    /// Carry out what needs no waiting; `pieces` is a list to use for that, whatever it holds.
    pub fn try_execute(&self, request: &Request, pieces: &mut SgList) -> Tried {
        let tried = match request.command {
            Command::Read { offset } => self.try_read(request, offset, pieces),
            Command::Write { offset } => self.try_write(request, offset, pieces),
            Command::GetId => Ok(Tried::Done(self.get_id(request))),
            Command::Refused(status) => Ok(Tried::Done(Outcome { status, written: 0 })),
            Command::Flush | Command::Discard | Command::WriteZeroes => Ok(Tried::Later),
        };
        tried.unwrap_or_else(|error| Tried::Done(Outcome::of(&Err(error))))
    }

    fn try_read(&self, request: &Request, offset: u64, pieces: &mut SgList) -> Result<Tried> {
        self.check(offset, request.data_len)?;
        if request.data_len > INLINE_BYTES || !self.memory.find_pieces(&request.data, pieces) {
            return Ok(Tried::Later);
        }
        match self.bdev.try_read_sg(offset, pieces, None) {
            Some(read) => self.unless_gone(read).map(|()| Tried::Done(Outcome::full(request))),
            None => Ok(Tried::Later),
        }
    }

    fn try_write(&self, request: &Request, offset: u64, pieces: &mut SgList) -> Result<Tried> {
        self.refuse_readonly()?;
        self.check(offset, request.data_len)?;
        if self.write_through || request.data_len > INLINE_BYTES || !self.memory.find_pieces(&request.data, pieces) {
            return Ok(Tried::Later);
        }
        match self.bdev.try_write_sg(offset, pieces, None) {
            Some(written) => self.unless_gone(written).map(|()| Tried::Done(Outcome::OK)),
            None => Ok(Tried::Later),
        }
    }

    /// What was moved is worth nothing when its memory was taken away meanwhile, which the kernel calls EFAULT.
    fn unless_gone(&self, result: Result<()>) -> Result<()> {
        if result.as_ref().is_err_and(|error| error.errno() == libc::EFAULT) {
            self.memory.mark_broken();
        }
        if self.memory.is_broken() { Err(gone()) } else { result }
    }

    /// Carry out anything.
    pub async fn execute(&self, request: &Request) -> Outcome {
        match request.command {
            Command::Read { offset } => Outcome::read(&self.read(request, offset).await, request.data_len),
            Command::Write { offset } => Outcome::of(&self.write(request, offset).await),
            Command::Flush => Outcome::of(&self.bdev.flush().await),
            Command::GetId => self.get_id(request),
            Command::Discard => Outcome::of(&self.discard(request).await),
            Command::WriteZeroes => Outcome::of(&self.write_zeroes(request).await),
            Command::Refused(status) => Outcome { status, written: 0 },
        }
    }

    /// Into the guest's memory itself where the bdev can do that, by way of a buffer elsewhere.
    async fn read(&self, request: &Request, offset: u64) -> Result<()> {
        self.check(offset, request.data_len)?;
        let target = self.memory.pieces(&request.data);
        if let Some(reading) = target.and_then(|target| self.bdev.read_sg(offset, target)) {
            return self.unless_gone(reading.await);
        }
        let buf = self.bdev.read(offset, request.data_len).await?;
        self.scatter(request, &buf)
    }

    /// From the guest's memory itself where the bdev can do that. Elsewhere the bytes are copied before anything else:
    /// the guest may change them as long as it likes, and whoever uses them twice must see them once.
    async fn write(&self, request: &Request, offset: u64) -> Result<()> {
        self.refuse_readonly()?;
        self.check(offset, request.data_len)?;
        let source = self.memory.pieces(&request.data);
        if let Some(writing) = source.and_then(|source| self.bdev.write_sg(offset, source, self.write_through)) {
            return self.unless_gone(writing.await);
        }
        let buf = self.gather(request)?;
        self.bdev.write(offset, IoData::new(buf), self.write_through).await
    }

    async fn discard(&self, request: &Request) -> Result<()> {
        self.refuse_readonly()?;
        for range in self.ranges(request, config::MAX_DISCARD_SECTORS)? {
            if range.flags != 0 {
                return Err(unsupported("a DISCARD with flags"));
            }
            self.bdev.discard(range.offset, range.len, self.write_through).await?;
        }
        Ok(())
    }

    async fn write_zeroes(&self, request: &Request) -> Result<()> {
        self.refuse_readonly()?;
        for range in self.ranges(request, config::MAX_ZERO_SECTORS)? {
            if range.flags & !1 != 0 {
                return Err(unsupported("a WRITE_ZEROES with unknown flags"));
            }
            let flags = ZeroFlags { no_hole: range.flags & 1 == 0, fua: self.write_through, fast: false };
            self.bdev.write_zeroes(range.offset, range.len, flags).await?;
        }
        Ok(())
    }

    /// The ranges of a request, read once; all are checked before any of them is changed.
    fn ranges(&self, request: &Request, max_sectors: u32) -> Result<SmallVec<[Range; 1]>> {
        let count = request.data_len / RANGE_BYTES;
        let most = config::MAX_RANGES as usize;
        if count == 0 || count > most || !request.data_len.is_multiple_of(RANGE_BYTES) {
            return Err(Error::new(ErrorKind::InvalidParams, format!("{} bytes of ranges", request.data_len)));
        }
        let bytes = self.gather(request)?;
        let mut ranges = SmallVec::new();
        for entry in bytes.chunks_exact(RANGE_BYTES) {
            let (sector, rest) = entry.split_first_chunk::<8>().expect("16 bytes");
            let sectors = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
            let flags = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]);
            let offset = u64::from_le_bytes(*sector).checked_mul(SECTOR);
            let Some(offset) = offset.filter(|_| sectors > 0 && sectors <= max_sectors) else {
                return Err(Error::new(ErrorKind::InvalidParams, format!("a range of {sectors} sectors")));
            };
            let len = u64::from(sectors) * SECTOR;
            bdev::check_range(self.bdev.info(), offset, len)?;
            ranges.push(Range { offset, len, flags });
        }
        Ok(ranges)
    }

    fn get_id(&self, request: &Request) -> Outcome {
        let mut id = [0; ID_BYTES];
        let name = self.bdev.info().name.as_bytes();
        let len = name.len().min(ID_BYTES);
        id[..len].copy_from_slice(&name[..len]);
        if request.data_len < ID_BYTES {
            return Outcome { status: STATUS_IOERR, written: 0 };
        }
        Outcome::read(&self.scatter(request, &id), ID_BYTES)
    }

    /// Copy a request's data out of the guest.
    fn gather(&self, request: &Request) -> Result<IoBuf> {
        let mut buf = IoBuf::new(request.data_len);
        let mut done = 0;
        for segment in &request.data {
            let now = segment.len as usize;
            self.memory.read(segment.address, &mut buf[done..done + now]).ok_or_else(gone)?;
            done += now;
        }
        if self.memory.is_broken() {
            return Err(gone());
        }
        Ok(buf)
    }

    /// Copy data into the guest; `data` is no longer than the request's.
    fn scatter(&self, request: &Request, data: &[u8]) -> Result<()> {
        let mut left = data;
        for segment in &request.data {
            let (now, rest) = left.split_at(left.len().min(segment.len as usize));
            self.memory.write(segment.address, now).ok_or_else(gone)?;
            left = rest;
        }
        Ok(())
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, what)
}

/// The frontend took its memory away.
fn gone() -> Error {
    Error::new(ErrorKind::Io, "the guest's memory is gone")
}
