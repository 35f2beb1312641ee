//! Transitions by which the host gives pages to a guest, or lends them to one.
//!
//! | transition | host | guest's leaf | host's table |
//! |---|---|---|---|
//! | host_donate_guest | OWNED to NOPAGE | none to OWNED | note GUEST |
//! | host_share_guest | OWNED or SHARED_OWNED to SHARED_OWNED, one more | none to BORROWED | - |
//! | host_share_unprotected | the same, with split IPA | none to BORROWED, upper half | - |
//! | host_unshare_guest | SHARED_OWNED, one less, to OWNED with the last | BORROWED to none | - |
//! | host_unshare_unprotected | the same, with split IPA | BORROWED to none, upper half | - |
//!
//! Locks: host_s2, hyp_s1 for a block, then the guest's.
#![forbid(unsafe_code)]

use super::content::{self, Contents};
use super::guest_s2::{Guest, GuestKind, GuestS2, View, guest_error, hold, owned, view};
use super::host_hyp::DATA;
use super::host_s2::{HostS2, Keep, identity};
use super::{HypS1, Hypervisor};
use crate::addr::{Gfn, IpaRange, PAGE_SHIFT, PfnRange, VaRange};
use crate::error::Error;
use crate::fault::Site;
use crate::hw::Machine;
use crate::lock::Guard;
use crate::mm::{Cx, HostStates, PageState, PtCache, Record, TablePages, TablesOf};
use crate::pgtable::{self, Commit, Entry, LeafState, Level, Note, Owner, Prot, Stage2, Window};
use abi::Errno;
use abi::host::MAX_PAGES;
use core::ops::ControlFlow;

/// Pages and the place they get in a guest: one page, or one 2 MiB block aligned on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPages {
    gfn: u64,
    pages: PfnRange,
}

impl GuestPages {
    /// The words of a call.
    ///
    /// # Errors
    /// EINVAL: order neither 0 nor 9, or a frame that is not aligned to it. ERANGE: pages beyond
    /// physical memory. Whether the guest has such frames depends on the guest.
    pub fn new(gfn: u64, pfn: u64, order: u64) -> Result<Self, Error> {
        let nr: u64 = match order {
            0 => 1,
            9 => Level::L2.pages(),
            _ => return Err(Errno::Einval.into()),
        };
        if (gfn | pfn) & nr.wrapping_sub(1) != 0 {
            return Err(Errno::Einval.into());
        }
        Ok(Self { gfn, pages: PfnRange::new(pfn, nr).map_err(|_| Errno::Erange)? })
    }

    /// The pages.
    #[must_use]
    pub const fn pages(self) -> PfnRange {
        self.pages
    }

    /// True for a block.
    const fn is_block(self) -> bool {
        self.pages.nr() > 1
    }

    /// Where they go.
    ///
    /// # Errors
    /// ERANGE: beyond any address space.
    pub fn ipa(self) -> Result<IpaRange, Errno> {
        PfnRange::new(self.gfn, self.pages.nr()).map(IpaRange::identity).map_err(|_| Errno::Erange)
    }
}

/// How a page that is host-shared with guests remembers who borrows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Borrow {
    pub(super) handle: u16,
    pub(super) leaves: u16,
}

