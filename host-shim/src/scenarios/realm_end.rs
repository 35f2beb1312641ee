//! A realm of 1 GiB ends while everything that can fail is made to fail.
//!
//! Each 2 MiB of it is one of four: a block, a block that lost a page, pages with nothing between them, nothing. Then
//! every fault site is armed before every call that takes it apart. None of them fails, for none passes a site.
#![forbid(unsafe_code)]

use super::Ctx;
use super::guest::{Guests, realm_task};
use crate::inspect::Inspector;
use crate::span::{BLOCK, GIB, PAGE, Span};
use crate::vmm::{Spec, Vm};
use abi::fault::Site;
use abi::vm::{ORDER_BLOCK, ORDER_PAGE};
use guest_shim::protocol::Payload;

/// Where the realm has its memory: at a multiple of 1 GiB.
pub(super) const BASE: u64 = 4 * GIB;
const TOP: u64 = BASE + GIB;
/// Between two pages where there are single ones.
const APART: u64 = BLOCK / 8;
/// Pages of tables that the realm gets at a time.
const TABLES: u64 = 8;

pub(super) fn run(ctx: &Ctx<'_>) {
    let Some(inspector) = Inspector::new(ctx.hypervisor()) else {
        return ctx.report.skip("fault sites", "this is no development image");
    };
    let g = Guests::open(ctx);
    let Some(memory) = ctx.pages.lock().take(GIB, BLOCK) else {
        return ctx.report.skip("1 GiB", "the machine has not that much to spare");
    };
    let spec = Spec { vcpus: 1, start: realm_task(Payload::Idle, 0) };
    if let Some(vm) = g.ok("a realm", g.vmm.create_empty(&spec)) {
        r_13(&g, inspector, vm, memory);
    }
    ctx.report.check("its memory is free again", ctx.pages.lock().give(memory).is_ok(), "no room to note it");
    g.close();
}

///
fn r_13(g: &Guests<'_>, inspector: Inspector<'_>, vm: Vm<'_>, memory: Span) {
    let hyp = g.hyp();
    // What the realm has must not be what the host wrote.
    let written = memory.pages().all(|page| g.ctx.store(page, page).is_ok());
    g.ctx.report.check("the host writes to each page", written, "it cannot");
    g.ok("table pages", vm.top_up(TABLES));
    g.expect("1 GiB becomes RAM", hyp.vm_init_ripas(vm.handle, BASE, TOP), Ok(TOP));
    let Some(given) = fill(g, &vm, memory) else { return };
    g.ctx.report.metric("realm_end_pages", given, "pages");

    g.expect("VM_TEARDOWN_START", hyp.vm_teardown_start(vm.handle), Ok(()));
    let mut at = BASE;
    while at < TOP {
        if !arm(g, inspector) {
            return;
        }
        let chunk = hyp.reclaim_dying(vm.handle, at, TOP);
        let Some(chunk) = g.ok("R-13: RECLAIM_DYING with every site armed", chunk) else { return };
        if chunk.done <= at {
            return g.expect("R-13: it gets on", chunk.done, TOP);
        }
        at = chunk.done;
    }
    arm(g, inspector);
    g.ok("R-13: what the realm was made of, with every site armed", vm.destroy_started());
    let fired: u64 = Site::ALL.into_iter().filter_map(|s| inspector.stats(s).ok()).map(|[_, f]| f).sum();
    g.expect("R-13: sites that failed", fired, 0);
    g.expect("no site is armed any more", inspector.clear(), Ok(()));
    let left = given_pages(memory).find(|page| g.ctx.load(*page) != Ok(0));
    g.expect("R-13: a page that did not come back as zeros", left.unwrap_or(0), 0);
}

/// Which pages of `memory` the realm is given.
fn given_pages(memory: Span) -> impl Iterator<Item = u64> {
    memory.pages().filter(move |page| match Part::of(page - memory.start()) {
        Part::Block | Part::Hole => true,
        Part::Pages => page % APART == 0,
        Part::Nothing => false,
    })
}

/// What is in 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A block.
    Block,
    /// A block of which the host took a page by force.
    Hole,
    /// Single pages.
    Pages,
    /// One note.
    Nothing,
}

impl Part {
    fn of(offset: u64) -> Self {
        match offset / BLOCK % 4 {
            0 => Self::Block,
            1 => Self::Hole,
            2 => Self::Pages,
            _ => Self::Nothing,
        }
    }
}

/// Fills the gibibyte of RAM that `vm` has at [`BASE`] from that of `memory`; how many pages it has then.
pub(super) fn fill(g: &Guests<'_>, vm: &Vm<'_>, memory: Span) -> Option<u64> {
    let mut given = 0;
    for offset in (0..GIB).step_by(usize::try_from(BLOCK).ok()?) {
        let (ipa, pa) = (BASE + offset, memory.start() + offset);
        let part = Part::of(offset);
        if matches!(part, Part::Block | Part::Hole) {
            donate(g, vm, ipa, pa, ORDER_BLOCK)?;
            given += BLOCK / PAGE - u64::from(part == Part::Hole);
        }
        if part == Part::Hole {
            // A store that is not empty repays the reserve.
            g.ok("a table page", vm.top_up(1))?;
            let hole = ipa + BLOCK / 2;
            let chunk = g.ok("a page is taken", g.hyp().guest_reclaim(vm.handle, hole, hole + PAGE))?;
            if chunk.done != hole + PAGE || chunk.retained.is_some() {
                g.expect("that page and no other", chunk.done, hole + PAGE);
                return None;
            }
        }
        if part == Part::Pages {
            for at in (0..BLOCK).step_by(usize::try_from(APART).ok()?) {
                donate(g, vm, ipa + at, pa + at, ORDER_PAGE)?;
                given += 1;
            }
        }
    }
    Some(given)
}

/// Gives a page or block, and what tables that takes.
fn donate(g: &Guests<'_>, vm: &Vm<'_>, ipa: u64, pa: u64, order: u64) -> Option<()> {
    let give = || g.hyp().guest_donate(vm.handle, ipa / PAGE, pa / PAGE, order);
    g.ok("memory is given", vm.with_tables("GUEST_DONATE", give))
}

/// Arms every site: the first pass of each fails.
fn arm(g: &Guests<'_>, inspector: Inspector<'_>) -> bool {
    let armed = Site::ALL.into_iter().all(|site| inspector.arm(site, 1).is_ok());
    if !armed {
        g.ctx.report.fail("every site is armed", "FI_ARM was refused");
    }
    armed
}
