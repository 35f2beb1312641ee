//! What a picture of a [`Map`] shows: areas of memory in cells, a legend, the blocks that several own.
//! The still picture ([`crate::svg`]) and the page for a browser ([`crate::html`]) draw this.

use crate::dump::{Dump, Place};
use crate::map::{GuestCounts, Map, Owner, Span};
use crate::text::{amount, heading};
use abi::snapshot::RegionKind;
use std::collections::BTreeMap;

/// Cells in a row.
pub const COLUMNS: u64 = 32;
/// The same, to cut lists with.
pub const ROW: usize = 32;
/// Most cells of one area.
const MOST_CELLS: u64 = 1024;
/// Bytes of a block that is shown page by page.
pub const BLOCK: u64 = 2 << 20;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Most blocks that are shown page by page.
const MOST_BLOCKS: usize = 6;
/// Most areas; memory in more pieces is drawn with its holes.
const MOST_AREAS: usize = 4;

/// How an owner is painted: a colour, and for what two share stripes of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paint {
    /// Colour.
    pub fill: &'static str,
    /// Colour of the stripes.
    pub stripes: Option<&'static str>,
}

/// Colours of guests: told apart by people who do not see red and green, too.
const GUESTS: [&str; 6] = ["#d55e00", "#0b7a75", "#8e4585", "#b8860b", "#0072b2", "#556b2f"];
const HOST: &str = "#bcd3ea";

/// How `owner` is painted; `handles` are all guests, in order.
#[must_use]
pub fn paint(owner: Owner, handles: &[u16]) -> Paint {
    let guest = |handle: u16| {
        let nth = handles.iter().position(|other| *other == handle).unwrap_or_default();
        GUESTS.iter().cycle().nth(nth).copied().unwrap_or_default()
    };
    let (fill, stripes) = match owner {
        Owner::Host => (HOST, None),
        Owner::HostUntouched => ("#eef3f8", None),
        Owner::HostLent(handle) => (HOST, Some(guest(handle))),
        Owner::GuestShared(handle) => (guest(handle), Some("#ffffff")),
        Owner::Guest(handle) => (guest(handle), None),
        Owner::Given => ("#5f7f9f", None),
        Owner::Snapshot => ("#f0d264", None),
        Owner::Hyp => ("#1f2d3d", None),
        Owner::Secure => ("#6b3fa0", None),
        Owner::Device => ("#d9e8d4", None),
        Owner::Withheld => ("#9a9a9a", Some("#6f6f6f")),
        Owner::Corrupt => ("#ff00ff", Some("#000000")),
    };
    Paint { fill, stripes }
}

/// What stands out comes first where several share a cell.
const fn rank(owner: Owner) -> u8 {
    match owner {
        Owner::Corrupt => 0,
        Owner::Guest(_) => 1,
        Owner::GuestShared(_) => 2,
        Owner::HostLent(_) => 3,
        Owner::Given => 4,
        Owner::Snapshot => 5,
        Owner::Hyp => 6,
        Owner::Secure => 7,
        Owner::Withheld => 8,
        Owner::Device => 9,
        Owner::Host => 10,
        Owner::HostUntouched => 11,
    }
}

/// Bytes of each owner, what stands out first.
pub type Shares = Vec<(Owner, u64)>;

/// A stretch of memory, in cells.
#[derive(Clone, Debug)]
pub struct Area {
    /// First byte: a multiple of a row.
    pub start: u64,
    /// One past the last byte of memory.
    pub end: u64,
    /// Bytes of a cell: a power of two, a page at least.
    pub cell: u64,
    /// What is in each cell.
    pub cells: Vec<Shares>,
}

/// A block that several own, page by page.
#[derive(Clone, Debug)]
pub struct Block {
    /// First byte.
    pub start: u64,
    /// Its owners.
    pub shares: Shares,
    /// Its pages, as spans.
    pub spans: Vec<Span>,
}

/// A line of the legend.
#[derive(Clone, Debug)]
pub struct Key {
    /// Who.
    pub owner: Owner,
    /// How it is painted.
    pub paint: Paint,
    /// Bytes.
    pub bytes: u64,
}

/// The picture.
#[derive(Clone, Debug)]
pub struct Picture<'a> {
    /// What it shows.
    pub title: String,
    /// What kind of table it is from.
    pub subtitle: String,
    /// Memory.
    pub areas: Vec<Area>,
    /// Owners.
    pub legend: Vec<Key>,
    /// Blocks that several own.
    pub blocks: Vec<Block>,
    /// What the host knows of physical memory.
    pub places: &'a [Place],
    /// Devices that are withheld, by address: name and size.
    pub withheld: Vec<(u64, String)>,
    /// All guests.
    pub handles: Vec<u16>,
    /// Of the guests whose tables were there.
    pub guests: &'a BTreeMap<u16, GuestCounts>,
    /// The map.
    pub map: &'a Map,
}

impl<'a> Picture<'a> {
    /// The picture of `map`, which was made from `host`.
    #[must_use]
    pub fn new(host: &'a Dump, map: &'a Map) -> Self {
        let handles: Vec<u16> = map.handles().into_iter().collect();
        let mut legend: Vec<Key> = map
            .totals()
            .into_iter()
            .map(|(owner, bytes)| Key { owner, paint: paint(owner, &handles), bytes })
            .collect();
        legend.sort_by_key(|key| (rank(key.owner), key.owner));
        let withheld = withheld(host);
        let title = host.title();
        Self {
            title: if title.is_empty() { "Who owns which page".to_owned() } else { title },
            subtitle: heading(host),
            areas: memory(host).into_iter().map(|(start, end)| area(start, end, map)).collect(),
            legend,
            blocks: shared_blocks(map),
            places: host.places(),
            withheld,
            handles,
            guests: &map.guests,
            map,
        }
    }

