//! Completions out of the stream that a server sends.

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const SIMPLE_BYTES: usize = 16;
const CHUNK_BYTES: usize = 20;
const FLAG_DONE: u16 = 1;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const ERROR_BIT: u16 = 1 << 15;
/// More than any server has to say about an error or a hole.
const SMALL_CHUNK_MAX: u32 = 8192;

/// One finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    pub slot: usize,
    pub ok: bool,
}

/// What is being read past.
#[derive(Debug, Clone, Copy)]
struct Payload {
    slot: usize,
    left: usize,
    ok: bool,
    /// The request is finished when it has passed.
    done: bool,
}

/// Cuts replies; payloads are read past.
#[derive(Debug)]
pub struct Replies {
    payload: Option<Payload>,
    structured: bool,
    /// Bytes that a successful reply to a request carries.
    read_bytes: u32,
    /// Per slot: bytes described so far, and whether a chunk was an error.
    parts: Vec<(u32, bool)>,
}

impl Replies {
    /// `read_bytes` is 0 for writes.
    pub fn new(queue_depth: usize, structured: bool, read_bytes: u32) -> Self {
        Self { payload: None, structured, read_bytes, parts: vec![(0, false); queue_depth] }
    }

    /// Take whole headers and payloads out of `data` and hand over what they complete. Returns the bytes taken; the
    /// rest is the beginning of a header and has to come again with what follows it.
    ///
    /// # Errors
    /// What is wrong with the server's reply.
    pub fn take(&mut self, data: &[u8], mut completed: impl FnMut(Completion)) -> Result<usize, String> {
        let mut at = 0;
        loop {
            if let Some(payload) = &mut self.payload {
                let count = payload.left.min(data.len() - at);
                payload.left -= count;
                at += count;
                if payload.left > 0 {
                    return Ok(at);
                }
                if payload.done {
                    completed(Completion { slot: payload.slot, ok: payload.ok });
                }
                self.payload = None;
            }
            let Some(taken) = self.take_header(&data[at..])? else { return Ok(at) };
            at += taken;
        }
    }

    /// Take one header, after which `payload` is set; None when it is not all there.
    fn take_header(&mut self, data: &[u8]) -> Result<Option<usize>, String> {
        let Some(magic) = data.first_chunk() else { return Ok(None) };
        match u32::from_be_bytes(*magic) {
            SIMPLE_MAGIC => {
                let Some(header) = data.first_chunk::<SIMPLE_BYTES>() else { return Ok(None) };
                self.simple(header)?;
                Ok(Some(SIMPLE_BYTES))
            }
            STRUCTURED_MAGIC if self.structured => {
                let Some(header) = data.first_chunk::<CHUNK_BYTES>() else { return Ok(None) };
                self.chunk(header)?;
                Ok(Some(CHUNK_BYTES))
            }
            magic => Err(format!("a reply begins with {magic:#010x}")),
        }
    }

    fn simple(&mut self, header: &[u8; SIMPLE_BYTES]) -> Result<(), String> {
        let ok = header[4..8] == [0; 4];
        if self.structured && self.read_bytes > 0 {
            return Err("a simple reply to a read after structured replies were agreed on".into());
        }
        let left = if ok { self.read_bytes as usize } else { 0 };
        self.payload = Some(Payload { slot: self.slot(&header[8..])?, left, ok, done: true });
        Ok(())
    }

    fn chunk(&mut self, header: &[u8; CHUNK_BYTES]) -> Result<(), String> {
        let short = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (done, kind) = (short(4) & FLAG_DONE != 0, short(6));
        let length = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
        let slot = self.slot(&header[8..16])?;
        let (described, failed) = &mut self.parts[slot];
        match kind {
            // A chunk of zeros says in its payload how many; a reply of several such chunks is not counted out.
            OFFSET_HOLE if length == 12 && done && *described == 0 => *described = self.read_bytes,
            OFFSET_HOLE if length == 12 => *described = (*described).max(1),
            OFFSET_DATA if length > 8 && length - 8 <= self.read_bytes => *described += length - 8,
            0 if length == 0 => {}
            _ if kind & ERROR_BIT != 0 && length <= SMALL_CHUNK_MAX => *failed = true,
            _ => return Err(format!("a chunk of type {kind} and {length} bytes")),
        }
        let ok = !*failed;
        if done {
            if ok && *described == 0 && self.read_bytes > 0 {
                return Err("a successful read without data".into());
            }
            self.parts[slot] = (0, false);
        }
        self.payload = Some(Payload { slot, left: length as usize, ok, done });
        Ok(())
    }

