//! Boot argument `faults`: every pass of every fault site fails once, whatever the scenario is.
//!
//! A call is made again and again, first with the first pass of any site armed, then with the second, until none fails
//! any more: what it answers then is what the undisturbed call answers, and the scenario, which sees nothing else, holds
//! it against its own checks. A turn of a vCPU cannot be made again: there the guest's call that fails ends the turn, and
//! the next turn arms the pass behind it.
//!
//! One CPU injects at a time; calls of others go through, and one during which a pass was armed is made again if it may
//! have met it. Where two are in calls at once a failure says nothing about whose it was: then only the scenario's own checks judge. No lock is
//! held while the hypervisor is called.
#![forbid(unsafe_code)]

use crate::inspect::{Census, Inspector};
use crate::machine::{Access, Imm, Machine, Regs};
use crate::report::Report;
use crate::span::PAGE;
use abi::fault::Site;
use abi::{Errno, FunctionId, HostFn};
use arrayvec::ArrayVec;
use core::fmt::Display;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use spin::Mutex;

/// More passes than a call has: a call that fails so often fails for ever.
const MOST_PASSES: u64 = 4096;
/// Times that a call which goes through is made at most, while passes are armed whenever it is.
const TRIES: usize = 1000;
/// Pages of a chain that VM_TOPUP takes at most.
const CHAIN: usize = 128;

/// What makes calls fail.
#[derive(Debug)]
pub struct Injection {
    on: AtomicBool,
    /// A CPU is injecting.
    busy: AtomicBool,
    /// CPUs that are in a call.
    inside: AtomicU64,
    /// Calls that were begun.
    begun: AtomicU64,
    /// Times that a pass was armed, and disarmed: odd while one is.
    armed: AtomicU64,
    /// Nobody may begin a call: there is an audit.
    auditing: AtomicBool,
    /// The pass of the next turn that is to fail.
    turn: AtomicU64,
    complaints: AtomicU64,
    /// Calls of each kind that are made between two audits.
    audits: u64,
    tally: Mutex<Tally>,
}

/// What failed so far.
#[derive(Debug)]
struct Tally {
    /// By site, then by call.
    failed: [[u32; HostFn::ALL.len()]; Site::ALL.len()],
    /// Calls with an audit, by call.
    audited: [u64; HostFn::ALL.len()],
}

/// A call that is being made, and its place among all calls.
#[derive(Clone, Copy, Debug)]
struct Call {
    function: HostFn,
    place: usize,
}

/// Who has which page, after so many calls had begun.
#[derive(Debug)]
struct Seen {
    census: Census,
    begun: u64,
}

/// True of calls that nothing can make fail: they only take away.
const fn never_fails(function: HostFn) -> bool {
    matches!(
        function,
        HostFn::HostUnshareHyp
            | HostFn::HypDonateHost
            | HostFn::GuestReclaim
            | HostFn::ReclaimDying
            | HostFn::GuestUnshare
            | HostFn::VmTeardownStart
            | HostFn::VmTeardownFinish
            | HostFn::VcpuPut
    )
}

/// True of calls that may do a part, or more than was asked for, and say how much.
const fn does_a_part(function: HostFn) -> bool {
    matches!(
        function,
        HostFn::VmTopup | HostFn::VmInitRipas | HostFn::RipasApply | HostFn::UnprotUnmap | HostFn::VcpuRun
    )
}

impl Injection {
    /// Injects nothing yet; `audits` calls of each kind are held between two audits.
    #[must_use]
    pub const fn new(audits: u64) -> Self {
        const NONE: [u32; HostFn::ALL.len()] = [0; HostFn::ALL.len()];
        Self {
            on: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            inside: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            armed: AtomicU64::new(0),
            auditing: AtomicBool::new(false),
            turn: AtomicU64::new(1),
            complaints: AtomicU64::new(0),
            audits,
            tally: Mutex::new(Tally { failed: [NONE; Site::ALL.len()], audited: [0; HostFn::ALL.len()] }),
        }
    }

    /// From here on calls fail.
    pub fn start(&self) {
        self.on.store(true, SeqCst);
    }

