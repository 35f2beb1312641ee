//! What a guest and its VMM agree on: the guest's memory map, how it is told what to do, and the
//! mailbox in which it reports.
//!
//! A guest speaks by its mailbox page and by exits: PSCI CPU_SUSPEND is the doorbell ("look at the
//! mailbox"), SYSTEM_OFF the end. A protected guest shares the mailbox with the host first, a realm
//! sees the host's page in its place.
#![forbid(unsafe_code)]

/// Bits of the IPA space that the map below is made for.
pub const IPA_BITS: u64 = 36;
/// The image, and with it the guest's RAM, begins here; vCPU 0 starts at its first byte.
pub const IMAGE: u64 = 0x4000_0000;
/// End of RAM.
pub const RAM_END: u64 = 0x4200_0000;
/// The mailbox page.
pub const MAILBOX: u64 = 0x4010_0000;
/// Memory that payloads use, to the end of RAM; a guest finds it zeroed.
pub const SCRATCH: u64 = 0x4020_0000;
/// Registers of a PL011, if the VM has one.
pub const UART: u64 = 0x0900_0000;
/// No page and no device is here.
pub const ABSENT: u64 = 0x8000_0000;
/// Bytes of a block.
pub const BLOCK: u64 = 1 << 21;
/// The first address that the IPA space does not have.
pub const BEYOND: u64 = 1 << IPA_BITS;
/// Added to an address: the same place in the half that a realm shares with the host.
pub const SHARED: u64 = 1 << (IPA_BITS - 1);
/// First pages of devices that no VM has, of 2 MiB each: a guest can mark them.
pub const DEVICES: [u64; 2] = [0x0a00_0000, 0x0a20_0000];
/// Added to [`UART`]: a virtual address at which it is Normal memory, so that the access itself is
/// what goes wrong, not its memory type.
pub const CACHED: u64 = 0x40_0000_0000;
/// Added to [`UART`] or an address of RAM: a virtual address that EL0 has too.
pub const USER: u64 = 0x50_0000_0000;
/// A virtual address whose table of level 2 is said to be the page at [`UART`].
pub const WALKED: u64 = 0x60_0000_0000;
/// Added to an address of RAM: a virtual address at which it is Tagged memory, where the CPU has tags.
pub const TAGGED: u64 = 0x70_0000_0000;
/// vCPUs that the image has stacks for.
pub const MAX_CPUS: usize = 8;

/// Words of the mailbox, 64 bits each.
pub mod word {
    /// The stage that the last doorbell rang for.
    pub const STAGE: u64 = 0;
    /// [`super::RUNNING`], [`super::PASSED`], or why not.
    pub const OUTCOME: u64 = 1;
    /// What was seen where it was not expected.
    pub const DETAIL: u64 = 2;
    /// What the host answers to a stage.
    pub const ANSWER: u64 = 3;
    /// First of the payload's results.
    pub const RESULTS: u64 = 8;
    /// First of one word for each vCPU.
    pub const CPUS: u64 = 480;
}

/// The payload has not ended.
pub const RUNNING: u64 = 0;
/// All that the payload checked held.
pub const PASSED: u64 = 1;
/// A check failed: this and the line in the payload's source file.
pub const FAILED: u64 = 1 << 32;
/// An exception that nobody expected: this and the vector's number; the detail is its ESR.
pub const EXCEPTION: u64 = 2 << 32;
/// The program panicked: this and the line.
pub const PANIC: u64 = 3 << 32;

