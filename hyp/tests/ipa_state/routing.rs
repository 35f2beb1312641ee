//! Where a guest's fault goes, cell by cell: every kind of VM, half, entry and access, against a table
//! that was written from the rules and not from the code.

use crate::rig::GIB;
use Answer::{Dead, Flag, Mem, Mmio, Resume, Sea, Size, Skip};
use Half::{Beyond, Private, Shared, Whole};
use abi::exit::ExitFlags;
use hyp::addr::Ipa;
use hyp::exception::Syndrome;
use hyp::mem_protect::GuestKind;
use hyp::mmio_guard::{Guard, Leaf, PendingMmio, Route, Transfer, route};
use std::collections::BTreeSet;

const BITS: u32 = 32;

/// Which part of the IPA space; a VM without split IPA has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Private,
    Shared,
    Whole,
    Beyond,
}

/// Where a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// External abort in the guest.
    Sea,
    /// Address size fault in the guest.
    Size,
    /// The guest tries again.
    Resume,
    /// The same, with the entry's access flag set.
    Flag,
    /// The guest goes on behind the instruction.
    Skip,
    /// Exit MMIO.
    Mmio,
    /// Exit MEM_FAULT.
    Mem(ExitFlags),
    /// No table can say that: the VM is dead.
    Dead,
}

/// MEM_FAULT without flags, and with them.
const M: Answer = Mem(ExitFlags::empty());
const W: Answer = Mem(ExitFlags::WRITE);
const X: Answer = Mem(ExitFlags::EXEC);
const P: Answer = Mem(ExitFlags::PRIVATE);
const PD: Answer = Mem(ExitFlags::PRIVATE.union(ExitFlags::DESTROYED));
const T: Answer = Mem(ExitFlags::TAG_ACCESS);
const PT: Answer = Mem(ExitFlags::PRIVATE.union(ExitFlags::TAG_ACCESS));

/// Columns: what the guest tried.
const COLUMNS: usize = 8;
/// A load or store of one register with a syndrome, naturally aligned; any other one.
const LOAD: usize = 0;
const STORE: usize = 1;
const OTHER_LOAD: usize = 2;
const OTHER_STORE: usize = 3;
const FETCH: usize = 4;
/// A walk of stage 1 that reads, and one that sets a flag in an entry that it found.
const WALK: usize = 5;
const UPDATE: usize = 6;
const MAINTENANCE: usize = 7;

type Row = (GuestKind, Guard, Half, Leaf, [Answer; COLUMNS]);

const SPLIT: (GuestKind, Guard) = (GuestKind::Split, Guard::Absent);
const CLASSIC: (GuestKind, Guard) = (GuestKind::Classic, Guard::On);
const PLAIN: (GuestKind, Guard) = (GuestKind::NonProtected, Guard::Off);
const ENROLLED: (GuestKind, Guard) = (GuestKind::NonProtected, Guard::On);

const fn row(vm: (GuestKind, Guard), half: Half, leaf: Leaf, answers: [Answer; COLUMNS]) -> Row {
    (vm.0, vm.1, half, leaf, answers)
}

const fn all(vm: (GuestKind, Guard), half: Half, leaf: Leaf, answer: Answer) -> Row {
    row(vm, half, leaf, [answer; COLUMNS])
}

const ALLOWS: Leaf = Leaf::Allows { accessed: true };
const NEVER_USED: Leaf = Leaf::Allows { accessed: false };
const OWN_NO_TAG: Leaf = Leaf::NoTag { private: true };
const LENT_NO_TAG: Leaf = Leaf::NoTag { private: false };

