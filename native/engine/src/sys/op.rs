//! One storage system call as a value that owns its memory.

use std::io;
use std::sync::Arc;

use super::buf::{IoBuf, IoData};
use super::file::{FallocateMode, StorageFile};
use super::sg_list::SgList;

/// One system call's worth of storage work.
#[derive(Debug)]
pub enum Op {
    /// Read into `buf[start..]`.
    Read {
        file: Arc<StorageFile>,
        offset: u64,
        buf: IoBuf,
        start: usize,
    },
    /// Write `data`; `dsync` is RWF_DSYNC.
    Write {
        file: Arc<StorageFile>,
        offset: u64,
        data: IoData,
        dsync: bool,
    },
    /// Read into memory that others share.
    ReadSg {
        file: Arc<StorageFile>,
        offset: u64,
        target: SgList,
    },
    /// Write from memory that others share; `dsync` is RWF_DSYNC.
    WriteSg {
        file: Arc<StorageFile>,
        offset: u64,
        source: SgList,
        dsync: bool,
    },
    /// fdatasync.
    Sync {
        file: Arc<StorageFile>,
    },
    Fallocate {
        file: Arc<StorageFile>,
        mode: FallocateMode,
        offset: u64,
        len: u64,
    },
}

/// What the kernel answered, and the operation with its memory.
#[derive(Debug)]
pub struct Completion {
    pub result: io::Result<usize>,
    pub op: Op,
}

/// Carry out `op` with plain system calls on the calling thread.
pub fn run_blocking(mut op: Op) -> Completion {
    let result = match &mut op {
        Op::Read { file, offset, buf, start } => file.pread(&mut buf[*start..], *offset),
        Op::Write { file, offset, data, dsync } => file.pwrite(data, *offset, *dsync),
        Op::ReadSg { file, offset, target } => file.preadv(target, *offset, false),
        Op::WriteSg { file, offset, source, dsync } => file.pwritev(source, *offset, *dsync),
        Op::Sync { file } => file.fdatasync().map(|()| 0),
        Op::Fallocate { file, mode, offset, len } => file.fallocate(*mode, *offset, *len).map(|()| 0),
    };
    Completion { result, op }
}
