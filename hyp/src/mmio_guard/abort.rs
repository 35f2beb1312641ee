//! Where a guest's abort goes: resumed, emulated, to the host for memory, or back into the guest.
//!
//! A pure function of the abort and of what the guest's table says at that IPA, read again under
//! the table's lock: what another CPU has mapped in the meantime is simply used. That moment
//! decides: an access that is on its way to the host is not called back when another vCPU takes
//! the mark of its page away.
#![forbid(unsafe_code)]

use super::Guard;
use super::access::{PendingMmio, Transfer};
use super::halves;
use crate::addr::Ipa;
use crate::exception::{Access, FaultKind, Syndrome, class};
use crate::mem_protect::GuestKind;
use crate::mte;
use abi::exit::ExitFlags;

/// What stage 2 of the guest says about the page of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// Nothing there.
    Absent,
    /// The guest marked it as a device.
    Guarded,
    /// Mapped and allowing this access; `accessed` is its access flag.
    Allows {
        /// The access flag.
        accessed: bool,
    },
    /// Mapped, and forbidding this access.
    Forbids,
    /// Memory that the host has yet to give.
    Ram,
    /// The page was taken back by force.
    Destroyed,
    /// A page that is not mapped until it has tags; `private` if it is the guest's own.
    NoTag {
        /// The guest's own.
        private: bool,
    },
    /// Nothing that such a table can hold.
    Corrupt,
}

/// What the guest tried, as far as emulation cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// An instruction fetch.
    Fetch,
    /// A stage-1 walk, for data or an instruction.
    Walk,
    /// Cache maintenance by address, which moves no data.
    Maintenance,
    /// One load or store of one register, naturally aligned.
    Single(PendingMmio),
    /// Any other data access: no syndrome (pairs, exclusives, atomics, SIMD, write-back, DC ZVA),
    /// or not aligned, and then it may have begun on the page before.
    Opaque,
}

