//! Where a guest's abort goes: resumed, emulated, to the host for memory, or back into the guest.
//!
//! A pure function of the abort and of what the guest's table says at that IPA, read again under
//! the table's lock: what another CPU has mapped in the meantime is simply used.
#![forbid(unsafe_code)]

use super::exit::Abort;
use super::mmio::PendingMmio;
use crate::exception::{Access, El1Entry, El1State, FaultKind, external_abort};
use abi::exit::ExitFlags;

/// What stage 2 of the guest says about the page of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// Nothing there.
    Absent,
    /// Mapped and allowing this access; `accessed` is its access flag.
    Allows {
        /// The access flag.
        accessed: bool,
    },
    /// Mapped, and forbidding this access.
    Forbids,
    /// The page was taken back by force.
    Destroyed,
    /// Nothing that such a table can hold.
    Corrupt,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The guest tries again.
    Resume,
    /// The access flag is set, then the guest tries again.
    SetAccessFlag,
    /// Exit MMIO.
    Mmio(PendingMmio),
    /// Exit MEM_FAULT.
    MemFault(ExitFlags),
    /// A synchronous external abort in the guest.
    ExternalAbort,
    /// An address size fault in the guest.
    AddressSize,
    /// The table contradicts what it can hold: the VM is dead.
    Corrupt,
}

/// Routes `abort` at `ipa` of a VM with `ipa_bits` bits of IPA. `leaf` is asked only for an IPA
/// that the VM has.
pub fn route(abort: &Abort, ipa: u64, ipa_bits: u32, protected: bool, leaf: impl FnOnce() -> Leaf) -> Route {
    match abort.kind {
        // An abort of the bus, or one that stage 2 cannot cause while tables are changed in order:
        // it stays the guest's.
        FaultKind::External | FaultKind::Other => return Route::ExternalAbort,
        _ if ipa >> ipa_bits != 0 => return Route::AddressSize,
        FaultKind::AddressSize | FaultKind::Translation | FaultKind::AccessFlag | FaultKind::Permission => {}
    }
    match (leaf(), protected) {
        (Leaf::Allows { accessed: true }, _) => Route::Resume,
        (Leaf::Allows { accessed: false }, _) => Route::SetAccessFlag,
        (Leaf::Absent, true) => Route::MemFault(ExitFlags::PRIVATE),
        (Leaf::Destroyed, true) => Route::MemFault(ExitFlags::PRIVATE | ExitFlags::DESTROYED),
        (Leaf::Absent, false) => match abort.mmio.and_then(|access| PendingMmio::new(ipa, access)) {
            Some(pending) => Route::Mmio(pending),
            None => Route::MemFault(wanted(abort.access)),
        },
        (Leaf::Forbids, false) => Route::MemFault(wanted(abort.access)),
        // A private page is always readable, writable and executable; a lent one is never destroyed.
        (Leaf::Forbids, true) | (Leaf::Destroyed, false) | (Leaf::Corrupt, _) => Route::Corrupt,
    }
}

const fn wanted(access: Access) -> ExitFlags {
    match access {
        Access::Read => ExitFlags::empty(),
        Access::Write => ExitFlags::WRITE,
        Access::Fetch => ExitFlags::EXEC,
    }
}

const IL: u64 = 1 << 25;
const EA: u64 = 1 << 9;
const EC: u64 = 0x3f << 26;

/// The external abort that a guest takes for `abort`: class and level of the access, IL, EA and
/// DFSC 0x10, nothing else of the syndrome.
#[must_use]
pub fn sea(abort: &Abort, spsr: u64, state: El1State) -> El1Entry {
    let entry = external_abort(abort.syndrome, spsr, state);
    El1Entry { esr: entry.esr & EC | IL | EA | 0x10, ..entry }
}

/// The address size fault, level 0, that a guest takes for an IPA it does not have.
#[must_use]
pub fn address_size_fault(abort: &Abort, spsr: u64, state: El1State) -> El1Entry {
    const WNR: u64 = 1 << 6;
    let entry = external_abort(abort.syndrome, spsr, state);
    El1Entry { esr: entry.esr & (EC | WNR) | IL, ..entry }
}

#[cfg(test)]
mod tests {
    use super::{Abort, ExitFlags, Leaf, Route, route, sea};
    use crate::exception::El1State;
    use crate::guest::exit::{Exit, RawExit, Vector};
    use crate::guest::fault::address_size_fault;

    const BITS: u32 = 32;
    const DATA: u64 = 0x24 << 26 | IL;
    const FETCH: u64 = 0x20 << 26 | IL;
    const IL: u64 = 1 << 25;
    const ISV_WORD: u64 = 1 << 24 | 2 << 22;
    const WNR: u64 = 1 << 6;
    const S1PTW: u64 = 1 << 7;
    const CM: u64 = 1 << 8;
    const TRANSLATION: u64 = 0x07;
    const PERMISSION: u64 = 0x0f;

    fn abort(esr: u64) -> Abort {
        let raw = RawExit { vector: Vector::Sync, esr, far: 0x10, hpfar: 0, spsr: 0x3c5 };
        match Exit::classify(&raw) {
            Exit::Abort(abort) => abort,
            other => panic!("{other:?}"),
        }
    }

    fn to(esr: u64, ipa: u64, protected: bool, leaf: Leaf) -> Route {
        route(&abort(esr), ipa, BITS, protected, || leaf)
    }

