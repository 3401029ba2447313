//! Words of a command line: numbers, sizes and times.

use std::str::FromStr;
use std::time::Duration;

/// Go through a command line: `set` is told each option and its value, which is empty for one of `flags`.
///
/// # Errors
/// An option without a value, and what `set` says.
pub fn each_option(
    mut words: impl Iterator<Item = String>,
    flags: &[&str],
    mut set: impl FnMut(&str, &str) -> Result<(), String>,
) -> Result<(), String> {
    while let Some(option) = words.next() {
        let value = if flags.contains(&option.as_str()) { Some(String::new()) } else { words.next() };
        let value = value.ok_or_else(|| format!("{option} needs a value, or is not an option"))?;
        set(&option, &value)?;
    }
    Ok(())
}

/// A number.
///
/// # Errors
/// What is wrong, with the option's name.
pub fn number<T: FromStr>(option: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{option} {value}: not a number"))
}

/// Seconds, with a fraction.
///
/// # Errors
/// As `number`; for a time that cannot be.
pub fn seconds(value: &str) -> Result<Duration, String> {
    let seconds: f64 = number("seconds", value)?;
    Duration::try_from_secs_f64(seconds).map_err(|error| format!("{value} seconds: {error}"))
}

/// Bytes; K, M and G are known.
///
/// # Errors
/// As `number`; for more than 64 bits.
pub fn bytes(value: &str) -> Result<u64, String> {
    let (digits, shift) = match value.as_bytes().last() {
        Some(b'K' | b'k') => (&value[..value.len() - 1], 10),
        Some(b'M' | b'm') => (&value[..value.len() - 1], 20),
        Some(b'G' | b'g') => (&value[..value.len() - 1], 30),
        _ => (value, 0),
    };
    let number: u64 = number("bytes", digits)?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{value}: too large"))
}

/// Numbers with commas between.
///
/// # Errors
/// As `number`.
pub fn list<T: FromStr>(option: &str, value: &str) -> Result<Vec<T>, String> {
    value.split(',').map(|one| number(option, one)).collect()
}
