//! `ram`: the host has all memory that the tree gives it, each byte in its own place.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::machine::Access;
use crate::span::{BLOCK, PAGE, Span};

pub(super) fn run(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    for region in &ctx.board.ram {
        for byte in [region.start(), region.end() - 1] {
            let owned = !ctx.board.carveouts().any(|c| c.contains(byte));
            if owned {
                let result = ctx.machine.probe(Access::LoadByte, byte, 0);
                report.check(format_args!("byte {byte:#x}"), result.is_ok(), format_args!("{result:x?}"));
            } else {
                ctx.expect_refused(format_args!("byte {byte:#x}"), Access::LoadByte, byte);
            }
        }
    }
    for carveout in ctx.board.carveouts() {
        for byte in [carveout.start() - 1, carveout.end()] {
            let taken = ctx.board.carveouts().any(|c| c.contains(byte));
            if ctx.board.touches_ram(byte) && !taken {
                let result = ctx.machine.probe(Access::LoadByte, byte, 0);
                report.check(
                    format_args!("byte {byte:#x} beside the carve-out"),
                    result.is_ok(),
                    format_args!("{result:x?}"),
                );
            }
        }
    }
    fill(ctx);
    ctx.expect_el2_alive();
}

/// Words to write: the first and last of each free span, and one every 2 MiB.
fn places(span: Span) -> impl Iterator<Item = u64> {
    let first = span.start().div_ceil(BLOCK);
    let blocks = (first..span.end().div_ceil(BLOCK)).map(|n| n * BLOCK);
    let edges = [span.start(), span.end() - 8];
    edges.into_iter().chain(blocks.filter(move |b| span.contains(*b)))
}

/// Writes its own address to each place, then reads all of them: no place is another's alias.
fn fill(ctx: &Ctx<'_>) {
    let pages = ctx.pages.lock().clone();
    let mut written: u64 = 0;
    for address in pages.spans().flat_map(places) {
        match ctx.store(address, address) {
            Ok(()) => written += 1,
            Err(fault) => ctx.report.fail(format_args!("store at {address:#x}"), fault),
        }
    }
    let wrong = pages.spans().flat_map(places).find(|a| ctx.load(*a) != Ok(*a));
    ctx.report.equal("every place holds its own address", wrong, None);
    let bytes: u64 = pages.spans().map(Span::size).sum();
    ctx.report.metric("words_written", written, "words");
    ctx.report.metric("free_memory", bytes / PAGE, "pages");
}
