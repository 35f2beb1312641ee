//! What Rampart measured of a realm, computed again from what its host did.
//!
//! Written from docs/measurement.md and nothing else: it shares no code with the hypervisor, so that a value on which both
//! agree is what the document says.
#![forbid(unsafe_code)]

pub mod script;

use sha2::{Digest, Sha256, Sha512};

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Bytes in a record.
const RECORD: usize = 256;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl Algorithm {
    /// That of a VM which was made with `flags`: bit 3 says.
    #[must_use]
    pub const fn of(flags: u64) -> Self {
        if flags & 1 << 3 == 0 { Self::Sha256 } else { Self::Sha512 }
    }

    /// The digest of `bytes`.
    #[must_use]
    pub fn digest(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }

    /// The measurement `value`, a digest or as many zeros, extended by `bytes`.
    #[must_use]
    pub fn extend(self, value: &[u8], bytes: &[u8]) -> Vec<u8> {
        self.digest(&[value, bytes].concat())
    }
}

/// What the guest has at an address when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Memory, with a page or without.
    Ram = 1,
    /// It was memory, and the host took it by force.
    Destroyed = 2,
}

/// A realm that is being made.
#[derive(Clone, Debug)]
pub struct Realm {
    algorithm: Algorithm,
    value: Vec<u8>,
    memory: Vec<(u64, u64, State)>,
}

impl Realm {
    /// VM_CREATE with these words.
    #[must_use]
    pub fn new(flags: u64, ipa_bits: u64) -> Self {
        let algorithm = Algorithm::of(flags);
        let mut realm = Self { algorithm, value: Vec::new(), memory: Vec::new() };
        realm.record(1, [flags, ipa_bits, 0], &[]);
        realm
    }

    /// VM_POPULATE with MEASURE.
    pub fn page(&mut self, ipa: u64, contents: &[u8; PAGE]) {
        let digest = self.algorithm.digest(contents);
        self.record(2, [ipa, 1, 0], &digest);
    }

    /// VM_POPULATE without.
    pub fn unmeasured_page(&mut self, ipa: u64) {
        self.record(2, [ipa, 0, 0], &[]);
    }

    /// VCPU_CREATE.
    pub fn vcpu(&mut self, idx: u64, pc: u64, x0: u64) {
        self.record(3, [idx, pc, x0], &[]);
    }

    /// `[base, top)` is in `state` when VM_FINALISE is called. The order in which ranges are named, and how they are cut,
    /// is of no account; no address is in two states.
    pub fn memory(&mut self, base: u64, top: u64, state: State) {
        self.memory.push((base, top, state));
    }

    /// VM_FINALISE: the initial measurement, 32 or 64 bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let mut ranges = std::mem::take(&mut self.memory);
        ranges.sort_unstable();
        let mut whole: Vec<(u64, u64, State)> = Vec::new();
        for (base, top, state) in ranges {
            match whole.last_mut() {
                Some((_, end, same)) if *same == state && base <= *end => *end = top.max(*end),
                _ => whole.push((base, top, state)),
            }
        }
        for (base, top, state) in whole {
            self.record(4, [base, top, state as u64], &[]);
        }
        self.value
    }

    fn record(&mut self, kind: u64, words: [u64; 3], contents: &[u8]) {
        let mut record = Vec::with_capacity(RECORD);
        let mut put = |bytes: &[u8], until: usize| {
            record.extend_from_slice(bytes);
            record.resize(until, 0);
        };
        put(&kind.to_le_bytes(), 0x08);
        put(&(RECORD as u64).to_le_bytes(), 0x10);
        put(&self.value, 0x50);
        put(&words.map(u64::to_le_bytes).concat(), 0x68);
        put(contents, RECORD);
        self.value = self.algorithm.digest(&record);
    }
}

/// The bytes as people write them.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, Realm, State, hex};

    /// The first record as docs/measurement.md writes it out.
    #[test]
    fn an_empty_realm_is_one_record() {
        let mut record = [0; 256];
        (record[0], record[9], record[0x50], record[0x58]) = (1, 1, 3, 33);
        assert_eq!(Realm::new(3, 33).finish(), Algorithm::Sha256.digest(&record));
        record[0x50] = 0b1011;
        assert_eq!(Realm::new(0b1011, 33).finish(), Algorithm::Sha512.digest(&record));
    }

    #[test]
    fn order_and_chunks_of_memory_do_not_show() {
        let finish = |ranges: &[(u64, u64, State)]| {
            let mut realm = Realm::new(3, 33);
            ranges.iter().for_each(|&(base, top, state)| realm.memory(base, top, state));
            realm.finish()
        };
        let whole = finish(&[(0x1000, 0x9000, State::Ram)]);
        assert_eq!(finish(&[(0x4000, 0x9000, State::Ram), (0x1000, 0x4000, State::Ram)]), whole);
        assert_eq!(finish(&[(0x1000, 0x5000, State::Ram), (0x3000, 0x9000, State::Ram)]), whole);
        assert_ne!(finish(&[(0x1000, 0x8000, State::Ram)]), whole);
        assert_ne!(finish(&[(0x1000, 0x4000, State::Ram), (0x5000, 0x9000, State::Ram)]), whole);
        assert_ne!(finish(&[(0x1000, 0x9000, State::Destroyed)]), whole);
        let lost = [(0x1000, 0x4000, State::Ram), (0x4000, 0x9000, State::Destroyed)];
        assert_ne!(finish(&lost), whole);
    }

    #[test]
    fn an_extension_is_the_digest_of_both() {
        let zeros = Algorithm::Sha256.extend(&[0; 32], b"abc");
        assert_eq!(zeros, Algorithm::Sha256.digest(&[&[0; 32], b"abc".as_slice()].concat()));
        assert_eq!(hex(&Algorithm::Sha256.digest(b"abc"))[..16], *"ba7816bf8f01cfea");
        assert_eq!(hex(&Algorithm::Sha512.digest(b"abc"))[..16], *"ddaf35a193617aba");
    }
}
