//! vCPUs by number.

/// vCPUs that a VM can have. Below 16, so that a vCPU's number is the lowest affinity level of its
/// MPIDR_EL1 and the others are 0.
pub const MAX_VCPUS: usize = 8;

/// How many vCPUs a VM has: 1 to [`MAX_VCPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// `n` vCPUs; `None` for no vCPU and for more than [`MAX_VCPUS`].
    #[must_use]
    pub fn new(n: usize) -> Option<Self> {
        (1..=MAX_VCPUS).contains(&n).then(|| u8::try_from(n).ok().map(Self))?
    }

    /// The number itself.
    #[must_use]
    pub fn get(self) -> usize {
        self.0.into()
    }

    /// The vCPU with this number, if the VM has it.
    #[must_use]
    pub fn vcpu(self, index: usize) -> Option<VcpuIndex> {
        u8::try_from(index).ok().filter(|index| *index < self.0).map(VcpuIndex)
    }

    /// Every vCPU, in order.
    pub fn all(self) -> impl DoubleEndedIterator<Item = VcpuIndex> {
        (0..self.0).map(VcpuIndex)
    }
}

/// The number of a vCPU, below [`MAX_VCPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VcpuIndex(u8);

impl VcpuIndex {
    /// The number itself.
    #[must_use]
    pub fn get(self) -> usize {
        self.0.into()
    }

    /// The same as affinity value, Aff0 of MPIDR_EL1.
    #[must_use]
    pub fn affinity(self) -> u32 {
        self.0.into()
    }
}

/// Some of the vCPUs of a VM, for instance those that have to be kicked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a vCPU that is not kicked sees the change late, or never if it sleeps"]
pub struct VcpuSet(u8);

impl VcpuSet {
    /// No vCPU.
    pub const NONE: Self = Self(0);

    /// One vCPU.
    pub const fn only(vcpu: VcpuIndex) -> Self {
        Self(1_u8.wrapping_shl(vcpu.0 as u32))
    }

    /// Those of either set.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if `vcpu` is one of them.
    #[must_use]
    pub const fn has(self, vcpu: VcpuIndex) -> bool {
        self.0 & Self::only(vcpu).0 != 0
    }

    /// True if there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<VcpuIndex> for VcpuSet {
    fn from_iter<T: IntoIterator<Item = VcpuIndex>>(vcpus: T) -> Self {
        vcpus.into_iter().fold(Self::NONE, |set, vcpu| set.and(Self::only(vcpu)))
    }
}

const _: () = assert!(MAX_VCPUS <= 8, "VcpuSet has a bit for each");

#[cfg(test)]
mod tests {
    use super::{MAX_VCPUS, VcpuCount, VcpuSet};

    #[test]
    fn a_vm_has_one_to_eight_vcpus_and_no_other() {
        assert!(VcpuCount::new(0).is_none() && VcpuCount::new(MAX_VCPUS + 1).is_none());
        let three = VcpuCount::new(3).unwrap();
        assert_eq!(three.all().map(|v| v.get()).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(three.vcpu(2).is_some() && three.vcpu(3).is_none() && three.vcpu(usize::MAX).is_none());
    }

    #[test]
    fn a_set_has_what_was_put_in() {
        let all = VcpuCount::new(MAX_VCPUS).unwrap();
        let odd: VcpuSet = all.all().filter(|v| v.get() % 2 == 1).collect();
        assert!(all.all().all(|v| odd.has(v) == (v.get() % 2 == 1)));
        assert!(!odd.is_empty() && VcpuSet::NONE.is_empty());
    }
}
