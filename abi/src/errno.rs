//! The errors a call answers with: x1 of a host call is 0 or the negative of one of these.

/// Why a call was refused. Each value has one meaning for all calls.
///
/// Numbers are Linux's, so that a host driver can pass them on unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i64)]
pub enum Errno {
    /// The page or IPA is not in the owner state the call needs (including "not yours").
    Eperm = 1,
    /// No such VM or vCPU, or nothing at that IPA.
    Enoent = 2,
    /// A corrupt table entry was found, or a fault was injected.
    Eio = 5,
    /// The request is larger than the per-call limit, or a block is mapped where a page is needed.
    E2big = 7,
    /// A bounded step was done; call again.
    Eagain = 11,
    /// Too few pages for tables; nothing changed.
    Enomem = 12,
    /// Policy forbids: the call does not fit the kind of VM.
    Eacces = 13,
    /// Wrong lifecycle state, pinned or in use, or another call of the same kind is in progress.
    Ebusy = 16,
    /// The IPA already has a page.
    Eexist = 17,
    /// The arguments are malformed; no state was looked at.
    Einval = 22,
    /// The page is outside physical memory, or the IPA outside the IPA space.
    Erange = 34,
    /// The call exists, this option of it does not in this build or on this hardware.
    Eopnotsupp = 95,
    /// The IPA is DESTROYED.
    Ehwpoison = 133,
}

impl Errno {
    /// Every errno, for tables and tests.
    pub const ALL: [Self; 13] = [
        Self::Eperm,
        Self::Enoent,
        Self::Eio,
        Self::E2big,
        Self::Eagain,
        Self::Enomem,
        Self::Eacces,
        Self::Ebusy,
        Self::Eexist,
        Self::Einval,
        Self::Erange,
        Self::Eopnotsupp,
        Self::Ehwpoison,
    ];

    /// The register value: the negative errno in two's complement.
    #[must_use]
    pub const fn to_reg(self) -> u64 {
        (self as i64).wrapping_neg().cast_unsigned()
    }

    /// Reads x1 of a reply: `Ok(())` for 0, the errno for its negative, `None` for anything else.
    #[must_use]
    pub fn from_reg(x1: u64) -> Option<Result<(), Self>> {
        if x1 == 0 {
            return Some(Ok(()));
        }
        Self::ALL.into_iter().find(|e| e.to_reg() == x1).map(Err)
    }
}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn every_errno_survives_the_register() {
        for e in Errno::ALL {
            assert_eq!(Errno::from_reg(e.to_reg()), Some(Err(e)));
        }
        assert_eq!(Errno::from_reg(0), Some(Ok(())));
        assert_eq!(Errno::from_reg(1), None);
        assert_eq!(Errno::from_reg(u64::MAX - 1000), None);
    }
}