    /// How `owner` is painted here.
    #[must_use]
    pub fn paint(&self, owner: Owner) -> Paint {
        paint(owner, &self.handles)
    }
}

/// Withheld devices by address; those of one kind that follow each other are one line.
fn withheld(host: &Dump) -> Vec<(u64, String)> {
    let mut places: Vec<&Place> = host.places_of(RegionKind::Withheld).collect();
    places.sort_by_key(|place| place.start);
    let kind = |place: &Place| place.name.split('@').next().unwrap_or_default().to_owned();
    places
        .chunk_by(|a, b| kind(a) == kind(b))
        .filter_map(|group| {
            let (first, last) = (group.first()?, group.last()?);
            let bytes = last.end.saturating_sub(first.start);
            let count = if group.len() > 1 { format!(" × {}", group.len()) } else { String::new() };
            Some((first.start, format!("{}{count}, {}", kind(first), amount(bytes))))
        })
        .collect()
}

/// Pieces of memory; where there are many, those that are close are one with a hole.
fn memory(host: &Dump) -> Vec<(u64, u64)> {
    let mut pieces: Vec<(u64, u64)> =
        host.places_of(RegionKind::Memory).map(|place| (place.start, place.end)).collect();
    pieces.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, end) in pieces {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    while merged.len() > MOST_AREAS {
        let gap = |n: usize| Some(merged.get(n.checked_add(1)?)?.0.saturating_sub(merged.get(n)?.1));
        let narrowest = (0..merged.len().saturating_sub(1)).min_by_key(|n| gap(*n)).unwrap_or_default();
        let (_, end) = merged.remove(narrowest.saturating_add(1));
        if let Some(piece) = merged.get_mut(narrowest) {
            piece.1 = end;
        }
    }
    merged
}

fn sorted(shares: BTreeMap<Owner, u64>) -> Shares {
    let mut shares: Shares = shares.into_iter().collect();
    shares.sort_by_key(|(owner, _)| (rank(*owner), *owner));
    shares
}

fn area(start: u64, end: u64, map: &Map) -> Area {
    let mut cell = PAGE;
    while end.saturating_sub(start).div_ceil(cell) > MOST_CELLS
        || cell < BLOCK && end.saturating_sub(start) >= BLOCK
    {
        cell = cell.saturating_mul(2);
    }
    let row = cell.saturating_mul(COLUMNS);
    let first = start & !row.wrapping_sub(1);
    let count = end.saturating_sub(first).div_ceil(cell).min(MOST_CELLS.saturating_add(COLUMNS));
    let mut cells: Vec<BTreeMap<Owner, u64>> = (0..count).map(|_| BTreeMap::new()).collect();
    for span in &map.spans {
        let mut at = span.start.max(first);
        while at < span.end.min(end) {
            let nth = at.saturating_sub(first).checked_div(cell).unwrap_or_default();
            let border = first.saturating_add(cell.saturating_mul(nth.saturating_add(1)));
            let stop = border.min(span.end).min(end);
            let Some(shares) = usize::try_from(nth).ok().and_then(|nth| cells.get_mut(nth)) else { break };
            let share: &mut u64 = shares.entry(span.owner).or_default();
            *share = share.saturating_add(stop.saturating_sub(at));
            at = stop;
        }
    }
    Area { start: first, end, cell, cells: cells.into_iter().map(sorted).collect() }
}

/// The blocks that most have to do with, ascending.
fn shared_blocks(map: &Map) -> Vec<Block> {
    let mut blocks: BTreeMap<u64, BTreeMap<Owner, u64>> = BTreeMap::new();
    for span in map.spans.iter().filter(|span| span.owner.is_memory()) {
        // A block that a span fills has one owner.
        let mut at = span.start;
        while at < span.end {
            let block = at & !BLOCK.wrapping_sub(1);
            let stop = block.saturating_add(BLOCK).min(span.end);
            if stop.saturating_sub(at) < BLOCK {
                let share: &mut u64 = blocks.entry(block).or_default().entry(span.owner).or_default();
                *share = share.saturating_add(stop.saturating_sub(at));
                at = stop;
            } else {
                let whole = span.end & !BLOCK.wrapping_sub(1);
                at = whole.max(stop);
            }
        }
    }
    let interest = |shares: &BTreeMap<Owner, u64>| {
        let owners = shares.keys().filter(|owner| rank(**owner) < rank(Owner::Host)).count();
        let guests = shares.keys().filter(|owner| owner.handle().is_some()).count();
        (
            owners.saturating_add(guests),
            shares.iter().filter(|(o, _)| o.handle().is_some()).map(|(_, n)| *n).sum::<u64>(),
        )
    };
    let mut best: Vec<(u64, BTreeMap<Owner, u64>)> =
        blocks.into_iter().filter(|(_, shares)| shares.len() > 1 && interest(shares).0 > 0).collect();
    best.sort_by_key(|(start, shares)| (std::cmp::Reverse(interest(shares)), *start));
    best.truncate(MOST_BLOCKS);
    best.sort_by_key(|(start, _)| *start);
    best.into_iter()
        .map(|(start, shares)| {
            let end = start.saturating_add(BLOCK);
            let from = map.spans.partition_point(|span| span.end <= start);
            let spans = map.spans.iter().skip(from).take_while(|span| span.start < end);
            let spans = spans.map(|span| span.within(start, end)).collect();
            Block { start, shares: sorted(shares), spans }
        })
        .collect()
}