    /// From here on they do not: says what failed where, and fails the scenario if something was not as it should be.
    /// How often each site failed.
    pub fn stop(&self, report: &Report<'_>) -> [u64; Site::ALL.len()] {
        self.on.store(false, SeqCst);
        let tally = self.tally.lock();
        let mut sums = [0; Site::ALL.len()];
        for ((site, failed), sum) in Site::ALL.into_iter().zip(&tally.failed).zip(&mut sums) {
            for (function, nr) in HostFn::ALL.into_iter().zip(failed).filter(|(_, nr)| **nr > 0) {
                report.step(format_args!("made to fail: {} in {}: {nr}", site.name(), function.name()));
                *sum += u64::from(*nr);
            }
        }
        report.metric("made_to_fail", sums.iter().sum(), "passes");
        report.metric("audited_failures", tally.audited.iter().sum(), "calls");
        let complaints = self.complaints.load(SeqCst);
        report.check(
            "every pass that fails answers its errno, and nothing changes hands",
            complaints == 0,
            format_args!("{complaints} complaints, see above"),
        );
        sums
    }

    /// Makes the call in `regs`.
    pub(crate) fn call(&self, machine: &dyn Machine, regs: &Regs) -> Regs {
        let [id, ..] = *regs;
        let function = FunctionId::from_reg(id).and_then(|id| HostFn::try_from(id).ok());
        let place = function.and_then(|function| HostFn::ALL.iter().position(|f| *f == function));
        let call = function.zip(place).map(|(function, place)| Call { function, place });
        // The chain of a snapshot does not outlive a failure: scenario `faults` has calls of its own for that.
        let skipped = |call: &Call| matches!(call.function, HostFn::S2Snapshot | HostFn::S2SnapshotQuery);
        let Some(call) = call.filter(|call| self.on.load(SeqCst) && !skipped(call)) else {
            return machine.hvc(Imm::Zero, regs);
        };
        self.enter();
        let mine = self.busy.compare_exchange(false, true, SeqCst, SeqCst).is_ok();
        let after =
            if mine { self.inject(machine, call, regs) } else { self.go_through(machine, call, regs) };
        if mine {
            self.busy.store(false, SeqCst);
        }
        self.inside.fetch_sub(1, SeqCst);
        after
    }

    fn enter(&self) {
        loop {
            self.inside.fetch_add(1, SeqCst);
            if !self.auditing.load(SeqCst) {
                self.begun.fetch_add(1, SeqCst);
                return;
            }
            self.inside.fetch_sub(1, SeqCst);
            core::hint::spin_loop();
        }
    }

    fn inject(&self, machine: &dyn Machine, call: Call, regs: &Regs) -> Regs {
        let inspector = Inspector::under(machine);
        let chain = chain(machine, call.function, regs);
        let is_turn = call.function == HostFn::VcpuRun;
        let before = self.census(machine, inspector, call);
        let first = if is_turn { self.turn.load(SeqCst) } else { 1 };
        let mut regs = *regs;
        let mut done = 0;
        let (mut nth, mut last) = (first, [0; Site::ALL.len()]);
        for _ in 0..MOST_PASSES {
            let (begun, inside) = (self.begun.load(SeqCst), self.inside.load(SeqCst));
            let emptied = inspector.clear();
            self.armed.fetch_add(1, SeqCst);
            let armed = emptied.and_then(|()| inspector.arm_any(nth));
            let after = machine.hvc(Imm::Zero, &regs);
            let disarmed = inspector.arm_any(0);
            self.armed.fetch_add(1, SeqCst);
            let stats = inspector.stats_of_any();
            let seen = Site::ALL.map(|site| inspector.stats(site).unwrap_or_default());
            let failed = failed_site(&seen, Errno::from_reg(after[1]));
            let seen = seen.map(|[passes, _]| passes);
            let vanished: u64 =
                last.iter().zip(seen).map(|(was, is): (&u64, u64)| was.saturating_sub(is)).sum();
            last = seen;
            let (Ok(()), Ok([passes, _]), Ok(())) = (armed, stats, disarmed) else {
                self.complain(machine, call, "the hypervisor does not inject");
                return after;
            };
            if is_turn && (failed.is_some() || passes > 0) {
                self.turn.store(if failed.is_some() { nth + 1 } else { 1 }, SeqCst);
            }
            let Some(site) = failed else {
                return with_parts(after, done);
            };
            // Another CPU's call may have met the armed pass; then this one's answer is its own.
            let alone = inside == 1 && self.begun.load(SeqCst) == begun;
            let refused = matches!(Errno::from_reg(after[1]), Some(Err(errno)) if errno == site.errno());
            if !alone && !refused && (is_turn || !does_a_part(call.function)) {
                return with_parts(after, done);
            }
            self.note(call, site);
            if alone && never_fails(call.function) {
                self.complain(machine, call, format_args!("passes {}", site.name()));
            }
            match Errno::from_reg(after[1]) {
                Some(Err(errno)) if errno == site.errno() => {}
                Some(Ok(())) if is_turn => return after,
                Some(Ok(())) if does_a_part(call.function) => {
                    match rest(call.function, &regs, after[2], &chain) {
                        Some(next) => {
                            done += if call.function == HostFn::VmTopup { after[2] } else { 0 };
                            regs = next;
                        }
                        None => return after,
                    }
                }
                got => self.complain(machine, call, format_args!("{got:?} of {}", site.name())),
            }
            // Tables that were made stay: what passed a site for them does not pass it again.
            nth = nth.saturating_add(1).saturating_sub(vanished);
            if alone
                && done == 0
                && let Some(before) = &before
            {
                self.hold(machine, inspector, call, before);
            }
        }
        self.complain(machine, call, "fails for ever");
        machine.hvc(Imm::Zero, &regs)
    }

