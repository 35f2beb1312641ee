//! Taking a snapshot as docs/snapshot.md tells a host to, and keeping it in a file.
//!
//! Invariant: pages are counted in pages throughout; what is given back is what was taken, by the
//! shim's own list, whatever the hypervisor said.
#![forbid(unsafe_code)]

use crate::hvc::{CallError, Query, SnapshotRefused};
use crate::scenarios::Ctx;
use crate::span::{PAGE, Span};
use abi::Errno;
use abi::snapshot::{
    DUMP_MAGIC, DUMP_VERSION, DumpHeader, END, FIELDS, HOST, MAGIC, MAX_TABLES, OUTCOME_WORDS, Outcome,
    REQUEST_WORDS, Region, RegionKind, Request, VERSION, padded,
};
use zerocopy::{IntoBytes, transmute};

/// Pages of one snapshot, one behind the other: the root (so that it is aligned), the chain, the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    span: Span,
    roots: u64,
    tables: u64,
}

/// Pages that a buffer for `roots` root pages and `tables` others has.
#[must_use]
pub const fn pages_for(roots: u64, tables: u64) -> u64 {
    roots + tables + 1
}

/// Tables to bring where the query said `tables`: taking pages may split blocks.
#[must_use]
pub const fn with_slack(tables: u64) -> u64 {
    tables + tables / 64 + 8
}

/// What to do when the call says that there are `needed` tables and `tables` were brought.
#[must_use]
pub const fn enough_for(tables: u64, needed: u64) -> u64 {
    tables + needed.saturating_sub(tables)
}

impl Buffer {
    /// Takes pages for `roots` root pages and `tables` others; a failed check if there are none.
    pub fn take(ctx: &Ctx<'_>, roots: u64, tables: u64) -> Option<Self> {
        let tables = tables.min(MAX_TABLES.into());
        let span = ctx.take(pages_for(roots, tables), roots * PAGE)?;
        Some(Self { span, roots, tables })
    }

    /// Gives the pages back to the shim.
    pub fn give(self, ctx: &Ctx<'_>) {
        if ctx.pages.lock().give(self.span).is_err() {
            ctx.report.fail("free memory", "too fragmented to list");
        }
    }

    /// All pages.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Address of the `nth` page of the root.
    #[must_use]
    pub const fn root(&self, nth: u64) -> u64 {
        self.span.start() + nth * PAGE
    }

    /// Address of the `nth` page of the chain.
    #[must_use]
    pub const fn table(&self, nth: u64) -> u64 {
        self.span.start() + (self.roots + nth) * PAGE
    }

    /// Address of the descriptor.
    #[must_use]
    pub const fn desc(&self) -> u64 {
        self.span.end() - PAGE
    }

    /// Root pages.
    #[must_use]
    pub const fn roots(&self) -> u64 {
        self.roots
    }

    /// Pages of the chain.
    #[must_use]
    pub const fn tables(&self) -> u64 {
        self.tables
    }

    /// A request for all of it.
    #[must_use]
    pub fn request(&self) -> Request {
        let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Request {
            magic: MAGIC,
            version: VERSION,
            flags: 0,
            pgd_pfn: self.root(0) / PAGE,
            pgd_pages: count(self.roots),
            nr_tables: count(self.tables),
            head_pfn: if self.tables > 0 { self.table(0) / PAGE } else { END },
            reserved: [0; 4],
        }
    }

    /// Writes the links of the chain, and `request` into the descriptor; false if a store faulted.
    pub fn write(&self, ctx: &Ctx<'_>, request: Request) -> bool {
        let links = (0..self.tables).all(|nth| {
            let next = if nth + 1 < self.tables { self.table(nth + 1) / PAGE } else { END };
            ctx.store(self.table(nth), next).is_ok()
        });
        let words: [u64; REQUEST_WORDS] = transmute!(request);
        links && words.into_iter().zip(0..).all(|(word, n)| ctx.store(self.desc() + 8 * n, word).is_ok())
    }

