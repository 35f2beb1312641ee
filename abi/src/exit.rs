//! The exit record: one page a vCPU, host-shared, in which EL2 says why a vCPU stopped and the
//! host says how it goes on.
//!
//! It is a mailbox, no more: what is pending lives at EL2, and a field is read once. Fields that
//! the reason does not define are 0 (`gpr` is written for HOST_CALL alone).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// List registers in a record; a CPU may have fewer.
pub const MAX_LRS: usize = 16;

/// Why a vCPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Reason {
    /// An interrupt or SError for the host.
    Irq = 1,
    /// WFI (`want` 0) or WFE (1).
    Wfx = 2,
    /// A PSCI call that the host has a part in: `data` = function id; CPU_ON: `base` = target.
    Psci = 3,
    /// An access that the VMM emulates: `gpa` exact, `size`, `dir`, `data` of a write.
    Mmio = 4,
    /// Memory is missing: `gpa` of the page, `size` 4096, `flags`, `repeat`.
    MemFault = 5,
    /// The guest asks for `[base, top)` to become `want` (0 EMPTY, 1 RAM).
    RipasChange = 6,
    /// A guest call needs `need_pages` table pages (`VM_TOPUP`); it replays.
    NeedMem = 7,
    /// The VM cannot run again.
    Dead = 8,
    /// `data` = value written to ICC_SGI1R_EL1.
    Sgi = 9,
    /// `want` = immediate, `gpr` = registers of the guest's structure.
    HostCall = 10,
    /// `[base, top)` is the host's again.
    Relinquished = 11,
    /// A trap of a VM that is not protected: `data` = ESR_EL2.
    Trap = 12,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::Irq,
        Self::Wfx,
        Self::Psci,
        Self::Mmio,
        Self::MemFault,
        Self::RipasChange,
        Self::NeedMem,
        Self::Dead,
        Self::Sgi,
        Self::HostCall,
        Self::Relinquished,
        Self::Trap,
    ];

    /// Reads the field.
    #[must_use]
    pub fn from_u32(raw: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|r| *r as u32 == raw)
    }
}

bitflags! {
    /// `flags` of a record.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct ExitFlags: u32 {
        /// MEM_FAULT: the page would be the guest's own (`GUEST_DONATE`). The value is KVM's.
        const PRIVATE = 1 << 3;
        /// MEM_FAULT: an access to allocation tags of a page that has none.
        const TAG_ACCESS = 1 << 4;
        /// MEM_FAULT, never with PRIVATE: the guest wants to write.
        const WRITE = 1 << 5;
        /// MEM_FAULT, never with PRIVATE: the guest wants to execute.
        const EXEC = 1 << 6;
        /// MEM_FAULT: the page was taken back by force and is lost.
        const DESTROYED = 1 << 7;
        /// RIPAS_CHANGE: destroyed pages may become RAM again.
        const CHANGE_DESTROYED = 1 << 8;
        /// IRQ: a physical SError ended the guest's turn and was consumed by EL2.
        const SERROR = 1 << 9;
    }
}

/// `dir` of a read.
pub const DIR_READ: u32 = 0;
/// `dir` of a write.
pub const DIR_WRITE: u32 = 1;
/// `want` of WFI.
pub const WANT_WFI: u32 = 0;
/// `want` of WFE.
pub const WANT_WFE: u32 = 1;
/// `want` of RIPAS_CHANGE: the pages are to be the host's.
pub const WANT_EMPTY: u32 = 0;
/// `want` of RIPAS_CHANGE: the pages are to be memory.
pub const WANT_RAM: u32 = 1;
/// `vtimer` of a virtual timer that is off or masked.
pub const NO_DEADLINE: u64 = u64::MAX;

/// How the host answers a pending exit. A value that the exit does not define acts as `Replay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Resp {
    /// Nothing to add: the access or call is tried again.
    Replay = 0,
    /// Done: `mmio_data` is what an MMIO read returns.
    Done = 1,
    /// A synchronous external abort for the guest.
    Sea = 2,
    /// Refused: RIPAS_CHANGE, CPU_ON.
    Reject = 3,
    /// MEM_FAULT, MMIO: the frame in `mmio_data` becomes the page of the access, as by GUEST_DONATE, GUEST_SHARE or
    /// UNPROT_MAP with every permission, and the access is tried again. VCPU_RUN says what those calls say.
    Map = 4,
}

impl Resp {
    /// Reads the field; anything undefined is `Replay`.
    #[must_use]
    pub const fn from_u32(raw: u32) -> Self {
        match raw {
            1 => Self::Done,
            2 => Self::Sea,
            3 => Self::Reject,
            4 => Self::Map,
            _ => Self::Replay,
        }
    }
}

