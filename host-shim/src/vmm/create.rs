//! Making a VM: its pages, its vCPUs with their records, its image.
#![forbid(unsafe_code)]

use super::memory::Memory;
use super::pl011::Pl011;
use super::run::Vcpu;
use super::{Ledger, Spec, VcpuPages, Vm, Vmm, VmmError, of};
use crate::hvc::{CallError, NewVcpu, NewVm};
use crate::machine::words;
use crate::span::{PAGE, Span};
use abi::Errno;
use abi::vm::{GuestProt, NO_PAGE, VmFlags};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU32, AtomicU64};
use guest_shim::protocol::{IMAGE, IPA_BITS, Start, VmKind};
use spin::Mutex;

/// Table pages that a VM gets at once: levels 2 and 3 of its RAM, and one to spare.
const FIRST_TABLES: u64 = 4;

impl<'a> Vmm<'a> {
    /// Makes a VM with the guest's image at [`IMAGE`], ready to run.
    pub fn create(&'a self, spec: &Spec) -> Result<Vm<'a>, VmmError> {
        let vm = self.create_empty(spec)?;
        self.fill_and_finalise(&vm)?;
        Ok(vm)
    }

    /// Makes an empty VM one that can run.
    pub fn fill_and_finalise(&self, vm: &Vm<'_>) -> Result<(), VmmError> {
        vm.top_up(FIRST_TABLES)?;
        if vm.kind == VmKind::Realm {
            vm.init_ripas()?;
        }
        vm.load_image()?;
        self.hypervisor().vm_finalise(vm.handle).map_err(of("VM_FINALISE"))
    }

    /// Makes a VM in phase NEW with vCPUs and without memory.
    pub fn create_empty(&'a self, spec: &Spec) -> Result<Vm<'a>, VmmError> {
        let hyp = self.hypervisor();
        let kind = spec.start.kind;
        let mut given = Ledger::default();
        let mut give = || {
            let page = self.take_page()?;
            given.add(page);
            Ok::<u64, VmmError>(page)
        };
        let new = NewVm {
            flags: self.mte.flags()
                | match kind {
                    VmKind::Plain => VmFlags::empty(),
                    VmKind::Protected => VmFlags::PROTECTED,
                    VmKind::Realm => VmFlags::PROTECTED | VmFlags::SPLIT_IPA,
                },
            ipa_bits: IPA_BITS,
            vm_pfn: give()?,
            vm_nr: 1,
            root_pfn: give()?,
            root_nr: 1,
            reserve_pfn: if kind.is_protected() { give()? } else { NO_PAGE },
        };
        let handle = self.with_pool(|| hyp.vm_create(&new)).map_err(of("VM_CREATE"))?;
        let (mut vcpus, mut vcpu_pages) = (ArrayVec::new(), ArrayVec::new());
        for idx in 0..spec.vcpus {
            let (pfn, record) = (give()?, self.take_page()?);
            self.fill(record, 0)?;
            self.with_pool(|| hyp.share(record)).map_err(of("HOST_SHARE_HYP"))?;
            let (pc, x0) = if idx == 0 { (IMAGE, spec.start.to_reg()) } else { (0, 0) };
            let vcpu = NewVcpu { idx: idx.into(), pfn, nr: 1, record_pfn: record, pc, x0 };
            self.with_pool(|| hyp.vcpu_create(handle, &vcpu)).map_err(of("VCPU_CREATE"))?;
            let pages = VcpuPages { pfn, record: record * PAGE };
            let vcpu = Mutex::new(Vcpu::new(idx.into(), pages.record));
            let too_many = VmmError::Contract("too many vCPUs", idx.into());
            vcpus.try_push(vcpu).map_err(|_| too_many)?;
            vcpu_pages.try_push(pages).map_err(|_| too_many)?;
        }
        Ok(Vm {
            vmm: self,
            handle,
            kind,
            vcpus,
            vcpu_pages,
            sgis: Default::default(),
            starts: AtomicU32::new(0),
            memory: Mutex::new(Memory::new(self, kind)?),
            given: Mutex::new(given),
            uart: Mutex::new(Pl011::default()),
            stop: Mutex::new(None),
            ending: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            exits: core::array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    /// A VM with one vCPU that does `start`.
    pub fn create_one(&'a self, start: Start) -> Result<Vm<'a>, VmmError> {
        self.create(&Spec { vcpus: 1, start })
    }
}

impl Vm<'_> {
    /// Gives the VM `nr` table pages, as a chain.
    pub fn top_up(&self, nr: u64) -> Result<(), VmmError> {
        let mut head = NO_PAGE;
        for _ in 0..nr {
            let page = self.vmm.take_page()?;
            self.vmm.store(page * PAGE, head)?;
            self.note_given(page);
            head = page;
        }
        let hyp = self.vmm.hypervisor();
        let taken = self.vmm.with_pool(|| hyp.vm_topup(self.handle, head, nr)).map_err(of("VM_TOPUP"))?;
        if taken == nr { Ok(()) } else { Err(VmmError::Contract("VM_TOPUP took fewer pages", taken)) }
    }

    /// Makes a call that may lack table pages of the VM, or of the pool of host tables.
    pub fn with_tables<T>(
        &self,
        what: &'static str,
        call: impl Fn() -> Result<T, (CallError, u64)>,
    ) -> Result<T, VmmError> {
        for _ in 0..4 {
            match call() {
                Err((CallError::Errno(Errno::Enomem), 0)) => self.vmm.lend()?,
                Err((CallError::Errno(Errno::Enomem), lack)) => self.top_up(lack)?,
                result => return result.map_err(|(e, _)| VmmError::Call(what, e)),
            }
        }
        Err(VmmError::Contract("table pages are lacking for ever", self.handle))
    }

    /// Puts a copy of the guest's image where it starts.
    fn load_image(&self) -> Result<(), VmmError> {
        let image = self.vmm.image.ok_or(VmmError::NoImage)?;
        for at in (image.start()..image.end()).step_by(4096) {
            let left = Span::between(at, image.end()).map_or(0, Span::size);
            let pfn = self.vmm.take_page()?;
            for (n, to) in (0..).zip(words(pfn * PAGE)) {
                self.vmm.store(to, if 8 * n < left { self.vmm.load(at + 8 * n)? } else { 0 })?;
            }
            self.put(IMAGE + (at - image.start()), pfn)?;
        }
        Ok(())
    }

    /// Gives the VM, which is NEW, a page with what is in it.
    pub fn put(&self, ipa: u64, pfn: u64) -> Result<(), VmmError> {
        let (hyp, gfn) = (self.vmm.hypervisor(), ipa / PAGE);
        if self.kind.is_protected() {
            let measure = self.kind == VmKind::Realm;
            self.with_tables("VM_POPULATE", || hyp.vm_populate(self.handle, gfn, pfn, measure))?;
        } else {
            let prot = GuestProt::R | GuestProt::W | GuestProt::X;
            self.with_tables("GUEST_SHARE", || hyp.guest_share(self.handle, gfn, pfn, 0, prot))?;
        }
        self.memory.lock().set(ipa, Some(pfn))
    }
}
