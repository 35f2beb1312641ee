//! MTE_UPGRADE made to fail at every step: part of scenario `faults`.
//!
//! Each attempt is on a block of its own, which the guest has without tags, and on a page for it out of memory that no
//! table was made for yet, so that all attempts pass the same steps.
#![forbid(unsafe_code)]

use super::custody::same_owners;
use super::faults::{Hits, hits};
use super::guest::{Guests, task};
use super::{Ctx, refused};
use crate::hvc::CallError;
use crate::inspect::Inspector;
use crate::span::{BLOCK, PAGE};
use crate::vmm::{Spec, Vm};
use abi::fault::Site;
use abi::vm::{MtePolicy, TagState};
use guest_shim::protocol::{IMAGE, Payload};

/// Makes an upgrade fail at every pass of every site; how often each was passed.
pub(super) fn exhaust(ctx: &Ctx<'_>, inspector: Inspector<'_>) -> Hits {
    let mut hits = [0; Site::ALL.len()];
    let g = Guests::open_with_tags(ctx, MtePolicy::Lazy, None);
    let spec = Spec { vcpus: 1, start: task(Payload::Idle, true, 0) };
    if let Some(vm) = g.ok("a VM with tags on demand", g.vmm.create_empty(&spec)) {
        g.ok("a table for blocks", vm.top_up(1));
        let mut upgrades = Upgrades { g: &g, inspector, vm: &vm, next: IMAGE };
        hits = upgrades.every_pass().unwrap_or(hits);
        g.ok("FI_CLEAR", inspector.clear());
        g.destroy("a VM whose upgrades failed", vm);
    }
    g.close();
    hits
}

/// A page of a block without tags, and the page that it is to move to.
#[derive(Clone, Copy)]
struct Attempt {
    ipa: u64,
    old: u64,
    new: u64,
}

struct Upgrades<'a, 'v> {
    g: &'a Guests<'a>,
    inspector: Inspector<'a>,
    vm: &'a Vm<'v>,
    /// Where the next block goes.
    next: u64,
}

impl Upgrades<'_, '_> {
    fn every_pass(&mut self) -> Option<Hits> {
        // Tables that cover more than a block are made with the first and stay.
        self.undisturbed()?;
        let hits = self.undisturbed()?;
        for (site, hits) in Site::ALL.into_iter().zip(hits) {
            for nth in 1..=hits {
                self.fail(site, nth)?;
            }
        }
        Some(hits)
    }

    /// Gives the guest a block without tags, and takes memory for the page that is to be upgraded.
    fn attempt(&mut self) -> Option<Attempt> {
        let (g, vm, ipa) = (self.g, self.vm, self.next);
        self.next += BLOCK;
        let old = g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK))?;
        let new = g.ok("a block", g.vmm.take(BLOCK / PAGE, BLOCK))?;
        g.ok("a table to split it", vm.top_up(1))?;
        g.ok("a block without tags", vm.donate_without_tags(ipa, old.start() / PAGE, 9))?;
        new.pages().skip(1).for_each(|page| g.drop_page(page / PAGE));
        Some(Attempt { ipa, old: old.start() / PAGE, new: new.start() / PAGE })
    }

    fn upgrade(&self, attempt: Attempt) -> Result<u64, CallError> {
        let Attempt { ipa, new, .. } = attempt;
        self.g.hyp().mte_upgrade(self.vm.handle, ipa / PAGE, new).map_err(|(e, _)| e)
    }

    /// The page has moved: the old one is free.
    fn settle(&self, attempt: Attempt) -> Option<()> {
        self.g.ok("the page is the guest's", self.vm.remember(attempt.ipa, attempt.new))?;
        self.g.drop_page(attempt.old);
        Some(())
    }

    fn undisturbed(&mut self) -> Option<Hits> {
        let attempt = self.attempt()?;
        self.g.ok("FI_CLEAR", self.inspector.clear())?;
        let upgraded = self.upgrade(attempt);
        let seen = hits(self.inspector);
        self.g.expect("an upgrade, undisturbed", upgraded, Ok(attempt.old));
        self.settle(attempt)?;
        Some(seen)
    }

    /// Makes the upgrade fail where it passes `site` for the `nth` time: the errno of the site, no page has another
    /// owner, the guest's page is without tags, and the next call succeeds.
    fn fail(&mut self, site: Site, nth: u64) -> Option<()> {
        let (g, what) = (self.g, format_args!("an upgrade: pass {nth} of {}", site.name()));
        let attempt = self.attempt()?;
        let tags = || g.hyp().vm_tag_info(self.vm.handle, attempt.ipa / PAGE);
        let (before, were) = (g.ok("audit", self.inspector.audit())?, tags());
        g.expect(
            format_args!("{what}: tags"),
            were.is_ok_and(|state| state != TagState::Tagged as u64),
            true,
        );
        g.ok("FI_CLEAR", self.inspector.clear())?;
        g.ok("FI_ARM", self.inspector.arm(site, nth))?;
        let got = self.upgrade(attempt).map(drop);
        g.expect(format_args!("{what} fails with the errno of the site"), got, refused(site.errno()));
        let fired = self.inspector.stats(site).map(|[_, fired]| fired);
        g.expect(format_args!("{what} failed once"), fired, Ok(1));
        let after = g.ok("audit", self.inspector.audit())?;
        same_owners(g.ctx, format_args!("{what} leaves every page where it was"), &before, &after);
        g.expect(format_args!("{what} leaves the guest's page as it was"), tags(), were);
        g.ok("FI_CLEAR", self.inspector.clear())?;
        g.expect(format_args!("{what}: the next call succeeds"), self.upgrade(attempt), Ok(attempt.old));
        self.settle(attempt)
    }
}
