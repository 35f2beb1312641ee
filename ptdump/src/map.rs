//! Who owns which physical page: the host's table, with what the tables of guests add to it.
//!
//! The host's table knows owners; only a guest's own table knows which of its pages it shares, and
//! which of the host's it borrows. Where the two disagree, the map follows the host's table and
//! says so.

use crate::dump::Dump;
use crate::walk::{Problem, Problems, Run, What};
use abi::snapshot::{Kind, RegionKind};
use hyp::pgtable::{LeafState, Note, Owner as NoteOwner, PendingState, Prot, Ripas};
use std::collections::{BTreeMap, BTreeSet};

/// Most spans of a map.
pub const MAX_SPANS: usize = 1 << 20;
/// Most pages of a guest's that are held against the host's table, as runs.
const MAX_CLAIMS: usize = 1 << 20;

/// Who has a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The host, and it has it mapped.
    Host,
    /// The host, which has not touched it yet.
    HostUntouched,
    /// The host, which lends it to a guest.
    HostLent(u16),
    /// A guest, which shares it with the host.
    GuestShared(u16),
    /// A guest alone.
    Guest(u16),
    /// EL2, from the host: tables, the state of VMs.
    Given,
    /// EL2, for as long as the snapshot took.
    Snapshot,
    /// EL2 for good.
    Hyp,
    /// The secure world.
    Secure,
    /// A device of the host.
    Device,
    /// A device that the host may not reach.
    Withheld,
    /// The table says what cannot be.
    Corrupt,
}

impl Owner {
    /// The VM that has to do with it.
    #[must_use]
    pub const fn handle(self) -> Option<u16> {
        match self {
            Self::HostLent(handle) | Self::GuestShared(handle) | Self::Guest(handle) => Some(handle),
            _ => None,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Host => "host".to_owned(),
            Self::HostUntouched => "host, not touched yet".to_owned(),
            Self::HostLent(handle) => format!("host, lent to guest {handle:#x}"),
            Self::GuestShared(handle) => format!("guest {handle:#x}, shared with the host"),
            Self::Guest(handle) => format!("guest {handle:#x}"),
            Self::Given => "hypervisor, from the host".to_owned(),
            Self::Snapshot => "hypervisor, for this snapshot".to_owned(),
            Self::Hyp => "hypervisor".to_owned(),
            Self::Secure => "secure world".to_owned(),
            Self::Device => "device of the host".to_owned(),
            Self::Withheld => "device, withheld from the host".to_owned(),
            Self::Corrupt => "corrupt".to_owned(),
        }
    }

    /// True for memory, false for devices.
    #[must_use]
    pub const fn is_memory(self) -> bool {
        !matches!(self, Self::Device | Self::Withheld)
    }
}

/// Consecutive pages of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Whose.
    pub owner: Owner,
    /// The guest's frame of the first page, if a guest has to do with it.
    pub gfn: Option<u64>,
    /// The guest may not use allocation tags there.
    pub no_tag: bool,
}

impl Span {
    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Always false: a span has a page.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    fn goes_on(&self, next: &Self) -> bool {
        let gfn = self.gfn.map(|gfn| gfn.saturating_add(self.len() >> 12));
        self.end == next.start && self.owner == next.owner && self.no_tag == next.no_tag && gfn == next.gfn
    }

    /// What lies between `start` and `end`, which have a part of it between them.
    #[must_use]
    pub fn within(&self, start: u64, end: u64) -> Self {
        self.part(self.start.max(start), self.end.min(end))
    }

    /// The part from `start` to `end`, which lies in it.
    fn part(&self, start: u64, end: u64) -> Self {
        let further = start.saturating_sub(self.start) >> 12;
        Self { start, end, gfn: self.gfn.map(|gfn| gfn.saturating_add(further)), ..*self }
    }
}

/// What the table of a guest says about frames without pages, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestCounts {
    /// Its own alone.
    pub owned: u64,
    /// Its own, shared with the host.
    pub shared: u64,
    /// The host's.
    pub borrowed: u64,
    /// Of all of these: without allocation tags.
    pub no_tag: u64,
    /// Declared to be devices that the host emulates.
    pub guarded: u64,
    /// Taken away by force.
    pub destroyed: u64,
    /// Memory that the host has yet to give.
    pub expected: u64,
}

