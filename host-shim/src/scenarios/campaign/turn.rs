//! Turns of vCPUs: what the guest asks for is done, mostly, and said, mostly.
#![forbid(unsafe_code)]

use super::around::odd_word;
use super::caller::Caller;
use super::life;
use crate::random::Random;
use crate::span::PAGE;
use abi::exit::{ExitFlags, Reason, Resp, word};
use abi::vm::reg;
use abi::{Errno, HostFn};
use core::sync::atomic::Ordering::Relaxed;
use guest_shim::protocol::{IMAGE, RAM_END, SHARED, VmKind};

/// Turns of one step at most.
const TURNS: u64 = 6;

/// The words of a record that say why a vCPU stopped.
struct Exit {
    reason: Option<Reason>,
    flags: ExitFlags,
    gpa: u64,
    base: u64,
    top: u64,
    need: u64,
}

/// Loads a vCPU of some VM, lets it run a few times, and puts it.
pub(super) fn turns(c: &Caller<'_>, random: &mut Random) {
    let Some((_, slot, handle)) = c.world.some_vm(random) else { return life::advance(c, random) };
    let idx = random.below(8) / 7;
    let loaded = c.call(HostFn::VcpuLoad, &[handle, idx]);
    if loaded.verdict == Err(Errno::Ebusy) && random.below(4) > 0 {
        // Perhaps this CPU has one that a hostile call loaded.
        c.call(HostFn::VcpuPut, &[]);
    }
    let record = slot.records.get(usize::try_from(idx).unwrap_or(0)).map_or(0, |r| r.load(Relaxed)) * PAGE;
    if !loaded.is_ok() || record == 0 {
        return;
    }
    for _ in 0..1 + random.below(TURNS) {
        if random.below(4) == 0 {
            registers(c, random);
        }
        let lists = if random.below(24) == 0 { odd_word(random) } else { 0 };
        let _ = c.ctx.store(record + 8 * word::GIC as u64, lists);
        let ran = c.call(HostFn::VcpuRun, &[]);
        if !ran.is_ok() {
            break;
        }
        let Some(exit) = read(c, record) else { break };
        serve(c, random, (handle, idx, record), slot.kind(), &exit);
    }
    if random.below(16) > 0 {
        c.call(HostFn::VcpuPut, &[]);
    }
}

/// Reads or writes a register of the vCPU.
fn registers(c: &Caller<'_>, random: &mut Random) {
    let number = random.below(reg::END + 1);
    // What makes a guest spin in its vectors is left alone where every turn takes as long as that may.
    let spins = matches!(number, reg::PC | reg::PSTATE | 37..=41 | 46..=48);
    if random.below(2) == 0 || spins && c.logical {
        c.call(HostFn::VcpuGetReg, &[number]);
    } else {
        c.call(HostFn::VcpuSetReg, &[number, odd_word(random)]);
    }
}

fn read(c: &Caller<'_>, record: u64) -> Option<Exit> {
    let at = |word: usize| c.ctx.load(record + 8 * word as u64).ok();
    let reason = at(word::REASON)?;
    Some(Exit {
        reason: Reason::from_u32(u32::try_from(reason & 0xffff_ffff).unwrap_or(0)),
        flags: ExitFlags::from_bits_truncate(u32::try_from(reason >> 32).unwrap_or(0)),
        gpa: at(word::GPA)?,
        base: at(word::BASE)?,
        top: at(word::TOP)?,
        need: at(word::WANT)? >> 32,
    })
}

/// Does what the guest asked for, and answers; or answers anything.
fn serve(
    c: &Caller<'_>,
    random: &mut Random,
    (handle, idx, record): (u64, u64, u64),
    kind: VmKind,
    exit: &Exit,
) {
    let answer = |resp: u64, data: u64| {
        // The record may be anybody's by now.
        let _ = c.ctx.store(record + 8 * word::MMIO_DATA as u64, data);
        let _ = c.ctx.store(record + 8 * word::RESP as u64, resp);
    };
    if random.below(8) == 0 {
        return answer(random.below(6), c.world.tame(odd_word(random)));
    }
    let in_ram = (IMAGE..RAM_END).contains(&(exit.gpa & !SHARED));
    match exit.reason {
        Some(Reason::MemFault) => supply(c, random, handle, kind, exit, answer),
        Some(Reason::Mmio) if in_ram => supply(c, random, handle, kind, exit, answer),
        Some(Reason::RipasChange) => {
            let top = if random.below(3) == 0 {
                exit.base.wrapping_add(random.below(600) * PAGE)
            } else {
                exit.top
            };
            let applied = c.call(HostFn::RipasApply, &[handle, idx, exit.base, top]);
            if let Some(lack) = applied.lack().filter(|lack| *lack > 0) {
                life::top_up(c, random, handle, lack);
            }
            answer(random.of(&[Resp::Done, Resp::Done, Resp::Reject]).unwrap_or(Resp::Done) as u64, 0);
        }
        Some(Reason::NeedMem) => drop(life::top_up(c, random, handle, exit.need)),
        Some(Reason::Mmio | Reason::Psci | Reason::HostCall) => {
            answer(
                random.of(&[Resp::Done, Resp::Done, Resp::Sea]).unwrap_or(Resp::Done) as u64,
                odd_word(random),
            );
        }
        _ => answer(Resp::Replay as u64, 0),
    }
}

/// Gives the guest the page that it wants, by a call or with the answer.
fn supply(
    c: &Caller<'_>,
    random: &mut Random,
    handle: u64,
    kind: VmKind,
    exit: &Exit,
    answer: impl Fn(u64, u64),
) {
    let (gfn, pfn) = (exit.gpa / PAGE, c.world.free(random));
    if exit.flags.contains(ExitFlags::TAG_ACCESS) {
        c.call(HostFn::MteUpgrade, &[handle, gfn, pfn]);
        return;
    }
    if random.below(2) == 0 {
        return answer(Resp::Map as u64, pfn);
    }
    let given = match kind {
        VmKind::Plain => c.call(HostFn::GuestShare, &[handle, gfn, pfn, 0, 7]),
        VmKind::Realm if exit.gpa & SHARED != 0 => c.call(HostFn::UnprotMap, &[handle, gfn, pfn, 0, 1]),
        VmKind::Protected | VmKind::Realm => c.call(HostFn::GuestDonate, &[handle, gfn, pfn, 0, 7]),
    };
    match given.lack() {
        Some(0) => life::lend(c, random),
        Some(lack) => drop(life::top_up(c, random, handle, lack)),
        None if given.verdict == Err(Errno::Eexist) => {
            c.call(HostFn::GuestRelax, &[handle, gfn, 7]);
        }
        None => {}
    }
}
