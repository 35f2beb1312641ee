//! One 8-byte record a RAM page: who may use the page, as the host and EL2 see it.
//!
//! A guest's view of a page is in its table entry, not here. A zeroed record is an ordinary host
//! page, so start-up is one pass that zeroes the array.
//!
//! | byte | field | guarded by |
//! |---|---|---|
//! | 0 | host state, bits 3:0; hyp state, bits 7:4, XOR NOPAGE | host_s2 (the hyp half: hyp_s1 as well) |
//! | 1 | tag: use, bits 3:0; buddy order, bits 6:4; on a free list, bit 7 | whoever owns the page |
//! | 2..4 | count: entries of a table page, pins of a page shared with EL2 | lock of the table; hyp_s1 |
//! | 4..8 | aux: see [`Record::aux`] | host_s2, or whoever owns the page |
//!
//! The locks order all accesses, so each field is a relaxed atomic of its own size; [`HostStates`]
//! and [`HypStates`] live inside the locked values and are the proof that the lock is held.
#![forbid(unsafe_code)]

use super::ram_map::{RamMap, Span};
use crate::addr::{Pfn, PfnRange};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering::Relaxed};

/// What one side, host or EL2, may do with a page.
///
/// Exactly one of host, EL2 and guests has a page `Owned` or `SharedOwned`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PageState {
    /// This side owns the page and nobody else can reach it.
    ///
    /// The host: its table may map the page, lazily and in blocks. EL2: the page is in EL2's
    /// linear map, and in the host's table there is a note. Left by donating or sharing it.
    Owned = 0,
    /// This side owns the page and lets another one use it.
    ///
    /// Only the host's half can say so (EL2 lends nothing): either the hyp half is
    /// `SharedBorrowed`, or aux counts the guest entries that borrow it. Left when the last
    /// borrower is gone; cannot be donated before.
    SharedOwned = 1,
    /// Another side owns the page and lets this one use it.
    ///
    /// EL2: the page is in EL2's map only while it is pinned. The host: a guest's page, in the
    /// host's table as a page of its own, never lazily. Left when the owner takes it back.
    SharedBorrowed = 2,
    /// This side may not touch the page.
    ///
    /// The host: its table has a note that names the owner.
    NoPage = 3,
}

impl PageState {
    const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Owned,
            1 => Self::SharedOwned,
            2 => Self::SharedBorrowed,
            _ => Self::NoPage,
        }
    }
}

/// What a page that EL2 owns is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PageUse {
    /// Not EL2's, or not told apart.
    None = 0,
    /// Image, stacks, vmemmap: never moves.
    Image = 1,
    /// The buddy pool's, free or handed out.
    Pool = 2,
    /// The table pool's from boot on, free or a table.
    TablePool = 3,
    /// The table pool's, lent by the host and given back on demand.
    Lent = 4,
    /// Held by a token during one call.
    Token = 5,
    /// A VM's or vCPU's own state.
    Vm = 6,
    /// A table of a guest, its root included.
    GuestTable = 7,
    /// Waits in a VM's table cache.
    PtCache = 8,
    /// A VM's split reserve.
    Reserve = 9,
}

impl PageUse {
    /// Every use, in the order of the encoding.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::Image,
        Self::Pool,
        Self::TablePool,
        Self::Lent,
        Self::Token,
        Self::Vm,
        Self::GuestTable,
        Self::PtCache,
        Self::Reserve,
    ];

    fn from_bits(bits: u8) -> Self {
        Self::ALL.get(usize::from(bits & USE_MASK)).copied().unwrap_or(Self::None)
    }
}

const STATE_MASK: u8 = 0xf;
const HYP_SHIFT: u32 = 4;
const USE_MASK: u8 = 0xf;
const ORDER_SHIFT: u32 = 4;
const ORDER_MASK: u8 = 0x7;
const FREE: u8 = 1 << 7;
/// Both states of a page that is EL2's alone.
const HYP_OWNED: u8 =
    PageState::NoPage as u8 | (PageState::Owned as u8 ^ PageState::NoPage as u8) << HYP_SHIFT;