/// The map.
#[derive(Clone, Debug)]
pub struct Map {
    /// Ascending, not overlapping.
    pub spans: Vec<Span>,
    /// By VM handle, of the guests whose tables were there.
    pub guests: BTreeMap<u16, GuestCounts>,
    /// What was wrong in the tables or between them.
    pub problems: Problems,
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself")]
pub enum MapError {
    #[error("a map needs the host's table, this is that of VM {0:#x}")]
    NotHost(u32),
    #[error("a guest's table was expected, this is the host's")]
    NotGuest,
    #[error("two tables of VM {0:#x}")]
    Twice(u16),
    #[error("VM handle {0:#x} is none")]
    Handle(u32),
    #[error("the table is too fragmented for a map: more than {MAX_SPANS} spans")]
    Fragmented,
}

impl Map {
    /// The map of `host`, with what `guests` know.
    ///
    /// # Errors
    /// [`MapError`].
    pub fn new(host: &Dump, guests: &[Dump]) -> Result<Self, MapError> {
        if host.kind() != Kind::Host {
            return Err(MapError::NotHost(host.target()));
        }
        let mut problems = Problems::default();
        let mut spans = host_spans(host, &mut problems)?;
        let mut counts = BTreeMap::new();
        let mut claims = Vec::new();
        for guest in guests {
            if guest.kind() == Kind::Host {
                return Err(MapError::NotGuest);
            }
            let handle = u16::try_from(guest.target()).map_err(|_| MapError::Handle(guest.target()))?;
            let count = claims_of(guest, handle, &mut claims, &mut problems)?;
            if counts.insert(handle, count).is_some() {
                return Err(MapError::Twice(handle));
            }
        }
        claims.sort_unstable_by_key(|claim| (claim.start, claim.end));
        if !claims.is_empty() {
            spans = overlay(&spans, &claims, &mut problems)?;
        }
        for span in &spans {
            if let (Owner::Guest(handle), Some(gfn)) = (span.owner, span.gfn)
                && counts.contains_key(&handle)
                && !is_claimed(&claims, span)
            {
                problems.add(Problem::Contradiction(format!(
                    "page {:#x} is guest {handle:#x}'s at frame {gfn:#x} for the host's table, not for the guest's",
                    span.start
                )));
            }
        }
        Ok(Self { spans, guests: counts, problems })
    }

    /// Bytes of each owner.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<Owner, u64> {
        let mut totals = BTreeMap::new();
        for span in &self.spans {
            let total: &mut u64 = totals.entry(span.owner).or_default();
            *total = total.saturating_add(span.len());
        }
        totals
    }

    /// Handles of all VMs that own or borrow a page.
    #[must_use]
    pub fn handles(&self) -> BTreeSet<u16> {
        let seen = self.spans.iter().filter_map(|span| span.owner.handle());
        seen.chain(self.guests.keys().copied()).collect()
    }
}

/// What the places say about a stretch of physical addresses.
#[derive(Clone, Copy, Debug, Default)]
struct Ground {
    start: u64,
    end: u64,
    memory: bool,
    carve_out: bool,
    withheld: bool,
    snapshot: bool,
}

/// The whole space, cut wherever a place begins or ends.
fn grounds(dump: &Dump) -> Vec<Ground> {
    let mut cuts: BTreeSet<u64> = dump.places().iter().flat_map(|place| [place.start, place.end]).collect();
    cuts.extend([0, 1 << 48]);
    let cuts: Vec<u64> = cuts.into_iter().collect();
    let mut grounds: Vec<Ground> = cuts
        .windows(2)
        .filter_map(|pair| match pair {
            [start, end] => Some(Ground { start: *start, end: *end, ..Ground::default() }),
            _ => None,
        })
        .collect();
    for place in dump.places() {
        let first = grounds.partition_point(|ground| ground.start < place.start);
        for ground in grounds.iter_mut().skip(first).take_while(|ground| ground.start < place.end) {
            match place.kind {
                RegionKind::Memory => ground.memory = true,
                RegionKind::CarveOut => ground.carve_out = true,
                RegionKind::Withheld => ground.withheld = true,
                RegionKind::Snapshot => ground.snapshot = true,
                RegionKind::Device | RegionKind::Host => {}
            }
        }
    }
    grounds
}

