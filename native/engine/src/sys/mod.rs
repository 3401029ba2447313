//! System calls and memory that the kernel writes into. The only place where `unsafe` is allowed.
#![allow(unsafe_code)]

pub mod ancillary;
pub mod buf;
pub mod clock;
pub mod cpu;
pub mod epoll;
pub mod eventfd;
pub mod file;
pub mod lock;
pub mod mapping;
pub mod memfd;
pub mod memory;
pub mod op;
pub mod pipe;
pub mod sg_list;
pub mod shared_map;
pub mod sigbus;
pub mod socket;
pub mod uring;