/// Proof that the host_s2 lock is held: lives in what it locks. One exists for each [`Vmemmap`].
#[derive(Debug)]
pub struct HostStates {
    /// How often a page got another state or another number of pins: an audit sees by it that none did in between.
    #[cfg(feature = "fault-injection")]
    changes: u64,
}

impl HostStates {
    const fn new() -> Self {
        Self {
            #[cfg(feature = "fault-injection")]
            changes: 0,
        }
    }

    #[cfg(feature = "fault-injection")]
    fn changed(&mut self) {
        self.changes = self.changes.wrapping_add(1);
    }

    /// Nobody asks.
    #[cfg(not(feature = "fault-injection"))]
    #[inline]
    const fn changed(&self) {}

    /// A number that grows whenever a page gets another state or another number of pins.
    #[cfg(feature = "fault-injection")]
    #[must_use]
    pub const fn changes(&self) -> u64 {
        self.changes
    }
}

/// Proof that the hyp_s1 lock is held. One exists for each [`Vmemmap`].
#[derive(Debug)]
pub struct HypStates(());

/// The record of one page.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Record {
    states: AtomicU8,
    tag: AtomicU8,
    count: AtomicU16,
    aux: AtomicU32,
}

static_assertions::const_assert_eq!(size_of::<Record>(), 8);

impl Record {
    /// A zeroed record: an ordinary host page.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            states: AtomicU8::new(0),
            tag: AtomicU8::new(0),
            count: AtomicU16::new(0),
            aux: AtomicU32::new(0),
        }
    }

    /// What the host may do with the page.
    #[must_use]
    #[inline]
    pub fn host(&self) -> PageState {
        PageState::from_bits(self.states.load(Relaxed))
    }

    /// What EL2 may do with the page.
    #[must_use]
    #[inline]
    pub fn hyp(&self) -> PageState {
        PageState::from_bits(!(self.states.load(Relaxed) >> HYP_SHIFT))
    }

    /// True for an ordinary page of the host: OWNED, and nothing else knows it.
    #[must_use]
    #[inline]
    pub fn is_host_owned(&self) -> bool {
        self.states.load(Relaxed) == 0
    }

    /// Sets the host's half.
    #[inline]
    pub fn set_host(&self, state: PageState, lock: &mut HostStates) {
        lock.changed();
        let hyp = self.states.load(Relaxed) & !STATE_MASK;
        self.states.store(hyp | state as u8, Relaxed);
    }

    /// Sets EL2's half. It shares a byte with the host's, so both locks are needed.
    #[inline]
    pub fn set_hyp(&self, state: PageState, lock: &mut HostStates, _hyp: &mut HypStates) {
        lock.changed();
        let host = self.states.load(Relaxed) & STATE_MASK;
        let hyp = (state as u8 ^ PageState::NoPage as u8) << HYP_SHIFT;
        self.states.store(host | hyp, Relaxed);
    }

    /// Makes an ordinary page of the host one that it shares with guests, which `aux` tells of. One store each: a
    /// block is 512 of them.
    #[inline]
    pub fn lend(&self, aux: u32, lock: &mut HostStates) {
        debug_assert!(self.is_host_owned(), "a page that is lent already, or not the host's");
        lock.changed();
        self.states.store(PageState::SharedOwned as u8, Relaxed);
        self.aux.store(aux, Relaxed);
    }

    /// Makes the page EL2's alone.
    #[inline]
    pub fn give_to_hyp(&self, page_use: PageUse, host: &mut HostStates, _hyp: &mut HypStates) {
        host.changed();
        self.states.store(HYP_OWNED, Relaxed);
        self.tag.store(page_use as u8, Relaxed);
    }

    /// Makes the page the host's alone.
    #[inline]
    pub fn give_to_host(&self, host: &mut HostStates, _hyp: &mut HypStates) {
        host.changed();
        self.states.store(0, Relaxed);
        self.tag.store(PageUse::None as u8, Relaxed);
    }

    /// What a hyp-owned page is for.
    #[must_use]
    #[inline]
    pub fn page_use(&self) -> PageUse {
        PageUse::from_bits(self.tag.load(Relaxed))
    }

    /// Says what the page is for; takes it off no list and keeps no order.
    #[inline]
    pub fn set_use(&self, page_use: PageUse) {
        self.tag.store(page_use as u8, Relaxed);
    }

    /// True while the page is on a free list (a buddy block: its first page).
    #[must_use]
    #[inline]
    pub fn is_free(&self) -> bool {
        self.tag.load(Relaxed) & FREE != 0
    }

    /// Puts the page on, or takes it off, its owner's free list.
    #[inline]
    pub(super) fn set_free(&self, free: bool) {
        let tag = self.tag.load(Relaxed) & !FREE;
        self.tag.store(if free { tag | FREE } else { tag }, Relaxed);
    }

    /// Buddy order of the block that starts here, 0..=7.
    #[must_use]
    #[inline]
    pub(super) fn order(&self) -> u8 {
        self.tag.load(Relaxed) >> ORDER_SHIFT & ORDER_MASK
    }

    /// Makes this the first page of a block of `order`, 0..=7.
    #[inline]
    pub(super) fn set_order(&self, order: u8) {
        let tag = self.tag.load(Relaxed) & !(ORDER_MASK << ORDER_SHIFT);
        self.tag.store(tag | (order & ORDER_MASK) << ORDER_SHIFT, Relaxed);
    }

    /// Entries of a table page that are not absent, or pins of a shared page.
    #[must_use]
    #[inline]
    pub fn count(&self) -> u16 {
        self.count.load(Relaxed)
    }

    /// Sets the count.
    #[inline]
    pub fn set_count(&self, count: u16) {
        self.count.store(count, Relaxed);
    }

    /// Sets how often the page, which the host shares, is pinned.
    #[inline]
    pub fn set_pins(&self, pins: u16, lock: &mut HostStates) {
        lock.changed();
        self.set_count(pins);
    }

    /// What else there is to know, by the page's state:
    /// - host-shared to guests: number of guest entries that borrow it, bits 31:16, VM handle, 15:0;
    /// - held by a [`PageUse::Token`]: link of the donation list;
    /// - a table of the host: entries that keep it from being recycled;
    /// - otherwise 0.
    #[must_use]
    #[inline]
    pub fn aux(&self) -> u32 {
        self.aux.load(Relaxed)
    }

    /// Sets aux.
    #[inline]
    pub fn set_aux(&self, aux: u32) {
        self.aux.store(aux, Relaxed);
    }
}

