//! The specification beside a running hypervisor: every host call of every CPU goes through
//! [`judged`], on the simulated machine and at EL2.
#![forbid(unsafe_code)]

use super::call::{Answer, Call};
use super::flaw::Flaw;
use super::oracle::Oracle;
use super::read::{Real, Root, read};
use super::state::{State, Vm};
use crate::hcall::HostRegs;
use crate::hw::{Machine, PhysMem};
use crate::mem_protect::Hypervisor;
use crate::pgtable::{Regime, Table};
use abi::Errno;
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

/// Answers the host call in `regs` by `serve`, and lets `oracle` judge it; `read` reads the tables.
pub fn judged<R: RelaxStrategy, const N: usize>(
    oracle: &Oracle<R, N>,
    regs: &mut HostRegs,
    serve: impl FnOnce(&mut HostRegs),
    read: impl FnOnce(&mut State<N>) -> Result<(), Flaw>,
) {
    let Some(call) = Call::of_host(regs.as_slice()) else { return serve(regs) };
    let ticket = oracle.begin(call);
    serve(regs);
    oracle.end(ticket, answer(regs), read);
}
