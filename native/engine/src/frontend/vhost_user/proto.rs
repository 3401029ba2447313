//! vhost-user on the wire: numbers, the header, and messages decoded with every size, flag and count checked. No I/O.
//!
//! Source: QEMU docs/interop/vhost-user.rst ("Message Specification", "Front-end message types"); virtio 1.2, 5.2
//! and 6 for the feature bits.

use virtio_bindings::{virtio_blk, virtio_config, virtio_ring};

/// Bytes of a message's header: request, flags, size.
pub const HEADER_BYTES: usize = 12;
/// The largest payload that any message has here.
pub const MAX_PAYLOAD: usize = 4096;
/// Queues of a device. GET_QUEUE_NUM tells it.
pub const MAX_QUEUES: usize = 128;
/// Entries of a ring; virtio 1.2, 2.7: at most 32768.
pub const MAX_RING_SIZE: u16 = 32768;
/// Memory regions at a time. GET_MAX_MEM_SLOTS tells it.
pub const MAX_REGIONS: usize = 32;
/// Regions in one SET_MEM_TABLE (VHOST_MEMORY_BASELINE_NREGIONS).
pub const MAX_TABLE_REGIONS: usize = 8;
/// Bytes of the config space that a message may name (VHOST_USER_MAX_CONFIG_SIZE).
pub const MAX_CONFIG: u32 = 256;
/// Old frontends count the config space from here (Cloud Hypervisor before the vhost crate 0.4).
pub const OLD_CONFIG_OFFSET: u32 = 0x100;

const FLAG_VERSION: u32 = 1;
const FLAG_VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, from the backend to the frontend.
pub const BACKEND_CONFIG_CHANGE: u32 = 2;

/// Device features, by bit.
pub mod feature {
    use super::{virtio_blk, virtio_config, virtio_ring};

    pub const SIZE_MAX: u32 = virtio_blk::VIRTIO_BLK_F_SIZE_MAX;
    pub const SEG_MAX: u32 = virtio_blk::VIRTIO_BLK_F_SEG_MAX;
    pub const RO: u32 = virtio_blk::VIRTIO_BLK_F_RO;
    pub const BLK_SIZE: u32 = virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
    pub const FLUSH: u32 = virtio_blk::VIRTIO_BLK_F_FLUSH;
    pub const TOPOLOGY: u32 = virtio_blk::VIRTIO_BLK_F_TOPOLOGY;
    pub const CONFIG_WCE: u32 = virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;
    pub const MQ: u32 = virtio_blk::VIRTIO_BLK_F_MQ;
    pub const DISCARD: u32 = virtio_blk::VIRTIO_BLK_F_DISCARD;
    pub const WRITE_ZEROES: u32 = virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;
    pub const LOG_ALL: u32 = 26;
    pub const INDIRECT_DESC: u32 = virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    pub const EVENT_IDX: u32 = virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// VHOST_USER_F_PROTOCOL_FEATURES.
    pub const PROTOCOL_FEATURES: u32 = 30;
    pub const VERSION_1: u32 = virtio_config::VIRTIO_F_VERSION_1;

    /// Bits that a frontend may ask for and is told about by name.
    const REFUSED: [(u32, &str); 4] = [
        (virtio_config::VIRTIO_F_ACCESS_PLATFORM, "ACCESS_PLATFORM"),
        (virtio_config::VIRTIO_F_RING_PACKED, "RING_PACKED"),
        (virtio_config::VIRTIO_F_IN_ORDER, "IN_ORDER"),
        (virtio_config::VIRTIO_F_RING_RESET, "RING_RESET"),
    ];

    pub fn has(features: u64, bit: u32) -> bool {
        features >> bit & 1 == 1
    }

    /// What a set of bits that is not offered is called.
    pub fn describe(unknown: u64) -> String {
        let named = REFUSED.iter().filter(|(bit, _)| has(unknown, *bit)).map(|(_, name)| *name);
        let names: Vec<&str> = named.collect();
        if names.is_empty() { format!("features {unknown:#x}") } else { names.join(", ") }
    }
}

/// Protocol features, by bit.
pub mod protocol_feature {
    pub const MQ: u32 = 0;
    pub const LOG_SHMFD: u32 = 1;
    pub const REPLY_ACK: u32 = 3;
    pub const BACKEND_REQ: u32 = 5;
    pub const CONFIG: u32 = 9;
    pub const INFLIGHT_SHMFD: u32 = 12;
    pub const RESET_DEVICE: u32 = 13;
    pub const CONFIGURE_MEM_SLOTS: u32 = 15;
    pub const STATUS: u32 = 16;

