//! What a hostile host does to a realm: which exits it answers wrongly, and what it writes into shared pages.
#![forbid(unsafe_code)]

use super::Ctx;
use crate::hvc::CallError;
use crate::machine::Find;
use crate::random::Random;
use crate::span::{PAGE, Span};
use crate::vmm::{Conduct, Deed, Exit, Stop, Vm};
use abi::Errno;
use abi::exit::{Reason, Resp, WANT_EMPTY};
use core::sync::atomic::{AtomicU64, Ordering};
use spin::Mutex;

/// One way to treat a realm badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    /// Every RIPAS_CHANGE is answered REJECT.
    Reject,
    /// Those that are about sharing, which is no answer to them: nothing is done, and the guest asks again.
    RejectSharing,
    /// From one fault on, no fault is answered.
    Withhold,
    /// A RIPAS_CHANGE is answered DONE, and nothing was done.
    Idle,
    /// Wrong RIPAS_APPLYs, half of what was asked for, answers late and twice: what a guest gets over.
    Lie,
    /// Another CPU writes into all that the guest shares.
    Scribble,
}

/// Faults that are answered before [`Attack::Withhold`] begins.
const FAULTS: u64 = 4;
/// Times that a fault comes before [`Attack::Lie`] answers it, and for one of them.
const TIMES: u64 = 2;
const MANY_TIMES: u64 = 1000;
/// Pages of a request that [`Attack::Lie`] does at once.
const AT_ONCE: u64 = 16;
/// Refusals after which the host has seen enough.
const REFUSALS: u64 = 2000;
/// The same of the host's ticks, with no word from the guest between them; more where it talks now and then.
const SILENCE: u64 = 200;
const LONG_SILENCE: u64 = 600;

impl Attack {
    pub(super) const ALL: [Self; 6] =
        [Self::Reject, Self::RejectSharing, Self::Withhold, Self::Idle, Self::Lie, Self::Scribble];

    /// Its name as an argument, and what lines about it begin with.
    pub(super) const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Reject => ("reject", "reject: "),
            Self::RejectSharing => ("reject-sharing", "reject-sharing: "),
            Self::Withhold => ("withhold", "withhold: "),
            Self::Idle => ("idle", "idle: "),
            Self::Lie => ("lie", "lie: "),
            Self::Scribble => ("scribble", "scribble: "),
        }
    }

    /// What the guest's script is to do.
    pub(super) const fn run(self) -> &'static str {
        match self {
            Self::Scribble => "talk",
            _ => "checks",
        }
    }

    /// True if the guest may not notice.
    pub(super) fn harmless(self) -> bool {
        self == Self::Lie
    }

    /// True of a way in which the guest can end under this attack. [`Stop::Watcher`] is a guest that does not end, of
    /// which the host has seen enough.
    pub(super) fn allows(self, stop: Stop) -> bool {
        match self {
            Self::Reject | Self::RejectSharing | Self::Withhold | Self::Idle => stop == Stop::Watcher,
            Self::Lie => stop == Stop::Off,
            Self::Scribble => matches!(stop, Stop::Off | Stop::Reset | Stop::Watcher),
        }
    }
}

/// A host in the middle of an attack.
#[derive(Debug)]
pub(super) struct Attacker<'a> {
    ctx: &'a Ctx<'a>,
    attack: Attack,
    /// Exits of the realm's that were treated badly.
    blows: AtomicU64,
    /// Ticks since the guest last said something.
    silence: AtomicU64,
    /// MEM_FAULTs that were answered, and how often the one at hand came.
    faults: AtomicU64,
    times: AtomicU64,
    /// A request that is over.
    over: Mutex<Option<Exit>>,
    /// An answer that was given already.
    answer: AtomicU64,
}

impl<'a> Attacker<'a> {
    pub(super) fn new(ctx: &'a Ctx<'a>, attack: Attack) -> Self {
        Self {
            ctx,
            attack,
            blows: AtomicU64::new(0),
            silence: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            times: AtomicU64::new(0),
            over: Mutex::new(None),
            answer: AtomicU64::new(0),
        }
    }

    /// Exits that were treated badly so far.
    pub(super) fn blows(&self) -> u64 {
        self.blows.load(Ordering::Relaxed)
    }

    /// True if the guest gets nowhere: after the first blow it was refused [`REFUSALS`] times, or that many ticks
    /// ended its turns since it last said something on its UART. `says`: it does with this exit.
    pub(super) fn enough(&self, exit: &Exit, says: bool) -> bool {
        let blows = self.blows();
        if self.attack.harmless() || blows == 0 {
            return false;
        }
        if says {
            self.silence.store(0, Ordering::Relaxed);
        }
        let ticks = u64::from(exit.reason == Reason::Irq);
        let silence = self.silence.fetch_add(ticks, Ordering::Relaxed);
        match self.attack {
            Attack::Scribble => silence > LONG_SILENCE,
            _ => silence > SILENCE || blows > REFUSALS,
        }
    }

    fn blow(&self, deed: Deed) -> Deed {
        self.blows.fetch_add(1, Ordering::Relaxed);
        deed
    }

    fn withhold(&self, exit: &Exit) -> Deed {
        if exit.reason != Reason::MemFault || self.faults.fetch_add(1, Ordering::Relaxed) < FAULTS {
            return Deed::Serve;
        }
        self.blow(Deed::Say(Resp::Replay, 0))
    }

