//! Changing the attributes of what is mapped, without moving it.
//!
//! Permissions, access flag and page state change in place (Arm ARM D8.17.1 does not ask for
//! break-before-make); what was taken away is invalidated once for the whole range. NO_TAG is a
//! memory attribute and goes through break-before-make, one leaf at a time.
#![forbid(unsafe_code)]

use super::entry::{Entry, Regime, VALID, leaf_word};
use super::error::Error;
use super::note::Note;
use super::publish::{Invalidation, Live};
use super::stage1::{HypProt, HypStage1};
use super::stage2::{Access, LeafState, Prot, S2Attrs, Stage2};
use super::table::Table;
use super::walk::{EntryVisitor, Slot, Span, Step, Visitor};
use crate::addr::{IpaRange, VaRange};
use crate::hw::Machine;
use core::convert::Infallible;

/// A change of stage-2 attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Allow more. What becomes executable has had its I-cache maintenance.
    Relax(Access),
    /// Forbid stores.
    WriteProtect,
    /// Set or clear the access flag.
    Accessed(bool),
    /// Set the page state.
    State(LeafState),
    /// Set or clear NO_TAG.
    NoTag(bool),
}

impl Change {
    pub(super) fn apply(self, attrs: S2Attrs) -> S2Attrs {
        match self {
            Self::Relax(access) => attrs.with_prot(attrs.prot | Prot::from(access)),
            Self::WriteProtect => attrs.with_prot(attrs.prot.difference(Prot::W)),
            Self::Accessed(accessed) => S2Attrs { accessed, ..attrs },
            Self::State(state) => attrs.with_state(state),
            Self::NoTag(true) => attrs.with_prot(attrs.prot | Prot::NO_TAG),
            Self::NoTag(false) => attrs.with_prot(attrs.prot.difference(Prot::NO_TAG)),
        }
    }

    /// What becomes of a note: a page that waits for tags has permissions as well.
    fn apply_to_note(self, note: Note) -> Note {
        let Note::NoTagPending { page, access, state } = note else { return note };
        let access = match self {
            Self::Relax(more) => access | more,
            Self::WriteProtect => access.difference(Access::W),
            Self::Accessed(_) | Self::State(_) | Self::NoTag(_) => access,
        };
        Note::NoTagPending { page, access, state }
    }
}

/// A change of attributes that has been checked: every leaf in the range can take it.
#[derive(Debug)]
#[must_use = "a prepared change does nothing until it is committed"]
pub struct PreparedChange<'t> {
    table: &'t Table<Stage2>,
    span: Span,
    change: Change,
}

impl Table<Stage2> {
    /// Checks that `change` can be made to every leaf in `range`. Absent entries are passed over, and so are notes,
    /// but for the permissions that a [`Note::NoTagPending`] names.
    ///
    /// # Errors
    /// [`Error::Range`], [`Error::Corrupt`], [`Error::Block`] for a leaf that reaches out of the
    /// range ([`Table::split`] first), [`Error::Attrs`] if its new attributes cannot be encoded.
    pub fn prepare_change<M: Machine>(
        &self,
        hw: &M,
        range: IpaRange,
        change: Change,
    ) -> Result<PreparedChange<'_>, Error> {
        let span = self.span(range)?;
        self.inspect(
            hw,
            span,
            &mut Check { format: &self.format, span, apply: |attrs| change.apply(attrs) },
        )?;
        Ok(PreparedChange { table: self, span, change })
    }

    /// Makes `change` to every leaf in `range`; returns how many leaves were different before.
    ///
    /// # Errors
    /// As [`Table::prepare_change`].
    pub fn change<M: Machine>(&mut self, hw: &M, range: IpaRange, change: Change) -> Result<u64, Error> {
        Ok(self.prepare_change(hw, range, change)?.commit(hw))
    }
}

impl PreparedChange<'_> {
    /// Makes the change; returns how many leaves were different before. When it returns, no CPU
    /// can do what was forbidden.
    pub fn commit<M: Machine>(self, hw: &M) -> u64 {
        let change = self.change;
        edit(self.table, hw, self.span, |attrs| change.apply(attrs), |note| change.apply_to_note(note))
    }
}