impl Borrow {
    /// The borrower of a page that the host shares with a guest.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let shared = record.host() == PageState::SharedOwned && record.hyp() == PageState::NoPage;
        let [h0, h1, n0, n1] = record.aux().to_le_bytes();
        shared.then(|| Self { handle: u16::from_le_bytes([h0, h1]), leaves: u16::from_le_bytes([n0, n1]) })
    }

    /// One entry less leads to the page; with the last, it is the host's alone.
    pub(super) fn give_up(record: &Record, states: &mut HostStates) {
        let Some(Self { handle, leaves }) = Self::of(record) else { return };
        match leaves.saturating_sub(1) {
            0 => {
                record.set_aux(0);
                record.set_host(PageState::Owned, states);
            }
            leaves => record.set_aux(Self { handle, leaves }.aux()),
        }
    }

    const fn aux(self) -> u32 {
        let ([h0, h1], [n0, n1]) = (self.handle.to_le_bytes(), self.leaves.to_le_bytes());
        u32::from_le_bytes([h0, h1, n0, n1])
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Gives pages of the host to a protected guest, for its exclusive use.
    ///
    /// # Errors
    /// In this order. EACCES: not protected. ERANGE: frames beyond the part where the guest owns
    /// pages; one of the pages is not RAM. EPERM: one is not the host's alone; one has no tags, and the
    /// guest must have them. Of the first frame that is not free for a page: EEXIST it has one, EHWPOISON
    /// destroyed, EPERM guarded, or EMPTY in a VM with split IPA. ENOMEM: the guest's cache lacks pages, or the
    /// host's pool.
    pub fn host_donate_guest(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        what: GuestPages,
        prot: Prot,
        mut contents: Contents<'_>,
    ) -> Result<(), Error> {
        let cx = self.cx(hw);
        let mut host = self.host.lock(hw);
        let hyp: Option<Guard<'_, HypS1, M>> = what.is_block().then(|| self.hyp.lock(hw));
        let mut guest = guest.lock(hw);
        let (host, guest) = (&mut *host, &mut *guest);
        let pages = what.pages();

        guest.check_kind(GuestKind::is_protected)?;
        let ipa = what.ipa()?;
        guest.check_owned_range(ipa)?;
        let records = self.vmemmap.range(pages).ok_or(Errno::Erange)?;
        if !records.iter().all(Record::is_host_owned) {
            return Err(Errno::Eperm.into());
        }
        self.faults.hit(Site::DonateCheck)?;
        let gfn = Gfn::new(what.gfn)?;
        let gift = Gift {
            ipa,
            pages,
            records,
            owner: Note::HostDonated(Owner::Guest { handle: guest.handle(), gfn }),
            prot,
        };
        // Most donations are of one page, where nothing is missing, to a VM without MTE.
        if !what.is_block()
            && !guest.mte.has_mte()
            && !host.is_scarce()
            && let Some(at_guest) = guest.table.page(hw, ipa.start())?
            && let Some(at_host) = host.table.page(hw, identity(pages.start()))?
        {
            view(at_guest.entry(), 0).ok_or(Errno::Eio)?.vacant(guest.kind())?;
            let enters = at_guest.prepare_leaf(pages.start(), owned(prot))?;
            let leaves = at_host.prepare_note(gift.owner)?;
            self.faults.hit(Site::HostPrepare)?;
            let (from, to) = ((&mut host.pages, &mut host.states), (&mut guest.cache, false));
            gift.hand_over(cx, window, (leaves, from), (enters, to), &mut contents);
            host.pin(cx, pages, Some(at_host.table_page()));
            return Ok(());
        }
        gift.give(cx, window, (host, hyp.as_deref()), guest, &mut contents)
    }

    /// Lends pages of the host to a guest that is not protected. A page may be lent to the same
    /// guest more than once.
    ///
    /// # Errors
    /// In this order. EACCES: protected. ERANGE: frames beyond the guest's space; one of the pages
    /// is not RAM. EPERM: one is not the host's, or shared with anybody but this guest. EBUSY: one
    /// is lent 65535 times. Of the first frame that is not free: EEXIST it has a page, EPERM guarded.
    /// ENOMEM: the guest's cache lacks pages.
    pub fn host_share_guest(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        what: GuestPages,
        prot: Prot,
    ) -> Result<(), Error> {
        self.lend(hw, window, guest, what, prot, |guest| {
            guest.check_kind(GuestKind::is_non_protected)?;
            let ipa = what.ipa()?;
            guest.check_owned_range(ipa).map(|()| ipa)
        })
    }

    /// Lends pages of the host to the unprotected half of a guest with split IPA, readable, and
    /// writable if `write`; never executable.
    ///
    /// # Errors
    /// In this order. EACCES: no split IPA. ERANGE: frames beyond the guest's space. EINVAL: not in
    /// the upper half. Then as [`Hypervisor::host_share_guest`] from pages that are no RAM on.
    pub fn host_share_unprotected(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        what: GuestPages,
        write: bool,
    ) -> Result<(), Error> {
        let prot = if write { Prot::RW } else { Prot::R };
        self.lend(hw, window, guest, what, prot, |guest| {
            guest.check_kind(GuestKind::is_split)?;
            let ipa = what.ipa()?;
            guest.check_unprotected_range(ipa).map(|()| ipa)
        })
    }

    /// Lends pages to a guest where `place` says that it takes them.
    fn lend(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        what: GuestPages,
        prot: Prot,
        place: impl FnOnce(&GuestS2) -> Result<IpaRange, Errno>,
    ) -> Result<(), Error> {
        let cx = self.cx(hw);
        let mut host = self.host.lock(hw);
        let mut guest = guest.lock(hw);
        let guest = &mut *guest;
        let (pages, handle) = (what.pages(), guest.handle());

        let ipa = place(guest)?;
        let records = self.vmemmap.range(pages).ok_or(Errno::Erange)?;
        // Mostly nobody has borrowed any of them.
        let fresh = records.iter().all(Record::is_host_owned);
        let before = |record: &Record| match Borrow::of(record) {
            _ if record.is_host_owned() => Some(0),
            Some(borrow) if borrow.handle == handle && borrow.leaves > 0 => Some(borrow.leaves),
            _ => None,
        };
        if !fresh {
            let most = records.iter().try_fold(0, |most: u16, record| Some(most.max(before(record)?)));
            if most.ok_or(Errno::Eperm)? == u16::MAX {
                return Err(Errno::Ebusy.into());
            }
        }
        let lent = owned(prot).with_state(LeafState::SharedBorrowed);
        let form = guest.form(self.vmemmap.map(), pages, lent)?;
        let mut lend = |states: &mut HostStates| {
            let first = Borrow { handle, leaves: 1 }.aux();
            if fresh {
                records.iter().for_each(|record| record.lend(first, states));
            } else {
                for record in records {
                    match before(record).unwrap_or_default() {
                        0 => record.lend(first, states),
                        leaves => {
                            record.set_aux(Borrow { handle, leaves: leaves.saturating_add(1) }.aux());
                        }
                    }
                }
            }
            content::lend(hw, window, pages, prot);
        };
        if !what.is_block()
            && let Some(at) = guest.table.page(hw, ipa.start())?
        {
            view(at.entry(), 0).ok_or(Errno::Eio)?.absent()?;
            let leaf = form.prepare(at, pages.start())?;
            lend(&mut host.states);
            leaf.commit(hw, &mut guest.cache.source(cx));
            return Ok(());
        }
        let mut leaf = form.plan(&guest.table, hw, ipa, pages.start())?;
        guest.check_each(hw, ipa, leaf.replaced(), View::absent)?;
        if what.is_block() {
            guest.table.fold(hw, &mut guest.cache.source(cx), ipa)?;
            leaf = form.plan(&guest.table, hw, ipa, pages.start())?;
        }
        let leaf = leaf.reserve(hw, &mut guest.cache.source(cx)).map_err(guest_error)?;

        lend(&mut host.states);
        leaf.commit(hw, &mut guest.cache.source(cx));
        Ok(())
    }

    /// Takes lent pages back from a guest that is not protected: the leading frames of `range`, at
    /// most 512, that borrow. Returns how many.
    ///
    /// # Errors
    /// E2BIG: more than 512 frames. EACCES: protected. ERANGE: beyond the guest's space. Of the
    /// first frame: ENOENT nothing there, E2BIG in a block that the range does not cover.
    pub fn host_unshare_guest(&self, hw: &M, guest: &Guest<M>, range: IpaRange) -> Result<u64, Error> {
        let gone = self.end_loans(hw, guest, range, |guest, _| {
            guest.check_kind(GuestKind::is_non_protected)?;
            guest.check_owned_range(range)?;
            let mut end = range.start().raw();
            let refused = guest.parts(hw, range, |part| {
                let wanted = match part.view {
                    _ if part.is_partial_block() => Err(Errno::E2big),
                    // No page is there, whatever the guest says of the frame.
                    View::Guard => Err(Errno::Enoent),
                    view => view.page(LeafState::SharedBorrowed),
                };
                match wanted {
                    Ok(_) => end = part.end() << PAGE_SHIFT,
                    Err(e) => return ControlFlow::Break(e),
                }
                ControlFlow::Continue(())
            })?;
            if let Some(e) = refused.filter(|_| end == range.start().raw()) {
                return Err(e.into());
            }
            Ok(IpaRange::new(range.start().raw(), end, guest.table.geometry().ia_bits())?)
        })?;
        Ok(gone.len() >> PAGE_SHIFT)
    }

    /// Takes lent pages back from the unprotected half of a guest with split IPA: the leading frames
    /// of `range`, at most 512, that have one. A block of which `range` has a part becomes pages if
    /// the guest's cache has one for the table; if not, all of a block at the beginning goes, and the
    /// call ends with it, or before one at the end. So no call fails for want of a page.
    ///
    /// Returns the frames that really went.
    ///
    /// # Errors
    /// E2BIG: more than 512 frames. EACCES: no split IPA. ERANGE: beyond the guest's space. EINVAL:
    /// not in the upper half. ENOENT: the first frame has no page. EIO.
    pub fn host_unshare_unprotected(
        &self,
        hw: &M,
        guest: &Guest<M>,
        range: IpaRange,
    ) -> Result<IpaRange, Error> {
        self.end_loans(hw, guest, range, |guest, cx| {
            guest.check_kind(GuestKind::is_split)?;
            guest.check_unprotected_range(range)?;
            let wanted = |view: View| view.page(LeafState::SharedBorrowed).map(|_| ());
            let leading = guest.leading(hw, range, wanted)?;
            guest.whole_entries(cx, leading.range)
        })
    }

    /// What a guest borrows at the frames of `range` that `which` picks is lent once less, and
    /// nothing is there any more. No entry reaches out of what was picked, so nothing is split.
    fn end_loans(
        &self,
        hw: &M,
        guest: &Guest<M>,
        range: IpaRange,
        which: impl FnOnce(&mut GuestS2, Cx<'_, M>) -> Result<IpaRange, Error>,
    ) -> Result<IpaRange, Error> {
        let cx = self.cx(hw);
        check_bound(range)?;
        let mut host = self.host.lock(hw);
        let mut guest = guest.lock(hw);
        let guest = &mut *guest;
        let range = which(guest, cx)?;
        let clear = guest.table.prepare_clear(hw, &mut guest.cache.source(cx), range).map_err(guest_error)?;
        guest.parts(hw, range, |part| {
            for record in part.pages().and_then(|pages| cx.vmemmap.range(pages)).unwrap_or_default() {
                Borrow::give_up(record, &mut host.states);
            }
            ControlFlow::<()>::Continue(())
        })?;
        clear.commit(hw, &mut guest.cache.source(cx));
        guest.table.fold(hw, &mut guest.cache.source(cx), range)?;
        Ok(range)
    }
}

/// Pages of the host that a guest is to have, checked.
struct Gift<'a> {
    ipa: IpaRange,
    pages: PfnRange,
    records: &'a [Record],
    owner: Note,
    prot: Prot,
}

