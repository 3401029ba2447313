//! Latencies in buckets of about 1.6 % width, from nanoseconds to minutes.

use std::time::Duration;

const SUB_BITS: u32 = 6;
const SUBS: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

/// Values below 64 have a bucket each; above, each power of two has 64.
fn bucket(nanos: u64) -> usize {
    if nanos < SUBS {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - SUB_BITS;
    ((u64::from(shift) << SUB_BITS) + (nanos >> shift)) as usize
}

/// The middle of a bucket in nanoseconds.
fn middle(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    if bucket < SUBS {
        return bucket as f64;
    }
    let shift = (bucket >> SUB_BITS) - 1;
    let low = (bucket - (shift << SUB_BITS)) << shift;
    low as f64 + (1u64 << shift) as f64 / 2.0
}

impl Histogram {
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    pub fn add(&mut self, other: &Self) {
        self.total += other.total;
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// The latency in µs that `share` (0 to 1) of the requests did not exceed; 0 when there were none.
    pub fn quantile_us(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return middle(index) / 1000.0;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_near_the_middle_of_its_bucket() {
        let mut last = 0;
        for exponent in 0..63 {
            for nanos in [1u64 << exponent, (1 << exponent) * 3 / 2, (2u64 << exponent) - 1] {
                let found = middle(bucket(nanos));
                assert!((found - nanos as f64).abs() <= nanos as f64 / 64.0 + 0.5, "{nanos}: {found}");
                assert!(bucket(nanos) >= last, "{nanos}: the buckets are in order");
                last = bucket(nanos);
            }
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(0.5), 0.0);
        for micros in 1..=100 {
            histogram.record(Duration::from_micros(micros));
        }
        let mut twice = Histogram::default();
        twice.add(&histogram);
        twice.add(&histogram);
        for one in [&histogram, &twice] {
            assert!((one.quantile_us(0.5) - 50.0).abs() < 1.0);
            assert!((one.quantile_us(0.99) - 99.0).abs() < 2.0);
            assert!((one.quantile_us(1.0) - 100.0).abs() < 2.0);
        }
    }
}
