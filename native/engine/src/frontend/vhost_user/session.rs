//! One frontend's connection: its messages in order, its memory, its rings.
//!
//! Whatever would change under a running ring stops the ring first, which finishes all that it has taken.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::config;
use super::controller::Shared;
use super::device::{Bells, Device};
use super::inflight::{InflightQueue, InflightRegion};
use super::memory::GuestMemory;
use super::proto::{
    self, HEADER_BYTES, Header, InflightDescription, MAX_QUEUES, MAX_REGIONS, Message, RegionDescription,
    RingAddresses, feature, protocol_feature, request,
};
use super::queue::{QueueSetup, RunningQueue};
use super::ring::{Ring, RingPlace};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Level;
use crate::reactor::{exec, io as socket_io};
use crate::sys::ancillary;
use crate::sys::eventfd::EventFd;
use crate::sys::socket::Socket;

/// A message that has begun must end within this.
const MESSAGE_TIME: Duration = Duration::from_secs(10);
/// Replies that nobody reads end the session after this.
const SEND_TIME: Duration = Duration::from_secs(10);

/// Serve a connection to its end. Whatever the frontend does, only its own session ends (INV-9).
pub async fn serve(socket: Arc<Socket>, device: Arc<Device>, shared: Arc<Shared>) {
    let mut session = Session::new(socket, device, shared);
    let leave = Arc::clone(&session.device.leave);
    loop {
        let received = match exec::race(session.receive(), leave.wait()).await {
            exec::Either::Left(Ok(Some(received))) => {
                session.device.spoken.store(true, Ordering::Relaxed);
                received
            }
            exec::Either::Left(Ok(None)) | exec::Either::Right(()) => break,
            exec::Either::Left(Err(error)) => {
                session.device.tell(Level::Warning, format!("the frontend is cut off: {error}"));
                break;
            }
        };
        if !session.answer(received).await {
            break;
        }
    }
    session.stop_all().await;
    session.socket.shutdown();
}

struct Received {
    header: Header,
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What a message is answered with.
enum Answer {
    /// Nothing, or an acknowledgement if the frontend asks for one.
    Done,
    Value(u64),
    Payload(Vec<u8>),
    WithFd(Vec<u8>, OwnedFd),
}

/// One ring as the frontend has set it up.
#[derive(Default)]
struct Vring {
    num: u16,
    addresses: Option<RingAddresses>,
    base: u16,
    kick: Option<Arc<EventFd>>,
    bells: Arc<Bells>,
    enabled: bool,
    /// Between SET_VRING_KICK and GET_VRING_BASE.
    started: bool,
    /// It could not be started as it is set up; a new setting makes it try again.
    refused: bool,
    running: Option<RunningQueue>,
}

struct Session {
    socket: Arc<Socket>,
    device: Arc<Device>,
    shared: Arc<Shared>,
    offered: u64,
    features: u64,
    protocol_features: u64,
    status: u8,
    memory: Arc<GuestMemory>,
    inflight: Option<InflightRegion>,
    writeback: bool,
    vrings: Vec<Vring>,
}

fn refuse(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidParams, message)
}