#[rustfmt::skip]
const TABLE: [Row; 52] = [
    // Nobody hears of what is EMPTY; of RAM and of what was lost the host hears the page.
    all(SPLIT, Private, Leaf::Absent, Sea),
    all(SPLIT, Private, Leaf::Ram, P),
    all(SPLIT, Private, Leaf::Destroyed, PD),
    all(SPLIT, Private, ALLOWS, Resume),
    all(SPLIT, Private, NEVER_USED, Flag),
    all(SPLIT, Private, OWN_NO_TAG, PT),
    all(SPLIT, Private, LENT_NO_TAG, T),
    // Its pages have all permissions, and it marks no devices.
    all(SPLIT, Private, Leaf::Forbids, Dead),
    all(SPLIT, Private, Leaf::Guarded, Dead),
    all(SPLIT, Private, Leaf::Corrupt, Dead),
    //                                  load  store other other fetch walk  update maintenance
    row(SPLIT, Shared, Leaf::Absent,   [Mmio, Mmio, M,    W,    Sea,  M,    W,     M]),
    row(SPLIT, Shared, Leaf::Forbids,  [M,    W,    M,    W,    Sea,  M,    W,     M]),
    all(SPLIT, Shared, ALLOWS, Resume),
    all(SPLIT, Shared, NEVER_USED, Flag),
    all(SPLIT, Shared, LENT_NO_TAG, T),
    all(SPLIT, Shared, OWN_NO_TAG, PT),
    all(SPLIT, Shared, Leaf::Ram, Dead),
    all(SPLIT, Shared, Leaf::Destroyed, Dead),
    all(SPLIT, Shared, Leaf::Guarded, Dead),
    all(SPLIT, Shared, Leaf::Corrupt, Dead),
    // The one page that shows an access is one that the guest marked.
    all(CLASSIC, Whole, Leaf::Absent, P),
    all(CLASSIC, Whole, Leaf::Destroyed, PD),
    row(CLASSIC, Whole, Leaf::Guarded, [Mmio, Mmio, Sea,  Sea,  Sea,  Sea,  Sea,   Skip]),
    all(CLASSIC, Whole, ALLOWS, Resume),
    all(CLASSIC, Whole, NEVER_USED, Flag),
    all(CLASSIC, Whole, OWN_NO_TAG, PT),
    all(CLASSIC, Whole, LENT_NO_TAG, T),
    all(CLASSIC, Whole, Leaf::Forbids, Dead),
    all(CLASSIC, Whole, Leaf::Ram, Dead),
    all(CLASSIC, Whole, Leaf::Corrupt, Dead),
    row(PLAIN, Whole, Leaf::Absent,    [Mmio, Mmio, M,    W,    X,    M,    W,     M]),
    row(PLAIN, Whole, Leaf::Forbids,   [M,    W,    M,    W,    X,    M,    W,     M]),
    all(PLAIN, Whole, ALLOWS, Resume),
    all(PLAIN, Whole, NEVER_USED, Flag),
    all(PLAIN, Whole, LENT_NO_TAG, T),
    all(PLAIN, Whole, OWN_NO_TAG, PT),
    all(PLAIN, Whole, Leaf::Guarded, Dead),
    all(PLAIN, Whole, Leaf::Destroyed, Dead),
    all(PLAIN, Whole, Leaf::Ram, Dead),
    all(PLAIN, Whole, Leaf::Corrupt, Dead),
    row(ENROLLED, Whole, Leaf::Absent, [M,    W,    M,    W,    X,    M,    W,     M]),
    row(ENROLLED, Whole, Leaf::Guarded, [Mmio, Mmio, Sea, Sea,  Sea,  Sea,  Sea,   Skip]),
    row(ENROLLED, Whole, Leaf::Forbids, [M,   W,    M,    W,    X,    M,    W,     M]),
    all(ENROLLED, Whole, ALLOWS, Resume),
    all(ENROLLED, Whole, NEVER_USED, Flag),
    all(ENROLLED, Whole, LENT_NO_TAG, T),
    all(ENROLLED, Whole, OWN_NO_TAG, PT),
    all(ENROLLED, Whole, Leaf::Destroyed, Dead),
    all(ENROLLED, Whole, Leaf::Ram, Dead),
    all(ENROLLED, Whole, Leaf::Corrupt, Dead),
    // An address that no VM has: whatever a table would say.
    all(SPLIT, Beyond, ALLOWS, Size),
    all(PLAIN, Beyond, Leaf::Absent, Size),
];

const WNR: u64 = 1 << 6;
const S1PTW: u64 = 1 << 7;
const CM: u64 = 1 << 8;
const ISV: u64 = 1 << 24;
const SIZE_SHIFT: u32 = 22;
/// Sign extension, register, width of the register: fields of the access that decide nothing.
const NOISE: u64 = 1 << 21 | 0x15 << 16 | 1 << 15;