    fn every_access() -> impl Iterator<Item = u64> {
        let data = [0, WNR, ISV_WORD, ISV_WORD | WNR, S1PTW, CM | WNR, CM | WNR | S1PTW];
        let fetch = [0, S1PTW];
        data.into_iter().map(|e| DATA | e).chain(fetch.into_iter().map(|e| FETCH | e))
    }

    #[test]
    fn a_protected_vm_asks_for_memory_and_shows_nothing_else() {
        for access in every_access() {
            let esr = access | TRANSLATION;
            assert_eq!(to(esr, 0x1000, true, Leaf::Absent), Route::MemFault(ExitFlags::PRIVATE));
            let lost = ExitFlags::PRIVATE | ExitFlags::DESTROYED;
            assert_eq!(to(esr, 0x1000, true, Leaf::Destroyed), Route::MemFault(lost));
        }
    }

    #[test]
    fn only_an_aligned_access_with_a_syndrome_is_emulated() {
        for access in every_access() {
            let got = to(access | TRANSLATION, 0x0900_0010, false, Leaf::Absent);
            let emulated = access & (1 << 24) != 0;
            assert_eq!(matches!(got, Route::Mmio(_)), emulated, "{access:#x}: {got:?}");
        }
        let unaligned = to(DATA | ISV_WORD | WNR | TRANSLATION, 0x0900_0012, false, Leaf::Absent);
        assert_eq!(unaligned, Route::MemFault(ExitFlags::WRITE));
    }

    #[test]
    fn a_shared_page_fault_says_what_permission_is_missing() {
        let flags = |esr| to(esr, 0x1000, false, Leaf::Forbids);
        assert_eq!(flags(DATA | PERMISSION), Route::MemFault(ExitFlags::empty()));
        assert_eq!(flags(DATA | WNR | PERMISSION), Route::MemFault(ExitFlags::WRITE));
        assert_eq!(flags(FETCH | PERMISSION), Route::MemFault(ExitFlags::EXEC));
        assert_eq!(flags(DATA | S1PTW | PERMISSION), Route::MemFault(ExitFlags::WRITE), "hardware update");
        assert_eq!(flags(DATA | CM | WNR | PERMISSION), Route::MemFault(ExitFlags::empty()));
        assert_eq!(flags(FETCH | S1PTW | TRANSLATION), Route::MemFault(ExitFlags::empty()));
    }

    #[test]
    fn what_another_cpu_mapped_in_the_meantime_is_used() {
        for access in every_access() {
            for protected in [true, false] {
                let esr = access | TRANSLATION;
                let mapped = |accessed| to(esr, 0x1000, protected, Leaf::Allows { accessed });
                assert_eq!(mapped(true), Route::Resume);
                assert_eq!(mapped(false), Route::SetAccessFlag);
            }
        }
    }

    #[test]
    fn an_ipa_beyond_the_space_is_the_guests_own_fault_and_asks_no_table() {
        for access in every_access() {
            for protected in [true, false] {
                for dfsc in [0x00, 0x04, TRANSLATION] {
                    let got = route(&abort(access | dfsc), 1 << BITS, BITS, protected, || panic!("asked"));
                    assert_eq!(got, Route::AddressSize);
                }
            }
        }
        let last = to(DATA | TRANSLATION, (1 << BITS) - 1, true, Leaf::Absent);
        assert_eq!(last, Route::MemFault(ExitFlags::PRIVATE));
    }

    #[test]
    fn aborts_of_the_bus_and_strange_ones_stay_in_the_guest() {
        for dfsc in [0x10, 0x11, 0x14, 0x17, 0x21, 0x30, 0x35] {
            for protected in [true, false] {
                let got = route(&abort(DATA | dfsc), 0, BITS, protected, || panic!("asked"));
                assert_eq!(got, Route::ExternalAbort, "{dfsc:#x}");
            }
        }
    }

    #[test]
    fn a_table_that_cannot_be_is_reported() {
        assert_eq!(to(DATA | PERMISSION, 0, true, Leaf::Forbids), Route::Corrupt);
        assert_eq!(to(DATA | TRANSLATION, 0, false, Leaf::Destroyed), Route::Corrupt);
        for protected in [true, false] {
            assert_eq!(to(DATA | TRANSLATION, 0, protected, Leaf::Corrupt), Route::Corrupt);
        }
    }

    #[test]
    fn injected_aborts_carry_class_level_and_nothing_of_the_access() {
        let state = El1State { sctlr: 1 << 23, mte: false, nmi: false };
        let noisy = abort(DATA | ISV_WORD | WNR | 0x1f << 16 | TRANSLATION);
        assert_eq!(sea(&noisy, 0x3c5, state).esr, 0x9600_0210);
        assert_eq!(sea(&noisy, 0x000, state).esr, 0x9200_0210);
        assert_eq!(sea(&abort(FETCH | TRANSLATION), 0x3c5, state).esr, 0x8600_0210);
        assert_eq!(sea(&abort(FETCH | TRANSLATION), 0x000, state).vector, 0x400);
        assert_eq!(sea(&abort(DATA | S1PTW | TRANSLATION), 0x3c4, state).esr, 0x9600_0210);
        assert_eq!(address_size_fault(&noisy, 0x3c5, state).esr, 0x9600_0040);
        assert_eq!(address_size_fault(&abort(FETCH | 4), 0x0, state).esr, 0x8200_0000);
    }
}