fn push(spans: &mut Vec<Span>, span: Span) -> Result<(), MapError> {
    let full = spans.len() >= MAX_SPANS;
    match spans.last_mut() {
        Some(last) if last.goes_on(&span) => last.end = span.end,
        _ if full => return Err(MapError::Fragmented),
        _ => spans.push(span),
    }
    Ok(())
}

fn host_spans(host: &Dump, problems: &mut Problems) -> Result<Vec<Span>, MapError> {
    let grounds = grounds(host);
    let mut ground = grounds.iter().peekable();
    let mut spans = Vec::new();
    let mut runs = host.runs();
    for run in runs.by_ref() {
        if let What::Leaf(pa, _) = run.what
            && pa != run.start
        {
            problems.add(Problem::Contradiction(format!(
                "the host has {pa:#x} at {:#x}: its table is not the identity",
                run.start
            )));
        }
        let mut start = run.start;
        while start < run.end {
            let Some(here) = ground.peek() else { break };
            let end = here.end.min(run.end);
            if let Some((owner, gfn)) = host_owner(&run, start, here) {
                push(&mut spans, Span { start, end, owner, gfn, no_tag: false })?;
            }
            if let (true, What::Absent | What::Leaf(..)) = (here.carve_out, run.what) {
                problems.add(Problem::Contradiction(format!(
                    "{start:#x} to {end:#x} is the hypervisor's, and the host may have it"
                )));
            }
            if end == here.end {
                ground.next();
            }
            start = end;
        }
    }
    problems.append(runs.problems());
    Ok(spans)
}

/// Whose the page at `start` is, which lies in `run` and on `ground`; `None` where nothing is.
fn host_owner(run: &Run, start: u64, ground: &Ground) -> Option<(Owner, Option<u64>)> {
    let further = start.saturating_sub(run.start) >> 12;
    let owner = match run.what {
        What::Absent if ground.memory => Owner::HostUntouched,
        What::Absent => return None,
        What::Leaf(..) if ground.memory => Owner::Host,
        What::Leaf(..) => Owner::Device,
        What::Note(Note::HostDonated(NoteOwner::Guest { handle, gfn })) => {
            return Some((Owner::Guest(handle), Some(gfn.raw().saturating_add(further))));
        }
        What::Note(Note::HostDonated(NoteOwner::Ffa)) => Owner::Secure,
        What::Note(Note::HostDonated(NoteOwner::Hyp)) if ground.carve_out => Owner::Hyp,
        What::Note(Note::HostDonated(NoteOwner::Hyp)) if ground.snapshot => Owner::Snapshot,
        What::Note(Note::HostDonated(NoteOwner::Hyp)) if ground.memory && !ground.withheld => Owner::Given,
        What::Note(Note::HostDonated(NoteOwner::Hyp)) => Owner::Withheld,
        What::Note(_) | What::Corrupt(..) => Owner::Corrupt,
    };
    Some((owner, None))
}

/// Pages that a guest's table leads to.
#[derive(Clone, Copy, Debug)]
struct Claim {
    start: u64,
    end: u64,
    gfn: u64,
    handle: u16,
    state: LeafState,
    no_tag: bool,
}