    fn slot(&self, cookie: &[u8]) -> Result<usize, String> {
        let cookie = cookie.iter().fold(0, |value: u64, &byte| value << 8 | u64::from(byte));
        let slot = usize::try_from(cookie).unwrap_or(usize::MAX);
        if slot < self.parts.len() { Ok(slot) } else { Err(format!("a reply to request {cookie}, which was not made")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simple(slot: u64, error: u32, payload: usize) -> Vec<u8> {
        [&SIMPLE_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &slot.to_be_bytes(), &vec![0; payload]].concat()
    }

    fn chunk(slot: u64, flags: u16, kind: u16, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("short");
        let head = [&STRUCTURED_MAGIC.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
        [&head[..], &slot.to_be_bytes(), &length.to_be_bytes(), &vec![0; payload]].concat()
    }

    /// Completions of a stream that comes in pieces of `step` bytes.
    fn completions(
        stream: &[u8],
        step: usize,
        structured: bool,
        read_bytes: u32,
    ) -> Result<Vec<(usize, bool)>, String> {
        let mut replies = Replies::new(4, structured, read_bytes);
        let (mut done, mut end, mut found) = (0, 0, Vec::new());
        while end < stream.len() {
            end = (end + step).min(stream.len());
            done += replies.take(&stream[done..end], |one| found.push((one.slot, one.ok)))?;
        }
        assert_eq!(done, stream.len());
        Ok(found)
    }

    #[test]
    fn simple_replies_are_found_in_any_pieces() {
        let reads = [simple(2, 0, 512), simple(0, 5, 0), simple(3, 0, 512)].concat();
        for step in 1..reads.len() + 1 {
            assert_eq!(completions(&reads, step, false, 512), Ok(vec![(2, true), (0, false), (3, true)]));
        }
        assert_eq!(
            completions(&[simple(1, 0, 0), simple(0, 28, 0)].concat(), 7, false, 0),
            Ok(vec![(1, true), (0, false)])
        );
    }

    #[test]
    fn structured_replies_are_found_in_any_pieces() {
        let stream = [
            chunk(0, 1, OFFSET_DATA, 8 + 512),
            chunk(1, 0, OFFSET_DATA, 8 + 256),
            chunk(2, 0, 0x8001, 6),
            chunk(1, 0, OFFSET_DATA, 8 + 256),
            chunk(1, 1, 0, 0),
            chunk(2, 1, 0, 0),
            chunk(3, 1, OFFSET_HOLE, 12),
            chunk(0, 1, 0x8002, 14),
        ]
        .concat();
        for step in 1..stream.len() + 1 {
            let expected = vec![(0, true), (1, true), (2, false), (3, true), (0, false)];
            assert_eq!(completions(&stream, step, true, 512), Ok(expected));
        }
    }

    #[test]
    fn what_no_server_should_send_is_an_error() {
        let cases = [
            (simple(4, 0, 0), false),
            (simple(0, 0, 0), true),
            (chunk(0, 1, OFFSET_DATA, 8 + 512), false),
            (chunk(0, 1, OFFSET_DATA, 8 + 513), true),
            (chunk(0, 1, OFFSET_DATA, 8), true),
            (chunk(0, 1, 0, 0), true),
            (chunk(0, 1, 0, 1), true),
            (chunk(0, 1, 7, 0), true),
            (vec![0; 16], true),
        ];
        for (stream, structured) in cases {
            assert!(completions(&stream, 64, structured, 512).is_err(), "{stream:?}");
        }
    }
}
