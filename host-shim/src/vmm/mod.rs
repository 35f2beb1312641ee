//! A small virtual machine monitor: makes VMs that run the guest shim, serves their exits, takes
//! them apart and sees that every page comes back.
//!
//! It trusts the hypervisor no more than the hypercall client does: a field of an exit record that
//! its reason does not define must be 0, pages of a protected VM must come back as zeros, and the
//! pages that FINISH returns must be those that were given.
#![forbid(unsafe_code)]

mod conduct;
mod console;
mod create;
mod exit;
mod memory;
mod meter;
mod realm;
mod run;
mod tags;
mod teardown;
mod virtio;

pub use conduct::{Conduct, Deed};
pub use console::Console;
pub use exit::Exit;
pub use run::{Stop, Watch, nobody, serve};

use crate::hvc::{CallError, Hypervisor};
use crate::machine::{Access, Fault, Find, Machine};
use crate::span::{PAGE, Pages, Span};
use ::vmm::{Devices, VcpuCount};
use abi::Errno;
use abi::exit::Reason;
use abi::vm::MtePolicy;
use arrayvec::ArrayVec;
use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use guest_shim::protocol::{IMAGE, MAILBOX, MAX_CPUS, RAM_END, Start, VmKind};
use memory::Memory;
use meter::Meter;
pub(crate) use meter::Moment;
use run::Vcpu;
use spin::Mutex;
use spin::mutex::SpinMutex;

/// Why a VM could not be made, run or ended as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmmError {
    /// A call that had to succeed did not.
    Call(&'static str, CallError),
    /// The host has no page left.
    NoMemory,
    /// The host may not touch a page that should be its own.
    Access(Fault),
    /// Something is not as docs/abi.md says.
    Contract(&'static str, u64),
    /// The loader gave the host no guest image.
    NoImage,
}

impl fmt::Display for VmmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(what, e) => write!(f, "{what}: {e}"),
            Self::NoMemory => f.write_str("no page left"),
            Self::Access(fault) => write!(f, "a page of the host: {fault}"),
            Self::Contract(what, value) => write!(f, "{what}: {value:#x}"),
            Self::NoImage => f.write_str("no initial RAM disk with the guest's image"),
        }
    }
}

impl From<Fault> for VmmError {
    fn from(fault: Fault) -> Self {
        Self::Access(fault)
    }
}

/// Names the call that a [`CallError`] came from.
const fn of(what: &'static str) -> impl Fn(CallError) -> VmmError {
    move |e| VmmError::Call(what, e)
}

/// A page as a span.
fn page_of(pfn: u64) -> Result<Span, VmmError> {
    Span::new(pfn * PAGE, PAGE).ok_or(VmmError::Contract("a page that is none", pfn))
}

/// The host's side of all VMs.
#[derive(Debug)]
pub struct Vmm<'a> {
    machine: &'a dyn Machine,
    hypervisor: Hypervisor<'a>,
    pages: &'a Mutex<Pages>,
    image: Option<Span>,
    /// Pages lent to the hypervisor's pool of host tables.
    lent: Mutex<ArrayVec<Span, 16>>,
    /// What its VMs may do with memory tags.
    mte: MtePolicy,
    /// Memory without tags, which is not in `pages`.
    untagged: Option<Span>,
}

impl<'a> Vmm<'a> {
    /// A monitor on `machine` that calls `hypervisor` and takes memory from `pages`; `image` is the guest's.
    #[must_use]
    pub const fn new(
        machine: &'a dyn Machine,
        hypervisor: Hypervisor<'a>,
        pages: &'a Mutex<Pages>,
        image: Option<Span>,
    ) -> Self {
        let lent = Mutex::new(ArrayVec::new_const());
        Self { machine, hypervisor, pages, image, lent, mte: MtePolicy::Off, untagged: None }
    }

    /// The same with another image.
    #[must_use]
    pub fn with_image(self, image: Span) -> Self {
        Self { image: Some(image), ..self }
    }

    /// The same for VMs with MTE as `policy` says; `untagged` is memory without tags, from which the
    /// caller gives pages.
    #[must_use]
    pub fn with_tags(self, policy: MtePolicy, untagged: Option<Span>) -> Self {
        Self { mte: policy, untagged, ..self }
    }

