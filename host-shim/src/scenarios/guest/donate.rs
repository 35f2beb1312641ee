//! Pages that are not the host's to give, that somebody has already, and places that have no room.
#![forbid(unsafe_code)]

use super::super::refused;
use super::{Ctx, Guests, task};
use crate::hvc::CallError;
use crate::machine::Access;
use crate::span::{BLOCK, PAGE};
use crate::vmm::{Spec, Vm};
use abi::Errno::{self, E2big, Eexist, Einval, Enoent, Enomem, Eperm, Erange};
use abi::HostFn;
use abi::vm::GuestProt;
use guest_shim::protocol::{BEYOND, IMAGE, Payload, RAM_END, SCRATCH};

const GFN: u64 = SCRATCH / PAGE;
const RWX: GuestProt = GuestProt::all().difference(GuestProt::NO_TAG);

pub(in super::super) fn donate(ctx: &Ctx<'_>) {
    let g = Guests::open(ctx);
    let vm = |protected| g.vm(&g.vmm, task(Payload::Idle, protected, 0));
    if let (Some(one), Some(two), Some(plain)) = (vm(true), vm(true), vm(false)) {
        one_page_to_two(&g, &one, &two, &plain);
        not_to_give(&g, &one, &plain);
        malformed(&g, &one, &plain);
        lent_twice(&g, &plain);
        for vm in [one, two, plain] {
            g.destroy("a VM that was given strange pages", vm);
        }
    }
    lack_of_tables(&g);
    blocks(&g);
    g.close();
}

/// GUEST_DONATE of one page.
fn give(g: &Guests<'_>, vm: &Vm<'_>, gfn: u64, pfn: u64) -> Result<(), CallError> {
    g.hyp().guest_donate(vm.handle, gfn, pfn, 0).map_err(|(e, _)| e)
}

/// GUEST_SHARE of one page.
fn lend(g: &Guests<'_>, vm: &Vm<'_>, gfn: u64, pfn: u64) -> Result<(), CallError> {
    g.hyp().guest_share(vm.handle, gfn, pfn, 0, RWX).map_err(|(e, _)| e)
}

fn one_page_to_two<'v>(g: &Guests<'_>, one: &Vm<'v>, two: &Vm<'v>, plain: &Vm<'v>) {
    // Tables for SCRATCH first: what is refused is the page.
    for vm in [one, two, plain] {
        g.ok("a first page", vm.supply(SCRATCH + 0x1000));
    }
    let Some(pfn) = g.page() else { return };
    g.expect("a page is given", give(g, one, GFN, pfn), Ok(()));
    g.expect("to the same VM elsewhere", give(g, one, GFN + 2, pfn), refused(Eperm));
    g.expect("to the same place again", give(g, one, GFN, pfn), refused(Eperm));
    g.expect("to a second VM", give(g, two, GFN, pfn), refused(Eperm));
    g.expect("lent to a plain VM", lend(g, plain, GFN, pfn), refused(Eperm));
    g.expect("shared with the hypervisor", g.hyp().share(pfn), refused(Eperm));
    let Some(other) = g.page() else { return };
    g.expect("another page to the same place", give(g, one, GFN, other), refused(Eexist));
    g.expect("lent to a plain VM first", lend(g, plain, GFN, other), Ok(()));
    g.expect("then given away", give(g, two, GFN, other), refused(Eperm));
    g.expect("or to the hypervisor", g.hyp().lend(other, 1), refused(Eperm));
    g.expect("or shared with it", g.hyp().share(other), refused(Eperm));
    g.expect("the host still reads it", g.ctx.load(other * PAGE), Ok(0x4057));
    g.expect("and takes it back", g.hyp().attempt(HostFn::GuestUnshare, &[plain.handle, GFN, 1]), Ok(()));
    g.expect("then it can be given", give(g, two, GFN, other), Ok(()));
    for (vm, pfn) in [(one, pfn), (two, other)] {
        g.ctx.expect_refused("a page that was given", Access::Load, pfn * PAGE);
        let back = g.hyp().guest_reclaim(vm.handle, SCRATCH, SCRATCH + PAGE).map(|chunk| chunk.done);
        g.expect("it is taken back", back, Ok(SCRATCH + PAGE));
        g.expect("as zeros", g.vmm.first_nonzero(pfn), Ok(None));
        g.drop_page(pfn);
    }
}