impl Table<HypStage1> {
    /// Gives every leaf in `range` the permissions `prot`; returns how many had others.
    ///
    /// # Errors
    /// As [`Table::prepare_change`].
    pub fn protect<M: Machine>(&mut self, hw: &M, range: VaRange, prot: HypProt) -> Result<u64, Error> {
        let span = self.span(range)?;
        let apply = |attrs| super::HypAttrs { prot, ..attrs };
        self.inspect(hw, span, &mut Check { format: &self.format, span, apply })?;
        Ok(edit(self, hw, span, apply, |note| note))
    }
}

fn edit<R: Regime, M: Machine>(
    table: &Table<R>,
    hw: &M,
    span: Span,
    apply: impl Fn(R::Attrs) -> R::Attrs,
    annotate: impl Fn(R::Note) -> R::Note,
) -> u64 {
    let live = table.live(hw);
    let mut edit = Edit { table, live, apply, annotate, inv: Invalidation::new(), changed: 0 };
    let Ok(()) = table.walk(hw, span, &mut edit);
    edit.live.invalidate(&edit.inv);
    if edit.changed > 0 {
        edit.live.complete();
    }
    edit.changed
}

struct Check<'t, R: Regime, F> {
    format: &'t R::Format,
    span: Span,
    apply: F,
}

impl<R: Regime, F: Fn(R::Attrs) -> R::Attrs> EntryVisitor<R> for Check<'_, R, F> {
    #[inline]
    fn leaf(&mut self, slot: &Slot, entry: Entry<R>, _word: u64) -> Result<Step, Error> {
        if let Entry::Leaf(leaf) = entry {
            if !self.span.contains(slot) {
                return Err(Error::Block { ia: slot.ia, level: slot.level });
            }
            R::encode_attrs(self.format, (self.apply)(leaf.attrs))?;
        }
        Ok(Step::Next)
    }
}

struct Edit<'t, 'h, R: Regime, M: Machine, F, G> {
    table: &'t Table<R>,
    live: Live<'h, R, M>,
    apply: F,
    annotate: G,
    inv: Invalidation,
    changed: u64,
}

impl<R, M, F, G> Visitor for Edit<'_, '_, R, M, F, G>
where
    R: Regime,
    M: Machine,
    F: Fn(R::Attrs) -> R::Attrs,
    G: Fn(R::Note) -> R::Note,
{
    type Error = Infallible;

    #[inline]
    fn leaf(&mut self, slot: &Slot, word: u64) -> Result<Step, Infallible> {
        // What cannot be decoded or encoded was refused by `Check` under the same lock.
        if word & VALID != 0
            && let Ok(Entry::Leaf(leaf)) = R::decode(&self.table.format, slot.level, word)
            && let Ok(attrs) = R::encode_attrs(&self.table.format, (self.apply)(leaf.attrs))
        {
            let new = leaf_word(attrs, leaf.output, slot.level);
            if new != word {
                self.changed = self.changed.saturating_add(1);
                put(&self.live, &mut self.inv, slot, word, new);
            }
        } else if R::carries_page(word)
            && let Ok(Entry::Note(note)) = R::decode(&self.table.format, slot.level, word)
        {
            let new = R::encode_note((self.annotate)(note));
            if new != word {
                self.changed = self.changed.saturating_add(1);
                self.live.make(slot, new);
            }
        }
        Ok(Step::Next)
    }
}

/// Gives the leaf at `slot` a new word; what TLBs must forget goes to `inv`.
#[inline]
pub(super) fn put<R: Regime, M: Machine>(
    live: &Live<'_, R, M>,
    inv: &mut Invalidation,
    slot: &Slot,
    old: u64,
    new: u64,
) {
    if (old ^ new) & !R::EDITABLE != 0 {
        live.replace(slot, new);
        return;
    }
    live.edit(slot, new);
    if R::may_be_cached(old) && (old ^ new) & R::CACHED != 0 {
        inv.leaf(slot.ia, slot.level);
    }
}