impl Attempt {
    /// Reads the syndrome of an abort at `ipa`.
    #[must_use]
    #[inline(always)]
    pub const fn new(syndrome: Syndrome, ipa: u64) -> Self {
        if syndrome.on_stage1_walk() {
            return Self::Walk;
        }
        if syndrome.class() == class::INSTRUCTION_ABORT_LOWER {
            return Self::Fetch;
        }
        if syndrome.is_cache_maintenance() {
            return Self::Maintenance;
        }
        let Some(transfer) = Transfer::decode(syndrome) else { return Self::Opaque };
        match PendingMmio::new(ipa, transfer) {
            Some(access) => Self::Single(access),
            None => Self::Opaque,
        }
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The guest tries again.
    Resume,
    /// The access flag at this address is set, then the guest tries again.
    SetAccessFlag(Ipa),
    /// The guest goes on behind the instruction.
    Skip,
    /// Exit MMIO.
    Mmio(PendingMmio),
    /// Exit MEM_FAULT for this page.
    MemFault(Ipa, ExitFlags),
    /// A synchronous external abort in the guest.
    ExternalAbort,
    /// An address size fault in the guest.
    AddressSize,
    /// The table contradicts what it can hold: the VM is dead.
    Corrupt,
}

/// Routes the abort `syndrome` at `ipa` of a VM with `ipa_bits` bits of IPA; `None` if neither the
/// CPU nor the guest's own tables name one. `look` reads the guard and the table; it is asked only
/// for an IPA that the VM has.
pub fn route(
    syndrome: Syndrome,
    ipa: Option<u64>,
    ipa_bits: u32,
    kind: GuestKind,
    look: impl FnOnce(Ipa) -> (Guard, Leaf),
) -> Route {
    match syndrome.fault() {
        // An abort of the bus, or one that stage 2 cannot cause while tables are changed in order:
        // it stays the guest's.
        FaultKind::External | FaultKind::Other => return Route::ExternalAbort,
        FaultKind::AddressSize | FaultKind::Translation | FaultKind::AccessFlag | FaultKind::Permission => {}
    }
    // The guest's tables have changed since the access: it finds out by trying again.
    let Some(raw) = ipa else { return Route::Resume };
    if raw >> ipa_bits != 0 {
        return Route::AddressSize;
    }
    let (ipa, page) = (Ipa::truncated(raw), Ipa::truncated(raw).frame().base());
    let (guard, leaf) = look(ipa);
    match (leaf, kind.is_protected()) {
        (Leaf::Allows { accessed: true }, _) => Route::Resume,
        (Leaf::Allows { accessed: false }, _) => Route::SetAccessFlag(ipa),
        (Leaf::NoTag { private }, _) => Route::MemFault(page, mte::exit_flags(private)),
        (leaf, _) if kind.is_split() => {
            let shared = raw >> ipa_bits.saturating_sub(1) != 0;
            if shared { halves::shared(syndrome, raw, page, leaf) } else { halves::private(page, leaf) }
        }
        (Leaf::Guarded, _) if guard == Guard::On => guarded(Attempt::new(syndrome, raw)),
        (Leaf::Absent, true) => Route::MemFault(page, ExitFlags::PRIVATE),
        (Leaf::Destroyed, true) => Route::MemFault(page, ExitFlags::PRIVATE | ExitFlags::DESTROYED),
        (Leaf::Absent, false) => match Attempt::new(syndrome, raw) {
            Attempt::Single(access) if guard == Guard::Off => Route::Mmio(access),
            _ => Route::MemFault(page, wanted(syndrome.access())),
        },
        (Leaf::Forbids, false) => Route::MemFault(page, wanted(syndrome.access())),
        // A private page is always readable, writable and executable; a lent one is never
        // destroyed; nothing is marked while the guard is off; RAM is said with split IPA alone.
        (Leaf::Forbids, true) | (Leaf::Destroyed, false) | (Leaf::Guarded | Leaf::Ram | Leaf::Corrupt, _) => {
            Route::Corrupt
        }
    }
}

/// An access to a page that the guest marked.
const fn guarded(attempt: Attempt) -> Route {
    match attempt {
        Attempt::Single(access) => Route::Mmio(access),
        Attempt::Maintenance => Route::Skip,
        Attempt::Fetch | Attempt::Walk | Attempt::Opaque => Route::ExternalAbort,
    }
}

/// What a VM needs its host to allow.
pub(super) const fn wanted(access: Access) -> ExitFlags {
    match access {
        Access::Read => ExitFlags::empty(),
        Access::Write => ExitFlags::WRITE,
        Access::Fetch => ExitFlags::EXEC,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        ExitFlags, FaultKind, Guard, GuestKind, Ipa, Leaf, PendingMmio, Route, Syndrome, Transfer, route,
    };
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    const BITS: u32 = 32;
    const DATA: u64 = 0x24 << 26 | IL;
    const FETCH: u64 = 0x20 << 26 | IL;
    const IL: u64 = 1 << 25;
    const ISV: u64 = 1 << 24;
    const ISV_WORD: u64 = ISV | 2 << 22;
    const WNR: u64 = 1 << 6;
    const S1PTW: u64 = 1 << 7;
    const CM: u64 = 1 << 8;
    const TRANSLATION: u64 = 0x07;
    const PERMISSION: u64 = 0x0f;
    const DEVICE: u64 = 0x0900_0010;

    /// Every kind of VM with every guard that it can have.
    const VMS: [(GuestKind, Guard); 4] = [
        (GuestKind::Classic, Guard::On),
        (GuestKind::NonProtected, Guard::Off),
        (GuestKind::NonProtected, Guard::On),
        (GuestKind::Split, Guard::Absent),
    ];
    const PLAIN: (GuestKind, Guard) = (GuestKind::NonProtected, Guard::Off);
    const CLASSIC: (GuestKind, Guard) = (GuestKind::Classic, Guard::On);

    fn to(esr: u64, ipa: u64, vm: (GuestKind, Guard), leaf: Leaf) -> Route {
        route(Syndrome::new(esr), Some(ipa), BITS, vm.0, |_| (vm.1, leaf))
    }

    fn fault(ipa: u64, flags: ExitFlags) -> Route {
        Route::MemFault(Ipa::new(ipa).unwrap(), flags)
    }

    fn every_access() -> impl Iterator<Item = u64> {
        let data = [0, WNR, ISV_WORD, ISV_WORD | WNR, S1PTW, CM | WNR, CM | WNR | S1PTW];
        let fetch = [0, S1PTW];
        data.into_iter().map(|e| DATA | e).chain(fetch.into_iter().map(|e| FETCH | e))
    }

    /// The decision said a second time, from the bits of the syndrome: what is shown to the host,
    /// for every bit that counts, every size and every place in a double word.
    #[test]
    fn data_is_shown_for_one_aligned_register_of_a_page_that_may_be_emulated_and_for_nothing_else() {
        let bits = [ISV, WNR, S1PTW, CM, 1 << 22, 1 << 23, 1 << 21, 1 << 15, 1 << 16, 1 << 20];
        let leaves = [
            Leaf::Absent,
            Leaf::Guarded,
            Leaf::Allows { accessed: true },
            Leaf::Allows { accessed: false },
            Leaf::Forbids,
            Leaf::Destroyed,
            Leaf::Ram,
            Leaf::Corrupt,
        ];
        for class in [DATA, FETCH] {
            for set in 0..1_u64 << bits.len() {
                let esr = (0..).zip(bits).filter(|(n, _)| set & 1 << n != 0).fold(class, |e, (_, b)| e | b);
                for dfsc in [0, 4, 7, 8, 0xb, 0xc, 0xf, 0x10, 0x21, 0x3f] {
                    for offset in 0..8 {
                        // With split IPA the half decides: `halves` has that table.
                        for (kind, guard) in VMS.into_iter().filter(|(kind, _)| *kind != GuestKind::Split) {
                            for leaf in leaves {
                                let esr = esr | dfsc;
                                let got = to(esr, DEVICE + offset, (kind, guard), leaf);
                                let is_stage2 = dfsc < 0x10;
                                let emulated = leaf == Leaf::Guarded && guard == Guard::On
                                    || leaf == Leaf::Absent && guard == Guard::Off;
                                let size = 1 << (esr >> 22 & 3);
                                let shown = is_stage2
                                    && emulated
                                    && class == DATA
                                    && esr & (ISV | S1PTW | CM) == ISV
                                    && offset % size == 0;
                                assert_eq!(matches!(got, Route::Mmio(_)), shown, "{esr:#x} {leaf:?} {got:?}");
                                if let Route::Mmio(access) = got {
                                    let transfer = Transfer::decode(Syndrome::new(esr)).unwrap();
                                    assert_eq!(access, PendingMmio { gpa: DEVICE + offset, transfer });
                                }
                                let skipped = is_stage2
                                    && leaf == Leaf::Guarded
                                    && guard == Guard::On
                                    && class == DATA
                                    && esr & (S1PTW | CM) == CM;
                                assert_eq!(got == Route::Skip, skipped, "{esr:#x} {leaf:?} {got:?}");
                            }
                        }
                    }
                }
            }
        }
    }

    /// The word that the documents use.
    fn word(route: Route) -> String {
        match route {
            Route::Mmio(_) => "MMIO".into(),
            Route::Skip => "skipped".into(),
            Route::ExternalAbort => "external abort".into(),
            Route::MemFault(_, flags) if flags.is_empty() => "MEM_FAULT".into(),
            Route::MemFault(_, flags) => {
                let names: Vec<_> = flags.iter_names().map(|(name, _)| name).collect();
                format!("MEM_FAULT {}", names.join(" "))
            }
            other => panic!("{other:?} is not in the table"),
        }
    }

    #[test]
    fn the_abort_table_of_the_document_is_the_code() {
        let columns = [
            (Leaf::Guarded, CLASSIC),
            (Leaf::Guarded, (GuestKind::NonProtected, Guard::On)),
            (Leaf::Absent, CLASSIC),
            (Leaf::Absent, (GuestKind::NonProtected, Guard::On)),
            (Leaf::Absent, PLAIN),
        ];
        // Each row: what it stands for, and where.
        let rows: [(&str, &[u64], u64); 9] = [
            ("load of one register, aligned", &[DATA | ISV_WORD, DATA | ISV], 0),
            ("store of one register, aligned", &[DATA | ISV_WORD | WNR], 0),
            ("load, not aligned", &[DATA | ISV_WORD], 2),
            ("store, not aligned", &[DATA | ISV_WORD | WNR], 2),
            ("load without a syndrome", &[DATA], 0),
            ("store without a syndrome", &[DATA | WNR], 0),
            ("cache maintenance by address", &[DATA | CM | WNR, DATA | CM], 0),
            ("instruction fetch", &[FETCH], 0),
            ("stage-1 walk", &[DATA | S1PTW, FETCH | S1PTW, DATA | S1PTW | WNR, DATA | S1PTW | CM | WNR], 0),
        ];
        let want: Vec<Vec<String>> = rows
            .iter()
            .map(|(name, accesses, offset)| {
                let mut cells = Vec::from([String::from(*name)]);
                for (leaf, vm) in columns {
                    let words: Vec<_> = accesses
                        .iter()
                        .map(|esr| word(to(esr | TRANSLATION, DEVICE + offset, vm, leaf)))
                        .collect();
                    assert!(words.iter().all(|word| *word == words[0]), "{name}: {words:?}");
                    cells.push(words[0].clone());
                }
                cells
            })
            .collect();
        assert_eq!(super::super::table("| the guest tries |"), want);
    }

    #[test]
    fn a_protected_vm_asks_for_memory_and_shows_nothing_else() {
        for access in every_access() {
            let split = (GuestKind::Split, Guard::Absent);
            for (vm, missing) in [(CLASSIC, Leaf::Absent), (split, Leaf::Ram)] {
                let esr = access | TRANSLATION;
                assert_eq!(to(esr, 0x1234, vm, missing), fault(0x1000, ExitFlags::PRIVATE));
                let lost = ExitFlags::PRIVATE | ExitFlags::DESTROYED;
                assert_eq!(to(esr, 0x1ff8, vm, Leaf::Destroyed), fault(0x1000, lost));
            }
        }
    }

    #[test]
    fn a_shared_page_fault_says_what_permission_is_missing() {
        let flags = |esr| to(esr, 0x1000, PLAIN, Leaf::Forbids);
        assert_eq!(flags(DATA | PERMISSION), fault(0x1000, ExitFlags::empty()));
        assert_eq!(flags(DATA | WNR | PERMISSION), fault(0x1000, ExitFlags::WRITE));
        assert_eq!(flags(FETCH | PERMISSION), fault(0x1000, ExitFlags::EXEC));
        assert_eq!(flags(DATA | S1PTW | PERMISSION), fault(0x1000, ExitFlags::WRITE), "hardware update");
        assert_eq!(flags(DATA | CM | WNR | PERMISSION), fault(0x1000, ExitFlags::empty()));
        assert_eq!(flags(FETCH | S1PTW | TRANSLATION), fault(0x1000, ExitFlags::empty()));
    }

    #[test]
    fn what_another_cpu_mapped_in_the_meantime_is_used() {
        for access in every_access() {
            for vm in VMS {
                let mapped = |accessed| to(access | TRANSLATION, 0x1000, vm, Leaf::Allows { accessed });
                assert_eq!(mapped(true), Route::Resume);
                assert_eq!(mapped(false), Route::SetAccessFlag(Ipa::new(0x1000).unwrap()));
            }
        }
    }

    #[test]
    fn an_ipa_beyond_the_space_is_the_guests_own_fault_and_asks_no_table() {
        for access in every_access() {
            for (kind, _) in VMS {
                for dfsc in [0x00, 0x04, TRANSLATION] {
                    let syndrome = Syndrome::new(access | dfsc);
                    let got = route(syndrome, Some(1 << BITS), BITS, kind, |_| panic!("asked"));
                    assert_eq!(got, Route::AddressSize);
                }
            }
        }
        let last = to(DATA | TRANSLATION, (1 << BITS) - 1, CLASSIC, Leaf::Absent);
        assert_eq!(last, fault((1 << BITS) - 0x1000, ExitFlags::PRIVATE));
    }

    #[test]
    fn aborts_of_the_bus_and_strange_ones_stay_in_the_guest() {
        for dfsc in 0x10..0x40 {
            let syndrome = Syndrome::new(DATA | dfsc);
            assert!(matches!(syndrome.fault(), FaultKind::External | FaultKind::Other));
            for (kind, _) in VMS {
                for ipa in [None, Some(0)] {
                    let got = route(syndrome, ipa, BITS, kind, |_| panic!("asked"));
                    assert_eq!(got, Route::ExternalAbort, "{dfsc:#x}");
                }
            }
        }
    }

    #[test]
    fn an_access_whose_tables_have_changed_since_is_tried_again() {
        for (kind, _) in VMS {
            let got = route(Syndrome::new(DATA | PERMISSION), None, BITS, kind, |_| panic!("asked"));
            assert_eq!(got, Route::Resume);
        }
    }

    #[test]
    fn a_table_that_cannot_be_is_reported() {
        for vm in VMS {
            let (kind, guard) = vm;
            assert_eq!(to(DATA | TRANSLATION, 0, vm, Leaf::Corrupt), Route::Corrupt);
            if kind.is_protected() {
                assert_eq!(to(DATA | PERMISSION, 0, vm, Leaf::Forbids), Route::Corrupt);
            } else {
                assert_eq!(to(DATA | TRANSLATION, 0, vm, Leaf::Destroyed), Route::Corrupt);
            }
            if guard != Guard::On {
                assert_eq!(to(DATA | ISV_WORD | TRANSLATION, 0, vm, Leaf::Guarded), Route::Corrupt);
            }
        }
    }
}