impl Gift<'_> {
    /// Gives them where tables may have to be made: `hyp` for a block, which leaves the linear map.
    ///
    /// # Errors
    /// Those of [`Hypervisor::host_donate_guest`] from EEXIST on.
    #[inline(never)]
    fn give<M: Machine>(
        self,
        cx: Cx<'_, M>,
        window: &mut Window,
        (host, hyp): (&mut HostS2, Option<&HypS1>),
        guest: &mut GuestS2,
        contents: &mut Contents<'_>,
    ) -> Result<(), Error> {
        let (hw, ipa, pages) = (cx.hw, self.ipa, self.pages);
        let (form, kind) = (guest.form(cx.vmemmap.map(), pages, owned(self.prot))?, guest.kind());
        let tags = guest.uses_tags(form);
        let mut enters = form.plan(&guest.table, hw, ipa, pages.start())?;
        guest.check_each(hw, ipa, enters.replaced(), |view| view.vacant(kind))?;
        guest.check_tables(enters.tables())?;

        let is_block = hyp.is_some();
        // What is kept as pages needs no table of EL2's.
        let hyp = hyp.filter(|_| form.is_mapped());
        let host_range = IpaRange::identity(pages);
        let scarce = host.is_scarce();
        let mut for_hyp = 0;
        if scarce {
            if let Some(hyp) = hyp {
                let first = VaRange::linear(PfnRange::one(pages.start()));
                for_hyp = hyp.table.plan_leaf(hw, first, pages.start(), DATA, Level::L3)?.tables();
            }
            let for_host = host.table.plan_note(hw, host_range, self.owner)?.tables();
            host.make_room(cx, u64::from(for_host).saturating_add(for_hyp.into()), host_range)?;
        }
        cx.faults.hit(Site::HostPrepare)?;
        let leaves = {
            let mut source = host.pages.source(cx, TablesOf::Host);
            host.table.prepare_note(hw, &mut source, host_range, self.owner)?
        };
        if scarce {
            host.check_budget(cx, pages, for_hyp.into(), Keep::All)?;
        }
        if is_block {
            // A table that says one thing 512 times would be kept as 512 pages.
            guest.table.fold(hw, &mut guest.cache.source(cx), ipa)?;
            enters = form.plan(&guest.table, hw, ipa, pages.start())?;
        }
        let enters = enters.reserve(hw, &mut guest.cache.source(cx)).map_err(guest_error)?;
        if let Some(hyp) = hyp
            && let Err(e) = hold(cx, &mut host.pages, hyp, pages)
        {
            drop(enters);
            guest.table.fold(hw, &mut guest.cache.source(cx), ipa)?;
            return Err(e);
        }

        let (from, to) = ((&mut host.pages, &mut host.states), (&mut guest.cache, tags));
        self.hand_over(cx, window, (leaves, from), (enters, to), contents);
        host.pin(cx, pages, None);
        Ok(())
    }

    /// The half that cannot fail: the pages leave the host's table, are prepared when no CPU reaches
    /// them, and enter the guest's.
    #[inline(always)]
    fn hand_over<M: Machine>(
        &self,
        cx: Cx<'_, M>,
        window: &mut Window,
        (leaves, (pool, states)): (impl Commit, (&mut TablePages, &mut HostStates)),
        (enters, (cache, tags)): (impl Commit, (&mut PtCache, bool)),
        contents: &mut Contents<'_>,
    ) {
        leaves.commit(cx.hw, &mut pool.source(cx, TablesOf::Host));
        self.records.iter().for_each(|record| record.set_host(PageState::NoPage, states));
        match self.pages.nr() {
            1 => content::enter(cx.hw, window, tags, self.pages.start(), self.prot, contents),
            _ => content::enter_block(cx.hw, window, tags, self.pages, self.prot, contents),
        }
        enters.commit(cx.hw, &mut cache.source(cx));
    }
}