fn payload_of(words: [u64; 2]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd> {
    fds.into_iter().next().ok_or_else(|| refuse("a descriptor is missing"))
}

fn event(fds: Vec<OwnedFd>) -> Result<Option<EventFd>> {
    let received = fds.into_iter().next().map(EventFd::received);
    received.transpose().map_err(|error| Error::from_io("take an eventfd", &error))
}

impl Session {
    fn new(socket: Arc<Socket>, device: Arc<Device>, shared: Arc<Shared>) -> Self {
        let offered = config::features(device.bdev.info(), device.readonly);
        Self {
            socket,
            device,
            shared,
            offered,
            features: 0,
            protocol_features: 0,
            status: 0,
            memory: Arc::new(GuestMemory::default()),
            inflight: None,
            writeback: true,
            vrings: Vec::new(),
        }
    }

    /// The next message; None at the end of the stream.
    async fn receive(&self) -> io::Result<Option<Received>> {
        let (mut head, mut fds) = ([0; HEADER_BYTES], Vec::new());
        let first = self.receive_some(&mut head, &mut fds).await?;
        if first == 0 {
            return Ok(None);
        }
        let rest = self.receive_rest(head, first, fds);
        match exec::race(rest, exec::sleep(MESSAGE_TIME)).await {
            exec::Either::Left(received) => received.map(Some),
            exec::Either::Right(()) => Err(io::Error::from(io::ErrorKind::TimedOut)),
        }
    }

    async fn receive_rest(
        &self,
        mut head: [u8; HEADER_BYTES],
        first: usize,
        mut fds: Vec<OwnedFd>,
    ) -> io::Result<Received> {
        self.receive_all(&mut head[first..], &mut fds).await?;
        let header = Header::parse(&head);
        let header =
            header.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this is no vhost-user header"))?;
        let mut payload = vec![0; header.size];
        self.receive_all(&mut payload, &mut fds).await?;
        Ok(Received { header, payload, fds })
    }

    async fn receive_some(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
        loop {
            match ancillary::recv(&self.socket, buf, fds) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket_io::readable(self.socket.raw_fd()).await;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
                other => return other,
            }
        }
    }

    async fn receive_all(&self, mut buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        while !buf.is_empty() {
            let now = self.receive_some(buf, fds).await?;
            if now == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            buf = &mut buf[now..];
        }
        Ok(())
    }

    /// Act on a message and answer it; false ends the session.
    async fn answer(&mut self, received: Received) -> bool {
        let Received { header, payload, fds } = received;
        let decoded = Message::decode(header.request, &payload, fds.len()).map_err(refuse);
        let acted = match decoded {
            Ok(message) => self.act(message, fds).await,
            Err(error) => {
                drop(fds); // whoever has the answer sees none of them here any more
                Err(error)
            }
        };
        let acted = match (acted, self.start_rings().await) {
            (Ok(_), Err(error)) => Err(error),
            (acted, _) => acted,
        };
        self.count_rings();
        let acknowledge = header.need_reply && self.negotiated(protocol_feature::REPLY_ACK);
        match acted {
            Ok(Answer::Done) if acknowledge => self.reply(header.request, &0u64.to_le_bytes(), None).await,
            Ok(Answer::Done) => true,
            Ok(Answer::Value(value)) => self.reply(header.request, &value.to_le_bytes(), None).await,
            Ok(Answer::Payload(payload)) => self.reply(header.request, &payload, None).await,
            Ok(Answer::WithFd(payload, fd)) => self.reply(header.request, &payload, Some(fd)).await,
            Err(error) => self.refused(&header, &error, acknowledge).await,
        }
    }

    /// Tell the frontend that a message was refused: by an acknowledgement, by an empty answer, or by the end.
    ///
    /// A message that has an answer of its own has no acknowledgement: 1 would be taken for its answer.
    async fn refused(&self, header: &Header, error: &Error, acknowledge: bool) -> bool {
        self.device.tell(Level::Warning, format!("message {} is refused: {error}", header.request));
        match header.request {
            request::GET_CONFIG => self.reply(header.request, &[], None).await,
            request::GET_INFLIGHT_FD => self.reply(header.request, &InflightDescription::NONE.encode(), None).await,
            request if proto::is_question(request) => false,
            _ => acknowledge && self.reply(header.request, &1u64.to_le_bytes(), None).await,
        }
    }

    async fn reply(&self, request: u32, payload: &[u8], fd: Option<OwnedFd>) -> bool {
        use std::os::fd::AsFd;
        let bytes = proto::encode(request, true, payload);
        let (mut left, mut fd) = (&bytes[..], fd.as_ref().map(AsFd::as_fd));
        let deadline = exec::now() + SEND_TIME;
        while !left.is_empty() {
            match ancillary::send(&self.socket, left, fd.take()) {
                Ok(sent) => left = &left[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && exec::now() < deadline => {
                    exec::race(socket_io::writable(self.socket.raw_fd()), exec::sleep(SEND_TIME)).await;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn negotiated(&self, bit: u32) -> bool {
        feature::has(self.protocol_features, bit)
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let index = index as usize;
        if index >= MAX_QUEUES {
            return Err(refuse(format!("queue {index} of {MAX_QUEUES}")));
        }
        if self.vrings.len() <= index {
            self.vrings.resize_with(index + 1, Vring::default);
        }
        Ok(&mut self.vrings[index])
    }

    async fn act(&mut self, message: Message, fds: Vec<OwnedFd>) -> Result<Answer> {
        match message {
            Message::GetFeatures => return Ok(Answer::Value(self.offered)),
            Message::GetProtocolFeatures => return Ok(Answer::Value(protocol_feature::ALL)),
            Message::GetQueueNum => return Ok(Answer::Value(MAX_QUEUES as u64)),
            Message::GetMaxMemSlots => return Ok(Answer::Value(MAX_REGIONS as u64)),
            Message::GetStatus => return Ok(Answer::Value(u64::from(self.status))),
            Message::GetConfig { offset, size, flags } => return self.config(offset, size, flags),
            Message::GetVringBase { index } => return self.stop_vring(index).await,
            Message::GetInflightFd(asked) => {
                let (file, description) = InflightRegion::create(&asked)?;
                return Ok(Answer::WithFd(description.encode(), file));
            }
            Message::SetLogBase { size, offset } => {
                self.device.log.set(&one(fds)?, offset, size)?;
                return Ok(Answer::Payload(payload_of([size, offset])));
            }
            Message::SetOwner | Message::ResetOwner | Message::SetLogFd => {}
            Message::SetFeatures(features) => self.set_features(features).await?,
            Message::SetProtocolFeatures(features) => self.set_protocol_features(features)?,
            Message::SetMemTable(regions) => self.set_mem_table(&regions, &fds).await?,
            Message::AddMemReg(region) => {
                self.pause_all().await;
                self.memory = Arc::new(self.memory.with(region, &one(fds)?)?);
            }
            Message::RemMemReg(region) => {
                self.pause_all().await;
                self.memory = Arc::new(self.memory.without(&region)?);
            }
            Message::SetVringNum { .. } | Message::SetVringAddr(_) | Message::SetVringBase { .. } => {
                self.set_vring(&message).await?;
            }
            Message::SetVringKick { index, .. } => self.set_kick(index, fds).await?,
            Message::SetVringCall { index, .. } => {
                let bells = Arc::clone(&self.vring(u32::from(index))?.bells);
                bells.set_call(event(fds)?);
                bells.call(); // a notification may have gone to the descriptor before it
            }
            Message::SetVringErr { index, .. } => self.vring(u32::from(index))?.bells.set_error(event(fds)?),
            Message::SetVringEnable { index, enable } => self.enable(index, enable).await?,
            Message::SetBackendReqFd => self.device.set_backend(Some(Socket::from(one(fds)?))),
            Message::SetConfig { offset, data } => self.set_config(offset, &data)?,
            Message::SetInflightFd(description) => {
                let region = InflightRegion::open(&one(fds)?, &description)?;
                self.pause_all().await;
                self.set_inflight(region);
            }
            Message::ResetDevice => self.reset().await,
            Message::SetStatus(status) => self.set_status(status).await?,
        }
        Ok(Answer::Done)
    }

    fn config(&self, offset: u32, size: u32, flags: u32) -> Result<Answer> {
        let bytes = config::read(self.device.bdev.info(), self.writeback, offset, size);
        let bytes = bytes.ok_or_else(|| refuse(format!("{size} bytes at {offset} of the config space")))?;
        let mut payload = Vec::with_capacity(12 + bytes.len());
        for word in [offset, size, flags] {
            payload.extend(word.to_le_bytes());
        }
        payload.extend(bytes);
        Ok(Answer::Payload(payload))
    }

    fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        self.writeback = config::written_cache_mode(offset, data).map_err(refuse)?;
        if let Some(region) = &self.inflight {
            region.set_writeback(self.writeback);
        }
        self.apply_cache_mode();
        Ok(())
    }

    /// Writes are durable on their own unless the driver can flush and has not switched the cache off.
    fn apply_cache_mode(&self) {
        let flush = feature::has(self.features, feature::FLUSH);
        let switched_off = feature::has(self.features, feature::CONFIG_WCE) && !self.writeback;
        self.device.set_write_through(!flush || switched_off);
    }

    fn set_inflight(&mut self, region: InflightRegion) {
        match region.writeback() {
            Some(writeback) => self.writeback = writeback,
            None => region.set_writeback(self.writeback),
        }
        self.inflight = Some(region);
        self.apply_cache_mode();
    }

    async fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered;
        if unknown != 0 {
            let message = format!("{} is not offered", feature::describe(unknown));
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let log = 1 << feature::LOG_ALL;
        if features & !log != self.features & !log {
            self.pause_all().await;
        }
        self.features = features;
        self.device.log.switch(feature::has(features, feature::LOG_ALL));
        self.apply_cache_mode();
        Ok(())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !protocol_feature::ALL;
        if unknown != 0 {
            let message = format!("protocol features {unknown:#x} are not offered");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        self.protocol_features = features;
        Ok(())
    }

    async fn set_mem_table(&mut self, regions: &[RegionDescription], fds: &[OwnedFd]) -> Result<()> {
        self.pause_all().await;
        let mut memory = GuestMemory::default();
        for (region, fd) in regions.iter().zip(fds) {
            memory = memory.with(*region, fd)?;
        }
        self.memory = Arc::new(memory);
        Ok(())
    }

    async fn set_vring(&mut self, message: &Message) -> Result<()> {
        let (Message::SetVringNum { index, .. }
        | Message::SetVringBase { index, .. }
        | Message::SetVringAddr(RingAddresses { index, .. })) = *message
        else {
            return Err(Error::new(ErrorKind::Internal, "carried out elsewhere"));
        };
        let vring = self.vring(index)?;
        match *message {
            Message::SetVringNum { num, .. } => {
                let fits = u16::try_from(num).ok().filter(|num| num.is_power_of_two() && *num <= proto::MAX_RING_SIZE);
                let num = fits.ok_or_else(|| refuse(format!("a ring of {num} entries")))?;
                vring.pause().await;
                vring.num = num;
            }
            Message::SetVringBase { base, .. } => {
                let base = u16::try_from(base).map_err(|_| refuse(format!("a ring that goes on at {base}")))?;
                vring.pause().await;
                vring.base = base;
            }
            Message::SetVringAddr(addresses) => {
                vring.pause().await;
                vring.addresses = Some(addresses);
            }
            _ => {}
        }
        vring.refused = false;
        Ok(())
    }

    async fn set_kick(&mut self, index: u8, fds: Vec<OwnedFd>) -> Result<()> {
        let vring = self.vring(u32::from(index))?;
        let kick = event(fds)?.ok_or_else(|| Error::new(ErrorKind::Unsupported, "a ring without kicks"))?;
        vring.pause().await;
        vring.kick = Some(Arc::new(kick));
        (vring.started, vring.refused) = (true, false);
        Ok(())
    }

    async fn enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let vring = self.vring(index)?;
        if !enable {
            vring.pause().await;
        }
        (vring.enabled, vring.refused) = (enable, false);
        Ok(())
    }

    async fn stop_vring(&mut self, index: u32) -> Result<Answer> {
        let vring = self.vring(index)?;
        vring.pause().await;
        vring.started = false;
        vring.kick = None;
        vring.bells.set_call(None);
        let base = vring.base;
        let mut payload = index.to_le_bytes().to_vec();
        payload.extend(u32::from(base).to_le_bytes());
        Ok(Answer::Payload(payload))
    }

    async fn set_status(&mut self, status: u64) -> Result<()> {
        self.status = u8::try_from(status).map_err(|_| refuse(format!("device status {status:#x}")))?;
        if self.status == 0 {
            self.reset().await;
        }
        Ok(())
    }

    /// Back to a device that no driver has touched; memory and descriptors of the frontend stay known.
    async fn reset(&mut self) {
        self.stop_all().await;
        self.vrings.clear();
        (self.status, self.writeback) = (0, true);
        if let Some(region) = &self.inflight {
            region.set_writeback(true);
        }
        self.apply_cache_mode();
    }

    /// Stop every ring; those that should run go on after the message.
    async fn pause_all(&mut self) {
        for vring in &mut self.vrings {
            vring.pause().await;
            vring.refused = false;
        }
    }

    async fn stop_all(&mut self) {
        for vring in &mut self.vrings {
            vring.pause().await;
            vring.started = false;
        }
        self.count_rings();
    }

    /// Start every ring that should run and does not.
    async fn start_rings(&mut self) -> Result<()> {
        let always_enabled = !feature::has(self.features, feature::PROTOCOL_FEATURES);
        let mut first_error = None;
        for index in 0..self.vrings.len() {
            let vring = &self.vrings[index];
            let wanted = vring.started && (vring.enabled || always_enabled) && !vring.refused;
            let ready = vring.num > 0 && vring.addresses.is_some() && vring.running.is_none();
            if !wanted || !ready {
                continue;
            }
            match self.setup(index) {
                Ok(setup) => {
                    let place = self.shared.place();
                    self.vrings[index].running = Some(RunningQueue::start(setup, place));
                }
                Err(error) => {
                    self.vrings[index].refused = true;
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn setup(&self, index: usize) -> Result<QueueSetup> {
        let vring = &self.vrings[index];
        let (Some(addresses), Some(kick)) = (vring.addresses, &vring.kick) else {
            return Err(Error::new(ErrorKind::Internal, "a ring is not set up"));
        };
        let place = RingPlace { num: vring.num, addresses };
        let event_idx = feature::has(self.features, feature::EVENT_IDX);
        Ok(QueueSetup {
            index,
            ring: Ring::new(&self.memory, place, vring.base, event_idx)?,
            memory: Arc::clone(&self.memory),
            kick: Arc::clone(kick),
            bells: Arc::clone(&vring.bells),
            inflight: self.inflight_of(index, vring.num)?,
            indirect: feature::has(self.features, feature::INDIRECT_DESC),
            used_log: (addresses.flags & 1 != 0).then_some(addresses.log),
            device: Arc::clone(&self.device),
        })
    }

    /// The in-flight state of a ring, where the frontend has brought some.
    fn inflight_of(&self, index: usize, num: u16) -> Result<Option<InflightQueue>> {
        let Some(region) = &self.inflight else { return Ok(None) };
        let queue = region.queue(index, num);
        queue.map(Some).ok_or_else(|| refuse(format!("the in-flight state has no room for queue {index} of {num}")))
    }

    fn count_rings(&self) {
        let rings = self.vrings.iter().filter(|vring| vring.started).count();
        self.device.rings.store(rings, Ordering::Relaxed);
    }
}

impl Vring {
    /// Stop it, if it runs, and remember where it is.
    async fn pause(&mut self) {
        if let Some(running) = self.running.take() {
            self.base = running.stop().await;
        }
    }
}
