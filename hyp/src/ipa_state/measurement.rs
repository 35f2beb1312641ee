//! What a realm was when it began, and what it says about itself since. docs/measurement.md has the records, exact
//! enough to compute the same elsewhere.
//!
//! Invariant: a measurement is a digest of everything that was measured before it. Lock: the VM's.
#![forbid(unsafe_code)]

use super::query::State;
use crate::addr::Ipa;
use crate::hw::{ENTRIES, MappedPage, PhysMem};
use abi::rsi;
use abi::vm::VmFlags;
use sha2::{Digest, Sha256, Sha512};
use zerocopy::{Immutable, IntoBytes};

#[cfg(all(target_os = "none", not(sha2_backend = "soft")))]
compile_error!("EL2 has no vector registers of its own: build with --cfg sha2_backend=\"soft\"");

/// A digest; zeros behind one that is shorter.
pub type Value = [u8; 64];

/// With what a realm is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// That of a VM with these flags.
    #[must_use]
    pub const fn of(flags: VmFlags) -> Self {
        if flags.contains(VmFlags::SHA512) { Self::Sha512 } else { Self::Sha256 }
    }

    /// Its number in the Realm Services Interface.
    #[must_use]
    pub const fn number(self) -> u64 {
        match self {
            Self::Sha256 => rsi::SHA_256,
            Self::Sha512 => rsi::SHA_512,
        }
    }

    /// Digest of what is in `page`, which nobody can change.
    pub fn page(self, hw: &impl PhysMem, page: MappedPage) -> Value {
        self.digest((0..ENTRIES).map(|n| hw.get_word(page, n).to_le_bytes()))
    }

    /// Digest of `pieces`, one behind the other.
    fn digest<T: AsRef<[u8]>>(self, pieces: impl Iterator<Item = T>) -> Value {
        match self {
            Self::Sha256 => digest::<Sha256, T>(pieces),
            Self::Sha512 => digest::<Sha512, T>(pieces),
        }
    }

    /// The bytes of `value` that are a digest.
    fn significant(self, value: &Value) -> &[u8] {
        let (half, _) = value.split_at(32);
        match self {
            Self::Sha256 => half,
            Self::Sha512 => value,
        }
    }
}

fn digest<D: Digest, T: AsRef<[u8]>>(pieces: impl Iterator<Item = T>) -> Value {
    let hasher = pieces.fold(D::new(), |hasher, piece| hasher.chain_update(piece));
    let mut value = [0; 64];
    for (to, from) in value.iter_mut().zip(hasher.finalize()) {
        *to = from;
    }
    value
}

/// One thing that is measured, with the measurement before it.
#[derive(Debug, IntoBytes, Immutable)]
#[repr(C)]
struct Record {
    kind: u64,
    size: u64,
    before: Value,
    words: [u64; 3],
    contents: Value,
    rest: [u8; 88],
}

const _: () = assert!(size_of::<Record>() == 256 && cfg!(target_endian = "little"));

/// Numbers of the kinds of records.
mod kind {
    pub(super) const VM: u64 = 1;
    pub(super) const PAGE: u64 = 2;
    pub(super) const VCPU: u64 = 3;
    pub(super) const MEMORY: u64 = 4;
}

/// Number of a measurement that a realm extends: 1 to 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensibleIndex(usize);

impl ExtensibleIndex {
    /// `None` if there is no such measurement.
    #[must_use]
    pub fn new(index: u64) -> Option<Self> {
        usize::try_from(index).ok()?.checked_sub(1).filter(|n| *n < rsi::EXTENSIBLE).map(Self)
    }
}

/// Number of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeasurementIndex {
    /// 0: what the realm was when it began.
    Initial,
    /// What it says about itself.
    Extensible(ExtensibleIndex),
}

impl MeasurementIndex {
    /// `None` if there is no such measurement.
    #[must_use]
    pub fn new(index: u64) -> Option<Self> {
        if index == 0 { Some(Self::Initial) } else { ExtensibleIndex::new(index).map(Self::Extensible) }
    }
}

/// The bytes with which a realm extends a measurement: at most 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    bytes: Value,
    len: usize,
}

impl Extension {
    /// The first `len` bytes of `words`, each of which has its lowest first. `None` if there are not so many.
    #[must_use]
    pub fn new(words: [u64; 8], len: u64) -> Option<Self> {
        let mut bytes = [0; 64];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        let len = usize::try_from(len).ok().filter(|len| *len <= bytes.len())?;
        Some(Self { bytes, len })
    }
}

/// The measurements of a realm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurements {
    algorithm: Algorithm,
    initial: Value,
    extensible: [Value; rsi::EXTENSIBLE],
}

impl Measurements {
    /// Of a VM that was made with `flags` and `ipa_bits`.
    #[must_use]
    pub fn new(flags: VmFlags, ipa_bits: u32) -> Self {
        let algorithm = Algorithm::of(flags);
        let mut made = Self { algorithm, initial: [0; 64], extensible: [[0; 64]; rsi::EXTENSIBLE] };
        made.record(kind::VM, [flags.bits(), ipa_bits.into(), 0], [0; 64]);
        made
    }

    /// The algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The host has put a page at `at` with `contents`, or with some that are not measured.
    pub fn page(&mut self, at: Ipa, contents: Option<Value>) {
        let measured = u64::from(contents.is_some());
        self.record(kind::PAGE, [at.raw(), measured, 0], contents.unwrap_or([0; 64]));
    }

    /// There is a vCPU `idx`; the one that runs first starts at `pc` with `x0`, others with zeros.
    pub fn vcpu(&mut self, idx: u8, pc: u64, x0: u64) {
        self.record(kind::VCPU, [idx.into(), pc, x0], [0; 64]);
    }

    /// `[base, top)` is in one state, and no longer range is.
    pub fn memory(&mut self, base: Ipa, top: u64, state: State) {
        self.record(kind::MEMORY, [base.raw(), top, state.number()], [0; 64]);
    }

    /// A measurement.
    #[must_use]
    pub fn read(&self, index: MeasurementIndex) -> Value {
        match index {
            MeasurementIndex::Initial => self.initial,
            MeasurementIndex::Extensible(ExtensibleIndex(n)) => {
                self.extensible.get(n).copied().unwrap_or([0; 64])
            }
        }
    }

    /// The realm says something of itself.
    pub fn extend(&mut self, index: ExtensibleIndex, by: &Extension) {
        let algorithm = self.algorithm;
        if let Some(value) = self.extensible.get_mut(index.0) {
            let said = by.bytes.get(..by.len).unwrap_or_default();
            *value = algorithm.digest([algorithm.significant(value), said].into_iter());
        }
    }

    fn record(&mut self, kind: u64, words: [u64; 3], contents: Value) {
        let size = size_of::<Record>() as u64;
        let record = Record { kind, size, before: self.initial, words, contents, rest: [0; 88] };
        self.initial = self.algorithm.digest(core::iter::once(record.as_bytes()));
    }
}