/// Aborts by the fields that count: class, ISV, WnR, S1PTW, CM, size, noise and fault status.
fn aborts() -> impl Iterator<Item = u64> {
    let flags = |n: u64| {
        [ISV, WNR, S1PTW, CM, NOISE]
            .into_iter()
            .enumerate()
            .map(move |(bit, f)| (n >> bit & 1) * f)
            .sum::<u64>()
    };
    let class = [0x20_u64, 0x24].map(|class| class << 26 | 1 << 25);
    (0..2_usize).flat_map(move |of| {
        (0..32).flat_map(move |n| {
            (0..4).flat_map(move |size| {
                (0..64).map(move |dfsc| class[of] | flags(n) | size << SIZE_SHIFT | dfsc)
            })
        })
    })
}

/// The column that an abort of stage 2 belongs to, by the bits that the CPU sets.
fn column(esr: u64, ipa: u64) -> usize {
    let permission = esr & 0x3c == 0x0c;
    let write = esr & WNR != 0;
    let aligned = ipa.is_multiple_of(1 << (esr >> SIZE_SHIFT & 3));
    match (esr & S1PTW != 0, esr >> 26 == 0x20, esr & CM != 0) {
        (true, ..) if permission => UPDATE,
        (true, ..) => WALK,
        (_, true, _) => FETCH,
        (_, _, true) => MAINTENANCE,
        _ if esr & ISV != 0 && aligned => {
            if write {
                STORE
            } else {
                LOAD
            }
        }
        _ if write => OTHER_STORE,
        _ => OTHER_LOAD,
    }
}

fn answer(route: Route, ipa: u64, esr: u64) -> Answer {
    match route {
        Route::Resume => Resume,
        Route::SetAccessFlag(at) => {
            assert_eq!(at.raw(), ipa);
            Flag
        }
        Route::Skip => Skip,
        Route::Mmio(access) => {
            let transfer = Transfer::decode(Syndrome::new(esr)).unwrap();
            assert_eq!(access, PendingMmio { gpa: ipa, transfer }, "{esr:#x}");
            Mmio
        }
        Route::MemFault(page, flags) => {
            assert_eq!(page, Ipa::new(ipa & !0xfff).unwrap(), "{esr:#x}: the page, no offset");
            Mem(flags)
        }
        Route::ExternalAbort => Sea,
        Route::AddressSize => Size,
        Route::Corrupt => Dead,
    }
}

#[test]
fn every_fault_goes_where_the_table_says_cell_by_cell() {
    let mut met = BTreeSet::new();
    for (n, (kind, guard, half, leaf, answers)) in TABLE.into_iter().enumerate() {
        let page = match half {
            Private | Whole => 0x5010,
            Shared => (2 * GIB) | 0x5010,
            Beyond => 1 << BITS | 0x5010,
        };
        for esr in aborts() {
            // What is no fault of stage 2 stays with the guest, whatever its table says.
            let stage2 = esr & 0x3f < 0x10;
            for ipa in page..page + if stage2 { 8 } else { 1 } {
                let column = column(esr, ipa);
                let looked = route(Syndrome::new(esr), Some(ipa), BITS, kind, |_| (guard, leaf));
                let want = if stage2 { answers[column] } else { Sea };
                assert_eq!(
                    answer(looked, ipa, esr),
                    want,
                    "{kind:?} {guard:?} {half:?} {leaf:?} {esr:#x} {ipa:#x}"
                );
                if stage2 {
                    met.insert((n, column));
                }
            }
        }
    }
    assert_eq!(met.len(), TABLE.len() * COLUMNS, "an abort for each cell");
}

#[test]
fn the_table_has_each_entry_of_each_vm_once() {
    let leaves = [
        Leaf::Absent,
        Leaf::Guarded,
        ALLOWS,
        NEVER_USED,
        Leaf::Forbids,
        Leaf::Ram,
        Leaf::Destroyed,
        OWN_NO_TAG,
        LENT_NO_TAG,
        Leaf::Corrupt,
    ];
    let places = [(SPLIT, Private), (SPLIT, Shared), (CLASSIC, Whole), (PLAIN, Whole), (ENROLLED, Whole)];
    for ((kind, guard), half) in places {
        for leaf in leaves {
            let rows =
                TABLE.into_iter().filter(|row| (row.0, row.1, row.2, row.3) == (kind, guard, half, leaf));
            assert_eq!(rows.count(), 1, "{kind:?} {guard:?} {half:?} {leaf:?}");
        }
    }
}
