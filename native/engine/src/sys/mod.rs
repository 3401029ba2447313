//! System calls and memory that the kernel writes into. The only place where `unsafe` is allowed.
#![allow(unsafe_code)]

pub mod buf;
pub mod file;
