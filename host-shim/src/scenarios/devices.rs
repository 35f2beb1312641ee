//! `withheld` and `fwcfg_dma`: bus masters that no IOMMU polices are out of the host's reach.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::board::BusMaster;
use crate::machine::{Access, words};
use crate::span::{PAGE, Span};

/// Every window of every disabled device, and every bus master, disabled or not.
pub(super) fn withheld(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    for device in &ctx.board.devices {
        let (name, span) = (device.name, device.span);
        if device.bus_master.is_some() {
            report.check(format_args!("{name} is disabled"), device.disabled, "the host is told to use it");
        }
        for address in [span.start() & !7, (span.end() - 1) & !7] {
            ctx.expect_refused(format_args!("{name}: load at {address:#x}"), Access::Load, address);
            ctx.expect_refused(format_args!("{name}: store at {address:#x}"), Access::Store, address);
        }
    }
    let any = ctx.board.devices.iter().any(|d| d.bus_master.is_some());
    report.check("the machine has bus masters", any, "none in the tree: this run shows nothing");
    ctx.expect_el2_alive();
}

/// QEMU's fw_cfg (docs/specs/fw_cfg): big-endian registers, a DMA descriptor of 16 bytes.
mod fw_cfg {
    pub(super) const DATA: u64 = 0x0;
    pub(super) const SELECTOR: u64 = 0x8;
    pub(super) const DMA: u64 = 0x10;
    /// Select item 0 (the signature "QEMU"), then read it to memory.
    pub(super) const SELECT_AND_READ: u32 = 1 << 3 | 1 << 1;
    pub(super) const LENGTH: u32 = 4;

    /// The two words of a descriptor, as this little-endian CPU stores them.
    pub(super) fn descriptor(target: u64) -> [u64; 2] {
        let first = u64::from(SELECT_AND_READ) << 32 | u64::from(LENGTH);
        [first.swap_bytes(), target.swap_bytes()]
    }
}

/// Tells fw_cfg's DMA engine to write to the carve-out, and to a page that the host can look at.
pub(super) fn fwcfg_dma(ctx: &Ctx<'_>) {
    let report = &ctx.report;
    let device = ctx.board.devices.iter().find(|d| d.bus_master == Some(BusMaster::FwCfg));
    let Some(device) = device else {
        report.fail("fw_cfg is in the tree", "no such node: this run shows nothing");
        return;
    };
    let base = device.span.start();
    for (name, offset) in [("data", fw_cfg::DATA), ("selector", fw_cfg::SELECTOR), ("DMA", fw_cfg::DMA)] {
        ctx.expect_refused(format_args!("load of fw_cfg's {name} register"), Access::Load, base + offset);
    }
    let Some(pages) = ctx.take(2, PAGE) else { return };
    let (descriptor, target) = (pages.start(), pages.start() + PAGE);
    let carveout = ctx.board.carveouts().flat_map(Span::corner_pages).map(|(_, page)| page);
    for victim in carveout.chain([target]) {
        attack(ctx, base, descriptor, victim);
    }
    let untouched = words(target).all(|w| ctx.load(w) == Ok(!w));
    report.check("no DMA reached the page that the host can see", untouched, "it was overwritten");
    ctx.expect_el2_alive();
}

fn attack(ctx: &Ctx<'_>, base: u64, descriptor: u64, victim: u64) {
    let own = victim == descriptor + PAGE;
    let prepared = !own || words(victim).all(|w| ctx.store(w, !w).is_ok());
    let [control, address] = fw_cfg::descriptor(victim);
    let armed = ctx.store(descriptor, control).is_ok() && ctx.store(descriptor + 8, address).is_ok();
    ctx.report.check(
        format_args!("the descriptor for {victim:#x} is ready"),
        prepared && armed,
        "a store to the host's own memory faulted",
    );
    let started = ctx.machine.probe(Access::Store, base + fw_cfg::DMA, descriptor.swap_bytes());
    ctx.report.check(
        format_args!("fw_cfg DMA to {victim:#x} does not start"),
        started.is_err_and(|f| f.is_refusal_of(Access::Store)),
        format_args!("the store that starts it gave {started:x?}"),
    );
}