    /// Everything that is offered.
    pub const ALL: u64 = 1 << MQ
        | 1 << LOG_SHMFD
        | 1 << REPLY_ACK
        | 1 << BACKEND_REQ
        | 1 << CONFIG
        | 1 << INFLIGHT_SHMFD
        | 1 << RESET_DEVICE
        | 1 << CONFIGURE_MEM_SLOTS
        | 1 << STATUS;
}

/// Requests of the frontend, by their numbers.
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const GET_INFLIGHT_FD: u32 = 31;
    pub const SET_INFLIGHT_FD: u32 = 32;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// Requests with an answer of their own, which are never acknowledged beside it.
///
/// Source: QEMU docs/interop/vhost-user.rst, "VHOST_USER_PROTOCOL_F_REPLY_ACK": no change for these.
pub fn is_question(request: u32) -> bool {
    use request::{
        GET_CONFIG, GET_FEATURES, GET_INFLIGHT_FD, GET_MAX_MEM_SLOTS, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_STATUS,
        GET_VRING_BASE, SET_LOG_BASE,
    };
    matches!(
        request,
        GET_CONFIG
            | GET_FEATURES
            | GET_INFLIGHT_FD
            | GET_MAX_MEM_SLOTS
            | GET_PROTOCOL_FEATURES
            | GET_QUEUE_NUM
            | GET_STATUS
            | GET_VRING_BASE
            | SET_LOG_BASE
    )
}

/// A message's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub request: u32,
    pub need_reply: bool,
    pub size: usize,
}

impl Header {
    /// None when it is no header of a request that could be read on from.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (request, flags, size) = (word(0), word(4), word(8) as usize);
        let known = FLAG_VERSION_MASK | FLAG_NEED_REPLY;
        if flags & FLAG_VERSION_MASK != FLAG_VERSION || flags & !known != 0 || size > MAX_PAYLOAD {
            return None;
        }
        Some(Self { request, need_reply: flags & FLAG_NEED_REPLY != 0, size })
    }
}

/// A reply, or a request of the backend (`reply` false).
pub fn encode(request: u32, reply: bool, payload: &[u8]) -> Vec<u8> {
    let flags = FLAG_VERSION | if reply { FLAG_REPLY } else { 0 };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    for word in [request, flags, payload.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// A memory region of the frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionDescription {
    pub guest_address: u64,
    pub size: u64,
    pub user_address: u64,
    pub mmap_offset: u64,
}

/// Where a ring is, in the frontend's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    pub index: u32,
    /// Bit 0: what is written to the used ring is logged.
    pub flags: u32,
    pub descriptors: u64,
    pub used: u64,
    pub available: u64,
    pub log: u64,
}

/// A region of in-flight state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InflightDescription {
    pub mmap_size: u64,
    pub mmap_offset: u64,
    pub num_queues: u16,
    pub queue_size: u16,
}

impl InflightDescription {
    /// What is answered where there is none to be had. Source: libvhost-user, vu_get_inflight_fd.
    pub const NONE: Self = Self { mmap_size: 0, mmap_offset: 0, num_queues: 0, queue_size: 0 };

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend(self.mmap_size.to_le_bytes());
        bytes.extend(self.mmap_offset.to_le_bytes());
        bytes.extend(self.num_queues.to_le_bytes());
        bytes.extend(self.queue_size.to_le_bytes());
        bytes.extend([0; 4]);
        bytes
    }
}

/// A request of the frontend; descriptors travel beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<RegionDescription>),
    SetLogBase { size: u64, offset: u64 },
    SetLogFd,
    SetVringNum { index: u32, num: u32 },
    SetVringAddr(RingAddresses),
    SetVringBase { index: u32, base: u32 },
    GetVringBase { index: u32 },
    SetVringKick { index: u8, has_fd: bool },
    SetVringCall { index: u8, has_fd: bool },
    SetVringErr { index: u8, has_fd: bool },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable { index: u32, enable: bool },
    SetBackendReqFd,
    GetConfig { offset: u32, size: u32, flags: u32 },
    SetConfig { offset: u32, data: Vec<u8> },
    GetInflightFd(InflightDescription),
    SetInflightFd(InflightDescription),
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionDescription),
    RemMemReg(RegionDescription),
    SetStatus(u64),
    GetStatus,
}

