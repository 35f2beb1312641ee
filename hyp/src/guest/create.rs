//! Making VMs: VM_CREATE, VCPU_CREATE, VM_TOPUP and VM_FINALISE.
//!
//! Every page is a token until the last step that can fail is behind, so a refusal at any point
//! leaves all of them the host's.
#![forbid(unsafe_code)]

use super::context::{Extra, VcpuContext};
use super::psci::{Power, PowerTable};
use super::vcpu::{Vcpu, boots};
use super::vms::{Measured, Phase, Progress, VcpuBox, VcpuSlot, Vm, VmBox, Vms};
use crate::addr::{Ipa, PAGE_SIZE, Pfn, PfnRange};
use crate::error::Error;
use crate::fault::Site;
use crate::hw::{CpuFeatures, GuestMachine};
use crate::ipa_state::{Closing, Measurements};
use crate::mem_protect::{GuestConfig, GuestKind, Hypervisor};
use crate::mmio_guard::Guard;
use crate::pgtable::Geometry;
use abi::Errno;
use abi::vm::{MAX_VCPUS, MtePolicy, VCPU_PAGES, VM_PAGES, VmFlags};

/// Pages as a call names them: first frame and number, neither checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// First frame.
    pub pfn: u64,
    /// How many.
    pub nr: u64,
}

impl Named {
    /// The pages, of which `wanted` are needed.
    ///
    /// # Errors
    /// EINVAL: more than that, or the sum wraps. ERANGE: beyond physical memory.
    fn exactly(self, wanted: u64) -> Result<PfnRange, Error> {
        if self.nr != wanted {
            return Err(Errno::Einval.into());
        }
        Ok(PfnRange::new(self.pfn, self.nr)?)
    }

    /// How many are missing.
    fn lacks(self, wanted: u64) -> u32 {
        u32::try_from(wanted.saturating_sub(self.nr)).unwrap_or(u32::MAX)
    }
}

/// What VM_CREATE asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmRequest {
    /// Kind and options.
    pub flags: VmFlags,
    /// Bits of the IPA space.
    pub ipa_bits: u64,
    /// Pages for the VM's own record.
    pub vm: Named,
    /// Pages for the root of its table.
    pub root: Named,
    /// The page that splits blocks, for a protected VM.
    pub reserve: Option<Pfn>,
}

/// What VCPU_CREATE asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuRequest {
    /// Index.
    pub idx: u8,
    /// Pages for its registers.
    pub pages: Named,
    /// The host's page for its exit record.
    pub record: Pfn,
    /// Where vCPU 0 starts.
    pub pc: u64,
    /// X0 of vCPU 0.
    pub x0: u64,
}

/// Options that this build has.
const SUPPORTED: VmFlags = {
    let release =
        VmFlags::PROTECTED.union(VmFlags::SPLIT_IPA).union(VmFlags::SHA512).union(VmFlags::MTE_POLICY);
    if cfg!(feature = "debug-snapshot") { release.union(VmFlags::DEBUGGABLE) } else { release }
};

/// EOPNOTSUPP if CPUs with `features` cannot do what `policy` asks for.
fn check_mte(policy: MtePolicy, features: &CpuFeatures) -> Result<(), Errno> {
    let can = match policy {
        MtePolicy::Off => true,
        MtePolicy::Strict | MtePolicy::Lazy => features.mte >= 2,
        MtePolicy::LazyPrecise => features.mte >= 2 && features.mte_perm,
    };
    if can { Ok(()) } else { Err(Errno::Eopnotsupp) }
}

