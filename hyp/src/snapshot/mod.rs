//! Snapshots of stage-2 tables: the host donates pages, EL2 copies a table into them, all of them
//! come back (docs/snapshot.md). Feature `debug-snapshot` only.
//!
//! Invariant: whatever a call ends with, every page it took is the host's again, and zero but for
//! the documented outputs: the descriptor, and after success the copy and the chain of what was not
//! needed. The way back is a [`DonationTxn`]: nothing that the host can write is consulted on it.
//!
//! This is the one call whose work is not bounded by 512 pages but by [`MAX_TABLES`], which is why
//! a release build does not have it.
//!
//! Locks: the VM's if there is one, then the snapshot lock (tried, not waited for) for the whole
//! call; host_s2 and hyp_s1 for each page that changes hands; the table's own while it is copied.
#![forbid(unsafe_code)]

mod request;

pub use request::Asked;

use crate::addr::{Pfn, PfnRange};
use crate::error::Error;
use crate::fault::Site;
use crate::hw::{Machine, MappedPage};
use crate::mem_protect::{DonationTxn, Guest, GuestKind, Hypervisor};
use crate::pgtable::{AccessFlags, Regime, Stage2, Stage2Table};
use abi::Errno;
#[cfg(doc)]
use abi::snapshot::MAX_TABLES;
use abi::snapshot::{END, Geometry, Kind, NoTag, OUTCOME_WORDS, Outcome, REQUEST_WORDS, SnapshotFlags};
use request::Wanted;
use zerocopy::transmute;

/// The table of which a snapshot is taken.
#[derive(Debug)]
pub enum Target<'a, M: Machine> {
    /// The host's.
    Host,
    /// A VM's. Whoever makes this keeps the VM alive, and has seen that the host may look at it.
    Guest(&'a Guest<M>),
}

/// What S2_SNAPSHOT_QUERY answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// [`Geometry`] as a word.
    pub geometry: u64,
    /// Root pages.
    pub pgd_pages: u32,
    /// Other table pages, at the moment.
    pub tables: u32,
}

/// Why there is no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason.
    pub error: Error,
    /// What would have been right: root pages, or tables.
    pub needed: u32,
    /// The page that is meant: 0 the descriptor, 1 and up root pages, then the chain.
    pub index: u64,
}

impl<E: Into<Error>> From<E> for Refused {
    fn from(error: E) -> Self {
        Self { error: error.into(), needed: 0, index: 0 }
    }
}

impl Refused {
    /// The same about the page `index`.
    fn at(error: impl Into<Error>, index: u64) -> Self {
        Self { index, ..error.into().into() }
    }
}

impl<M: Machine> Hypervisor<M> {
    /// S2_SNAPSHOT_QUERY: what a snapshot of `target` would take.
    ///
    /// # Errors
    /// EIO: the table is corrupt.
    pub fn s2_snapshot_query(&self, hw: &M, target: &Target<'_, M>) -> Result<Facts, Error> {
        self.with_table(hw, target, |table, kind| {
            let tables = table.count_tables(hw)?;
            Ok(Facts { geometry: geometry(hw, table, kind), pgd_pages: roots(table), tables })
        })
    }

    /// S2_SNAPSHOT: copies the table of `target` as the descriptor page asks. Returns the number of
    /// tables that were copied.
    ///
    /// # Errors
    /// In this order, every page being the host's again. EBUSY: another snapshot is under way. Of
    /// the descriptor: ERANGE no RAM, EPERM not the host's alone, ENOMEM no table to note it, EINVAL
    /// malformed. Of each page: the first three; EINVAL: a link that ends the chain too early or
    /// too late. ENOMEM: too few pages for the tables, `needed`. EIO: the table is corrupt.
    pub fn s2_snapshot(
        &self,
        hw: &M,
        target: &Target<'_, M>,
        desc: Pfn,
        flags: SnapshotFlags,
    ) -> Result<u32, Refused> {
        self.faults().hit(Site::SnapLock)?;
        let _turn = self.try_snapshot(hw).ok_or(Errno::Ebusy)?;
        let mut txn = self.donations(hw);
        self.faults().hit(Site::SnapDesc)?;
        txn.acquire(desc)?;
        let words: [u64; REQUEST_WORDS] = txn.read_newest().ok_or(Errno::Eio)?;

        let mut outcome = Outcome { unused_head: END, ..Outcome::default() };
        let result = self.take(hw, target, &mut txn, Asked::from_words(words), flags, &mut outcome);
        if let Err(refused) = &result {
            outcome.status = refused.error.errno().to_reg().cast_signed();
            outcome.needed = refused.needed;
            // The descriptor, which is the oldest page, is written below.
            for page in txn.pages().filter(|page| *page != desc) {
                hw.zero_page(MappedPage::linear(page));
            }
        }
        hw.zero_page(MappedPage::linear(desc));
        let answer: [u64; OUTCOME_WORDS] = transmute!(outcome);
        for (word, index) in words.into_iter().chain(answer).zip(0..) {
            hw.write_word(desc, index, word);
        }
        txn.finish();
        result
    }

