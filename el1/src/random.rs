//! Random numbers that a seed repeats: which calls a CPU makes does not depend on the others.
#![forbid(unsafe_code)]

/// A generator (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of one CPU.
    #[must_use]
    pub fn new(seed: u64, cpu: usize) -> Self {
        let mut one = Self(seed);
        // Neighbouring seeds and CPUs start far apart.
        let start = one.next_word();
        Self(start ^ u64::try_from(cpu).unwrap_or(0).wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    /// 64 bits.
    pub const fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `limit`, or 0 if there is none.
    pub const fn below(&mut self, limit: u64) -> u64 {
        match self.next_word().checked_rem(limit) {
            Some(number) => number,
            None => 0,
        }
    }

    /// One of `values`.
    pub fn of<T: Copy>(&mut self, values: &[T]) -> Option<T> {
        let nth = self.below(u64::try_from(values.len()).ok()?.max(1));
        values.get(usize::try_from(nth).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn a_seed_repeats_and_cpus_differ() {
        let words = |seed, cpu| {
            let mut random = Random::new(seed, cpu);
            [random.next_word(), random.next_word(), random.next_word()]
        };
        assert_eq!(words(1, 0), words(1, 0));
        assert_ne!(words(1, 0), words(1, 1));
        assert_ne!(words(1, 0), words(2, 0));
        let mut random = Random::new(7, 0);
        assert!((0..1000).all(|_| random.below(6) < 6));
        assert_eq!(random.of::<u8>(&[]), None);
    }
}