/// The record. The reason's fields are written by EL2 at every exit, `resp` to `gic_hcr` are read
/// at every entry, `lr` goes both ways, `gpr` both ways around a HOST_CALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExitRecord {
    /// A [`Reason`].
    pub reason: u32,
    /// [`ExitFlags`].
    pub flags: u32,
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes of the access.
    pub size: u32,
    /// [`DIR_READ`] or [`DIR_WRITE`].
    pub dir: u32,
    /// One word, as the reason says.
    pub data: u64,
    /// Start of a range, or an index.
    pub base: u64,
    /// End of a range.
    pub top: u64,
    /// What is asked for.
    pub want: u32,
    /// Table pages that a guest call lacks.
    pub need_pages: u32,
    /// How often the same MEM_FAULT came before this one without any other exit in between.
    pub repeat: u32,
    /// Zero.
    pub pad0: u32,
    /// Host counter value at which the guest's virtual timer fires, or [`NO_DEADLINE`].
    pub vtimer: u64,
    /// In: a [`Resp`].
    pub resp: u32,
    /// Zero.
    pub pad1: u32,
    /// In: what an MMIO read returns, or the frame of MAP.
    pub mmio_data: u64,
    /// In: how many of `lr` are meant.
    pub nr_lr: u32,
    /// In: ICH_HCR_EL2.UIE and NPIE, nothing else.
    pub gic_hcr: u32,
    /// List registers: in as the host wants them, out as the guest left them.
    pub lr: [u64; MAX_LRS],
    /// General-purpose registers of a HOST_CALL.
    pub gpr: [u64; 31],
}

/// Index of each field, or pair of fields, in the page as 64-bit little-endian words.
pub mod word {
    use super::{ExitRecord, MAX_LRS};
    use core::mem::offset_of;

    /// `reason`, `flags`.
    pub const REASON: usize = offset_of!(ExitRecord, reason) / 8;
    /// `gpa`.
    pub const GPA: usize = offset_of!(ExitRecord, gpa) / 8;
    /// `size`, `dir`.
    pub const SIZE: usize = offset_of!(ExitRecord, size) / 8;
    /// `data`.
    pub const DATA: usize = offset_of!(ExitRecord, data) / 8;
    /// `base`.
    pub const BASE: usize = offset_of!(ExitRecord, base) / 8;
    /// `top`.
    pub const TOP: usize = offset_of!(ExitRecord, top) / 8;
    /// `want`, `need_pages`.
    pub const WANT: usize = offset_of!(ExitRecord, want) / 8;
    /// `repeat`.
    pub const REPEAT: usize = offset_of!(ExitRecord, repeat) / 8;
    /// `vtimer`, the last of the words that every exit writes.
    pub const VTIMER: usize = offset_of!(ExitRecord, vtimer) / 8;
    /// `resp`.
    pub const RESP: usize = offset_of!(ExitRecord, resp) / 8;
    /// `mmio_data`.
    pub const MMIO_DATA: usize = offset_of!(ExitRecord, mmio_data) / 8;
    /// `nr_lr` in the lower half, `gic_hcr` in the upper.
    pub const GIC: usize = offset_of!(ExitRecord, nr_lr) / 8;
    /// `lr[0]`.
    pub const LR: usize = offset_of!(ExitRecord, lr) / 8;
    /// `gpr[0]`.
    pub const GPR: usize = offset_of!(ExitRecord, gpr) / 8;
    /// Number of words that are defined.
    pub const END: usize = size_of::<ExitRecord>() / 8;

    const _: () = assert!(LR + MAX_LRS == GPR && GPR + 31 == END && END <= 512);
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<ExitRecord>() == 472);
    assert!(offset_of!(ExitRecord, flags) == 4);
    assert!(offset_of!(ExitRecord, gpa) == 8);
    assert!(offset_of!(ExitRecord, size) == 16);
    assert!(offset_of!(ExitRecord, dir) == 20);
    assert!(offset_of!(ExitRecord, data) == 24);
    assert!(offset_of!(ExitRecord, base) == 32);
    assert!(offset_of!(ExitRecord, top) == 40);
    assert!(offset_of!(ExitRecord, want) == 48);
    assert!(offset_of!(ExitRecord, need_pages) == 52);
    assert!(offset_of!(ExitRecord, repeat) == 56);
    assert!(offset_of!(ExitRecord, vtimer) == 64);
    assert!(offset_of!(ExitRecord, resp) == 72);
    assert!(offset_of!(ExitRecord, mmio_data) == 80);
    assert!(offset_of!(ExitRecord, nr_lr) == 88);
    assert!(offset_of!(ExitRecord, gic_hcr) == 92);
    assert!(offset_of!(ExitRecord, lr) == 96);
    assert!(offset_of!(ExitRecord, gpr) == 224);
};

#[cfg(test)]
mod tests {
    use super::{Reason, Resp};

    #[test]
    fn reasons_are_numbered_from_one_without_gaps() {
        for (n, r) in (1..).zip(Reason::ALL) {
            assert_eq!(r as u32, n);
            assert_eq!(Reason::from_u32(n), Some(r));
        }
        assert_eq!(Reason::from_u32(0), None);
        assert_eq!(Reason::from_u32(13), None);
    }

    #[test]
    fn an_undefined_answer_is_a_replay() {
        for raw in [0, 5, 6, u32::MAX] {
            assert_eq!(Resp::from_u32(raw), Resp::Replay);
        }
        for r in [Resp::Replay, Resp::Done, Resp::Sea, Resp::Reject, Resp::Map] {
            assert_eq!(Resp::from_u32(r as u32), r);
        }
    }
}