/// The records of all RAM pages, regions laid end to end.
#[derive(Debug)]
pub struct Vmemmap {
    map: RamMap,
    records: &'static [Record],
}

impl Vmemmap {
    /// The records of `map`'s pages and the two proofs, which belong into the locks they stand for.
    ///
    /// `records` is zeroed: every page starts as the host's. `None` if there are fewer records
    /// than pages.
    #[must_use]
    pub fn new(map: RamMap, records: &'static [Record]) -> Option<(Self, HostStates, HypStates)> {
        let records = records.get(..usize::try_from(map.pages()).ok()?)?;
        Some((Self { map, records }, HostStates::new(), HypStates(())))
    }

    /// Which frames are RAM.
    #[must_use]
    pub const fn map(&self) -> &RamMap {
        &self.map
    }

    /// The record of `pfn`, if it is RAM.
    #[must_use]
    #[inline]
    pub fn get(&self, pfn: Pfn) -> Option<&'static Record> {
        self.records.get(usize::try_from(self.map.index_of(pfn)?).ok()?)
    }

    /// The record with this index.
    #[must_use]
    #[inline]
    pub fn record(&self, index: u32) -> Option<&'static Record> {
        self.records.get(usize::try_from(index).ok()?)
    }

    /// The records of `pages` in order, if all of them are RAM.
    #[must_use]
    #[inline]
    pub fn range(&self, pages: PfnRange) -> Option<&'static [Record]> {
        let first = usize::try_from(self.map.index_of_range(pages)?).ok()?;
        self.records.get(first..)?.get(..usize::try_from(pages.nr()).ok()?)
    }

    /// Every RAM page with its record, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (Pfn, &'static Record)> + '_ {
        self.map.regions().flat_map(PfnRange::iter).zip(self.records)
    }

    /// The longest run of RAM, or of what is not RAM, around `pfn`.
    #[must_use]
    pub fn span(&self, pfn: Pfn) -> Span {
        self.map.span(pfn)
    }
}