    /// Takes the pages, makes them zero and copies the table. What is in the pages after an error is the caller's.
    fn take(
        &self,
        hw: &M,
        target: &Target<'_, M>,
        txn: &mut DonationTxn<'_, M>,
        asked: Asked,
        flags: SnapshotFlags,
        outcome: &mut Outcome,
    ) -> Result<u32, Refused> {
        let (word, roots) =
            self.with_table(hw, target, |table, kind| (geometry(hw, table, kind), roots(table)));
        let wanted = asked.check(roots)?;
        outcome.geometry = word;
        self.take_root(hw, txn, wanted.root)?;
        self.take_chain(hw, txn, &wanted)?;

        let flag = if matches!(target, Target::Host) { AccessFlags::Kept } else { AccessFlags::Hidden };
        let mut pages = txn.pages().take(usize::try_from(wanted.tables).unwrap_or(usize::MAX));
        let next = || {
            self.faults().hit(Site::SnapCopy)?;
            Ok::<_, Error>(pages.next())
        };
        let needed =
            self.with_table(hw, target, |table, _| table.copy_to(hw, wanted.root.start(), flag, next))?;
        let enough = self.faults().hit(Site::SnapCount).is_ok();
        let unused = wanted.tables.checked_sub(needed).filter(|_| enough);
        let Some(unused) = unused else {
            return Err(Refused { error: Errno::Enomem.into(), needed, index: 0 });
        };

        outcome.root_pa = wanted.root.start().base().raw();
        outcome.used = needed;
        outcome.needed = needed;
        outcome.unused = unused;
        let mut unused = pages.peekable();
        if !flags.contains(SnapshotFlags::RETURN_CHAIN_ZEROED) {
            outcome.unused_head = unused.peek().map_or(END, |page| page.raw());
            while let Some(page) = unused.next() {
                hw.write_word(page, 0, unused.peek().map_or(END, |next| next.raw()));
            }
        }
        Ok(needed)
    }

    fn take_root(&self, hw: &M, txn: &mut DonationTxn<'_, M>, root: PfnRange) -> Result<(), Refused> {
        for (page, index) in root.iter().zip(1..) {
            let taken = self.faults().hit(Site::SnapPgd).map_err(Error::from);
            taken.and_then(|()| txn.acquire(page)).map_err(|e| Refused::at(e, index))?;
            hw.zero_page(MappedPage::linear(page));
        }
        Ok(())
    }

    /// Follows the chain: a link is read when the page it is in is EL2's, and not before.
    fn take_chain(&self, hw: &M, txn: &mut DonationTxn<'_, M>, wanted: &Wanted) -> Result<(), Refused> {
        let (mut link, mut index) = (wanted.head, wanted.root.nr());
        for _ in 0..wanted.tables {
            if link == END {
                return Err(Refused::at(Errno::Einval, index));
            }
            index = index.saturating_add(1);
            let taken = self.faults().hit(Site::SnapTbl).map_err(Error::from);
            let page = taken.and_then(|()| Ok(Pfn::new(link)?)).map_err(|e| Refused::at(e, index))?;
            txn.acquire(page).map_err(|e| Refused::at(e, index))?;
            [link] = txn.read_newest().ok_or(Errno::Eio)?;
            hw.zero_page(MappedPage::linear(page));
        }
        if link == END { Ok(()) } else { Err(Refused::at(Errno::Einval, index)) }
    }

    /// Calls `f` with the table, locked.
    fn with_table<R>(&self, hw: &M, target: &Target<'_, M>, f: impl FnOnce(&Stage2Table, Kind) -> R) -> R {
        match target {
            Target::Host => f(self.host(hw).table(), Kind::Host),
            Target::Guest(guest) => {
                let guest = guest.lock(hw);
                let kind = match guest.kind() {
                    GuestKind::NonProtected => Kind::NonProtected,
                    GuestKind::Classic => Kind::Protected,
                    GuestKind::Split => Kind::Split,
                };
                f(guest.table(), kind)
            }
        }
    }
}

fn roots(table: &Stage2Table) -> u32 {
    table.geometry().root_pages().into()
}

/// All that a reader must know to decode the table.
fn geometry<M: Machine>(hw: &M, table: &Stage2Table, kind: Kind) -> u64 {
    let (shape, format) = (table.geometry(), table.format());
    let byte = |n: u32| u8::try_from(n).unwrap_or(u8::MAX);
    let no_tag = match (format.maps_no_tag(), format.has_no_tag_type()) {
        (false, _) => NoTag::Note,
        (true, true) => NoTag::MemAttr,
        (true, false) => NoTag::Software,
    };
    Geometry {
        ia_bits: byte(shape.ia_bits()),
        start_level: shape.start().number(),
        fwb: hw.features().fwb,
        no_tag,
        pa_bits: byte(Stage2::pa_bits(format)),
        notes: format.notes().bits(),
        kind,
    }
    .encode()
}
