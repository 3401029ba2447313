//! 128-bit identifiers in the kernel's and SPDK's spelling: volumes and boots have one each.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// 16 bytes in the order in which they are written (RFC 9562); all zero stands for none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// None: no volume and no boot has it.
    pub const NIL: Uuid = Uuid([0; 16]);

    /// Whether it stands for none.
    pub fn is_nil(self) -> bool {
        self == Self::NIL
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if [4, 6, 8, 10].contains(&index) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Uuid {
    type Err = Error;

    /// Read 32 hexadecimal digits with dashes after the 8th, 12th, 16th and 20th.
    ///
    /// # Errors
    /// `InvalidParams` for anything else.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::new(ErrorKind::InvalidParams, format!("{text:?} is no UUID"));
        let groups: Vec<&str> = text.split('-').collect();
        let lengths: Vec<usize> = groups.iter().map(|group| group.len()).collect();
        let digits = groups.concat();
        if lengths != [8, 4, 4, 4, 12] || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        u128::from_str_radix(&digits, 16).map(|number| Self(number.to_be_bytes())).map_err(|_| wrong())
    }
}

/// A random UUID of the kernel's; without /proc, one of the standard library's random keys.
pub fn random() -> Uuid {
    use std::hash::{BuildHasher, RandomState};
    let ours = || Uuid(std::array::from_fn(|_| RandomState::new().hash_one(0) as u8 | 1));
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    text.trim().parse().unwrap_or_else(|_| ours())
}

/// The boot that runs; None when the kernel does not say.
pub fn boot_id() -> Option<Uuid> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()?
        .trim()
        .parse()
        .ok()
        .filter(|id: &Uuid| !id.is_nil())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_are_the_same_number() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let uuid: Uuid = text.parse().expect("a UUID");
        assert_eq!(uuid.0[..3], [0x00, 0x11, 0x22]);
        assert_eq!((uuid.to_string(), uuid.is_nil()), (text.to_owned(), false));
        for wrong in ["", "0", "00112233445566778899aabbccddeeff", "+0112233-4455-6677-8899-aabbccddeeff", "é"] {
            assert!(wrong.parse::<Uuid>().is_err(), "{wrong}");
        }
    }
}