    /// Makes a call while another CPU injects.
    fn go_through(&self, machine: &dyn Machine, call: Call, regs: &Regs) -> Regs {
        let chain = chain(machine, call.function, regs);
        let (mut regs, mut done) = (*regs, 0);
        for _ in 1..TRIES {
            let before = self.armed.load(SeqCst);
            let after = machine.hvc(Imm::Zero, &regs);
            match Errno::from_reg(after[1]) {
                Some(Ok(())) if call.function == HostFn::VmTopup => {
                    let Some(next) = rest(call.function, &regs, after[2], &chain) else {
                        return with_parts(after, done);
                    };
                    done += after[2];
                    regs = next;
                }
                Some(Err(errno)) if may_be_injected(errno, [before, self.armed.load(SeqCst)]) => {}
                _ => return with_parts(after, done),
            }
        }
        with_parts(machine.hvc(Imm::Zero, &regs), done)
    }

    /// A census, if this call is one of those that are audited, and this CPU the only one in a call.
    fn census(&self, machine: &dyn Machine, inspector: Inspector<'_>, call: Call) -> Option<Seen> {
        let mut tally = self.tally.lock();
        // Of calls that never failed so far one in a while is looked at, to find the first that does.
        let fails = tally.failed.iter().any(|calls| calls.get(call.place).is_some_and(|nr| *nr > 0));
        let audited = tally.audited.get_mut(call.place)?;
        if call.function == HostFn::VcpuRun || *audited >= self.audits || !fails && *audited > 0 {
            return None;
        }
        *audited += 1;
        drop(tally);
        self.audit(machine, inspector, call)
    }

    fn audit(&self, machine: &dyn Machine, inspector: Inspector<'_>, call: Call) -> Option<Seen> {
        self.auditing.store(true, SeqCst);
        let alone = self.inside.load(SeqCst) == 1;
        let begun = self.begun.load(SeqCst);
        let census = alone.then(|| inspector.audit());
        self.auditing.store(false, SeqCst);
        match census? {
            Ok(census) => Some(Seen { census, begun }),
            Err(e) => {
                self.complain(machine, call, e);
                None
            }
        }
    }

    /// Nothing has changed hands since `before`, unless another CPU has made a call meanwhile.
    fn hold(&self, machine: &dyn Machine, inspector: Inspector<'_>, call: Call, before: &Seen) {
        if let Some(now) = self.audit(machine, inspector, call)
            && now.begun == before.begun
            && let Some(difference) = now.census.difference(&before.census)
        {
            self.complain(machine, call, difference);
        }
    }