    /// What EL2 wrote into the descriptor; `None` if a load faulted.
    pub fn outcome(&self, ctx: &Ctx<'_>) -> Option<Outcome> {
        let mut words = [0; OUTCOME_WORDS];
        for (word, n) in words.iter_mut().zip(REQUEST_WORDS as u64..) {
            *word = ctx.load(self.desc() + 8 * n).ok()?;
        }
        Some(transmute!(words))
    }

    /// Takes the snapshot, with a request for all of the buffer.
    ///
    /// # Errors
    /// What the hypervisor says.
    pub fn snapshot(&self, ctx: &Ctx<'_>, target: u64) -> Result<u64, SnapshotRefused> {
        // A page that could not be written is one that the call refuses.
        self.write(ctx, self.request());
        ctx.hypervisor().snapshot(target, self.desc() / PAGE, 0)
    }
}

/// Takes a snapshot of `target`, with more pages if the table has grown meanwhile.
///
/// # Errors
/// The hypervisor's last word; ENOMEM too if the shim has no pages.
pub fn take(ctx: &Ctx<'_>, target: u64) -> Result<(Buffer, Outcome), CallError> {
    const TRIES: u32 = 4;
    let Query { roots, tables, .. } = ctx.hypervisor().snapshot_query(target)?;
    let mut tables = with_slack(tables.into());
    let mut last = CallError::Errno(Errno::Enomem);
    for _ in 0..TRIES {
        let Some(buffer) = Buffer::take(ctx, roots.into(), tables) else { return Err(last) };
        match buffer.snapshot(ctx, target) {
            Ok(_) => {
                return match buffer.outcome(ctx) {
                    Some(outcome) => Ok((buffer, outcome)),
                    None => Err(last),
                };
            }
            Err(refused) => {
                buffer.give(ctx);
                last = refused.error;
                if last != CallError::Errno(Errno::Enomem) || refused.needed == 0 {
                    break;
                }
                tables = enough_for(tables, refused.needed);
            }
        }
    }
    Err(last)
}

/// Takes a snapshot of `target` and writes it to the file `name` on the developer's machine.
pub fn write_file(ctx: &Ctx<'_>, target: u64, name: &str, title: &str) -> bool {
    let taken = take(ctx, target);
    let Ok((buffer, outcome)) = taken else {
        ctx.report.fail(format_args!("a dump to {name}"), format_args!("{taken:?}"));
        return false;
    };
    let written = write_parts(ctx, target, name, title, &buffer, &outcome);
    ctx.report.check(format_args!("a dump to {name}"), written, "the file could not be written");
    buffer.give(ctx);
    written
}

fn write_parts(
    ctx: &Ctx<'_>,
    target: u64,
    name: &str,
    title: &str,
    buffer: &Buffer,
    outcome: &Outcome,
) -> bool {
    let Ok(caps) = ctx.hypervisor().caps() else { return false };
    let Ok(target) = u32::try_from(target) else { return false };
    let header = DumpHeader {
        magic: DUMP_MAGIC,
        version: DUMP_VERSION,
        header_bytes: u16::try_from(size_of::<DumpHeader>()).unwrap_or(u16::MAX),
        target,
        geometry: outcome.geometry,
        root_pa: outcome.root_pa,
        roots: buffer.request().pgd_pages,
        tables: outcome.used,
        regions: u32::try_from(regions(ctx, buffer).count()).unwrap_or(u32::MAX),
        fields: u32::try_from(FIELDS.len()).unwrap_or(u32::MAX),
        hyp_version: caps.version,
        hyp_caps: caps.caps,
        title: padded(title),
    };
    let file = |bytes: &[u8]| ctx.machine.write_file(name, true, bytes);
    ctx.machine.write_file(name, false, header.as_bytes())
        && regions(ctx, buffer).all(|region| file(region.as_bytes()))
        && file(FIELDS.as_bytes())
        && (0..buffer.roots()).all(|nth| write_page(ctx, name, buffer.root(nth)))
        && (0..buffer.tables())
            .map(|nth| buffer.table(nth))
            .filter(|page| !is_unused(ctx, outcome, *page))
            .all(|page| write_page(ctx, name, page))
}

