//! What the record of a page says.
#![forbid(unsafe_code)]

use crate::mm::{PageState, PageUse, Record};

/// Whose a page is, by its record alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// The host's alone.
    Host,
    /// The host's, shared with EL2.
    SharedHyp { pins: u16 },
    /// The host's, in so many entries of one VM's table.
    Lent { handle: u16, leaves: u16 },
    /// EL2's.
    Hyp(PageUse),
    /// A VM's: which one is in the host's table.
    Guest,
    /// A VM's, shared with the host.
    GuestShared,
}

impl Page {
    /// `None` for a state that no page can be in.
    pub(super) fn of(record: &Record) -> Option<Self> {
        use PageState::{NoPage, Owned, SharedBorrowed, SharedOwned};
        let [handle_low, handle_high, leaves_low, leaves_high] = record.aux().to_le_bytes();
        let handle = u16::from_le_bytes([handle_low, handle_high]);
        let leaves = u16::from_le_bytes([leaves_low, leaves_high]);
        let page_use = record.page_use();
        let bare = !record.is_free() && page_use == PageUse::None;
        let idle = record.count() == 0 && record.aux() == 0;
        match (record.host(), record.hyp()) {
            (Owned, NoPage) if bare && idle => Some(Self::Host),
            (SharedOwned, SharedBorrowed) if bare && record.aux() == 0 => {
                Some(Self::SharedHyp { pins: record.count() })
            }
            (SharedOwned, NoPage) if bare && leaves > 0 && record.count() == 0 => {
                Some(Self::Lent { handle, leaves })
            }
            (NoPage, NoPage) if bare && idle => Some(Self::Guest),
            (SharedBorrowed, NoPage) if bare && idle => Some(Self::GuestShared),
            (NoPage, Owned) if Self::fits(record, idle) => Some(Self::Hyp(page_use)),
            _ => None,
        }
    }

    /// True if a page of EL2's has the counts and marks that its use allows. A token's page may
    /// still carry those of its last use.
    fn fits(record: &Record, idle: bool) -> bool {
        match record.page_use() {
            PageUse::None => false,
            PageUse::Image => !record.is_free() && record.aux() == 0,
            PageUse::TablePool | PageUse::Lent => idle || !record.is_free(),
            PageUse::GuestTable => !record.is_free() && record.aux() == 0,
            PageUse::Vm | PageUse::Reserve => !record.is_free() && idle,
            PageUse::Pool | PageUse::PtCache => idle,
            PageUse::Token => true,
        }
    }
}

/// Spreads what is known of a page over 64 bits, so that sums of it tell sets of pages apart.
pub(super) const fn spread(parts: [u64; 4]) -> u64 {
    let [a, b, c, d] = parts;
    let mut x = step(a);
    x = step(x ^ b);
    x = step(x ^ c);
    step(x ^ d)
}

const fn step(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
