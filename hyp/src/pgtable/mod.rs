//! The table engine: one for the host's, the guests' and EL2's own translation tables.
//!
//! # Parts
//! - [`Level`], [`Geometry`]: shape of a table, from 32 to 48 input bits, concatenated roots.
//! - [`Entry`] = absent, note, table or leaf: the total decoding of an entry, for one [`Regime`].
//!   [`Stage2`] and [`HypStage1`] are types: attributes, notes and addresses of one cannot be
//!   given to a table of the other.
//! - [`Note`]: what an invalid stage-2 entry says.
//! - [`Table`]: root, shape, format and VMID, with the operations.
//! - [`TablePool`]: where table pages come from and where their entries are counted.
//! - `walk`: the one walk, of which every operation is a visitor.
//! - [`Prepared`], `split`, `commit`: a change in two halves, one that can fail and one that cannot.
//! - `publish`: the one path on which an entry is written, where break-before-make, barriers and
//!   TLB maintenance are.
//!
//! # Operations
//! | to do this | call | frees tables |
//! |---|---|---|
//! | look | [`Table::lookup`], [`Table::visit`] | |
//! | map | [`Table::map`], [`Table::map_largest`] | |
//! | write notes | [`Table::annotate`] | |
//! | unmap | [`Table::unmap`] | yes |
//! | replace, in two halves | [`Table::prepare_leaf`], [`Table::prepare_note`], [`Table::prepare_clear`] (and `_over`, `_of`: only some entries), then [`Prepared::commit`] | |
//! | the same for one page, found once | [`Table::page`], [`PageEntry::prepare_leaf`], [`PageEntry::prepare_note`], [`PageEntry::prepare_clear`], [`PageEntry::prepare_change`], then [`PreparedPage::commit`] | |
//! | look before, and ask what it would cost | [`Table::plan_leaf`], [`Table::plan_note`], [`Table::plan_clear`], then [`Planned::reserve`] | |
//! | split | [`Table::split`] | |
//! | fold | [`Table::fold`], [`Table::fold_block`] | yes |
//! | drop what can be mapped again | [`Table::evict`] | yes |
//! | change attributes | [`Table::change`], [`Table::prepare_change`], [`Table::protect`] | |
//! | show a page at EL2 for a moment | [`Table::window`], then [`Window::show`] | |
//! | check | [`Table::tables`]; a survey, in a development image | |
//! | copy, to look at | [`Table::copy_to`], [`Table::count_tables`] | |
//! | end | [`Table::flush`], [`Table::cut`], [`Table::retire`] | |
//!
//! # Invariants
//! - Between two operations no entry says LOCKED, every word decodes, and the count of every
//!   table page is the number of its entries that are not 0.
//! - When an operation returns, no CPU can use what it took away.
//! - An operation that returns an error changed nothing, except that a block or block note may
//!   have become a table that says the same.
//!
//! # Lock
//! Each table has its own lock; a reference to a [`Table`] is the proof that it is held.
//!
//! # Two halves
//! A call that moves pages checks, prepares everything that can fail, and then commits without a
//! way to fail:
//! ```
//! # use hyp::{addr::{IpaRange, Pfn}, hw::Machine, lock::Lock};
//! # use hyp::pgtable::{Error, Level, MemType, Note, Prot, S2Attrs, Stage2Table, TablePool};
//! fn host_donate<M: Machine>(
//!     host: &Lock<Stage2Table, M>,
//!     guest: &Lock<Stage2Table, M>,
//!     hw: &M,
//!     (host_pool, guest_pool): (&mut impl TablePool, &mut impl TablePool),
//!     (at_host, at_guest, page): (IpaRange, IpaRange, Pfn),
//!     note: Note,
//! ) -> Result<(), Error> {
//!     let (host, guest) = (host.lock(hw), guest.lock(hw));
//!     let rwx = S2Attrs::owned(Prot::RWX, MemType::Normal);
//!     // Both may fail, and then nothing has happened but a split or two.
//!     let leaves = host.prepare_note(hw, host_pool, at_host, note)?;
//!     let enters = guest.prepare_leaf(hw, guest_pool, at_guest, page, rwx, Level::L3)?;
//!     // From here on nothing fails.
//!     leaves.commit(hw, host_pool);
//!     // (No CPU reaches the page: it is scrubbed here.)
//!     enters.commit(hw, guest_pool);
//!     Ok(())
//! }
//! ```
//!
//! # What does not compile
//! Stage-2 attributes for EL2's own map; an IPA for it; a stage-2 note in it:
//! ```compile_fail,E0308
//! # use hyp::{addr::{Pfn, VaRange}, hw::Machine, pgtable::{HypTable, Level, S2Attrs, TablePool}};
//! fn f<M: Machine>(t: &HypTable, hw: &M, pool: &mut impl TablePool, va: VaRange, page: Pfn, attrs: S2Attrs) {
//!     let _ = t.map(hw, pool, va, page, attrs, Level::L3);
//! }
//! ```
//! ```compile_fail,E0308
//! # use hyp::{addr::IpaRange, hw::Machine, pgtable::{HypTable, TablePool}};
//! fn f<M: Machine>(t: &mut HypTable, hw: &M, pool: &mut impl TablePool, range: IpaRange) {
//!     let _ = t.unmap(hw, pool, range);
//! }
//! ```
//! ```compile_fail,E0308
//! # use hyp::{addr::VaRange, hw::Machine, pgtable::{HypTable, Note, TablePool}};
//! fn f<M: Machine>(t: &HypTable, hw: &M, pool: &mut impl TablePool, va: VaRange) {
//!     let _ = t.annotate(hw, pool, va, Note::MmioGuard);
//! }
//! ```
//! (Each is right with the types of EL2's map:)
//! ```
//! # use hyp::{addr::{Pfn, VaRange}, hw::Machine};
//! # use hyp::pgtable::{HypAttrs, HypNote, HypTable, Level, TablePool};
//! fn f<M: Machine>(t: &mut HypTable, hw: &M, pool: &mut impl TablePool, va: VaRange, page: Pfn, attrs: HypAttrs) {
//!     let _ = t.map(hw, pool, va, page, attrs, Level::L3);
//!     let _ = t.unmap(hw, pool, va);
//!     let _ = t.annotate(hw, pool, va, HypNote::Window);
//! }
//! ```
//! Freeing tables while a change that relies on them is open; committing it twice; keeping it
//! longer than the lock:
//! ```compile_fail,E0502
//! # use hyp::{addr::IpaRange, hw::Machine, pgtable::{Stage2Table, TablePool}};
//! fn f<M: Machine>(t: &mut Stage2Table, hw: &M, pool: &mut impl TablePool, range: IpaRange) {
//!     let change = t.prepare_clear(hw, pool, range).unwrap();
//!     let _ = t.fold(hw, pool, range);
//!     change.commit(hw, pool);
//! }
//! ```
//! ```compile_fail,E0382
//! # use hyp::{addr::IpaRange, hw::Machine, pgtable::{Stage2Table, TablePool}};
//! fn f<M: Machine>(t: &mut Stage2Table, hw: &M, pool: &mut impl TablePool, range: IpaRange) {
//!     let change = t.prepare_clear(hw, pool, range).unwrap();
//!     change.commit(hw, pool);
//!     change.commit(hw, pool);
//! }
//! ```
//! ```compile_fail,E0716
//! # use hyp::{addr::IpaRange, hw::Machine, lock::Lock, pgtable::{Stage2Table, TablePool}};
//! fn f<M: Machine>(t: &Lock<Stage2Table, M>, hw: &M, pool: &mut impl TablePool, range: IpaRange) {
//!     let change = t.lock(hw).prepare_clear(hw, pool, range).unwrap();
//!     change.commit(hw, pool);
//! }
//! ```
//! A prepared change that is let go where unused results are errors, as they are in this workspace:
//! ```compile_fail
//! # #![deny(unused_must_use)]
//! # use hyp::{addr::IpaRange, hw::Machine, pgtable::{Stage2Table, TablePool}};
//! fn f<M: Machine>(t: &mut Stage2Table, hw: &M, pool: &mut impl TablePool, range: IpaRange) {
//!     t.prepare_clear(hw, pool, range).unwrap();
//! }
//! ```
//! Changing a table without its guard; two values for one table; a raw entry:
//! ```compile_fail,E0599
//! # use hyp::{addr::IpaRange, hw::Machine, lock::Lock, pgtable::{Stage2Table, TablePool}};
//! fn f<M: Machine>(t: &Lock<Stage2Table, M>, hw: &M, pool: &mut impl TablePool, range: IpaRange) {
//!     let _ = t.unmap(hw, pool, range);
//! }
//! ```
//! ```compile_fail,E0599
//! # use hyp::pgtable::Stage2Table;
//! fn f(t: Stage2Table) -> (Stage2Table, Stage2Table) {
//!     (t.clone(), t)
//! }
//! ```
//! ```compile_fail,E0603
//! use hyp::pgtable::publish::Live;
//! ```
//! (Each is right as it is meant:)
//! ```
//! # #![deny(unused_must_use)]
//! # use hyp::{addr::IpaRange, hw::Machine, lock::Lock, pgtable::{Stage2Table, TablePool}};
//! fn f<M: Machine>(t: &Lock<Stage2Table, M>, hw: &M, pool: &mut impl TablePool, range: IpaRange) {
//!     let mut t = t.lock(hw);
//!     let change = t.prepare_clear(hw, pool, range).unwrap();
//!     change.commit(hw, pool);
//!     let _ = t.fold(hw, pool, range);
//!     let _ = t.unmap(hw, pool, range);
//! }
//! ```
#![forbid(unsafe_code)]