/// True if `page` is in the chain of pages that were not needed.
fn is_unused(ctx: &Ctx<'_>, outcome: &Outcome, page: u64) -> bool {
    let mut at = outcome.unused_head;
    for _ in 0..outcome.unused {
        if at == page / PAGE {
            return true;
        }
        match ctx.load(at.wrapping_mul(PAGE)) {
            Ok(next) => at = next,
            Err(_) => return false,
        }
    }
    false
}

fn write_page(ctx: &Ctx<'_>, name: &str, page: u64) -> bool {
    let mut words = [0_u64; 513];
    let [address, entries @ ..] = &mut words;
    *address = page;
    for (word, at) in entries.iter_mut().zip(crate::machine::words(page)) {
        match ctx.load(at) {
            Ok(value) => *word = value,
            Err(_) => return false,
        }
    }
    ctx.machine.write_file(name, true, words.as_bytes())
}

/// What the shim knows of physical memory.
fn regions<'a>(ctx: &'a Ctx<'_>, buffer: &Buffer) -> impl Iterator<Item = Region> + use<'a> {
    let region = |span: Span, kind: RegionKind, name: &str| Region {
        start: span.start(),
        end: span.end(),
        kind: kind as u32,
        reserved: 0,
        name: padded(name),
    };
    let board = ctx.board;
    let memory = board.ram.iter().map(move |span| region(*span, RegionKind::Memory, "memory"));
    let carve_out = board.carveouts().map(move |span| region(span, RegionKind::CarveOut, "hypervisor"));
    let devices = board.devices.iter().map(move |device| {
        let kind = if device.disabled { RegionKind::Withheld } else { RegionKind::Device };
        region(device.span, kind, device.name)
    });
    let own = core::iter::once(region(buffer.span(), RegionKind::Snapshot, "this snapshot"));
    memory.chain(carve_out).chain(devices).chain(own)
}

/// True if this hypervisor has the calls, as it says itself.
pub fn is_there(ctx: &Ctx<'_>) -> bool {
    let caps = ctx.hypervisor().caps().map_or(0, |reply| reply.caps);
    abi::caps::Caps::from_bits_truncate(caps).contains(abi::caps::Caps::DEBUG_SNAPSHOT)
}

/// If the boot argument `dump=PREFIX` is there: a dump of the host's table, and of the tables of
/// `guests`, to PREFIX.host.s2 and PREFIX.HANDLE.s2. Whoever gives the argument offers semihosting.
pub fn on_request(ctx: &Ctx<'_>, title: &str, guests: &[u64]) {
    use core::fmt::Write;
    let Some(prefix) = ctx.args.get("dump") else { return };
    if !is_there(ctx) {
        ctx.report.skip("a dump", "this hypervisor takes no snapshots");
        return;
    }
    let mut name = arrayvec::ArrayString::<128>::new();
    if write!(name, "{prefix}.host.s2").is_ok() && write_file(ctx, HOST, &name, title) {
        ctx.report.step(format_args!("who owns what now is in {name}"));
    }
    for guest in guests {
        name.clear();
        if write!(name, "{prefix}.{guest:x}.s2").is_ok() {
            write_file(ctx, *guest, &name, title);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, enough_for, pages_for, with_slack};
    use crate::span::{PAGE, Span};

    /// A number of pages is never taken for a number of bytes.
    #[test]
    fn s_25_a_buffer_has_a_page_for_each_root_each_table_and_the_descriptor() {
        for roots in [1, 2, 16] {
            for tables in [0, 1, 5, 16384] {
                let span = Span::new(0x4000_0000, pages_for(roots, tables) * PAGE).unwrap();
                let buffer = Buffer { span, roots, tables };
                let mut pages: std::vec::Vec<u64> = (0..roots).map(|n| buffer.root(n)).collect();
                pages.extend((0..tables).map(|n| buffer.table(n)));
                pages.push(buffer.desc());
                let own: std::vec::Vec<u64> = span.pages().collect();
                assert_eq!(pages, own, "each page of the span has one use");
                assert_eq!(buffer.root(0) % (roots * PAGE), 0);
            }
        }
    }

    #[test]
    fn a_second_try_brings_what_the_first_lacked() {
        assert_eq!([0, 10, 128].map(with_slack), [8, 18, 138]);
        assert_eq!(enough_for(18, 30), 30);
        assert_eq!(enough_for(18, 10), 18);
    }
}
