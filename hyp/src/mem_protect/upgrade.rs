//! A guest's page moves to memory with allocation tags.
//!
//! | transition | guest's entry | host | host's table |
//! |---|---|---|---|
//! | host_upgrade_guest, new page | NO_TAG, OWNED to OWNED | OWNED to NOPAGE | note GUEST |
//! | host_upgrade_guest, old page | the same entry | NOPAGE to OWNED, scrubbed | default mapping |
//!
//! Order: the guest's entry is LOCKED and forgotten; the host's entry for the new page goes; contents are copied and tags
//! zeroed; the guest's entry leads to the new page; the old one is scrubbed, then the host's. Nothing in this can fail:
//! the host's table and the split of a block are there before it begins. A vCPU that faults in between waits for the
//! guest's lock.
//!
//! Locks: host_s2, hyp_s1 (a block that becomes pages gives up its table there), the guest's.
#![forbid(unsafe_code)]

use super::content;
use super::guest_s2::{Guest, guest_error, owned, release};
use super::host_s2::Keep;
use super::tags::Form;
use super::{HostS2, Hypervisor};
use crate::addr::{IpaRange, Pfn, PfnRange};
use crate::error::Error;
use crate::fault::Site;
use crate::hw::Machine;
use crate::mm::{PageState, Record, TablesOf};
use crate::pgtable::{
    Entry, Leaf, LeafState, Level, Note, Owner, PendingState, Prot, Ripas, S2Attrs, Stage2, Window,
};
use abi::Errno;

/// What there is to move.
#[derive(Clone, Copy, Debug)]
struct Old {
    page: Pfn,
    /// Attributes of the new entry.
    attrs: S2Attrs,
    /// The block that it is in.
    block: Option<PfnRange>,
}

impl Old {
    /// The page of a guest that `entry` of `level` has at the frame `gfn`, if it can be moved.
    ///
    /// # Errors
    /// ENOENT no page, EHWPOISON destroyed, EEXIST its tags can be used, EPERM the host's page, or guarded. EIO.
    fn of(gfn: u64, level: Level, entry: Entry<Stage2>) -> Result<Self, Errno> {
        match entry {
            Entry::Leaf(Leaf { output, attrs }) => {
                if !attrs.prot.contains(Prot::NO_TAG) {
                    return Err(Errno::Eexist);
                }
                if attrs.state != LeafState::Owned {
                    return Err(Errno::Eperm);
                }
                let offset = gfn & level.pages().wrapping_sub(1);
                let block = (level < Level::L3).then(|| PfnRange::new(output.raw(), level.pages()).ok());
                Ok(Self {
                    page: output.checked_add(offset).ok_or(Errno::Eio)?,
                    attrs: attrs.with_prot(attrs.prot.difference(Prot::NO_TAG)),
                    block: block.flatten(),
                })
            }
            Entry::Note(Note::NoTagPending { page, access, state: PendingState::Owned }) => {
                Ok(Self { page, attrs: owned(access.into()), block: None })
            }
            Entry::Absent | Entry::Note(Note::Ripas(Ripas::Ram)) => Err(Errno::Enoent),
            Entry::Note(Note::Ripas(Ripas::Destroyed)) => Err(Errno::Ehwpoison),
            Entry::Note(Note::NoTagPending { .. } | Note::MmioGuard) => Err(Errno::Eperm),
            Entry::Note(Note::HostDonated(_)) | Entry::Table(_) => Err(Errno::Eio),
        }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// Moves the guest's page at `frame`, one page, to the page `new` of the host, which has tags: the same bytes, all tags
    /// 0. Returns the old page, which is the host's, zeroed.
    ///
    /// # Errors
    /// In this order; nothing has changed. ERANGE: `frame` beyond the guest's space, `new` is not RAM. Of the frame: ENOENT
    /// it has no page, EHWPOISON destroyed, EEXIST the page's tags can be used, EPERM the page is the host's, or the frame
    /// guarded. EPERM: `new` is not the host's alone, or has no tags. ENOMEM: the host's pool lacks pages, or the
    /// guest's cache one to split a block.
    pub fn host_upgrade_guest(
        &self,
        hw: &M,
        window: &mut Window,
        guest: &Guest<M>,
        frame: IpaRange,
        new: Pfn,
    ) -> Result<Pfn, Error> {
        let cx = self.cx(hw);
        let (mut host, mut hyp) = (self.host.lock(hw), self.hyp.lock(hw));
        let mut guest = guest.lock(hw);
        let (host, guest): (&mut HostS2, _) = (&mut host, &mut *guest);
        let (gfn, page) = (frame.start().frame(), PfnRange::one(new));

        let (level, entry) = guest.table.lookup(hw, frame.start())?;
        let record = self.vmemmap.get(new).ok_or(Errno::Erange)?;
        let old = Old::of(gfn.raw(), level, entry)?;
        if !Record::is_host_owned(record) || !self.vmemmap.map().has_tags(new) {
            return Err(Errno::Eperm.into());
        }

        let owner = Note::HostDonated(Owner::Guest { handle: guest.handle(), gfn });
        let host_range = IpaRange::identity(page);
        let scarce = host.is_scarce();
        if scarce {
            let needed = host.table.plan_note(hw, host_range, owner)?.tables();
            host.make_room(cx, needed.into(), host_range)?;
        }
        self.faults.hit(Site::NtaPrepHost)?;
        let leaves =
            host.table.prepare_note(hw, &mut host.pages.source(cx, TablesOf::Host), host_range, owner)?;
        if scarce {
            host.check_budget(cx, page, 0, Keep::All)?;
        }
        let enters = Form::Mapped(old.attrs).plan(&guest.table, hw, frame, new)?;
        guest.check_tables(enters.tables())?;
        if enters.tables() > 0 {
            self.faults.hit(Site::NtaSplit)?;
        }
        let mut enters = enters.reserve(hw, &mut guest.cache.source(cx)).map_err(guest_error)?;

        enters.lock(hw, &mut guest.cache.source(cx));
        leaves.commit(hw, &mut host.pages.source(cx, TablesOf::Host));
        record.set_host(PageState::NoPage, &mut host.states);
        content::move_page(hw, window, old.page, new, old.attrs.prot);
        enters.commit(hw, &mut guest.cache.source(cx));
        host.pin(cx, page, None);
        if let Some(block) = old.block {
            release(cx, host, &mut hyp, block);
        }
        content::leave(hw, window, self.vmemmap.map().has_tags(old.page), old.page);
        host.restore(cx, PfnRange::one(old.page));
        Ok(old.page)
    }
}
