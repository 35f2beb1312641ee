//! Making a VM: its pages, its vCPUs with their records, its image.
#![forbid(unsafe_code)]

use super::conduct::Honest;
use super::memory::Memory;
use super::meter::Meter;
use super::run::Vcpu;
use super::{Ledger, Shape, Spec, VcpuPages, Vm, Vmm, VmmError, of};
use crate::hvc::{CallError, NewVcpu, NewVm};
use crate::machine::words;
use crate::span::{BLOCK, PAGE, Span};
use ::vmm::{Devices, Gic, VcpuCount};
use abi::Errno;
use abi::vm::{GuestProt, NO_PAGE, ORDER_BLOCK, ORDER_PAGE, VmFlags};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU32, AtomicU64};
use guest_shim::protocol::{IMAGE, IPA_BITS, Start, VmKind};
use spin::Mutex;
use spin::mutex::SpinMutex;

/// Table pages that a VM gets at once: levels 2 and 3 of its RAM, and one to spare.
const FIRST_TABLES: u64 = 4;

impl<'a> Vmm<'a> {
    /// Makes a VM with the guest's image at [`IMAGE`], ready to run.
    pub fn create(&'a self, spec: &Spec) -> Result<Vm<'a>, VmmError> {
        let vm = self.create_empty(spec)?;
        self.fill_and_finalise(&vm)?;
        Ok(vm)
    }

    /// The same, which gets blocks where it can.
    pub fn create_in_blocks(&'a self, spec: &Spec) -> Result<Vm<'a>, VmmError> {
        let vm = self.create_shape(&Shape { in_blocks: true, ..spec.shape() })?;
        self.fill_and_finalise(&vm)?;
        Ok(vm)
    }

    /// Makes an empty VM one that can run.
    pub fn fill_and_finalise(&self, vm: &Vm<'_>) -> Result<(), VmmError> {
        self.fill_vm(vm)?;
        vm.finalise()
    }

    /// Gives an empty VM its memory.
    pub fn fill_vm(&self, vm: &Vm<'_>) -> Result<(), VmmError> {
        vm.top_up(FIRST_TABLES)?;
        if vm.kind == VmKind::Realm {
            vm.init_ripas()?;
        }
        vm.load_image()
    }

    /// Makes a VM in phase NEW with vCPUs and without memory.
    pub fn create_empty(&'a self, spec: &Spec) -> Result<Vm<'a>, VmmError> {
        self.create_shape(&spec.shape())
    }

    /// The same for a guest other than the guest shim.
    pub fn create_shape(&'a self, shape: &Shape) -> Result<Vm<'a>, VmmError> {
        let hyp = self.hypervisor();
        let kind = shape.kind;
        let wrong_number = VmmError::Contract("a VM cannot have so many vCPUs", shape.vcpus.into());
        let count = VcpuCount::new(shape.vcpus.into()).ok_or(wrong_number)?;
        let mut devices = Devices::new(count);
        if shape.virtio_console {
            devices = devices.with_console();
        }
        if shape.opened {
            devices.gic = Gic::opened(count);
        }
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
        for vcpu in count.all() {
            let idx = vcpu.get() as u64;
            let (pfn, record) = (give()?, self.take_page()?);
            self.fill(record, 0)?;
            self.with_pool(|| hyp.share(record)).map_err(of("HOST_SHARE_HYP"))?;
            let (pc, x0) = if idx == 0 { (shape.pc, shape.x0) } else { (0, 0) };
            let new = NewVcpu { idx, pfn, nr: 1, record_pfn: record, pc, x0 };
            self.with_pool(|| hyp.vcpu_create(handle, &new)).map_err(of("VCPU_CREATE"))?;
            let pages = VcpuPages { pfn, record: record * PAGE };
            vcpus.try_push(Mutex::new(Vcpu::new(vcpu, pages.record))).map_err(|_| wrong_number)?;
            vcpu_pages.try_push(pages).map_err(|_| wrong_number)?;
        }
        Ok(Vm {
            vmm: self,
            handle,
            kind,
            ram: shape.ram,
            in_blocks: shape.in_blocks,
            measured: shape.measured,
            vcpus,
            vcpu_pages,
            pinned: shape.pinned,
            listens: shape.listens,
            heard: Mutex::default(),
            count,
            homes: Default::default(),
            starts: AtomicU32::new(0),
            memory: Mutex::new(Memory::new(self, kind, shape.ram)?),
            given: Mutex::new(given),
            devices: SpinMutex::new(devices),
            console: Mutex::default(),
            port: Mutex::default(),
            stop: Mutex::new(None),
            ending: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            exits: core::array::from_fn(|_| AtomicU64::new(0)),
            conduct: &Honest,
            meter: Meter::default(),
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

    /// The VM, which is NEW, can run from here on.
    pub fn finalise(&self) -> Result<(), VmmError> {
        self.vmm.hypervisor().vm_finalise(self.handle).map_err(of("VM_FINALISE"))
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
            self.with_tables("VM_POPULATE", || hyp.vm_populate(self.handle, gfn, pfn, self.measured))?;
        } else {
            self.lend_pages(ipa, pfn, ORDER_PAGE)?;
        }
        self.memory.lock().set(ipa, Some(pfn))
    }

    /// Lends pages of the host to a VM that is not protected.
    pub(super) fn lend_pages(&self, ipa: u64, pfn: u64, order: u64) -> Result<(), VmmError> {
        let hyp = self.vmm.hypervisor();
        let prot = GuestProt::R | GuestProt::W | GuestProt::X;
        self.with_tables("GUEST_SHARE", || hyp.guest_share(self.handle, ipa / PAGE, pfn, order, prot))
    }

    /// Gives the VM, which is NEW, memory with these contents: each part is an address of the guest's and memory of
    /// the host's that is copied there. What of a page, or of a block where the VM has such, is in no part is zero.
    pub fn load_parts(&self, parts: &[(u64, Span)]) -> Result<(), VmmError> {
        let in_blocks = self.in_blocks && !self.kind.is_protected();
        let unit = if in_blocks { BLOCK } else { PAGE };
        let mut at = 0;
        let places = || parts.iter().filter_map(|(to, from)| Some((Span::new(*to, from.size())?, *from)));
        let next = |at: u64| places().filter(|(to, _)| to.end() > at).map(|(to, _)| to.start().max(at)).min();
        while let Some(start) = next(at) {
            let Some(room) = Span::new(start & !(unit - 1), unit) else { break };
            let pages = self.vmm.take(unit / PAGE, unit)?;
            self.vmm.machine.fill(pages, 0);
            for (to, from) in places() {
                let Some(part) = to.intersection(room) else { continue };
                let source = Span::new(from.start() + (part.start() - to.start()), part.size());
                if let Some(source) = source {
                    self.vmm.machine.copy(pages.start() + (part.start() - room.start()), source);
                }
            }
            if in_blocks {
                self.lend_pages(room.start(), pages.start() / PAGE, ORDER_BLOCK)?;
                self.remember_block(room, pages)?;
            } else {
                self.put(room.start(), pages.start() / PAGE)?;
            }
            at = room.end();
        }
        Ok(())
    }

    /// Notes what the guest has in a block.
    pub(super) fn remember_block(&self, place: Span, pages: Span) -> Result<(), VmmError> {
        let memory = self.memory.lock();
        place.pages().zip(pages.pages()).try_for_each(|(ipa, page)| memory.set(ipa, Some(page / PAGE)))
    }
}
