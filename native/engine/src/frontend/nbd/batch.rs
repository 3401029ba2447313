//! Memory in which replies are put together.

/// Where headers and small payloads are appended.
pub trait Append {
    fn put(&mut self, bytes: &[u8]);
}

impl Append for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Bytes that are waiting to be sent, in memory that is used again and again and never cleared in between: to zero it
/// costs as much as a tenth of what reading into it costs.
#[derive(Debug, Default)]
pub struct Batch {
    /// Those that wait, and what is left of earlier batches behind them.
    memory: Vec<u8>,
    len: usize,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nothing was ever put together in it.
    pub fn is_new(&self) -> bool {
        self.memory.capacity() == 0
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[..self.len]
    }

    /// Append `len` bytes for the caller to overwrite, every one of them: they are what an earlier batch left.
    pub fn space(&mut self, len: usize) -> &mut [u8] {
        let space = self.grow(len);
        if cfg!(debug_assertions) {
            space.fill(0xa5); // whoever does not overwrite it is found out
        }
        space
    }

    fn grow(&mut self, len: usize) -> &mut [u8] {
        let start = self.len;
        self.len += len;
        if self.memory.len() < self.len {
            self.memory.resize(self.len, 0);
        }
        &mut self.memory[start..self.len]
    }

    /// Take back what was appended after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Take away the first `count` bytes.
    pub fn drain(&mut self, count: usize) {
        self.memory.copy_within(count..self.len, 0);
        self.len -= count;
    }
}

impl Append for Batch {
    fn put(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_is_what_is_sent_whatever_was_there_before() {
        let mut batch = Batch::default();
        assert!(batch.is_new());
        batch.put(b"header");
        batch.space(3).copy_from_slice(b"abc");
        batch.put(b"end");
        assert_eq!(batch.bytes(), b"headerabcend");
        batch.truncate(7);
        batch.put(b"X");
        assert_eq!(batch.bytes(), b"headeraX");
        batch.drain(6);
        assert_eq!((batch.bytes(), batch.len()), (&b"aX"[..], 2));
        batch.truncate(0);
        assert!(batch.is_empty() && !batch.is_new());
    }
}
