//! What can be wrong with a request before it is carried out.

use std::ops::Range;

use super::super::MAX_PAYLOAD;
use super::super::proto::{Command, Request};
use super::super::status;
use super::super::unaligned::blocks_around;
use super::Connection;
use crate::bdev::check_range;
use crate::error::{Error, ErrorKind, Result};

impl Connection {
    /// Everything that can be wrong with a request before it is carried out.
    pub(super) fn check(&self, request: &Request) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidParams, message));
        let Some(command) = request.command else { return invalid("unknown command") };
        if command == Command::Disconnect {
            return Ok(()); // has no reply that could say what is wrong with it
        }
        if request.flags & !command.allowed_flags(self.structured(), self.extended()) != 0 {
            return invalid("a flag that this command does not have here");
        }
        let carries_data = command.has_payload() || command == Command::Read;
        if carries_data && request.length > u64::from(MAX_PAYLOAD) {
            return invalid("a request may carry at most 64 MiB");
        }
        if command.modifies() && self.export().readonly {
            return Err(Error::new(ErrorKind::Permission, "the export is read-only"));
        }
        if !command.has_range() {
            return Ok(());
        }
        if command == Command::BlockStatus {
            return self.check_block_status(request);
        }
        let (offset, len) = self.range_to_check(request);
        check_range(self.bdev.info(), offset, len).map_err(|error| {
            // NBD: past the end is ENOSPC for what writes, EINVAL for the rest.
            if command.modifies() && command != Command::Trim {
                error
            } else {
                Error::new(ErrorKind::InvalidParams, error.message())
            }
        })
    }

    /// Who asked for the block sizes keeps to them; for others the blocks around their range count.
    fn range_to_check(&self, request: &Request) -> (u64, u64) {
        let (block, len) = (u64::from(self.bdev.info().block_size), request.length);
        if self.session.agreed().block_sizes {
            return (request.offset, len);
        }
        // Beyond 64 bits is past the end: the last block that there could be stands for it.
        let around = blocks_around(block, request.offset, len).unwrap_or(!(block - 1)..!(block - 1));
        (around.start, around.end - around.start)
    }

    /// Whether a checked request has to be carried out in the blocks around it.
    pub(super) fn is_unaligned(&self, request: &Request) -> bool {
        let mask = u64::from(self.bdev.info().block_size) - 1;
        let moves =
            !matches!(request.command, Some(Command::Flush | Command::Disconnect | Command::BlockStatus) | None);
        (request.offset | request.length) & mask != 0 && request.length != 0 && moves
    }

    fn check_block_status(&self, request: &Request) -> Result<()> {
        let invalid = |message: &str| Err(Error::new(ErrorKind::InvalidParams, message));
        if self.session.agreed().contexts.is_empty() {
            return invalid("no metadata context was agreed on");
        }
        if request.payload_len == 0 {
            return self.check_status_range(request, request.length).map(drop);
        }
        // The payload is looked at when it is there; more contexts than there are cannot be meant.
        if request.payload_len > status::FILTER_MAX {
            return invalid("the payload names more contexts than there are");
        }
        Ok(())
    }

    pub(super) fn check_status_range(&self, request: &Request, length: u64) -> Result<Range<u64>> {
        let size = self.bdev.info().size_bytes();
        let end = request.offset.checked_add(length).filter(|&end| end <= size);
        match end {
            Some(end) if length > 0 => Ok(request.offset..end),
            Some(_) => Err(Error::new(ErrorKind::InvalidParams, "a block status of no bytes has no extent")),
            None => Err(Error::new(ErrorKind::InvalidParams, "the range leaves the export")),
        }
    }
}