/// Reads a payload front to back.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn region(&mut self) -> Option<RegionDescription> {
        Some(RegionDescription {
            guest_address: self.u64()?,
            size: self.u64()?,
            user_address: self.u64()?,
            mmap_offset: self.u64()?,
        })
    }

    fn inflight(&mut self) -> Option<InflightDescription> {
        let description = InflightDescription {
            mmap_size: self.u64()?,
            mmap_offset: self.u64()?,
            num_queues: self.u16()?,
            queue_size: self.u16()?,
        };
        if self.0.len() == 4 {
            self.0 = &[]; // padding, which some send and not all of them clear (the vhost crate)
        }
        Some(description)
    }

    /// A ring's index with the flag "no descriptor" (VHOST_USER_VRING_NOFD_MASK).
    fn ring_fd(&mut self) -> Option<(u8, bool)> {
        let value = self.u64()?;
        (value & !0x1ff == 0).then_some((value as u8, value & 0x100 == 0))
    }

    /// A single region: some frontends put 8 bytes of padding before it.
    fn single_region(&mut self) -> Option<RegionDescription> {
        if self.0.len() == 40 {
            self.u64()?;
        }
        self.region()
    }

    fn mem_table(&mut self) -> Option<Vec<RegionDescription>> {
        let count = self.u32()? as usize;
        self.u32()?;
        if count > MAX_TABLE_REGIONS {
            return None;
        }
        (0..count).map(|_| self.region()).collect()
    }
}

/// How many descriptors a message must bring.
fn expected_fds(message: &Message) -> std::ops::RangeInclusive<usize> {
    match message {
        Message::SetMemTable(regions) => regions.len()..=regions.len(),
        Message::SetVringKick { has_fd, .. }
        | Message::SetVringCall { has_fd, .. }
        | Message::SetVringErr { has_fd, .. } => usize::from(*has_fd)..=usize::from(*has_fd),
        Message::SetLogBase { .. }
        | Message::SetLogFd
        | Message::SetBackendReqFd
        | Message::SetInflightFd(_)
        | Message::AddMemReg(_) => 1..=1,
        Message::RemMemReg(_) => 0..=1, // the specification lets frontends send one that nobody needs
        _ => 0..=0,
    }
}

impl Message {
    /// Decode a request.
    ///
    /// # Errors
    /// Why it is none: unknown, of another size than its kind has, or with a wrong number of descriptors.
    pub fn decode(request: u32, payload: &[u8], fds: usize) -> Result<Self, String> {
        let mut fields = Fields(payload);
        let message = Self::decode_fields(request, &mut fields)?;
        let message = message.filter(|_| fields.0.is_empty());
        let Some(message) = message else {
            return Err(format!("request {request}: a payload of {} bytes is malformed", payload.len()));
        };
        let expected = expected_fds(&message);
        if !expected.contains(&fds) {
            return Err(format!("request {request}: {fds} descriptors came, {} are needed", expected.end()));
        }
        Ok(message)
    }

    fn decode_fields(request: u32, fields: &mut Fields<'_>) -> Result<Option<Self>, String> {
        Ok(match request {
            request::GET_FEATURES => Some(Self::GetFeatures),
            request::SET_FEATURES => fields.u64().map(Self::SetFeatures),
            request::SET_OWNER => Some(Self::SetOwner),
            request::RESET_OWNER => Some(Self::ResetOwner),
            request::SET_MEM_TABLE => fields.mem_table().map(Self::SetMemTable),
            request::SET_LOG_BASE => {
                fields.u64().zip(fields.u64()).map(|(size, offset)| Self::SetLogBase { size, offset })
            }
            request::SET_LOG_FD => Some(Self::SetLogFd),
            request::SET_VRING_NUM => {
                fields.u32().zip(fields.u32()).map(|(index, num)| Self::SetVringNum { index, num })
            }
            request::SET_VRING_ADDR => Self::decode_addresses(fields),
            request::SET_VRING_BASE => {
                fields.u32().zip(fields.u32()).map(|(index, base)| Self::SetVringBase { index, base })
            }
            request::GET_VRING_BASE => fields.u32().zip(fields.u32()).map(|(index, _)| Self::GetVringBase { index }),
            request::SET_VRING_KICK => fields.ring_fd().map(|(index, has_fd)| Self::SetVringKick { index, has_fd }),
            request::SET_VRING_CALL => fields.ring_fd().map(|(index, has_fd)| Self::SetVringCall { index, has_fd }),
            request::SET_VRING_ERR => fields.ring_fd().map(|(index, has_fd)| Self::SetVringErr { index, has_fd }),
            request::GET_PROTOCOL_FEATURES => Some(Self::GetProtocolFeatures),
            request::SET_PROTOCOL_FEATURES => fields.u64().map(Self::SetProtocolFeatures),
            request::GET_QUEUE_NUM => Some(Self::GetQueueNum),
            request::SET_VRING_ENABLE => match fields.u32().zip(fields.u32()) {
                Some((index, enable @ 0..=1)) => Some(Self::SetVringEnable { index, enable: enable == 1 }),
                _ => None,
            },
            request::SET_BACKEND_REQ_FD => Some(Self::SetBackendReqFd),
            request::GET_CONFIG | request::SET_CONFIG => Self::decode_config(request, fields),
            request::GET_INFLIGHT_FD => fields.inflight().map(Self::GetInflightFd),
            request::SET_INFLIGHT_FD => fields.inflight().map(Self::SetInflightFd),
            request::RESET_DEVICE => Some(Self::ResetDevice),
            request::GET_MAX_MEM_SLOTS => Some(Self::GetMaxMemSlots),
            request::ADD_MEM_REG => fields.single_region().map(Self::AddMemReg),
            request::REM_MEM_REG => fields.single_region().map(Self::RemMemReg),
            request::SET_STATUS => fields.u64().map(Self::SetStatus),
            request::GET_STATUS => Some(Self::GetStatus),
            unknown => return Err(format!("request {unknown} is not known")),
        })
    }

