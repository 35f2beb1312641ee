//! The one place where a host does other things than its guest needs: what it makes of each exit.
#![forbid(unsafe_code)]

use super::{Exit, Vm};
use abi::exit::Resp;
use core::fmt::Debug;

/// What is done about an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// What an honest host does.
    Serve,
    /// The same, as if this exit had come.
    ServeAs(Exit),
    /// What an honest host does; where that says nothing, the record says this.
    ServeAndSay(Resp, u64),
    /// Nothing, and the record says this; whoever else waits for the CPU is first.
    Say(Resp, u64),
}

/// How a host treats a VM.
pub trait Conduct: Debug + Sync {
    /// What it does about `exit` of vCPU `idx`, which is loaded on this CPU; called once for each, before it is served.
    fn deed(&self, vm: &Vm<'_>, idx: u64, exit: &Exit) -> Deed;
}

/// A host that does what its guests need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Honest;

impl Conduct for Honest {
    fn deed(&self, _: &Vm<'_>, _: u64, _: &Exit) -> Deed {
        Deed::Serve
    }
}
