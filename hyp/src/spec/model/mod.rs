//! The executable specification of page ownership: what a call must answer and do, said a second
//! time and apart from the code that does it.
//!
//! - [`state`]: who may touch which page, as one value a page.
//! - [`hyp_calls`]: one function a call, from the state before to the answer and the state after.
//! - [`read`]: what the real tables and records amount to, or where they contradict each other.
//! - [`compare`]: the two side by side, readably.
//!
//! Nothing here calls `mem_protect` or `pgtable`. It is loose only where docs/testing.md says so:
//! which default mappings the host's table has, when a pool is dry, which lent page is in use.
#![forbid(unsafe_code)]

pub mod call;
pub mod compare;
pub mod flaw;
pub mod guest_calls;
pub mod hyp_calls;
pub mod live;
pub mod oracle;
pub mod range_map;
pub mod read;
mod snapshot;
pub mod state;
pub mod vm_calls;
mod words;

pub use call::{Answer, Call, Refusal};
pub use flaw::{Flaw, Place};
pub use oracle::{Complaint, Oracle};
pub use read::{Real, Root};
pub use state::{Hold, Kind, NO_TAG, Page, Phase, Slot, State, Vm};