mod change;
mod commit;
mod copy;
mod entry;
mod error;
mod fold;
mod level;
mod map;
mod note;
mod page_entry;
mod pool;
mod prepare;
mod publish;
mod split;
mod stage1;
mod stage2;
#[cfg(feature = "fault-injection")]
mod survey;
mod table;
mod walk;
mod window;

pub use change::{Change, PreparedChange};
pub use copy::AccessFlags;
pub use entry::{BadAttrs, Corrupt, Entry, Leaf, Regime};
pub use error::Error;
pub use level::{Geometry, GeometryError, Level, MAX_ROOT_PAGES, MIN_IA_BITS};
pub use map::Demand;
pub use note::{Note, NoteKinds, Owner, PendingState, Ripas};
pub use page_entry::{Commit, PageEntry, PreparedPage};
pub use pool::TablePool;
pub use prepare::{Planned, Prepared, Select};
pub use publish::Invalidation;
pub use stage1::{HypAttrs, HypFormat, HypMem, HypNote, HypProt, HypStage1, MAIR_EL2};
pub use stage2::{Access, LeafState, MemType, Prot, S2Attrs, Stage2, Stage2Format, TagControl};
#[cfg(feature = "fault-injection")]
pub use survey::Surveyor;
pub use table::{HypTable, Path, Stage2Config, Stage2Table, Table};
pub use walk::Slot;
pub use window::{SLOTS as WINDOW_SLOTS, Shown, ShownBlock, Window, WindowAt};
