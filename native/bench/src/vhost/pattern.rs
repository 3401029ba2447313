//! What is written where, and whether what is read is that: every block knows how often it was written.

/// Content of blocks that one queue alone writes, by their last writes.
pub struct Versions {
    /// 0: never written, so that nobody knows what it holds.
    versions: Vec<u32>,
    block_size: usize,
    first: u64,
}

/// A word of a block's content, different for each block, version and place.
fn word(block: u64, version: u32, index: usize) -> u64 {
    let seed = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(version) << 32);
    (seed + index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31)
}

impl Versions {
    /// Blocks `first` to `first + count`.
    pub fn new(first: u64, count: u64, block_size: usize) -> Self {
        Self { versions: vec![0; count as usize], block_size, first }
    }

    /// What the next write of a block writes, and its version.
    pub fn next(&self, block: u64, buf: &mut Vec<u8>) -> u32 {
        let version = self.of(block).wrapping_add(1).max(1);
        buf.clear();
        buf.extend((0..self.block_size / 8).flat_map(|index| word(block, version, index).to_le_bytes()));
        version
    }

    /// A write is done.
    pub fn written(&mut self, block: u64, version: u32) {
        self.versions[(block - self.first) as usize] = version;
    }

    pub fn of(&self, block: u64) -> u32 {
        self.versions[(block - self.first) as usize]
    }

    /// Whether a block that was read holds what was written last.
    pub fn is_right(&self, block: u64, content: &[u8]) -> bool {
        let version = self.of(block);
        let right = |(index, bytes): (usize, &[u8])| bytes == word(block, version, index).to_le_bytes();
        version == 0 || content.len() == self.block_size && content.chunks_exact(8).enumerate().all(right)
    }

    /// Every block that was written.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        let written = self.versions.iter().zip(self.first..).filter(|(version, _)| **version > 0);
        written.map(|(_, block)| block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_write_of_the_very_block_is_right() {
        let mut versions = Versions::new(10, 4, 512);
        let mut content = Vec::new();
        assert!(versions.is_right(11, &[9; 512]), "nobody knows");
        let first = versions.next(11, &mut content);
        versions.written(11, first);
        assert!(versions.is_right(11, &content));
        let mut damaged = content.clone();
        damaged[511] ^= 1;
        assert!(!versions.is_right(11, &damaged) && !versions.is_right(11, &content[..504]));
        let old = content.clone();
        let second = versions.next(11, &mut content);
        versions.written(11, second);
        assert!(versions.is_right(11, &content) && !versions.is_right(11, &old), "a lost write");
        versions.written(12, second);
        assert!(!versions.is_right(12, &content), "another block's");
        assert_eq!(versions.blocks().collect::<Vec<_>>(), [11, 12]);
    }
}