    const fn hypervisor(&self) -> Hypervisor<'a> {
        self.hypervisor
    }

    /// Takes `nr` pages at a multiple of `align` bytes.
    pub fn take(&self, nr: u64, align: u64) -> Result<Span, VmmError> {
        self.pages.lock().take(nr * PAGE, align).ok_or(VmmError::NoMemory)
    }

    /// Takes one page; its frame number.
    pub fn take_page(&self) -> Result<u64, VmmError> {
        self.take(1, PAGE).map(|page| page.start() / PAGE)
    }

    /// Gives a page back to the host's free memory; one without tags stays its owner's.
    pub fn free_page(&self, pfn: u64) -> Result<(), VmmError> {
        if self.untagged.is_some_and(|span| span.contains(pfn * PAGE)) {
            return Ok(());
        }
        self.give_back(page_of(pfn)?)
    }

    /// Gives whole pages, none of them without tags, back to the host's free memory.
    pub fn give_back(&self, pages: Span) -> Result<(), VmmError> {
        self.pages.lock().give(pages).map_err(|_| VmmError::NoMemory)
    }

    /// A word of the host's memory.
    pub fn load(&self, address: u64) -> Result<u64, VmmError> {
        Ok(self.machine.probe(Access::Load, address, 0)?)
    }

    /// Sets a word of the host's memory.
    pub fn store(&self, address: u64, value: u64) -> Result<(), VmmError> {
        self.machine.probe(Access::Store, address, value).map(drop).map_err(VmmError::Access)
    }

    /// Fills a page of the host.
    pub fn fill(&self, pfn: u64, value: u64) -> Result<(), VmmError> {
        self.machine.fill(page_of(pfn)?, value);
        Ok(())
    }

    /// The first word of a page that is not 0, if any.
    pub fn first_nonzero(&self, pfn: u64) -> Result<Option<u64>, VmmError> {
        let page = page_of(pfn)?;
        Ok(self.machine.find(page, Find::OtherThan(0))?)
    }

    /// Makes a call that may lack pages of the pool of host tables, and lends some if it does.
    pub fn with_pool<T>(&self, call: impl Fn() -> Result<T, CallError>) -> Result<T, CallError> {
        match call() {
            Err(CallError::Errno(Errno::Enomem)) if self.lend().is_ok() => call(),
            other => other,
        }
    }

    fn lend(&self) -> Result<(), VmmError> {
        const NR: u64 = 16;
        let pages = self.take(NR, PAGE)?;
        self.hypervisor().lend(pages.start() / PAGE, NR).map_err(of("HOST_DONATE_HYP"))?;
        self.lent.lock().try_push(pages).map_err(|_| VmmError::NoMemory)
    }

    /// Pages that were lent to the hypervisor and stay so.
    #[must_use]
    pub fn lent(&self) -> u64 {
        self.lent.lock().iter().map(|s| s.size() / PAGE).sum()
    }
}

/// A VM that runs the guest shim.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// vCPUs, at most [`MAX_CPUS`].
    pub vcpus: u8,
    /// What vCPU 0 is told to do; says what kind of VM it is.
    pub start: Start,
}

impl Spec {
    fn shape(&self) -> Shape {
        Shape {
            kind: self.start.kind,
            vcpus: self.vcpus,
            ram: GUEST_RAM,
            pc: IMAGE,
            x0: self.start.to_reg(),
            in_blocks: false,
            opened: true,
            pinned: false,
            listens: false,
            virtio_console: false,
            measured: self.start.kind == VmKind::Realm,
        }
    }
}

/// The RAM of the guest shim.
const GUEST_RAM: Span = match Span::between(IMAGE, RAM_END) {
    Some(ram) => ram,
    None => panic!("the guest shim has no RAM"),
};

/// What a VM is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its kind.
    pub kind: VmKind,
    /// vCPUs, at most [`MAX_CPUS`].
    pub vcpus: u8,
    /// Where it has RAM: whole pages.
    pub ram: Span,
    /// First instruction of vCPU 0.
    pub pc: u64,
    /// What vCPU 0 finds in x0.
    pub x0: u64,
    /// Give the guest blocks of 2 MiB where they fit, rather than pages.
    pub in_blocks: bool,
    /// All of its interrupts are enabled from the start: the guest sets up no interrupt controller.
    pub opened: bool,
    /// Each vCPU stays on a CPU of its own, if there are as many.
    pub pinned: bool,
    /// What arrives at the host's console goes to the guest's UART.
    pub listens: bool,
    /// It has a virtio console, for which it shares memory; not a protected VM without a shared half.
    pub virtio_console: bool,
    /// The contents of its first pages count for its measurement; of a realm only.
    pub measured: bool,
}

/// A set of pages that is told apart from others by three sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ledger {
    count: u64,
    sum: u64,
    xor: u64,
}