macro_rules! payloads {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a guest does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Payload { $($(#[$doc])* $name = $number,)* }

        impl Payload {
            /// Every payload.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];
        }
    };
}

payloads! {
    /// WFI for ever, two instructions a round.
    Idle = 0,
    /// Says [`HELLO`] over the UART, with accesses of every width. A protected guest marks it first.
    Hello = 1,
    /// Writes `argument` pages, reads them back, reports their sum.
    Memory = 2,
    /// Keeps a secret, shares it, takes it back; tries every wrong share.
    Share = 3,
    /// Starts `argument` - 1 more vCPUs; they count, take an SGI and go off.
    Smp = 4,
    /// `argument` ticks of the virtual timer, sleeping and spinning in turn.
    Timer = 5,
    /// Holds `argument` in every FP register through exits and interrupts.
    Fp = 6,
    /// Executes every instruction that traps, and reports what came of it.
    Traps = 7,
    /// Stores to one page of scratch memory after the other for ever, or to every `argument`th.
    Touch = 8,
    /// Loads from the UART for ever, two instructions a round. A protected guest marks it first.
    Load = 9,
    /// Times calls that EL2 answers; those for many pages are for `argument`, [`time::RANGE`] if it is 0.
    Time = 10,
    /// Returns to AArch32.
    Aarch32 = 11,
    /// Writes [`SECRET`] to private memory and to its registers, rings once, and idles.
    Secret = 12,
    /// Every exit that a guest can cause, one after the other, for ever.
    Exits = 13,
    /// Asks for SYSTEM_RESET.
    Reset = 14,
    /// As [`Payload::Load`] with stores.
    Store = 15,
    /// Marks pages, says [`HELLO`], and tries every access that a device cannot serve.
    Guard = 16,
    /// Stores [`SECRET`] where the host may have left a hole, then loads what the host took away.
    Hole = 17,
    /// A realm: says what is its memory, shares a page with the host and takes it back `argument` times, gets
    /// over the loss of a page. It has three vCPUs.
    Realm = 18,
    /// A realm: asks for 2 MiB at [`ABSENT`] to become RAM, then EMPTY, for ever, eight instructions a round.
    Claim = 19,
    /// Signs and authenticates with keys made of `argument` through exits and interrupts. The first use of a key is
    /// an instruction if `argument` is odd, an access to a key if it is even.
    Keys = 20,
    /// Uses a key, then idles as [`Payload::Idle`].
    KeysIdle = 21,
    /// Reaches memory tags in every way, and memory in every way that does not; says what it may of them.
    Tags = 22,
    /// Fills `argument` pages with a pattern and tags, reports the sum of both.
    TagPages = 23,
    /// Reaches the tags of `argument` pages while a second vCPU stores to them.
    TagStores = 24,
    /// A realm: calls its host with the page at [`realm::CALL`] for ever, six instructions a round.
    CallHost = 25,
    /// A realm: reports what it was when it began.
    Measured = 26,
    /// Reads and writes every system register; `argument` is the first of its chunks and, from bit 16 on, how many.
    Registers = 27,
    /// Does what no guest should, at random, with `argument` as the seed. It has [`hostile::VCPUS`] vCPUs.
    Hostile = 28,
    /// Uses its memory and the time it gets, and reports both, until the host tells it to stop.
    Honest = 29,
    /// A protected guest: shares a page and takes it back `argument` times.
    Shares = 30,
}

/// What [`Payload::Hello`] says.
pub const HELLO: &str = "hello from a guest at EL1";
/// A word that nobody but the guest should see.
pub const SECRET: u64 = 0x5ec2_e7d0_9e57_0a11;
/// What the host writes where the guest lets it.
pub const REPLY: u64 = 0x4057_4057_0000_1234;

/// Stages of [`Payload::Share`].
pub mod share {
    /// [`super::SECRET`] is at SCRATCH, which is private.
    pub const PRIVATE: u64 = 1;
    /// The page is shared; the host writes [`super::REPLY`] to its second word.
    pub const SHARED: u64 = 2;
    /// It is private again.
    pub const UNSHARED: u64 = 3;
    /// The host takes [`TAKEN`] away by force.
    pub const TAKE: u64 = 4;
    /// [`GIVEN_UP`] was relinquished and is the guest's again.
    pub const GIVEN_UP_AGAIN: u64 = 5;
    /// The page that the host takes.
    pub const TAKEN: u64 = super::SCRATCH + 0x1000;
    /// The page that the guest gives up.
    pub const GIVEN_UP: u64 = super::SCRATCH + 0x2000;
    /// Four pages that are shared with one call.
    pub const RANGE: u64 = super::SCRATCH + 0x4000;
    /// A page that is not there when it is shared.
    pub const UNTOUCHED: u64 = super::SCRATCH + 0x8000;
}

/// Results of [`Payload::Time`], as ticks of CNTVCT.
pub mod time {
    /// Calls of each kind.
    pub const COUNT: u64 = 64;
    /// The loop without a call.
    pub const LOOP: u64 = 0;
    /// HYP_MEMINFO.
    pub const MEMINFO: u64 = 1;
    /// MEM_SHARE of one page.
    pub const SHARE: u64 = 2;
    /// MEM_UNSHARE of one page.
    pub const UNSHARE: u64 = 3;
    /// GUARD_MAP of a page whose table is there.
    pub const GUARD_MAP: u64 = 4;
    /// GUARD_UNMAP of a page whose table stays.
    pub const GUARD_UNMAP: u64 = 5;
    /// Most pages of the calls for many.
    pub const RANGE: u64 = 512;
    /// One RGUARD_MAP of many pages whose table is there.
    pub const RGUARD_MAP: u64 = 6;
    /// One RGUARD_UNMAP of many pages; the table of [`RANGE`] goes.
    pub const RGUARD_UNMAP: u64 = 7;
}

/// Stages of [`Payload::Hole`].
pub mod hole {
    /// What comes next is a store of [`super::SECRET`] to SCRATCH.
    pub const LEFT: u64 = 1;
    /// The host takes [`TAKEN`] away, which holds [`super::SECRET`].
    pub const TAKE: u64 = 2;
    /// The page that the host takes.
    pub const TAKEN: u64 = super::SCRATCH + 0x1000;
}

/// Stages of [`Payload::Realm`], and what its other vCPUs do.
pub mod realm {
    /// How often it shares a page and takes it back in scenario `guest_realm` on a release image.
    pub const ROUNDS: u32 = 1000;
    /// Its vCPUs.
    pub const VCPUS: u8 = 3;
    /// The host finds [`super::SECRET`] in [`PAGE`] of the shared half and writes [`super::REPLY`] beside it.
    pub const SHARED_PAGE: u64 = 1;
    /// The host takes [`TAKEN`] away by force.
    pub const TAKE: u64 = 2;
    /// The page that the guest gives up, sees the host's in place of, and takes back.
    pub const PAGE: u64 = super::SCRATCH + 0x1000;
    /// The page that the host takes.
    pub const TAKEN: u64 = super::SCRATCH + 0x2000;
    /// The page that one vCPU gives up while another writes it.
    pub const CONTESTED: u64 = super::SCRATCH + 0x3000;
    /// The page to which the configuration goes.
    pub const CONFIG: u64 = super::SCRATCH + 0x4000;
    /// So many bytes of [`super::pattern`], from 0 on, extend measurement 1; measurements 0 and 1 are the results.
    pub const SAID_BYTES: u64 = 45;
    /// The page of the registers with which the guest calls the host.
    pub const CALL: u64 = super::SCRATCH + 0x5000;
    /// The immediate with which it does so; the host inverts every register.
    pub const INVERT: u16 = 0x8001;
    /// vCPU that loads from [`TAKEN`] while it is lost. The host answers 1 when it sees that.
    pub const LOADER: u64 = 1;
    /// vCPU that gives [`CONTESTED`] up.
    pub const GIVER: u64 = 2;
}

/// Stages of [`Payload::Tags`], and what is in the pages of [`Payload::TagPages`].
pub mod tags {
    use super::{SCRATCH, pattern};

    /// Bytes of a page.
    pub const PAGE: u64 = 4096;
    /// Bytes that have one tag.
    pub const GRANULE: u64 = 16;
    /// Pages of scratch memory that [`super::Payload::Tags`] uses.
    pub const PAGES: u64 = 16;
    /// Nothing so far, to the first [`QUIET_PAGES`] pages, was a tag access.
    pub const QUIET: u64 = 1;
    /// Each of the other pages has met one tag access or more.
    pub const LOUD: u64 = 2;
    /// The tag registers hold values of the guest.
    pub const REGISTERS: u64 = 3;
    /// Pages that are used without tags before [`QUIET`].
    pub const QUIET_PAGES: u64 = 6;

    /// The tag of the granule at `address`.
    #[must_use]
    pub const fn of_granule(address: u64) -> u64 {
        pattern(address) >> 20 & 0xf
    }

    /// Adds a word to a sum that depends on the order.
    #[must_use]
    pub const fn fold(sum: u64, word: u64) -> u64 {
        (sum.rotate_left(7) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// What [`super::Payload::TagPages`] reports for so many pages.
    #[must_use]
    pub fn checksum(pages: u64) -> u64 {
        (SCRATCH..SCRATCH + pages * PAGE).step_by(8).fold(0, |sum, address| {
            let sum = fold(sum, pattern(address));
            if address % GRANULE == 0 { fold(sum, of_granule(address)) } else { sum }
        })
    }
}

/// What [`Payload::Registers`] reports: a chunk, a doorbell, the next chunk.
pub mod registers {
    /// Registers of a chunk. A doorbell's stage is the chunk's number and 1.
    pub const CHUNK: u64 = 1024;
    /// Chunks that make all registers with op0 2 and 3.
    pub const CHUNKS: u64 = 32;
    /// Registers in a word of the results: four bits each, MRS in the lower two.
    pub const IN_WORD: u64 = 16;
    /// Bits of a finding.
    pub const WRITE_SHIFT: u64 = 2;

    /// What a guest finds.
    pub mod found {
        /// No exception.
        pub const ANSWERED: u64 = 1;
        /// The instruction does not exist.
        pub const UNDEFINED: u64 = 2;
        /// Another exception.
        pub const OTHER: u64 = 3;
    }
}

/// What [`Payload::Hostile`] and its host agree on.
pub mod hostile {
    /// Its vCPUs.
    pub const VCPUS: u8 = 3;
    /// Stage of the first doorbell: the host puts [`FIRST`] and [`ROUNDS`] in place. Other stages are the number of
    /// the round that is under way, and 1.
    pub const ASK: u64 = u64::MAX;
    /// Word of the mailbox: the round that it begins with.
    pub const FIRST: u64 = 4;
    /// Word of the mailbox: the round that it ends before.
    pub const ROUNDS: u64 = 5;

    /// What a round is about. The results are a word for each class and [`Outcome`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    #[allow(missing_docs, reason = "the names say it")]
    pub enum Class {
        System,
        Maintenance,
        AnyWord,
        Call,
        Psci,
        Access,
        Fetch,
        Tables,
        Tags,
        Wait,
    }

    impl Class {
        /// Every class, and what it is called in figures.
        pub const ALL: [(Self, &'static str); 10] = [
            (Self::System, "system"),
            (Self::Maintenance, "maintenance"),
            (Self::AnyWord, "any_word"),
            (Self::Call, "call"),
            (Self::Psci, "psci"),
            (Self::Access, "access"),
            (Self::Fetch, "fetch"),
            (Self::Tables, "tables"),
            (Self::Tags, "tags"),
            (Self::Wait, "wait"),
        ];
    }

    /// What came of a round in the guest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum Outcome {
        /// No exception.
        Answered,
        /// The instruction does not exist.
        Undefined,
        /// An abort, or an alignment fault.
        Abort,
        /// Another exception.
        Other,
    }

    impl Outcome {
        /// Every outcome, and what it is called in figures.
        pub const ALL: [(Self, &'static str); 4] = [
            (Self::Answered, "answered"),
            (Self::Undefined, "undefined"),
            (Self::Abort, "abort"),
            (Self::Other, "other"),
        ];
    }

    /// The word of the mailbox that counts `outcome` of `class`.
    #[must_use]
    pub const fn counter(class: Class, outcome: Outcome) -> u64 {
        super::word::RESULTS + class as u64 * Outcome::ALL.len() as u64 + outcome as u64
    }
}

/// Results of [`Payload::Honest`], and what its host tells it.
pub mod honest {
    /// Word of the mailbox: changes when the host has not run the guest for reasons of its own.
    pub const PAUSES: u64 = 4;
    /// Rounds in which its memory was as it should be.
    pub const ROUNDS: u64 = super::word::RESULTS;
    /// Ticks of the longest round.
    pub const LONGEST: u64 = super::word::RESULTS + 1;
}

/// What sort of VM a guest is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VmKind {
    /// The host shares its pages with it.
    Plain = 0,
    /// Its memory is its own; it calls by HVC and shares pages in place.
    Protected = 1,
    /// Protected, with half of its addresses shared; it calls by SMC.
    Realm = 2,
}

impl VmKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Protected, Self::Realm];

    /// The guest's pages are its own.
    #[must_use]
    pub const fn is_protected(self) -> bool {
        !matches!(self, Self::Plain)
    }

    /// What must be added to an address for the host to see what is there.
    #[must_use]
    pub const fn shared(self) -> u64 {
        match self {
            Self::Plain | Self::Protected => 0,
            Self::Realm => SHARED,
        }
    }
}

/// What x0 tells vCPU 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// What to do.
    pub payload: Payload,
    /// The VM's kind.
    pub kind: VmKind,
    /// What the payload makes of it.
    pub argument: u32,
}

impl Start {
    /// As a register.
    #[must_use]
    pub const fn to_reg(self) -> u64 {
        (self.argument as u64) << 32 | (self.kind as u64) << 8 | self.payload as u64
    }

    /// From a register; `None` for a payload or a kind that there is not.
    #[must_use]
    pub fn from_reg(x0: u64) -> Option<Self> {
        let [number, kind, _, _, a, b, c, d] = x0.to_le_bytes();
        Some(Self {
            payload: Payload::ALL.iter().copied().find(|p| *p as u8 == number)?,
            kind: VmKind::ALL.into_iter().find(|k| *k as u8 == kind)?,
            argument: u32::from_le_bytes([a, b, c, d]),
        })
    }
}

/// The word that [`Payload::Memory`] puts at `address`: different everywhere.
#[must_use]
pub const fn pattern(address: u64) -> u64 {
    (address ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// What [`Payload::Memory`] reports for so many pages.
#[must_use]
pub fn checksum(pages: u64) -> u64 {
    (0..pages * 512).fold(0, |sum: u64, n| sum.wrapping_add(pattern(SCRATCH + 8 * n)))
}

#[cfg(test)]
mod tests {
    use super::{Payload, Start, VmKind};

    #[test]
    fn a_start_survives_the_register() {
        for payload in Payload::ALL {
            for (kind, argument) in VmKind::ALL.into_iter().zip([0, u32::MAX, 7]) {
                let start = Start { payload: *payload, kind, argument };
                assert_eq!(Start::from_reg(start.to_reg()), Some(start));
            }
        }
        assert_eq!(Start::from_reg(0xff), None);
        assert_eq!(Start::from_reg(3 << 8), None);
    }
}