    /// Everything that a guest gets over.
    fn lie(&self, vm: &Vm<'_>, idx: u64, exit: &Exit) -> Deed {
        match exit.reason {
            // A store is not tried again, or the host would see each character of the console several times.
            Reason::Mmio if exit.write => Deed::Serve,
            Reason::MemFault | Reason::Mmio => {
                let faults = self.faults.load(Ordering::Relaxed);
                let patience = if faults == FAULTS { MANY_TIMES } else { TIMES };
                if self.times.fetch_add(1, Ordering::Relaxed) < patience {
                    let resp = if exit.reason == Reason::Mmio { Resp::Reject } else { Resp::Done };
                    return self.blow(Deed::Say(resp, exit.gpa));
                }
                self.times.store(0, Ordering::Relaxed);
                self.faults.fetch_add(1, Ordering::Relaxed);
                self.answer.store(exit.gpa, Ordering::Relaxed);
                Deed::Serve
            }
            Reason::RipasChange => {
                self.lie_about(vm, idx, exit);
                *self.over.lock() = Some(*exit);
                let pages = (exit.top - exit.base) / PAGE;
                if pages <= AT_ONCE {
                    return Deed::Serve;
                }
                self.blow(Deed::ServeAs(Exit { top: exit.base + pages / 2 * PAGE, ..*exit }))
            }
            Reason::Irq | Reason::Wfx | Reason::Sgi => {
                if let Some(over) = self.over.lock().take() {
                    self.refused(vm, "a RIPAS_APPLY that is over", idx, over.base, over.top, Errno::Eperm);
                }
                let old = self.answer.load(Ordering::Relaxed);
                let resp = match old >> 12 & 3 {
                    0 => Resp::Done,
                    1 => Resp::Map,
                    2 => Resp::Sea,
                    _ => Resp::Reject,
                };
                self.blow(Deed::ServeAndSay(resp, old))
            }
            _ => Deed::Serve,
        }
    }

    /// RIPAS_APPLYs that are none of what the guest asked for.
    fn lie_about(&self, vm: &Vm<'_>, idx: u64, exit: &Exit) {
        let Exit { base, top, .. } = *exit;
        for (what, idx, base, top, errno) in [
            ("a RIPAS_APPLY that goes too far", idx, base, top + PAGE, Errno::Eperm),
            ("a RIPAS_APPLY that begins too early", idx, base - PAGE, top, Errno::Eperm),
            ("a RIPAS_APPLY that leaves a page out", idx, base + PAGE, top + PAGE, Errno::Eperm),
            ("a RIPAS_APPLY for nobody", idx + 1, base, top, Errno::Enoent),
        ] {
            self.refused(vm, what, idx, base, top, errno);
        }
    }

    /// A RIPAS_APPLY that must be refused with `errno`; only one that is not is worth a line.
    fn refused(&self, vm: &Vm<'_>, what: &str, idx: u64, base: u64, top: u64, errno: Errno) {
        self.blows.fetch_add(1, Ordering::Relaxed);
        match self.ctx.hypervisor().ripas_apply(vm.handle, idx, base, top) {
            Err((CallError::Errno(e), _)) if e == errno => {}
            other => self.ctx.report.fail(what, format_args!("{other:?}, not {errno:?}")),
        }
    }

    /// Writes into what `vm` shares until it stops; how many words.
    pub(super) fn scribble(&self, vm: &Vm<'_>, seed: u64) -> u64 {
        let machine = self.ctx.machine;
        let mut random = Random::new(seed, machine.cpu());
        let mut words = 0;
        while vm.stopped().is_none() {
            let before = words;
            vm.each_shown_page(|pfn| words += self.scribble_on(pfn, &mut random));
            self.blows.fetch_add(u64::from(words != before), Ordering::Relaxed);
            // The guest is to get somewhere between two blows.
            if machine.wake_after(1 + random.below(machine.frequency() / 25)) {
                machine.wait();
            }
            machine.cancel_wake();
        }
        words
    }

    /// Writes into a page, mostly into one of which some is in use; how many words.
    fn scribble_on(&self, pfn: u64, random: &mut Random) -> u64 {
        let Some(page) = Span::new(pfn * PAGE, PAGE) else { return 0 };
        let empty = self.ctx.machine.find(page, Find::OtherThan(0)) == Ok(None);
        if random.below(if empty { 64 } else { 4 }) != 0 {
            return 0;
        }
        let (first, count) =
            if random.below(4) == 0 { (0, PAGE / 8) } else { (random.below(PAGE / 8 - 8), random.below(8)) };
        for word in first..first + count {
            // Lengths, flags and indices are small: rubbish that is next to right goes further than any other.
            let value = match random.below(4) {
                0 => 0,
                1 => u64::MAX,
                2 => random.next_word() & 0x001f_001f_001f_001f,
                _ => random.next_word(),
            };
            if let Err(fault) = self.ctx.store(pfn * PAGE + 8 * word, value) {
                self.ctx.report.fail("the host writes into what is shared", fault);
                return word - first;
            }
        }
        count
    }
}

impl Conduct for Attacker<'_> {
    fn deed(&self, vm: &Vm<'_>, idx: u64, exit: &Exit) -> Deed {
        let change = exit.reason == Reason::RipasChange;
        match self.attack {
            Attack::Reject if change => self.blow(Deed::Say(Resp::Reject, 0)),
            Attack::RejectSharing if change && exit.want == WANT_EMPTY => {
                self.blow(Deed::Say(Resp::Reject, 0))
            }
            Attack::Idle if change => self.blow(Deed::Say(Resp::Done, 0)),
            Attack::Withhold => self.withhold(exit),
            Attack::Lie => self.lie(vm, idx, exit),
            Attack::Reject | Attack::RejectSharing | Attack::Idle | Attack::Scribble => Deed::Serve,
        }
    }
}
