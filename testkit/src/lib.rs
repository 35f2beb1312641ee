//! The simulated machine that the hypervisor's core is tested on.
//!
//! QEMU forgives a missing TLB invalidation, a broken break-before-make and a forgotten barrier;
//! this machine does not. It has
//! - memory by page number, with data and instruction caches whose stale lines can be seen
//!   ([`memory`]);
//! - a TLB for each CPU that keeps everything the architecture lets it keep, stores that table
//!   walkers see late, and TLB maintenance that takes effect late ([`mmu`]);
//! - CPUs that implement [`hyp::hw::Machine`], under the checker of [`hyp::spec`], and that a
//!   test also drives as a hostile guest ([`machine`]);
//! - guest CPUs that run small programs through stage 2 ([`guest`]);
//! - a walker written from the architecture, that shares no line with `hyp::pgtable` ([`walk`]);
//! - the hypervisor's core started on it, with a host whose accesses fault as they would
//!   ([`world`]); the same with every call judged by the specification ([`judged`]), a walker
//!   through everything that can happen in a small one ([`explore`], [`scope`]), and random calls
//!   without end ([`campaign`]).
//!
//! On top of it stands what the table engine is tested with: a pool of pages that can fail
//! ([`pool`]), a model of an address space without tables ([`model`]), operations as data
//! ([`action`]), and the harness that does them and looks at everything after each ([`engine`]).
//!
//! Nothing is global: a test builds as many machines as it wants.
#![forbid(unsafe_code)]

pub mod action;
pub mod campaign;
pub mod done;
pub mod engine;
pub mod explore;
pub mod features;
pub mod guest;
pub mod judged;
pub mod machine;
pub mod memory;
pub mod mmu;
pub mod model;
pub mod pool;
pub mod scope;
pub mod script;
pub mod subject;
pub mod vms;
pub mod walk;
pub mod world;

pub use done::Done;
pub use engine::Engine;
pub use judged::Judged;
pub use machine::{Cpu, Op, Record, Sim, SimCpu, SimWatch};
pub use mmu::{Access, Reach, Via};
pub use pool::TestPool;
pub use vms::{TestVm, VmSetup, Vms};
pub use world::{Setup, World};
