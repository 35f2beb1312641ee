//! The judge of a running machine: every call of every CPU, and the tables whenever no call is
//! under way.
//!
//! Calls that overlap in time may take effect in any order that keeps one that ended before
//! another began ahead of it. When the last of them has ended, some such order must explain every
//! answer and lead to what the tables say: then the calls were atomic. One CPU alone is the case
//! of one call and one order.
//!
//! Lock: its own, taken while no other is held; the tables' locks are taken inside it.
#![forbid(unsafe_code)]

use super::call::{Answer, Call, Refusal};
use super::compare::Difference;
use super::flaw::Flaw;
use super::state::State;
use abi::Errno;
use arrayvec::ArrayVec;
use core::fmt;
use spin::RelaxStrategy;
use spin::mutex::TicketMutex;

/// Most calls between two moments without a call: one more waits until the others have ended.
pub const MAX_OVERLAP: usize = 6;

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "made once, when something is wrong, and passed by reference")]
pub enum Complaint {
    /// The tables contradict each other.
    Flaw(Flaw),
    /// A call answered what it may not.
    Refusal(Refusal),
    /// A call left something else than it should.
    Difference(Call, Difference),
    /// No order of calls that overlapped explains what came of them.
    NoOrder(ArrayVec<(Call, Answer), MAX_OVERLAP>),
    /// The specification has no room for this many runs of pages.
    Full,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flaw(flaw) => write!(f, "{flaw}"),
            Self::Refusal(refusal) => write!(f, "{refusal}"),
            Self::Difference(call, difference) => write!(f, "after {call:x?}: {difference}"),
            Self::NoOrder(calls) => {
                write!(f, "no order explains these calls:")?;
                calls.iter().try_for_each(|(call, answer)| write!(f, " {call:x?} = {answer:x?};"))
            }
            Self::Full => write!(f, "the specification is out of room"),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Record {
    call: Call,
    began: u32,
    /// When, and what it answered.
    ended: Option<(u32, Answer)>,
}

impl Record {
    /// True if a snapshot was under way at some moment of this call. Its pages are not the host's
    /// meanwhile, and which they are the state leaves out.
    fn meets_a_snapshot(&self, batch: &[Self]) -> bool {
        let ended = |record: &Self| record.ended.map_or(u32::MAX, |(ended, _)| ended);
        batch.iter().any(|other| {
            matches!(other.call, Call::S2Snapshot { .. })
                && other.began < ended(self)
                && self.began < ended(other)
                && other.began != self.began
        })
    }
}

/// A call that has begun.
#[derive(Debug)]
#[must_use = "a call that begins must end"]
pub struct Ticket(usize);

#[derive(Debug)]
struct Inner<const N: usize> {
    /// The first is what the tables said when no call was under way; then one for each call.
    states: [State<N>; MAX_OVERLAP + 1],
    real: State<N>,
    batch: ArrayVec<Record, MAX_OVERLAP>,
    clock: u32,
    /// Operations under way that are not judged.
    aside: u32,
    /// One of them ended since the first of `states` was read.
    stale: bool,
}

/// The judge; `R` is what a CPU does while it waits for a lock.
pub struct Oracle<R, const N: usize> {
    inner: TicketMutex<Inner<N>, R>,
    report: fn(&Complaint),
}

impl<R, const N: usize> fmt::Debug for Oracle<R, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oracle").finish_non_exhaustive()
    }
}

impl<R: RelaxStrategy, const N: usize> Oracle<R, N> {
    /// A judge who knows nothing; [`Oracle::look`] comes first. `report` hears of everything that
    /// is wrong: the image panics, and so does a test.
    #[must_use]
    pub const fn new(report: fn(&Complaint)) -> Self {
        Self {
            report,
            inner: TicketMutex::new(Inner {
                states: [const { State::empty() }; MAX_OVERLAP + 1],
                real: State::empty(),
                batch: ArrayVec::new_const(),
                clock: 0,
                aside: 0,
                stale: false,
            }),
        }
    }

    /// Takes what `read` says for the state to start from. No call is under way.
    pub fn look(&self, read: impl FnOnce(&mut State<N>) -> Result<(), Flaw>) {
        let mut inner = self.inner.lock();
        let [known, ..] = &mut inner.states;
        if let Err(flaw) = read(known) {
            (self.report)(&Complaint::Flaw(flaw));
        }
    }

    /// A copy of what is known; of use while no call is under way.
    pub fn copy_to(&self, state: &mut State<N>) {
        let inner = self.inner.lock();
        let [known, ..] = &inner.states;
        state.clone_from(known);
    }