/// E2BIG for more pages than one call works on.
pub(crate) const fn check_bound(range: IpaRange) -> Result<(), Errno> {
    if range.len() >> PAGE_SHIFT > MAX_PAGES { Err(Errno::E2big) } else { Ok(()) }
}

impl GuestS2 {
    /// What `may` says of the first frame of `range` of which it does not say yes; `entry` decides
    /// about all of them, if there is one.
    #[inline]
    fn check_each<M: Machine>(
        &self,
        hw: &M,
        range: IpaRange,
        entry: Option<Entry<Stage2>>,
        may: impl Fn(View) -> Result<(), Errno>,
    ) -> Result<(), Error> {
        if let Some(entry) = entry {
            return Ok(may(view(entry, 0).ok_or(Errno::Eio)?)?);
        }
        let refused = self.parts(hw, range, |part| match may(part.view) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => ControlFlow::Break(e),
        })?;
        refused.map_or(Ok(()), |e| Err(e.into()))
    }

    /// `range`, which is mapped, without entries that reach out of it: they are split, or where
    /// there is no page for that, the range grows by the first or ends before the last.
    fn whole_entries<M: Machine>(&mut self, cx: Cx<'_, M>, range: IpaRange) -> Result<IpaRange, Error> {
        let mut partial: [Option<(IpaRange, IpaRange)>; 2] = [None; 2];
        self.parts(cx.hw, range, |part| {
            if part.is_partial_block()
                && let (Ok(frames), Ok(entry)) = (part.range(), part.entry())
            {
                let [first, last] = &mut partial;
                *(if first.is_none() { first } else { last }) = Some((frames, entry));
            }
            ControlFlow::<()>::Continue(())
        })?;
        for (frames, entry) in partial.into_iter().flatten() {
            let mut source = self.cache.source(cx);
            match self.table.split(cx.hw, &mut source, frames, Level::L3) {
                Ok(()) => {}
                Err(pgtable::Error::NoTables { .. }) if frames.start() == range.start() => return Ok(entry),
                Err(pgtable::Error::NoTables { .. }) => {
                    let before = IpaRange::new(
                        range.start().raw(),
                        frames.start().raw(),
                        self.table.geometry().ia_bits(),
                    );
                    return Ok(before?);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(range)
    }
}