    fn decode_addresses(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self::SetVringAddr(RingAddresses {
            index: fields.u32()?,
            flags: fields.u32()?,
            descriptors: fields.u64()?,
            used: fields.u64()?,
            available: fields.u64()?,
            log: fields.u64()?,
        }))
    }

    /// GET_CONFIG brings as many bytes as it asks for, or none; SET_CONFIG as many as it says, or a whole space of which
    /// it means the first ones (SPDK's initiator).
    fn decode_config(request: u32, fields: &mut Fields<'_>) -> Option<Self> {
        let (offset, size, flags) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let data = std::mem::take(&mut fields.0);
        let fits = data.len() == size as usize;
        if request == request::GET_CONFIG {
            return (fits || data.is_empty()).then_some(Self::GetConfig { offset, size, flags });
        }
        let meant = data.get(..size as usize).filter(|_| fits || data.len() == MAX_CONFIG as usize);
        meant.map(|data| Self::SetConfig { offset, data: data.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_a_wrong_version_a_reply_flag_or_a_huge_size_is_none() {
        let header = |request: u32, flags: u32, size: u32| {
            let bytes: Vec<u8> = [request, flags, size].iter().flat_map(|word| word.to_le_bytes()).collect();
            Header::parse(bytes.as_slice().try_into().expect("12 bytes"))
        };
        assert_eq!(header(1, 9, 0), Some(Header { request: 1, need_reply: true, size: 0 }));
        for (flags, size) in [(0, 0), (2, 0), (5, 0), (0x11, 0), (1, 4097), (1, u32::MAX)] {
            assert_eq!(header(1, flags, size), None, "{flags} {size}");
        }
    }

    #[test]
    fn every_request_of_another_size_is_refused() {
        for request in 0..64 {
            let right: Vec<usize> = (0..96).filter(|&len| Message::decode(request, &vec![0; len], 0).is_ok()).collect();
            let with_fd: Vec<usize> =
                (0..96).filter(|&len| Message::decode(request, &vec![0; len], 1).is_ok()).collect();
            assert!(right.len() + with_fd.len() <= 4, "request {request} takes {right:?} and {with_fd:?}");
        }
    }

    #[test]
    fn the_config_space_is_written_by_its_bytes_or_by_all_of_which_the_first_are_meant() {
        let written = |size: u32, data: usize| {
            let head: Vec<u8> = [32, size, 0].iter().flat_map(|word| u32::to_le_bytes(*word)).collect();
            Message::decode(request::SET_CONFIG, &[head, vec![1; data]].concat(), 0)
        };
        for (size, data) in [(1, 1), (1, 256), (8, 8)] {
            assert_eq!(written(size, data), Ok(Message::SetConfig { offset: 32, data: vec![1; size as usize] }));
        }
        for (size, data) in [(1, 0), (1, 2), (8, 1), (257, 256), (u32::MAX, 256), (1, 255)] {
            assert!(written(size, data).is_err(), "{size} of {data}");
        }
    }

    #[test]
    fn what_an_in_flight_description_is_padded_with_means_nothing() {
        let wanted = InflightDescription { mmap_size: 5, mmap_offset: 6, num_queues: 7, queue_size: 8 };
        let mut payload = wanted.encode();
        payload[20..].fill(0xa5);
        for len in [20, 24] {
            let decoded = Message::decode(request::GET_INFLIGHT_FD, &payload[..len], 0);
            assert_eq!(decoded, Ok(Message::GetInflightFd(wanted)));
        }
        for len in [0, 19, 21, 23] {
            assert!(Message::decode(request::GET_INFLIGHT_FD, &payload[..len], 0).is_err());
        }
    }

    #[test]
    fn a_table_of_too_many_regions_is_refused_before_it_is_read() {
        let mut payload = u32::MAX.to_le_bytes().to_vec();
        payload.extend([0; 4]);
        assert!(Message::decode(request::SET_MEM_TABLE, &payload, 0).is_err());
    }

    #[test]
    fn refused_features_are_called_by_their_names() {
        assert_eq!(feature::describe(1 << 33 | 1 << 40), "ACCESS_PLATFORM, RING_RESET");
        assert_eq!(feature::describe(1 << 34), "RING_PACKED");
        assert_eq!(feature::describe(1 << 60), "features 0x1000000000000000");
    }
}