impl<M: GuestMachine> Vms<M> {
    /// VM_CREATE: a VM in phase NEW; returns its handle.
    ///
    /// # Errors
    /// In this order; nothing changed. EINVAL: SPLIT_IPA without PROTECTED, SHA512 without SPLIT_IPA; a reserve page for a
    /// VM that is not protected, or none for one that is. EOPNOTSUPP: this machine runs no guests,
    /// this build does not have an option, or its CPUs do not have what the MTE policy asks for. ERANGE: `ipa_bits` outside 32..=48 or beyond the
    /// CPU's. ENOMEM, x3 = how many: too few VM or root pages. EINVAL: too many, or the root is
    /// not aligned to its size. ERANGE: pages beyond physical memory. EBUSY: no VM is free.
    /// Of the VM pages, then the root, then the reserve: ERANGE no RAM, EPERM not the host's
    /// alone, ENOMEM no table page.
    pub fn vm_create(&self, hyp: &Hypervisor<M>, hw: &M, request: &VmRequest) -> Result<u16, Error> {
        let VmRequest { flags, ipa_bits, vm, root, reserve } = *request;
        let protected = flags.contains(VmFlags::PROTECTED);
        let of_a_realm = flags.intersects(VmFlags::SPLIT_IPA | VmFlags::SHA512);
        let lacks = VmFlags::PROTECTED | VmFlags::SPLIT_IPA;
        if of_a_realm && !flags.contains(lacks) || protected != reserve.is_some() {
            return Err(Errno::Einval.into());
        }
        self.config()?;
        if !SUPPORTED.contains(flags) {
            return Err(Errno::Eopnotsupp.into());
        }
        let mte = MtePolicy::of(flags);
        check_mte(mte, hw.features())?;
        let bits = u32::try_from(ipa_bits).map_err(|_| Errno::Erange)?;
        let geometry = Geometry::stage2(bits, hw.features().pa_bits.into()).map_err(|_| Errno::Erange)?;
        let root_pages = u64::from(geometry.root_pages());
        match vm.lacks(VM_PAGES).saturating_add(root.lacks(root_pages)) {
            0 => {}
            lacks => return Err(Error::NoTables(lacks)),
        }
        let (vm_pages, root_range) = (vm.exactly(VM_PAGES)?, root.exactly(root_pages)?);
        if root_range.start().raw() & root_pages.wrapping_sub(1) != 0 {
            return Err(Errno::Einval.into());
        }

        hyp.faults().hit(Site::VmName)?;
        let name = self.name(hw)?;
        let donate = |pages| {
            hyp.faults().hit(Site::VmCreateStep)?;
            hyp.host_donate_token(hw, pages)
        };
        let vm_pages = donate(vm_pages)?;
        let root = donate(root_range)?;
        let reserve = reserve.map(|page| donate(PfnRange::one(page))).transpose()?;
        let kind = match (protected, flags.contains(VmFlags::SPLIT_IPA)) {
            (true, true) => GuestKind::Split,
            (true, false) => GuestKind::Classic,
            (false, _) => GuestKind::NonProtected,
        };
        let config = GuestConfig { handle: name.handle(), kind, ipa_bits: bits, vmid: name.vmid(), mte };
        let guest = hyp.new_guest(hw, config, root, reserve)?;

        let stage2 = guest.lock(hw).context();
        let handle = name.handle();
        let slot = self.slot(name.keep()).ok_or(Errno::Eio)?;
        let pages = vm_pages.into_vm();
        let vm = Vm {
            handle,
            #[cfg(feature = "debug-snapshot")]
            debuggable: flags.contains(VmFlags::DEBUGGABLE),
            kind,
            mte,
            guard: Guard::of(kind),
            resetting: None,
            ipa_bits: bits,
            offset: hw.counter(),
            stage2,
            guest,
            measured: kind
                .is_split()
                .then(|| Measured { values: Measurements::new(flags, bits), closing: Closing::default() }),
            power: PowerTable::default(),
            vcpus: [const { VcpuSlot::Absent }; MAX_VCPUS],
            draining: Some(Ipa::truncated(0)),
        };
        const { assert!(size_of::<Vm<M>>() as u64 <= PAGE_SIZE * VM_PAGES, "a VM fits its pages") };
        let vm = hw.place(pages.pages(), vm);
        *slot.lock(hw) = Some(VmBox { vm, pages });
        slot.set_phase(Some(Phase::New));
        Ok(handle)
    }

