//! Values that live in donated pages: a VM's record, a vCPU's registers.

use super::machine::El2;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use hyp::addr::PfnRange;
use hyp::hw::Placement;

/// The one owner of a value in hyp-owned pages.
///
/// Invariant: the pages are in EL2's linear map and hold a `T` that nobody else knows of.
#[derive(Debug)]
pub(crate) struct Placed<T>(NonNull<T>);

// SAFETY: the only way to the value is this owner, so it may go where a `T` may.
unsafe impl<T: Send> Send for Placed<T> {}

impl<T> Deref for Placed<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the type's invariant.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Placed<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the type's invariant, and `self` is borrowed for as long.
        unsafe { self.0.as_mut() }
    }
}

impl Placement for El2 {
    type Placed<T: Send> = Placed<T>;

    fn place<T: Send>(&self, pages: PfnRange, value: T) -> Placed<T> {
        #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits at EL2")]
        let at = core::ptr::with_exposed_provenance_mut::<T>(pages.start().base().raw() as usize);
        // SAFETY: page 0 is no RAM, so the address is not null.
        let at = unsafe { NonNull::new_unchecked(at) };
        // SAFETY: the caller's promise (`Placement::place`): the pages are mapped, page-aligned,
        // large enough and nobody else's.
        unsafe { at.write(value) };
        Placed(at)
    }

    fn displace<T: Send>(&self, placed: Placed<T>) -> T {
        // SAFETY: the type's invariant; the owner is gone when this returns.
        unsafe { placed.0.read() }
    }
}