fn claims_of(
    guest: &Dump,
    handle: u16,
    claims: &mut Vec<Claim>,
    problems: &mut Problems,
) -> Result<GuestCounts, MapError> {
    let mut counts = GuestCounts::default();
    let mut runs = guest.runs();
    for run in runs.by_ref() {
        let pages = run.len() >> 12;
        let add = |count: &mut u64| *count = count.saturating_add(pages);
        let (start, state, no_tag) = match run.what {
            What::Absent | What::Corrupt(..) | What::Note(Note::HostDonated(_)) => continue,
            What::Note(Note::MmioGuard) => {
                add(&mut counts.guarded);
                continue;
            }
            What::Note(Note::Ripas(Ripas::Destroyed)) => {
                add(&mut counts.destroyed);
                continue;
            }
            What::Note(Note::Ripas(Ripas::Ram)) => {
                add(&mut counts.expected);
                continue;
            }
            What::Note(Note::NoTagPending { page, state, .. }) => {
                let state = match state {
                    PendingState::Owned => LeafState::Owned,
                    PendingState::SharedBorrowed => LeafState::SharedBorrowed,
                };
                (page.base().raw(), state, true)
            }
            What::Leaf(pa, attrs) => (pa, attrs.state, attrs.prot.contains(Prot::NO_TAG)),
        };
        add(match state {
            LeafState::Owned => &mut counts.owned,
            LeafState::SharedOwned => &mut counts.shared,
            LeafState::SharedBorrowed => &mut counts.borrowed,
        });
        if no_tag {
            add(&mut counts.no_tag);
        }
        if claims.len() >= MAX_CLAIMS {
            return Err(MapError::Fragmented);
        }
        let end = start.saturating_add(run.len());
        claims.push(Claim { start, end, gfn: run.start >> 12, handle, state, no_tag });
    }
    problems.append(runs.problems());
    Ok(counts)
}

/// True if a claim to own the first page of `span` is there.
fn is_claimed(claims: &[Claim], span: &Span) -> bool {
    let behind = claims.partition_point(|claim| claim.start <= span.start);
    // Claims of one page by several guests stand side by side.
    claims.iter().take(behind).rev().take(8).any(|claim| {
        claim.end > span.start
            && Owner::Guest(claim.handle) == span.owner
            && claim.state == LeafState::Owned
            && span.gfn == Some(claim.gfn.saturating_add(span.start.saturating_sub(claim.start) >> 12))
    })
}

/// `spans` with what `claims` (ascending) add.
fn overlay(spans: &[Span], claims: &[Claim], problems: &mut Problems) -> Result<Vec<Span>, MapError> {
    let mut out = Vec::new();
    let mut claims = claims.iter().peekable();
    // The next claim has met a span.
    let mut met = false;
    for span in spans {
        let mut at = span.start;
        while at < span.end {
            while let Some(claim) = claims.next_if(|claim| claim.end <= at) {
                if !std::mem::take(&mut met) {
                    outside(claim, problems);
                }
            }
            match claims.peek() {
                Some(claim) if claim.start <= at => {
                    met = true;
                    let end = claim.end.min(span.end);
                    push(&mut out, claimed(&span.part(at, end), claim, problems))?;
                    at = end;
                }
                Some(claim) if claim.start < span.end => {
                    push(&mut out, span.part(at, claim.start))?;
                    at = claim.start;
                }
                _ => {
                    push(&mut out, span.part(at, span.end))?;
                    at = span.end;
                }
            }
        }
    }
    claims.skip(usize::from(met)).for_each(|claim| outside(claim, problems));
    Ok(out)
}

fn outside(claim: &Claim, problems: &mut Problems) {
    problems.add(Problem::Contradiction(format!(
        "guest {:#x} has {:#x} at frame {:#x}, where the host's table knows of nothing",
        claim.handle, claim.start, claim.gfn
    )));
}

/// A part of the host's map, as the guest that has something to do with it sees it.
fn claimed(span: &Span, claim: &Claim, problems: &mut Problems) -> Span {
    let gfn = claim.gfn.saturating_add(span.start.saturating_sub(claim.start) >> 12);
    let owner = match (claim.state, span.owner) {
        (LeafState::Owned, Owner::Guest(handle)) if handle == claim.handle && span.gfn == Some(gfn) => {
            span.owner
        }
        (LeafState::SharedOwned, Owner::Host) => Owner::GuestShared(claim.handle),
        (LeafState::SharedBorrowed, Owner::Host | Owner::HostUntouched) => Owner::HostLent(claim.handle),
        (state, owner) => {
            problems.add(Problem::Contradiction(format!(
                "page {:#x}: guest {:#x} has it at frame {gfn:#x} as {state:?}, the host's table says: {}",
                span.start,
                claim.handle,
                owner.text()
            )));
            return *span;
        }
    };
    Span { owner, gfn: Some(gfn), no_tag: claim.no_tag, ..*span }
}