    /// VCPU_CREATE: a vCPU of a VM in phase NEW. vCPU 0 is on, the others are off until their
    /// guest turns them on.
    ///
    /// # Errors
    /// In this order; nothing changed. EINVAL: no such index can be; `pc` is not aligned; `pc` or
    /// `x0` for a vCPU that starts off. ENOMEM, x3 = how many: too few pages. EINVAL: too many.
    /// ERANGE: beyond physical memory. ENOENT: no such VM. EBUSY: not NEW. EEXIST: the index is
    /// taken. ERANGE: `pc` beyond the IPA space. Of the pages: ERANGE no RAM, EPERM not the host's
    /// alone, ENOMEM no table page. Of the record: ERANGE no RAM, EPERM not shared with EL2, EBUSY,
    /// ENOMEM.
    pub fn vcpu_create(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        handle: u64,
        request: &VcpuRequest,
    ) -> Result<(), Error> {
        let VcpuRequest { idx, pages, record, pc, x0 } = *request;
        let boots = boots(idx);
        if usize::from(idx) >= MAX_VCPUS || pc & 3 != 0 || !boots && (pc, x0) != (0, 0) {
            return Err(Errno::Einval.into());
        }
        match pages.lacks(VCPU_PAGES) {
            0 => {}
            lacks => return Err(Error::NoTables(lacks)),
        }
        let pages = pages.exactly(VCPU_PAGES)?;
        self.with(hw, handle, |slot, _, vm| {
            slot.check_phase(&[Phase::New])?;
            let (ipa_bits, offset, kind, mte) = (vm.ipa_bits, vm.offset, vm.kind, vm.mte());
            let at = vm.vcpu_slot(idx)?;
            if !matches!(at, VcpuSlot::Absent) {
                return Err(Error::from(Errno::Eexist));
            }
            // It starts in memory that can be its own.
            if pc >> ipa_bits.saturating_sub(u32::from(kind.is_split())) != 0 {
                return Err(Errno::Erange.into());
            }
            hyp.faults().hit(Site::VcpuCreateStep)?;
            let pages = hyp.host_donate_token(hw, pages)?;
            hyp.faults().hit(Site::VcpuCreateStep)?;
            let record = hyp.hyp_pin(hw, record)?;

            let pages = pages.into_vm();
            let extra = if mte.has_mte() { Extra::TAGS } else { Extra::empty() };
            let ctx = VcpuContext { extra, ..VcpuContext::new(idx, pc, x0, offset) };
            let vcpu = Vcpu::new(idx, ctx, record, boots);
            const { assert!(size_of::<Vcpu>() as u64 <= PAGE_SIZE * VCPU_PAGES, "a vCPU fits its pages") };
            *at = VcpuSlot::Idle(VcpuBox { vcpu: hw.place(pages.pages(), vcpu), pages });
            vm.power.create(idx, if boots { Power::On } else { Power::Off });
            if let Some(measured) = &mut vm.measured {
                measured.values.vcpu(idx, pc, x0);
            }
            Ok(())
        })
    }

    /// VM_TOPUP: pages for the VM's tables, a chain from `head`. Returns how many were taken.
    ///
    /// # Errors
    /// ENOENT: no such VM. EBUSY: not NEW or ACTIVE. Then those of [`Hypervisor::topup`].
    pub fn vm_topup(
        &self,
        hyp: &Hypervisor<M>,
        hw: &M,
        handle: u64,
        head: Pfn,
        nr: u64,
    ) -> Result<u64, Error> {
        self.with(hw, handle, |slot, _, vm| {
            slot.check_phase(&[Phase::New, Phase::Active])?;
            hyp.topup(hw, &vm.guest, head, nr)
        })
    }

    /// VM_FINALISE: NEW to ACTIVE, by FINALISING while there is more to measure.
    ///
    /// # Errors
    /// ENOENT: no such VM. EBUSY: not NEW or FINALISING. EIO.
    pub fn vm_finalise(&self, hw: &M, handle: u64) -> Result<Progress, Error> {
        self.with(hw, handle, |slot, _, vm| {
            slot.check_phase(&[Phase::New, Phase::Finalising])?;
            let Vm { measured, guest, ipa_bits, .. } = vm;
            if let Some(Measured { values, closing }) = measured
                && let Some(next) = closing.step(hw, &guest.lock(hw), ipa_bits.saturating_sub(1), values)?
            {
                slot.set_phase(Some(Phase::Finalising));
                return Ok::<_, Error>(Progress::Again(next));
            }
            slot.set_phase(Some(Phase::Active));
            Ok(Progress::Done)
        })
    }
}
