//! What happens to the contents of a page on its way: scrubbing, and the cache maintenance that
//! lets the next owner see what it should and nothing else.
//!
//! A guest's page is in no linear map; it is shown in this CPU's window for as long as that takes, a block as one.
//! The order in which these stand between two table changes is the transitions' business.
#![forbid(unsafe_code)]

use crate::addr::{Pfn, PfnRange};
use crate::hw::{Machine, MappedPage};
use crate::pgtable::{Level, Prot, Window};

/// What a page that the host gives to a guest contains.
pub enum Contents<'a> {
    /// Zeros.
    Zeroed,
    /// What the host wrote. The function looks at each page when nobody can change it any more.
    Kept(&'a mut dyn FnMut(MappedPage)),
}

impl core::fmt::Debug for Contents<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Zeroed => "Zeroed",
            Self::Kept(_) => "Kept",
        })
    }
}

/// Prepares `page`, which nobody can reach any more, for a guest that owns it. With `tags` the
/// guest can use its allocation tags.
#[inline]
pub(super) fn enter<M: Machine>(
    hw: &M,
    window: &mut Window,
    tags: bool,
    page: Pfn,
    prot: Prot,
    contents: &mut Contents<'_>,
) {
    zero_tags(hw, window, tags, page);
    let shown = window.show(hw, page);
    let clean = fill(hw, shown.page(), contents);
    make_executable(hw, shown.page(), prot, clean);
}

/// Prepares the pages of the block `pages` as [`enter`] does one.
pub(super) fn enter_block<M: Machine>(
    hw: &M,
    window: &mut Window,
    tags: bool,
    pages: PfnRange,
    prot: Prot,
    contents: &mut Contents<'_>,
) {
    pages.iter().for_each(|page| zero_tags(hw, window, tags, page));
    let shown = window.show_block(hw, pages.start());
    for page in shown.block().pages() {
        let clean = fill(hw, page, contents);
        make_executable(hw, page, prot, clean);
    }
}

/// True if `pages` are one block.
fn is_block(pages: PfnRange) -> bool {
    pages.nr() == Level::L2.pages() && Level::L2.is_aligned(pages.start().base().raw())
}

/// Gives the page its contents; true if they are in memory then, and not only in a cache.
#[inline]
fn fill<M: Machine>(hw: &M, page: MappedPage, contents: &mut Contents<'_>) -> bool {
    match contents {
        Contents::Zeroed if hw.features().fwb => {
            hw.zero_page(page);
            false
        }
        Contents::Zeroed => {
            hw.scrub(page);
            true
        }
        // A clean line over differing memory, left by a non-cacheable alias, could be evicted
        // after it was measured: cleaning alone is not enough, FWB or not.
        Contents::Kept(look) => {
            hw.clean_invalidate_to_poc(page);
            look(page);
            true
        }
    }
}

/// Prepares `pages` of the host for a guest that borrows them: it sees them as they are.
pub(super) fn lend<M: Machine>(hw: &M, window: &mut Window, pages: PfnRange, prot: Prot) {
    let clean = !hw.features().fwb;
    if !clean && (hw.features().dic || !prot.contains(Prot::X)) {
        return;
    }
    if clean && is_block(pages) {
        let shown = window.show_block(hw, pages.start());
        hw.clean_block_to_poc(shown.block());
        if prot.contains(Prot::X) && !hw.features().dic {
            hw.invalidate_icache_of_clean_block(shown.block());
        }
        return;
    }
    for page in pages.iter() {
        let shown = window.show(hw, page);
        if clean {
            hw.clean_to_poc(shown.page());
        }
        make_executable(hw, shown.page(), prot, clean);
    }
}

/// Empties a page that a guest had to itself, for the host; with `tags` its allocation tags too. Not elided with FWB: the host may
/// have a non-cacheable alias.
pub(super) fn leave<M: Machine>(hw: &M, window: &mut Window, tags: bool, page: Pfn) {
    zero_tags(hw, window, tags, page);
    let shown = window.show(hw, page);
    hw.scrub(shown.page());
}

/// Makes `to`, which nobody else reaches and whose tags the guest will use, what a guest's page `from` is, which
/// nobody reaches any more: the same bytes, and tags 0.
pub(super) fn move_page<M: Machine>(hw: &M, window: &mut Window, from: Pfn, to: Pfn, prot: Prot) {
    zero_tags(hw, window, true, to);
    let [from, to] = window.show_two(hw, [from, to]);
    let fwb = hw.features().fwb;
    if !fwb {
        // What the guest stored past the cache is in memory, and may differ from a clean line.
        hw.clean_invalidate_to_poc(from.page());
    }
    hw.copy_page(from.page(), to.page());
    if !fwb {
        hw.clean_to_poc(to.page());
    }
    make_executable(hw, to.page(), prot, !fwb);
}

/// Lets a guest execute what is in `page`, which is `clean` to the point of coherency, or not.
#[inline]
fn make_executable<M: Machine>(hw: &M, page: MappedPage, prot: Prot, clean: bool) {
    if !prot.contains(Prot::X) || hw.features().dic {
        return;
    }
    if clean {
        hw.invalidate_icache_of_clean(page);
    } else {
        hw.invalidate_icache(page);
    }
}

fn zero_tags<M: Machine>(hw: &M, window: &mut Window, tags: bool, page: Pfn) {
    if tags && let Some(shown) = window.show_tagged(hw, page) {
        hw.zero_tags(shown.page());
    }
}