/// Pages of the hypervisor, of a record, of a VM's own tables, and what is no memory.
fn not_to_give(g: &Guests<'_>, one: &Vm<'_>, plain: &Vm<'_>) {
    let at = GFN + 3;
    let record = one.record(0).unwrap_or(0) / PAGE;
    let image = one.page(IMAGE).unwrap_or(0);
    let carveout = g.ctx.board.carveouts().next().map_or(0, |c| c.start() / PAGE);
    for (what, pfn) in [("an exit record", record), ("another's code", image), ("the carve-out", carveout)] {
        g.expect(format_args!("{what} is given"), give(g, one, at, pfn), refused(Eperm));
        g.expect(format_args!("{what} is lent"), lend(g, plain, at, pfn), refused(Eperm));
    }
    g.expect("a pinned record is not unshared", g.hyp().unshare(record), refused(Errno::Ebusy));
    for (what, pfn) in [("a device", 0x900_0000 / PAGE), ("nothing", (1 << 36) - 1)] {
        g.expect(format_args!("{what} is given"), give(g, one, at, pfn), refused(Erange));
        g.expect(format_args!("{what} is lent"), lend(g, plain, at, pfn), refused(Erange));
    }
}

fn malformed(g: &Guests<'_>, one: &Vm<'_>, plain: &Vm<'_>) {
    let Some(pfn) = g.page() else { return };
    let hyp = g.hyp();
    for (call, handle) in [(HostFn::GuestDonate, one.handle), (HostFn::GuestShare, plain.handle)] {
        let try_with = |what: &str, gfn, pfn, order, prot, errno| {
            let got = hyp.attempt(call, &[handle, gfn, pfn, order, prot]);
            g.expect(format_args!("{} with {what}", call.name()), got, refused(errno));
        };
        for order in [1, 8, 10, 18, 64, u64::MAX] {
            try_with("a strange order", GFN, pfn, order, 7, Einval);
        }
        try_with("a block off its frame", GFN | 1, pfn & !0x1ff, 9, 7, Einval);
        try_with("a block off its page", GFN & !0x1ff, pfn | 1, 9, 7, Einval);
        try_with("unknown permissions", GFN, pfn, 0, 0x17, Einval);
        try_with("NO_TAG and nothing else", GFN, pfn, 0, 8, Einval);
        try_with("a frame beyond the IPA space", BEYOND / PAGE, pfn, 0, 7, Erange);
        for nowhere in [1 << 36, 1 << 52, u64::MAX >> 12, u64::MAX] {
            try_with("a page beyond memory", GFN, nowhere, 0, 7, Erange);
        }
    }
    for (base, top, errno) in [
        (SCRATCH + 1, SCRATCH + PAGE, Einval),
        (SCRATCH, SCRATCH + 1, Einval),
        (SCRATCH, SCRATCH, Einval),
        (SCRATCH + PAGE, SCRATCH, Einval),
        (SCRATCH, 1 << 48 | PAGE, Erange),
        (BEYOND, BEYOND + PAGE, Erange),
        (BEYOND - PAGE, BEYOND + PAGE, Erange),
    ] {
        let got = hyp.guest_reclaim(one.handle, base, top).map(drop);
        g.expect(format_args!("GUEST_RECLAIM of {base:#x}..{top:#x}"), got, refused(errno));
    }
    for (gfn, nr, errno) in [
        (GFN, 0, Einval),
        (u64::MAX, 2, Einval),
        (GFN, 1 << 52, E2big),
        (GFN, 513, E2big),
        (1 << 36, 1, Erange),
        (BEYOND / PAGE, 1, Erange),
        (RAM_END / PAGE, 1, Enoent),
    ] {
        let got = hyp.attempt(HostFn::GuestUnshare, &[plain.handle, gfn, nr]);
        g.expect(format_args!("GUEST_UNSHARE of {nr:#x} from {gfn:#x}"), got, refused(errno));
    }
    g.expect("the page is still the host's", g.ctx.load(pfn * PAGE), Ok(0x4057));
    g.drop_page(pfn);
}

/// A page may be lent to one plain VM several times, and is the host's alone after the last.
fn lent_twice(g: &Guests<'_>, plain: &Vm<'_>) {
    let Some(pfn) = g.page() else { return };
    let hyp = g.hyp();
    let unshare = |gfn| hyp.attempt(HostFn::GuestUnshare, &[plain.handle, gfn, 1]);
    g.expect("lent once", lend(g, plain, GFN + 4, pfn), Ok(()));
    g.expect("lent twice", lend(g, plain, GFN + 5, pfn), Ok(()));
    g.expect("write-protected", hyp.attempt(HostFn::GuestWrprotect, &[plain.handle, GFN + 4, 2]), Ok(()));
    g.expect("relaxed", hyp.attempt(HostFn::GuestRelax, &[plain.handle, GFN + 4, 2]), Ok(()));
    g.expect("aged", hyp.attempt(HostFn::GuestAge, &[plain.handle, GFN + 4, 2, 1]), Ok(()));
    g.expect("flushed", hyp.attempt(HostFn::GuestTlbFlush, &[plain.handle]), Ok(()));
    g.expect("back once", unshare(GFN + 4), Ok(()));
    g.expect("still lent", hyp.share(pfn), refused(Eperm));
    g.expect("back twice", unshare(GFN + 5), Ok(()));
    g.expect("back three times", unshare(GFN + 5), refused(Enoent));
    g.expect("the host's alone", [hyp.share(pfn), hyp.unshare(pfn)], [Ok(()), Ok(())]);
    g.drop_page(pfn);
}