    /// A CPU is about to make `call`. If something was done aside since `read` last read the tables,
    /// and nothing is under way, they must make sense, and what they say is taken for right.
    pub fn begin(&self, call: Call, read: impl Fn(&mut State<N>) -> Result<(), Flaw>) -> Ticket {
        loop {
            {
                let mut inner = self.inner.lock();
                if inner.stale && inner.aside == 0 && inner.batch.is_empty() {
                    inner.stale = false;
                    let [known, ..] = &mut inner.states;
                    if let Err(flaw) = read(known) {
                        (self.report)(&Complaint::Flaw(flaw));
                    }
                }
                let began = inner.tick();
                if inner.batch.try_push(Record { call, began, ended: None }).is_ok() {
                    return Ticket(inner.batch.len().saturating_sub(1));
                }
            }
            R::relax();
        }
    }

    /// The call was answered. If no other is under way, `read` reads the tables and all calls
    /// since the last such moment are judged. What the tables say is taken for right then, so that
    /// the next call is judged by itself.
    pub fn end(&self, ticket: Ticket, answer: Answer, read: impl FnOnce(&mut State<N>) -> Result<(), Flaw>) {
        let mut inner = self.inner.lock();
        let now = inner.tick();
        if let Some(record) = inner.batch.get_mut(ticket.0) {
            record.ended = Some((now, answer));
        }
        if inner.batch.iter().any(|record| record.ended.is_none()) {
            return;
        }
        // What is under way beside the calls may have changed anything, and is half done.
        if inner.aside != 0 {
            inner.batch.clear();
            return;
        }
        let stale = core::mem::take(&mut inner.stale);
        match read(&mut inner.real) {
            Ok(()) if stale => {}
            Ok(()) => inner.judge(self.report),
            Err(flaw) => (self.report)(&Complaint::Flaw(flaw)),
        }
        inner.batch.clear();
        let Inner { states: [known, ..], real, .. } = &mut *inner;
        known.clone_from(real);
    }

    /// Does `f`, of which the specification says nothing or not when it takes effect: a VM is made,
    /// a guest runs. Calls that overlap with it are not judged. It costs little: a guest has many
    /// short turns, and the tables are read again only for the next call that is judged.
    pub fn aside<T>(&self, f: impl FnOnce() -> T) -> T {
        self.count_aside(1);
        let result = f();
        self.count_aside(-1);
        result
    }

    fn count_aside(&self, change: i32) {
        let mut inner = self.inner.lock();
        inner.aside = inner.aside.saturating_add_signed(change);
        inner.stale = true;
    }
}

impl<const N: usize> Inner<N> {
    fn tick(&mut self) -> u32 {
        self.clock = self.clock.wrapping_add(1);
        self.clock
    }

    fn judge(&mut self, report: fn(&Complaint)) {
        let Self { states, real, batch, .. } = self;
        if explained(states, real, batch, 0) {
            return;
        }
        if states.iter().any(State::is_full) {
            return report(&Complaint::Full);
        }
        let [before, after, ..] = states;
        let &[Record { call, ended: Some((_, answer)), .. }] = batch.as_slice() else {
            let calls = batch.iter().filter_map(|record| Some((record.call, record.ended?.1)));
            return report(&Complaint::NoOrder(calls.collect()));
        };
        let Some(call) = call.readings(answer).next() else { return };
        if let Err(refusal) = before.accept(call, answer, after) {
            report(&Complaint::Refusal(refusal));
        } else if let Some(difference) = after.differences(real).next() {
            report(&Complaint::Difference(call, difference));
        }
    }
}

