//! The specification beside a running hypervisor: every host call of every CPU goes through
//! [`judged`], on the simulated machine and at EL2.
#![forbid(unsafe_code)]

use super::call::{Answer, Call, HostRequest};
use super::flaw::Flaw;
use super::oracle::Oracle;
use super::read::{Real, Root, read};
use super::state::{Kind, MAX_VMS, Phase, State, Vm};
use crate::guest::{self, Vms};
use crate::hcall::HostRegs;
use crate::hw::{GuestMachine, Machine, PhysMem};
use crate::mem_protect::{GuestKind, Hypervisor};
use crate::pgtable::{Regime, Table};
use abi::Errno;
use arrayvec::ArrayVec;
use spin::RelaxStrategy;

impl Root {
    /// Where `table` starts.
    #[must_use]
    pub const fn of<R: Regime>(table: &Table<R>) -> Self {
        let geometry = table.geometry();
        Self { page: table.root(), pages: geometry.root_pages(), level: geometry.start().number() }
    }
}

/// Reads the tables and records of `hyp` under their locks, words through `memory`: the machine
/// itself, or what is below a traced one.
///
/// # Errors
/// The first contradiction.
pub fn read_hypervisor<M, P, G, const N: usize>(
    hyp: &Hypervisor<M>,
    hw: &M,
    memory: &P,
    guests: G,
    state: &mut State<N>,
) -> Result<(), Flaw>
where
    M: Machine,
    P: PhysMem,
    G: Iterator<Item = (Vm, Root)> + Clone,
{
    let host = hyp.host(hw);
    let own = hyp.hyp(hw);
    let real = Real {
        hw: memory,
        vmemmap: hyp.vmemmap(),
        host: Root::of(host.table()),
        hyp: Root::of(own.table()),
        guests,
    };
    read(&real, state)
}

/// What the registers of a reply say.
fn answer(regs: &HostRegs) -> Answer {
    let [_, x1, x2, x3, ..] = *regs;
    match Errno::from_reg(x1) {
        Some(Ok(())) => Ok([x2, x3]),
        Some(Err(errno)) => Err(errno),
        // No errno of ours: an answer that no call gives.
        None => Ok([u64::MAX; 2]),
    }
}

/// Answers the host call in `regs` by `serve`, on a machine that runs `guests` or does not, and lets
/// `oracle` judge it; `read` reads the tables.
pub fn judged<R: RelaxStrategy, const N: usize>(
    oracle: &Oracle<R, N>,
    guests: bool,
    regs: &mut HostRegs,
    serve: impl FnOnce(&mut HostRegs),
    read: impl Fn(&mut State<N>) -> Result<(), Flaw>,
) {
    match Call::of_host(regs.as_slice(), guests) {
        HostRequest::Nothing => serve(regs),
        HostRequest::Other => oracle.aside(|| serve(regs)),
        HostRequest::Call(call) => {
            let ticket = oracle.begin(call, &read);
            serve(regs);
            oracle.end(ticket, answer(regs), read);
        }
    }
}

/// Every VM, as the specification sees it: at most [`MAX_VMS`].
pub fn vms<M: GuestMachine>(vms: &Vms<M>, hw: &M) -> ArrayVec<(Vm, Root), MAX_VMS> {
    let mut all = ArrayVec::new();
    vms.for_each(hw, |phase, guest| {
        let vm = Vm {
            handle: guest.handle(),
            kind: match guest.kind() {
                GuestKind::NonProtected => Kind::NonProtected,
                GuestKind::Classic => Kind::Classic,
                GuestKind::Split => Kind::Split,
            },
            ipa_bits: u8::try_from(guest.table().geometry().ia_bits()).unwrap_or(u8::MAX),
            phase: match phase {
                guest::Phase::New => Phase::New,
                guest::Phase::Active => Phase::Active,
                guest::Phase::Finalising => Phase::Finalising,
                guest::Phase::Dying => Phase::Dying,
                guest::Phase::Dead | guest::Phase::Stopped => Phase::Dead,
            },
            mte: guest.mte(),
            pending: !guest.table().format().maps_no_tag(),
        };
        // One more than there is room for owns pages that nobody is known to have: a flaw.
        let _ = all.try_push((vm, Root::of(guest.table())));
    });
    all
}