impl Ledger {
    fn add(&mut self, pfn: u64) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(pfn);
        self.xor ^= pfn.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// What a vCPU is kept in and what it reports in.
#[derive(Clone, Copy, Debug)]
struct VcpuPages {
    /// The page that the hypervisor keeps it in.
    pfn: u64,
    /// Address of its exit record.
    record: u64,
}

/// A VM.
#[derive(Debug)]
pub struct Vm<'a> {
    vmm: &'a Vmm<'a>,
    /// Its handle.
    pub handle: u64,
    /// Its kind.
    pub kind: VmKind,
    ram: Span,
    in_blocks: bool,
    measured: bool,
    vcpus: ArrayVec<Mutex<Vcpu>, MAX_CPUS>,
    vcpu_pages: ArrayVec<VcpuPages, MAX_CPUS>,
    pinned: bool,
    count: VcpuCount,
    /// For each vCPU 1 more than the CPU that runs it and no other does; 0 if any may.
    homes: [AtomicUsize; MAX_CPUS],
    /// vCPUs that have been asked to start, a bit each.
    starts: AtomicU32,
    /// Locked behind a vCPU. Not a ticket lock, which every exit of each vCPU takes: where CPUs are threads of an
    /// emulator, one that waits without running would hold up all behind it.
    devices: SpinMutex<Devices>,
    memory: Mutex<Memory<'a>>,
    /// Pages that FINISH must return.
    given: Mutex<Ledger>,
    console: Mutex<Console>,
    listens: bool,
    /// A character for which the guest's UART has no room yet.
    heard: Mutex<Option<u8>>,
    /// Locked before the devices.
    port: Mutex<virtio::Port>,
    stop: Mutex<Option<Stop>>,
    /// Counter ticks that calls have taken which take the VM apart.
    ending: AtomicU64,
    /// TAG_ACCESS exits that are answered by running the vCPU again.
    ignored: AtomicU64,
    exits: [AtomicU64; Reason::ALL.len()],
    conduct: &'a dyn Conduct,
    meter: Meter,
}

impl<'a> Vm<'a> {
    /// The same VM, treated like that.
    #[must_use]
    pub fn treated(self, conduct: &'a dyn Conduct) -> Self {
        Self { conduct, ..self }
    }
}

impl Vm<'_> {
    /// The page that the guest has at `ipa`, its own or the host's.
    #[must_use]
    pub fn page(&self, ipa: u64) -> Option<u64> {
        self.memory.lock().get(ipa)
    }

    /// The host has taken the guest's page at `ipa` away: it is no more the VM's to give back.
    pub fn forget(&self, ipa: u64) -> Result<(), VmmError> {
        self.memory.lock().set(ipa, None)
    }

    /// The host has given the guest a page at `ipa` by a call of its own.
    pub fn remember(&self, ipa: u64, pfn: u64) -> Result<(), VmmError> {
        self.memory.lock().set(ipa, Some(pfn))
    }

    /// Sets a word of the exit record of vCPU `idx`.
    pub fn write_record(&self, idx: usize, word: usize, value: u64) -> Result<(), VmmError> {
        let record = self.record(idx).ok_or(VmmError::Contract("no such vCPU", 0))?;
        self.vmm.store(record + 8 * word as u64, value)
    }

    /// The VM has been given a page that FINISH must return.
    pub fn note_given(&self, pfn: u64) {
        self.given.lock().add(pfn);
    }

    /// A word of the guest's mailbox, or why the host cannot see it.
    pub fn mail(&self, word: u64) -> Result<u64, VmmError> {
        self.vmm.load(self.mailbox(word)?)
    }

    /// Sets a word of the guest's mailbox.
    pub fn write_mail(&self, word: u64, value: u64) -> Result<(), VmmError> {
        self.vmm.store(self.mailbox(word)?, value)
    }

    /// Where the host has a word of the guest's mailbox.
    fn mailbox(&self, word: u64) -> Result<u64, VmmError> {
        let page = self.page(MAILBOX + self.kind.shared());
        Ok(page.ok_or(VmmError::Contract("the guest has no mailbox", word))? * PAGE + 8 * word)
    }

    /// What the guest's last whole line on its UART was.
    pub fn with_line<T>(&self, f: impl FnOnce(&str) -> T) -> T {
        f(self.console.lock().line())
    }

    /// Exits for `reason` so far.
    #[must_use]
    pub fn exits(&self, reason: Reason) -> u64 {
        let counts = Reason::ALL.iter().zip(&self.exits);
        counts.filter(|(r, _)| **r == reason).map(|(_, n)| n.load(Ordering::Relaxed)).sum()
    }

    /// Nanoseconds of EL2 that exits for `reason` have taken: in VCPU_RUN, and in the calls that the host made for
    /// them. Of a VM on a CPU that counts its instructions, else 0.
    #[must_use]
    pub fn el2_for(&self, reason: Reason) -> (u64, u64) {
        self.meter.of(reason)
    }

    /// The same of VCPU_LOAD and VCPU_PUT.
    #[must_use]
    pub fn el2_for_switches(&self) -> u64 {
        self.meter.of_switches()
    }

    /// Address of the exit record of vCPU `idx`.
    #[must_use]
    pub fn record(&self, idx: usize) -> Option<u64> {
        self.vcpu_pages.get(idx).map(|pages| pages.record)
    }

    /// The page in which the hypervisor keeps vCPU `idx`.
    #[must_use]
    pub fn vcpu_pfn(&self, idx: usize) -> Option<u64> {
        self.vcpu_pages.get(idx).map(|pages| pages.pfn)
    }

    fn count(&self, reason: Reason) {
        for (_, n) in Reason::ALL.iter().zip(&self.exits).filter(|(r, _)| **r == reason) {
            n.fetch_add(1, Ordering::Relaxed);
        }
    }
}