    fn note(&self, call: Call, site: Site) {
        let mut tally = self.tally.lock();
        let calls = Site::ALL.iter().position(|s| *s == site).and_then(|n| tally.failed.get_mut(n));
        if let Some(nr) = calls.and_then(|calls| calls.get_mut(call.place)) {
            *nr += 1;
        }
    }

    fn complain(&self, machine: &dyn Machine, call: Call, what: impl Display) {
        self.complaints.fetch_add(1, SeqCst);
        machine.line(format_args!("@step complaint: {}: {what}", call.function.name()));
    }
}

/// The site that failed, of passes and failures of all: the one that answers so, if there are several. Another CPU's call may
/// count its failure late, when the next pass is armed.
fn failed_site(seen: &[[u64; 2]], answer: Option<Result<(), Errno>>) -> Option<Site> {
    let mut failed =
        Site::ALL.into_iter().zip(seen).filter(|(_, [_, failed])| *failed > 0).map(|(site, _)| site);
    let first = failed.clone().next();
    failed.find(|site| answer == Some(Err(site.errno()))).or(first)
}

/// True if a pass may have answered so that was armed during a call, with the times of arming and disarming before and after it.
fn may_be_injected(errno: Errno, [before, after]: [u64; 2]) -> bool {
    let armed = before != after || before % 2 == 1;
    armed && Site::ALL.iter().any(|site| site.errno() == errno)
}

/// The answer of a VM_TOPUP of which `done` pages were taken before: they count, also if the rest is refused.
const fn with_parts(mut after: Regs, done: u64) -> Regs {
    match after[1] {
        _ if done == 0 => {}
        0 => after[2] += done,
        _ => [after[1], after[2], after[3]] = [0, done, 0],
    }
    after
}

/// The pages of the chain that VM_TOPUP is about to take.
fn chain(machine: &dyn Machine, function: HostFn, regs: &Regs) -> ArrayVec<u64, CHAIN> {
    let [_, _, head, nr, ..] = *regs;
    let mut pages = ArrayVec::new();
    if function == HostFn::VmTopup && nr > 1 {
        let mut page = head;
        while pages.len() as u64 != nr && pages.try_push(page).is_ok() {
            let link = page.checked_mul(PAGE).map(|at| machine.probe(Access::Load, at, 0));
            let Some(Ok(next)) = link else { break };
            page = next;
        }
    }
    pages
}

/// The call that does what is left behind `done`, if anything is.
fn rest(function: HostFn, regs: &Regs, done: u64, chain: &[u64]) -> Option<Regs> {
    let mut next = *regs;
    match function {
        HostFn::VmTopup => {
            let left = regs[3].checked_sub(done).filter(|left| *left > 0)?;
            let start = usize::try_from((chain.len() as u64).checked_sub(left)?).ok()?;
            next[2] = *chain.get(start)?;
            next[3] = left;
        }
        HostFn::VmInitRipas if done < regs[3] => next[2] = done,
        HostFn::RipasApply if done < regs[4] => next[3] = done,
        _ => return None,
    }
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::{failed_site, may_be_injected};
    use abi::Errno;
    use abi::fault::Site;

    #[test]
    fn of_two_sites_that_failed_the_one_that_answers_so_is_meant() {
        let seen = |failed: &[Site]| Site::ALL.map(|site| [1, u64::from(failed.contains(&site))]);
        let both = seen(&[Site::DonateCheck, Site::HostPrepare]);
        let refused = |errno| Some(Err(errno));
        assert_eq!(failed_site(&both, refused(Errno::Enomem)), Some(Site::HostPrepare));
        assert_eq!(failed_site(&both, refused(Errno::Eperm)), Some(Site::DonateCheck));
        assert_eq!(failed_site(&seen(&[Site::HostPrepare]), Some(Ok(()))), Some(Site::HostPrepare));
        assert_eq!(failed_site(&seen(&[]), refused(Errno::Eperm)), None);
    }

    #[test]
    fn an_answer_is_a_calls_own_if_no_pass_was_armed_meanwhile() {
        for (times, armed) in [([2, 2], false), ([2, 3], true), ([3, 3], true), ([2, 4], true)] {
            assert_eq!(may_be_injected(Errno::Enomem, times), armed, "{times:?}");
            assert!(!may_be_injected(Errno::Einval, times), "{times:?}");
        }
    }
}
