//! The abstraction function: what the real tables and records amount to.
//!
//! It reads words and records, never through `pgtable` or `mem_protect`, and believes none of
//! them alone: each page's record, the host's table, EL2's table and every guest's table must tell
//! one story, or the answer is a [`Flaw`]. The locks of all tables are held by the caller, or
//! nothing runs.
#![forbid(unsafe_code)]

use super::flaw::{Flaw, Place, flaw};
use super::state::{BLOCK, Hold, Kind, NO_TAG, Page, Phase, RWX, Slot, State, Vm};
use super::words::{self, Note, Word};
use crate::addr::Pfn;
use crate::hw::{ENTRIES, PhysMem};
use crate::mm::{PageState, PageUse, Record, Vmemmap};
use abi::vm::MtePolicy;

/// Where a table starts: consecutive root pages, and their level.
#[derive(Clone, Copy, Debug)]
pub struct Root {
    /// First page.
    pub page: Pfn,
    /// Concatenated pages, 1..=16.
    pub pages: u8,
    /// 0..=2.
    pub level: u8,
}

/// What is read: all of it.
#[derive(Debug)]
pub struct Real<'a, H, G> {
    /// The memory that tables are in.
    pub hw: &'a H,
    /// The records.
    pub vmemmap: &'a Vmemmap,
    /// The host's table.
    pub host: Root,
    /// EL2's own table.
    pub hyp: Root,
    /// Every VM with its table.
    pub guests: G,
}

/// A page whose record says that a guest has it, until that guest is found.
const UNCLAIMED: u16 = u16::MAX;