/// True if the calls of `batch` that are not in `done` can be ordered so that the first of
/// `states` becomes `real`. As deep as there are calls.
fn explained<const N: usize>(states: &mut [State<N>], real: &State<N>, batch: &[Record], done: u8) -> bool {
    let left = |index: usize| done >> index & 1 == 0;
    let open = || batch.iter().enumerate().filter(|&(index, _)| left(index));
    let [before, rest @ ..] = states else { return false };
    if open().next().is_none() {
        return before == real;
    }
    for (index, record) in open() {
        let Some((_, answer)) = record.ended else { return false };
        let overtakes = open().any(|(_, other)| other.ended.is_some_and(|(end, _)| end < record.began));
        if overtakes {
            continue;
        }
        for call in record.call.readings(answer) {
            let Some(after) = rest.first_mut() else { return false };
            if before.accept(call, answer, after).is_ok() && explained(rest, real, batch, done | 1 << index) {
                return true;
            }
        }
        if answer == Err(Errno::Eperm) && record.meets_a_snapshot(batch) {
            let Some(after) = rest.first_mut() else { return false };
            after.clone_from(before);
            if explained(rest, real, batch, done | 1 << index) {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::flaw::{Flaw, Place};
    use super::super::state::{Page, State};
    use super::{Call, Oracle};
    use abi::Errno::{Ebusy, Eperm};
    use core::cell::RefCell;
    use std::string::{String, ToString};
    use std::vec::Vec;

    std::thread_local! {
        static HEARD: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    const SHARE: Call = Call::HostShareHyp { pfn: 4 };
    const UNSHARE: Call = Call::HostUnshareHyp { pfn: 4 };
    const LEND: Call = Call::HostDonateHyp { pfn: 4, nr: 1 };

    type Judge = Oracle<spin::Spin, 8>;

    fn judge() -> Judge {
        let oracle = Judge::new(|complaint| HEARD.with_borrow_mut(|heard| heard.push(complaint.to_string())));
        oracle.look(|state| {
            *state = State::new([(0, 8)]);
            Ok(())
        });
        oracle
    }

    fn known(_: &mut State<8>) -> Result<(), Flaw> {
        unreachable!("nothing was done aside")
    }

    fn page_4_is(page: Page) -> impl Fn(&mut State<8>) -> Result<(), Flaw> {
        move |state| {
            *state = State::new([(0, 8)]);
            state.pages.set(4, 5, page);
            Ok(())
        }
    }

    fn heard() -> Vec<String> {
        HEARD.take()
    }

    const SHARED: Page = Page::SharedWithHyp { pins: 0 };

    #[test]
    fn calls_that_overlap_may_take_effect_in_any_order() {
        let oracle = judge();
        let (lend, share) = (oracle.begin(LEND, known), oracle.begin(SHARE, known));
        oracle.end(lend, Err(Eperm), |_| unreachable!("a call is under way"));
        oracle.end(share, Ok([0; 2]), page_4_is(SHARED));
        assert!(heard().is_empty());
    }

    #[test]
    fn a_call_that_ended_before_another_began_took_effect_before_it() {
        let oracle = judge();
        let third = oracle.begin(Call::HostShareHyp { pfn: 5 }, known);
        let first = oracle.begin(LEND, known);
        oracle.end(first, Err(Eperm), |_| unreachable!("a call is under way"));
        let second = oracle.begin(SHARE, known);
        oracle.end(second, Ok([0; 2]), |_| unreachable!("a call is under way"));
        oracle.end(third, Err(Ebusy), page_4_is(SHARED));
        let said = heard();
        assert!(said[0].starts_with("no order explains these calls"), "{said:?}");
    }

    #[test]
    fn a_call_beside_a_snapshot_may_find_a_page_of_its_taken() {
        let oracle = judge();
        let snapshot = Call::S2Snapshot { target: 0, pfn: 5, flags: 0, tables: 0 };
        let (long, share) = (oracle.begin(snapshot, known), oracle.begin(SHARE, known));
        oracle.end(share, Err(Eperm), |_| unreachable!("a call is under way"));
        oracle.end(long, Ok([3, 0]), page_4_is(Page::Host));
        assert!(heard().is_empty());
        // Not one that began after the snapshot had ended.
        let (long, lend) = (oracle.begin(snapshot, known), oracle.begin(LEND, known));
        oracle.end(long, Ok([3, 0]), |_| unreachable!("a call is under way"));
        let share = oracle.begin(SHARE, known);
        oracle.end(lend, Err(Eperm), |_| unreachable!("a call is under way"));
        oracle.end(share, Err(Eperm), page_4_is(Page::Host));
        assert_eq!(heard().len(), 1);
    }

    #[test]
    fn what_is_done_aside_is_taken_for_right_and_only_calls_beside_it_are_not_judged() {
        let oracle = judge();
        oracle.aside(|| ());
        oracle.end(oracle.begin(UNSHARE, page_4_is(SHARED)), Ok([0; 2]), page_4_is(Page::Host));
        let ticket = oracle.begin(SHARE, known);
        oracle.aside(|| ());
        oracle.end(ticket, Ok([0; 2]), page_4_is(Page::Lent));
        oracle.aside(|| {
            let ticket = oracle.begin(SHARE, |_| unreachable!("half done"));
            oracle.end(ticket, Ok([0; 2]), |_| unreachable!("half done"));
        });
        assert!(heard().is_empty());
        oracle.end(oracle.begin(SHARE, page_4_is(Page::Host)), Ok([0; 2]), page_4_is(Page::Lent));
        assert_eq!(heard().len(), 1, "judged again");
        oracle.aside(|| ());
        let _ = oracle.begin(SHARE, |_| Err(Flaw { place: Place::Page(4), what: "two owners" }));
        assert_eq!(heard().len(), 1);
    }

    #[test]
    fn one_call_alone_is_told_exactly() {
        let oracle = judge();
        oracle.end(oracle.begin(SHARE, known), Err(Ebusy), page_4_is(Page::Host));
        oracle.end(oracle.begin(SHARE, known), Ok([0; 2]), page_4_is(Page::Lent));
        // What the tables said is taken for right.
        oracle.end(oracle.begin(UNSHARE, known), Err(Eperm), page_4_is(Page::Lent));
        assert_eq!(
            heard(),
            [
                "HostShareHyp { pfn: 4 }: specification answers Ok(0), the machine Err(Ebusy)",
                "after HostShareHyp { pfn: 4 }: page 0x4: \
                 specification says shared with EL2, 0 pins, the machine says lent to EL2",
            ]
        );
    }
}
