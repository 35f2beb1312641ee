//! Where an abort of a VM with split IPA goes: by the half it is in, and by what is there.
//!
//! docs/ipa-state.md has the table; a test holds it to the code.
#![forbid(unsafe_code)]

use super::abort::{Attempt, Leaf, Route, wanted};
use crate::addr::Ipa;
use crate::exception::Syndrome;
use abi::exit::ExitFlags;

/// Routes an abort of stage 2 in the half that the VM keeps to itself. The host hears of a page that
/// is missing, never of the access.
pub(super) const fn private(page: Ipa, leaf: Leaf) -> Route {
    match leaf {
        Leaf::Absent => Route::ExternalAbort,
        Leaf::Ram => Route::MemFault(page, ExitFlags::PRIVATE),
        Leaf::Destroyed => Route::MemFault(page, ExitFlags::PRIVATE.union(ExitFlags::DESTROYED)),
        // A private page is always readable, writable and executable, and never a marked device.
        // What waits for tags is the same in all kinds of VM.
        Leaf::Allows { .. } | Leaf::NoTag { .. } | Leaf::Forbids | Leaf::Guarded | Leaf::Corrupt => {
            Route::Corrupt
        }
    }
}

/// Routes an abort of stage 2 at `ipa` in the half that the VM shares with the host, where the
/// host serves everything but fetches.
pub(super) fn shared(syndrome: Syndrome, ipa: u64, page: Ipa, leaf: Leaf) -> Route {
    match (leaf, Attempt::new(syndrome, ipa)) {
        (Leaf::Absent | Leaf::Forbids, Attempt::Fetch) => Route::ExternalAbort,
        (Leaf::Absent, Attempt::Single(access)) => Route::Mmio(access),
        (Leaf::Absent | Leaf::Forbids, _) => Route::MemFault(page, wanted(syndrome.access())),
        (
            Leaf::Allows { .. }
            | Leaf::NoTag { .. }
            | Leaf::Ram
            | Leaf::Destroyed
            | Leaf::Guarded
            | Leaf::Corrupt,
            _,
        ) => Route::Corrupt,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Guard;
    use super::super::abort::{Leaf, Route, route};
    use crate::exception::Syndrome;
    use crate::mem_protect::GuestKind;
    use std::string::String;
    use std::vec::Vec;
    use std::{format, fs, panic};

    const BITS: u32 = 33;
    const HALF: u64 = 1 << 32;
    const DATA: u64 = 0x24 << 26 | 1 << 25;
    const FETCH: u64 = 0x20 << 26 | 1 << 25;
    const ISV: u64 = 1 << 24 | 3 << 22;
    const WNR: u64 = 1 << 6;
    const S1PTW: u64 = 1 << 7;
    const CM: u64 = 1 << 8;
    const TRANSLATION: u64 = 0x07;
    const PERMISSION: u64 = 0x0f;

    fn to(esr: u64, ipa: u64, leaf: Leaf) -> Route {
        route(Syndrome::new(esr), Some(ipa), BITS, GuestKind::Split, |_| (Guard::Absent, leaf))
    }

    /// The word that the document uses.
    fn word(route: Route) -> String {
        match route {
            Route::ExternalAbort => "external abort".into(),
            Route::Mmio(_) => "MMIO".into(),
            Route::Corrupt => "-".into(),
            Route::Resume => "resumed".into(),
            Route::MemFault(_, flags) if flags.is_empty() => "MEM_FAULT".into(),
            Route::MemFault(_, flags) => {
                let names: Vec<_> = flags.iter_names().map(|(name, _)| name).collect();
                format!("MEM_FAULT {}", names.join(" "))
            }
            other => panic!("{other:?} is not in the table"),
        }
    }

    /// Rows of the table in the document.
    fn table() -> Vec<Vec<String>> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/ipa-state.md");
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().skip_while(|line| !line.starts_with("| there is |")).skip(2);
        let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().into()).collect();
        lines.take_while(|line| line.starts_with('|')).map(cells).collect()
    }

    #[test]
    fn the_fault_table_of_the_document_is_the_code() {
        // Columns: aligned load, aligned store, other load, other store, fetch, walk, maintenance.
        let attempts: [&[u64]; 7] = [
            &[DATA | ISV],
            &[DATA | ISV | WNR],
            &[DATA],
            &[DATA | WNR],
            &[FETCH],
            &[DATA | S1PTW, FETCH | S1PTW],
            &[DATA | CM | WNR, DATA | CM],
        ];
        let (absent, here) = (TRANSLATION, PERMISSION);
        let rows = [
            ("private: EMPTY", 0x5000, Leaf::Absent, absent),
            ("private: RAM without a page", 0x5000, Leaf::Ram, absent),
            ("private: DESTROYED", 0x5000, Leaf::Destroyed, absent),
            ("shared: nothing", HALF | 0x5000, Leaf::Absent, absent),
            ("shared: a page that forbids it", HALF | 0x5000, Leaf::Forbids, here),
        ];
        let want: Vec<Vec<String>> = rows
            .into_iter()
            .map(|(name, ipa, leaf, dfsc)| {
                let mut cells = Vec::from([String::from(name)]);
                for esrs in attempts {
                    let words: Vec<_> = esrs.iter().map(|esr| word(to(esr | dfsc, ipa, leaf))).collect();
                    assert!(words.iter().all(|word| *word == words[0]), "{name}: {words:?}");
                    cells.push(words[0].clone());
                }
                cells
            })
            .collect();
        assert_eq!(table(), want);
    }

    /// Every bit that counts, every leaf, both halves: the host is shown an access in the shared half
    /// alone, and of a private page its address and nothing else; a fetch never leaves the guest but
    /// for its own memory.
    #[test]
    fn what_is_private_shows_a_page_and_what_is_shared_shows_an_access() {
        let bits = [1 << 24, WNR, S1PTW, CM, 1 << 22, 1 << 23, 1 << 21, 1 << 16];
        let leaves = [Leaf::Absent, Leaf::Ram, Leaf::Destroyed, Leaf::Forbids, Leaf::Guarded, Leaf::Corrupt];
        for class in [DATA, FETCH] {
            for set in 0..1_u64 << bits.len() {
                let esr = (0..).zip(bits).filter(|(n, _)| set & 1 << n != 0).fold(class, |e, (_, b)| e | b);
                for dfsc in [0x04, TRANSLATION, PERMISSION] {
                    for (ipa, leaf) in
                        [0x5018, HALF | 0x5018].into_iter().flat_map(|ipa| leaves.map(|l| (ipa, l)))
                    {
                        let got = to(esr | dfsc, ipa, leaf);
                        let what = format!("{esr:#x} {ipa:#x} {leaf:?} {got:?}");
                        let (is_fetch, shared) = (class == FETCH && esr & S1PTW == 0, ipa >= HALF);
                        match got {
                            Route::Mmio(access) => {
                                assert!(shared && leaf == Leaf::Absent && class == DATA, "{what}");
                                assert_eq!(
                                    (esr & (1 << 24 | S1PTW | CM), access.gpa),
                                    (1 << 24, ipa),
                                    "{what}"
                                );
                            }
                            Route::MemFault(page, flags) => {
                                assert_eq!(page.raw(), ipa & !0xfff, "{what}");
                                assert!(!(shared && is_fetch), "{what}");
                                let private = abi::exit::ExitFlags::PRIVATE;
                                assert_eq!(flags.contains(private), !shared, "{what}");
                                let rest = flags - private - abi::exit::ExitFlags::DESTROYED;
                                assert!(shared || rest.is_empty(), "{what}");
                            }
                            Route::ExternalAbort => {
                                assert!(if shared { is_fetch } else { leaf == Leaf::Absent }, "{what}");
                            }
                            Route::Corrupt => {
                                let there = matches!(leaf, Leaf::Ram | Leaf::Destroyed);
                                let other = matches!(leaf, Leaf::Guarded | Leaf::Corrupt);
                                let never = if shared { there } else { leaf == Leaf::Forbids };
                                assert!(other || never, "{what}");
                            }
                            other => panic!("{other:?}: {what}"),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn p_16_an_address_beyond_the_space_is_the_guests_own_fault() {
        for esr in [DATA, FETCH, DATA | S1PTW, DATA | CM] {
            let syndrome = Syndrome::new(esr | TRANSLATION);
            let got = route(syndrome, Some(1 << BITS), BITS, GuestKind::Split, |_| panic!("asked"));
            assert_eq!(got, Route::AddressSize);
        }
    }
}