/// Reads everything into `state`.
///
/// # Errors
/// The first contradiction; `state` is of no use then.
pub fn read<H, G, const N: usize>(real: &Real<'_, H, G>, state: &mut State<N>) -> Result<(), Flaw>
where
    H: PhysMem,
    G: Iterator<Item = (Vm, Root)> + Clone,
{
    state.clear();
    let reserves = records(real.vmemmap, state)?;
    let due = real.guests.clone().filter(|(vm, _)| vm.kind != Kind::NonProtected).count();
    if reserves != due {
        return flaw(Place::Reserves, "not one for each protected VM");
    }
    for pages in real.vmemmap.map().no_tags() {
        state.set_no_tags(pages.start().raw(), pages.end());
    }
    for (vm, root) in real.guests.clone() {
        state.put_vm(vm);
        guest(real.hw, vm, root, state)?;
    }
    state.consistent()?;
    tables(real.hw, real.host, words::stage2, &mut |entry| host(state, entry))?;
    tables(real.hw, real.hyp, words::stage1, &mut |entry| hyp(state, entry))?;
    if state.is_full() { flaw(Place::Model, "out of room") } else { Ok(()) }
}

/// What the records alone say; how many of them are a VM's split reserve.
fn records<const N: usize>(vmemmap: &Vmemmap, state: &mut State<N>) -> Result<usize, Flaw> {
    let mut run: Option<(u64, u64, Page)> = None;
    let mut reserves = 0_usize;
    for (pfn, record) in vmemmap.iter() {
        reserves = reserves.saturating_add(usize::from(record.page_use() == PageUse::Reserve));
        let pfn = pfn.raw();
        let page = record_of(pfn, record)?;
        match &mut run {
            Some((_, end, same)) if *end == pfn && *same == page => *end = pfn.saturating_add(1),
            _ => {
                if let Some((start, end, page)) = run {
                    state.pages.set(start, end, page);
                }
                run = Some((pfn, pfn.saturating_add(1), page));
            }
        }
    }
    if let Some((start, end, page)) = run {
        state.pages.set(start, end, page);
    }
    Ok(reserves)
}

fn record_of(pfn: u64, record: &Record) -> Result<Page, Flaw> {
    use PageState::{NoPage, Owned, SharedBorrowed, SharedOwned};
    if record.is_host_owned()
        && record.count() == 0
        && record.aux() == 0
        && record.page_use() == PageUse::None
    {
        return Ok(Page::Host);
    }
    let [handle_low, handle_high, leaves_low, leaves_high] = record.aux().to_le_bytes();
    let handle = u16::from_le_bytes([handle_low, handle_high]);
    let leaves = u16::from_le_bytes([leaves_low, leaves_high]);
    let page = match (record.host(), record.hyp(), record.page_use()) {
        (SharedOwned, SharedBorrowed, PageUse::None) if record.aux() == 0 => {
            return Ok(Page::SharedWithHyp { pins: record.count() });
        }
        (SharedOwned, NoPage, PageUse::None) if leaves > 0 => Page::SharedWithGuest { handle, leaves },
        (NoPage, NoPage, PageUse::None) if record.aux() == 0 => Page::Guest { handle: UNCLAIMED },
        (SharedBorrowed, NoPage, PageUse::None) if record.aux() == 0 => {
            Page::GuestSharedWithHost { handle: UNCLAIMED }
        }
        // What counts and links mean in EL2's own pages is the business of whoever has them.
        (NoPage, Owned, PageUse::Lent) => return Ok(Page::Lent),
        (NoPage, Owned, PageUse::Image | PageUse::Pool | PageUse::TablePool) => return Ok(Page::Hyp),
        (NoPage, Owned, PageUse::Vm | PageUse::GuestTable | PageUse::PtCache | PageUse::Reserve) => {
            return Ok(Page::Vm);
        }
        (NoPage, Owned, PageUse::Token) => return flaw(Place::Page(pfn), "held by a token between calls"),
        _ => return flaw(Place::Page(pfn), "its record is in no known state"),
    };
    if record.count() == 0 { Ok(page) } else { flaw(Place::Page(pfn), "its record counts pins of nobody") }
}

/// An entry that is no table, or several that are absent, with the frames they stand for.
struct Entry {
    first: u64,
    nr: u64,
    word: Word,
}

/// Pages that an entry of `level` covers.
const fn span(level: u8) -> u64 {
    match level {
        0 => 1 << 27,
        1 => 1 << 18,
        2 => BLOCK,
        _ => 1,
    }
}

/// Calls `f` for every entry below `root` that is no table.
fn tables<H: PhysMem>(
    hw: &H,
    root: Root,
    decode: fn(u64, u8) -> Word,
    f: &mut impl FnMut(Entry) -> Result<(), Flaw>,
) -> Result<(), Flaw> {
    let pages = (0..u64::from(root.pages)).map_while(|n| root.page.checked_add(n));
    let mut first = 0;
    for page in pages {
        table(hw, page, root.level, first, decode, f)?;
        first = first.saturating_add(span(root.level) << 9);
    }
    Ok(())
}

/// One table and what is below it: at most four deep, since the level rises.
fn table<H: PhysMem>(
    hw: &H,
    page: Pfn,
    level: u8,
    mut first: u64,
    decode: fn(u64, u8) -> Word,
    f: &mut impl FnMut(Entry) -> Result<(), Flaw>,
) -> Result<(), Flaw> {
    let nr = span(level);
    // Nothing in a row is said once: most of most tables is empty.
    let mut empty = 0_u64;
    for index in 0..ENTRIES {
        let word = decode(hw.read_entry(page, index), level);
        if word == Word::Absent {
            empty = empty.saturating_add(nr);
        } else {
            if empty > 0 {
                f(Entry { first: first.saturating_sub(empty), nr: empty, word: Word::Absent })?;
                empty = 0;
            }
            match word {
                Word::Corrupt => return flaw(Place::Page(page.raw()), "a word of this table is corrupt"),
                Word::Table(next) => match Pfn::new(next) {
                    Ok(next) => table(hw, next, level.saturating_add(1), first, decode, f)?,
                    Err(_) => return flaw(Place::Page(page.raw()), "a word of this table leads nowhere"),
                },
                word => f(Entry { first, nr, word })?,
            }
        }
        first = first.saturating_add(nr);
    }
    if empty == 0 {
        return Ok(());
    }
    f(Entry { first: first.saturating_sub(empty), nr: empty, word: Word::Absent })
}

/// Reads the table of `vm` and claims its pages.
fn guest<H: PhysMem, const N: usize>(hw: &H, vm: Vm, root: Root, state: &mut State<N>) -> Result<(), Flaw> {
    tables(hw, root, words::stage2, &mut |Entry { first, nr, word }| {
        let place = Place::Slot(vm.handle, first);
        let slot = match word {
            Word::Absent => return Ok(()),
            // Nobody will run this VM: what it would find is no matter, and goes entry by entry.
            Word::Note(Note::Ram | Note::Destroyed | Note::Guard) if vm.phase == Phase::Dying => {
                return Ok(());
            }
            Word::Note(Note::Ram) => Slot::Ram,
            Word::Note(Note::Destroyed) => Slot::Destroyed,
            Word::Note(Note::Guard) => Slot::Guard,
            Word::Note(_) => return flaw(place, "a note of the host's table in a guest's"),
            Word::Leaf { pfn, prot, state: bits } => {
                let hold = match bits {
                    0 => Hold::Owned,
                    1 => Hold::Shared,
                    2 => Hold::Borrowed,
                    _ => return flaw(place, "page state 3"),
                };
                let slot = Slot::Mapped { pfn, hold, prot, block: nr > 1 };
                claim(state, vm, place, pfn, nr, hold)?;
                slot
            }
            Word::Table(_) | Word::Corrupt => return flaw(place, "a table where none can be"),
        };
        if first.saturating_add(nr) > vm.frames() {
            return flaw(place, "beyond the IPA space");
        }
        if let Some(what) = tags(vm, slot, state) {
            return flaw(place, what);
        }
        if !may_have(vm, first, slot) {
            return flaw(place, "an entry that this VM cannot have there");
        }
        state.set_slots(vm.handle, first..first.saturating_add(nr), slot);
        Ok(())
    })
}

/// True if `vm` may have `slot` at `first`: its own pages, and what it says of them, only if it is protected; with split
/// IPA those in the lower half, and what it borrows in the upper, where it executes nothing.
fn may_have(vm: Vm, first: u64, slot: Slot) -> bool {
    let lower = first < vm.owned_end();
    match (vm.kind, slot) {
        (Kind::NonProtected, Slot::Mapped { hold: Hold::Borrowed, .. } | Slot::Guard)
        | (
            Kind::Classic,
            Slot::Mapped { hold: Hold::Owned | Hold::Shared, .. } | Slot::Destroyed | Slot::Guard,
        ) => true,
        (Kind::Split, Slot::Mapped { hold: Hold::Owned, .. } | Slot::Ram | Slot::Destroyed) => lower,
        (Kind::Split, Slot::Mapped { hold: Hold::Borrowed, prot, .. }) => !lower && prot & 0b100 == 0,
        _ => false,
    }
}

/// What is wrong with the tags of `slot`: a VM with MTE has no page with which it could lose tags.
fn tags<const N: usize>(vm: Vm, slot: Slot, state: &State<N>) -> Option<&'static str> {
    let Slot::Mapped { pfn, hold, prot, block } = slot else { return None };
    let nr = if block { BLOCK } else { 1 };
    let no_tag = prot & NO_TAG != 0;
    match vm.mte {
        MtePolicy::Off => None,
        _ if !no_tag && !state.have_tags(&(pfn..pfn.saturating_add(nr))) => {
            Some("tags can be used where there are none")
        }
        MtePolicy::Strict if no_tag => Some("without tags in a VM that is never"),
        _ if no_tag && hold == Hold::Shared => Some("shared without tags"),
        _ if no_tag && block && vm.pending => Some("mapped, and the CPU cannot keep its tags"),
        _ => None,
    }
}