#[cfg(test)]
mod tests {
    use super::{HostStates, HypStates, PageState, PageUse, Record, Vmemmap};
    use crate::addr::PfnRange;
    use crate::mm::RamMap;
    use std::boxed::Box;

    const STATES: [PageState; 4] =
        [PageState::Owned, PageState::SharedOwned, PageState::SharedBorrowed, PageState::NoPage];

    #[test]
    fn a_zeroed_record_is_an_ordinary_host_page() {
        let record = Record::default();
        assert_eq!((record.host(), record.hyp()), (PageState::Owned, PageState::NoPage));
        assert!(record.is_host_owned());
        assert_eq!((record.page_use(), record.is_free()), (PageUse::None, false));
        assert_eq!((record.count(), record.aux()), (0, 0));
    }

    #[test]
    fn the_two_states_and_the_tag_do_not_disturb_each_other() {
        let (mut host, mut hyp) = (HostStates::new(), HypStates(()));
        for host_state in STATES {
            for hyp_state in STATES {
                let record = Record::default();
                record.set_hyp(hyp_state, &mut host, &mut hyp);
                record.set_host(host_state, &mut host);
                assert_eq!((record.host(), record.hyp()), (host_state, hyp_state));
                let plain = host_state == PageState::Owned && hyp_state == PageState::NoPage;
                assert_eq!(record.is_host_owned(), plain);
            }
        }
        for page_use in PageUse::ALL {
            let record = Record::default();
            record.set_use(page_use);
            record.set_order(7);
            record.set_free(true);
            assert_eq!((record.page_use(), record.order(), record.is_free()), (page_use, 7, true));
            record.set_free(false);
            record.set_order(2);
            assert_eq!((record.page_use(), record.order(), record.is_free()), (page_use, 2, false));
        }
    }

    #[test]
    fn a_page_that_is_given_whole_is_one_owners_alone() {
        let (mut host, mut hyp) = (HostStates::new(), HypStates(()));
        let record = Record::default();
        record.give_to_hyp(PageUse::Lent, &mut host, &mut hyp);
        assert_eq!((record.host(), record.hyp()), (PageState::NoPage, PageState::Owned));
        assert_eq!(record.page_use(), PageUse::Lent);
        record.give_to_host(&mut host, &mut hyp);
        assert!(record.is_host_owned() && record.page_use() == PageUse::None);
    }

    #[test]
    fn a_page_that_is_lent_is_the_hosts_and_shared() {
        let (mut host, record) = (HostStates::new(), Record::default());
        record.lend(7 << 16 | 3, &mut host);
        assert_eq!((record.host(), record.hyp()), (PageState::SharedOwned, PageState::NoPage));
        assert_eq!((record.aux(), record.count(), record.page_use()), (7 << 16 | 3, 0, PageUse::None));
    }

    #[test]
    fn a_range_has_records_only_if_all_of_it_is_ram() {
        let ram = PfnRange::new(0x100, 4).unwrap();
        let map = RamMap::new([ram]).unwrap();
        let records: &'static [Record] = Box::leak(Box::new([const { Record::new() }; 4]));
        let (vmemmap, ..) = Vmemmap::new(map.clone(), records).unwrap();
        assert_eq!(vmemmap.range(ram).unwrap().len(), 4);
        assert!(vmemmap.range(PfnRange::new(0x103, 2).unwrap()).is_none());
        assert!(vmemmap.range(PfnRange::new(0xff, 2).unwrap()).is_none());
        assert_eq!(vmemmap.iter().count(), 4);
        assert!(Vmemmap::new(map, &records[..3]).is_none());
    }
}