/// Without table pages nothing moves; with them the same call works.
fn lack_of_tables(g: &Guests<'_>) {
    for protected in [false, true] {
        let spec = Spec { vcpus: 1, start: task(Payload::Idle, protected, 0) };
        let Some(vm) = g.ok("an empty VM", g.vmm.create_empty(&spec)) else { continue };
        let Some(pfn) = g.page() else { return };
        let attempt = || {
            if protected {
                g.hyp().guest_donate(vm.handle, GFN, pfn, 0)
            } else {
                g.hyp().guest_share(vm.handle, GFN, pfn, 0, RWX)
            }
        };
        // Of the 36 bits of IPA the root resolves the upper ones: two tables below it.
        let lacks = Err((CallError::Errno(Enomem), 2));
        g.expect("without a table page", attempt(), lacks);
        g.expect("nothing has moved", g.ctx.load(pfn * PAGE), Ok(0x4057));
        g.ok("one table page", vm.top_up(1));
        let too_few = attempt().map_err(|(e, lacks)| (e, lacks > 0));
        g.expect("with one too few", too_few, Err((CallError::Errno(Enomem), true)));
        g.expect("nothing has moved yet", g.ctx.load(pfn * PAGE), Ok(0x4057));
        g.ok("another table page", vm.top_up(1));
        g.ok("with enough", vm.put(SCRATCH, pfn));
        g.destroy("a VM that lacked tables", vm);
    }
}

/// A block of 2 MiB is given, taken in part, and given back in pieces.
fn blocks(g: &Guests<'_>) {
    let spec = Spec { vcpus: 1, start: task(Payload::Idle, true, 0) };
    let Some(vm) = g.ok("an empty VM", g.vmm.create_empty(&spec)) else { return };
    let Some(block) = g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK)) else { return };
    let (ipa, first) = (SCRATCH + BLOCK, block.start() / PAGE);
    for at in [0, BLOCK / 2, BLOCK - PAGE] {
        g.expect("the block is used", g.ctx.store(block.start() + at, 0x4057), Ok(()));
    }
    let ipa = ipa & !(BLOCK - 1);
    g.ok("a table page", vm.top_up(2));
    let given = g.hyp().guest_donate(vm.handle, ipa / PAGE, first, 9);
    g.expect("a block is given", given, Ok(()));
    for at in [0, BLOCK / 2, BLOCK - PAGE] {
        g.ctx.expect_refused("it is out of reach", Access::Load, block.start() + at);
    }
    // A part of it: the reserve page becomes the table of the rest, and the VM keeps a page for it.
    let chunk = g.hyp().guest_reclaim(vm.handle, ipa + PAGE, ipa + 3 * PAGE);
    let done = chunk.map(|c| c.done);
    g.expect("a part of it is taken", done, Ok(ipa + 3 * PAGE));
    let kept = chunk.ok().and_then(|c| c.retained);
    for pfn in [first + 1, first + 2].into_iter().filter(|pfn| Some(*pfn) != kept) {
        g.expect("as zeros", g.vmm.first_nonzero(pfn), Ok(None));
    }
    if let Some(pfn) = kept {
        g.ctx.expect_refused("the page that the VM kept", Access::Load, pfn * PAGE);
    }
    g.ctx.expect_refused("the rest is still out of reach", Access::Load, block.start());
    g.expect("teardown of a VM with a block", g.hyp().vm_teardown_start(vm.handle), Ok(()));
    let mut at = ipa;
    while at < ipa + BLOCK {
        match g.hyp().reclaim_dying(vm.handle, at, ipa + BLOCK) {
            Ok(chunk) if chunk.done > at => at = chunk.done,
            other => {
                g.ctx.report.fail("the rest of the block comes back", format_args!("{other:?}"));
                return;
            }
        }
    }
    // What the VM kept of the block comes with its last pages.
    let taken = (first..first + BLOCK / PAGE).filter(|pfn| Some(*pfn) != kept);
    let dirty = taken.clone().filter(|pfn| g.vmm.first_nonzero(*pfn) != Ok(None)).count();
    g.expect("pages of the block that are not zero", dirty, 0);
    taken.for_each(|pfn| g.drop_page(pfn));
    kept.into_iter().for_each(|pfn| vm.note_given(pfn));
    let gone = vm.destroy_started();
    g.ctx.report.check("the VM of a block: all of it comes back", gone.is_ok(), format_args!("{gone:?}"));
}