/// Gives `nr` pages from `pfn` to `vm`, whose table has them by `hold`.
fn claim<const N: usize>(
    state: &mut State<N>,
    vm: Vm,
    place: Place,
    pfn: u64,
    nr: u64,
    hold: Hold,
) -> Result<(), Flaw> {
    let handle = vm.handle;
    let (unclaimed, claimed) = match hold {
        Hold::Owned => (Page::Guest { handle: UNCLAIMED }, Page::Guest { handle }),
        Hold::Shared => {
            (Page::GuestSharedWithHost { handle: UNCLAIMED }, Page::GuestSharedWithHost { handle })
        }
        Hold::Borrowed => return Ok(()),
    };
    let end = pfn.saturating_add(nr);
    if state.pages.stretches(pfn, end).any(|run| run.value != Some(unclaimed)) {
        return flaw(place, "the guest has a page that its record gives to another");
    }
    state.pages.set(pfn, end, claimed);
    Ok(())
}

/// Holds an entry of the host's table against what the pages are.
fn host<const N: usize>(state: &State<N>, Entry { first, nr, word }: Entry) -> Result<(), Flaw> {
    for run in state.pages.stretches(first, first.saturating_add(nr)) {
        let Some(page) = run.value else { continue };
        let right = match (word, page) {
            (Word::Absent, Page::Host | Page::SharedWithHyp { .. } | Page::SharedWithGuest { .. }) => true,
            (
                Word::Leaf { pfn, prot: RWX, .. },
                Page::Host | Page::SharedWithHyp { .. } | Page::SharedWithGuest { .. },
            ) => pfn == first,
            // Mapped at once, as a page of its own.
            (Word::Leaf { pfn, prot: RWX, .. }, Page::GuestSharedWithHost { .. }) => pfn == first && nr == 1,
            // What never comes back may stand above level 3.
            (Word::Note(Note::OfHyp), Page::Hyp) => true,
            (Word::Note(Note::OfHyp), Page::Lent | Page::Vm) => nr == 1,
            (Word::Note(Note::OfGuest { handle, gfn }), Page::Guest { handle: owner }) => {
                let there = state.slot(handle, gfn);
                handle == owner
                    && matches!(there, Some(Slot::Mapped { pfn, .. }) if pfn == run.start)
                    && nr == 1
            }
            _ => false,
        };
        if !right {
            return flaw(Place::Page(run.start), "the host's table and the page's owner disagree");
        }
    }
    Ok(())
}

/// Holds an entry of EL2's table against what the pages are: the linear map is the identity.
fn hyp<const N: usize>(state: &State<N>, Entry { first, nr, word }: Entry) -> Result<(), Flaw> {
    for run in state.pages.stretches(first, first.saturating_add(nr)) {
        let Some(page) = run.value else { continue };
        let right = match (word, page) {
            // The image has guard pages and pages that are read-only.
            (Word::Absent | Word::Leaf { .. }, Page::Hyp) => true,
            (Word::Leaf { pfn, prot, .. }, Page::Lent | Page::Vm) => pfn == first && prot == 0b011,
            (Word::Leaf { pfn, prot, .. }, Page::SharedWithHyp { pins }) => {
                pins > 0 && pfn == first && prot == 0b011
            }
            (Word::Absent, Page::SharedWithHyp { pins }) => pins == 0,
            (Word::Absent, Page::Lent | Page::Vm) | (Word::Leaf { .. }, _) => false,
            (Word::Absent, _) => true,
            _ => false,
        };
        if !right {
            return flaw(Place::Page(run.start), "EL2's table and the page's owner disagree");
        }
    }
    Ok(())
}
