//! Everything that crosses a privilege boundary of Rampart, and nothing else: function ids,
//! status codes, capability bits and, as features arrive, the records that a page carries.
//!
//! The hypervisor, the host shim, the guests, the tests and `docs/abi.md` all read this crate; a
//! number that appears in it appears nowhere else.
#![no_std]
#![forbid(unsafe_code)]

pub mod caps;
pub mod errno;
pub mod exit;
pub mod fault;
pub mod guest;
pub mod host;
pub mod inspect;
pub mod psci;
pub mod refusals;
pub mod rsi;
pub mod smccc;
pub mod snapshot;
pub mod vm;

pub use errno::Errno;
pub use exit::ExitRecord;
pub use host::HostFn;
pub use smccc::FunctionId;
