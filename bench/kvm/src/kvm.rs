//! A virtual machine with one vCPU, through `/dev/kvm` (Linux, Documentation/virt/kvm/api.rst).
#![forbid(unsafe_code)]

use crate::arch::{self, Make, Mapping, Number};
use anyhow::{Context, Result, ensure};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use vmm::layout::{DISTRIBUTOR, REDISTRIBUTORS};

/// Where a guest's memory begins.
pub(crate) const RAM: u64 = vmm::layout::RAM;
/// KVM_VM_TYPE_ARM_PROTECTED.
const PROTECTED: usize = 1 << 31;
/// KVM_ARM_VCPU_PSCI_0_2, a bit of the features.
const PSCI: u32 = 1 << 2;
/// KVM_ARM_VCPU_PTRAUTH_ADDRESS and KVM_ARM_VCPU_PTRAUTH_GENERIC: two bits, and a capability that says that there are both.
const KEYS: u32 = 1 << 5 | 1 << 6;
const CAP_KEYS: usize = 171;

/// `struct kvm_userspace_memory_region`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Region {
    pub(crate) slot: u32,
    pub(crate) flags: u32,
    pub(crate) address: u64,
    pub(crate) length: u64,
    pub(crate) at: u64,
}

/// `struct kvm_vcpu_init`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Init {
    target: u32,
    features: [u32; 7],
}

/// `struct kvm_device_attr`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Attribute {
    pub(crate) flags: u32,
    pub(crate) group: u32,
    pub(crate) attr: u64,
    pub(crate) at: u64,
}

const _: () = {
    assert!(size_of::<Attribute>() == 24);
    assert!(size_of::<Region>() == 32);
    assert!(size_of::<Init>() == 32);
};

/// Who may see a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The host too.
    Plain,
    /// The guest alone, but for what it shares.
    Protected,
}

/// Whether a guest may authenticate pointers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// No.
    None,
    /// With keys of its own, if the CPU does that.
    Own,
}

/// A register of KVM_SET_ONE_REG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    /// A general register, 0 to 30.
    X(u8),
    /// The program counter.
    Pc,
}

impl Register {
    /// KVM_REG_ARM64, 64 bits, KVM_REG_ARM_CORE; the last part counts words of `struct kvm_regs`.
    fn id(self) -> u64 {
        let word = match self {
            Self::X(n) => u64::from(n).saturating_mul(2),
            Self::Pc => 64,
        };
        0x6030_0000_0010_0000 | word
    }
}

/// Why a vCPU does not run any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// An access to where there is no memory.
    Mmio {
        /// Where.
        address: u64,
        /// What a store writes.
        data: [u8; 8],
        /// How many bytes.
        length: u32,
        /// True for a store.
        write: bool,
    },
    /// The guest asks for power-off (1) or reset (2), or it is dead.
    System(u32),
    /// The host's affair: a signal, or the immediate exit that was asked for.
    Interrupted,
    /// Another, by its number.
    Other(u32),
}

/// `struct kvm_run`: offsets of what is used of it.
mod run {
    pub(super) const IMMEDIATE_EXIT: usize = 1;
    pub(super) const REASON: usize = 8;
    pub(super) const MMIO_ADDRESS: usize = 32;
    pub(super) const MMIO_DATA: usize = 40;
    pub(super) const MMIO_LENGTH: usize = 48;
    pub(super) const MMIO_IS_WRITE: usize = 52;
    pub(super) const SYSTEM_TYPE: usize = 32;
    /// Reasons.
    pub(super) const MMIO: u32 = 6;
    pub(super) const INTERRUPTED: u32 = 10;
    pub(super) const SYSTEM: u32 = 24;
}

/// KVM_DEV_TYPE_ARM_VGIC_V3 (Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst): its number, groups and attributes.
mod gic {
    pub(super) const V3: u32 = 7;
    pub(super) const ADDRESS: u32 = 0;
    pub(super) const DISTRIBUTOR: u64 = 2;
    pub(super) const REDISTRIBUTORS: u64 = 3;
    pub(super) const CONTROL: u32 = 4;
    pub(super) const INIT: u64 = 0;
    /// KVM_ARM_IRQ_TYPE_SPI, in an interrupt's number.
    pub(super) const SHARED: u32 = 1 << 24;
}

/// The device.
#[derive(Debug)]
pub(crate) struct Kvm {
    file: File,
    run_size: usize,
}

impl Kvm {
    /// Opens it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn open() -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/kvm").context("/dev/kvm")?;
        let run_size = arch::number(file.as_fd(), Number::RunSize, 0).context("KVM_GET_VCPU_MMAP_SIZE")?;
        Ok(Self { run_size: usize::try_from(run_size)?, file })
    }

    /// A VM with one vCPU that has not run yet and `memory` at [`RAM`].
    ///
    /// # Errors
    /// The kernel's; it may have no protected VMs.
    pub(crate) fn create(&self, kind: Kind, keys: Keys, memory: Rc<Mapping>) -> Result<Vm> {
        let kvm_type = if kind == Kind::Protected { PROTECTED } else { 0 };
        let vm = arch::make(self.file.as_fd(), Make::Vm, kvm_type).context("KVM_CREATE_VM")?;
        arch::set_memory(vm.as_fd(), RAM, &memory).context("KVM_SET_USER_MEMORY_REGION")?;
        let vcpu = arch::make(vm.as_fd(), Make::Vcpu, 0).context("KVM_CREATE_VCPU")?;
        let mut init = arch::preferred_target(vm.as_fd()).context("KVM_ARM_PREFERRED_TARGET")?;
        let has_keys = || arch::number(self.file.as_fd(), Number::CheckExtension, CAP_KEYS);
        let keys = keys == Keys::Own && has_keys().is_ok_and(|has| has != 0);
        init.features = [if keys { PSCI | KEYS } else { PSCI }, 0, 0, 0, 0, 0, 0];
        arch::init(vcpu.as_fd(), init).context("KVM_ARM_VCPU_INIT")?;
        let run = Mapping::of(vcpu.as_fd(), self.run_size).context("the vCPU's page")?;
        Ok(Vm { run, vcpu, vm, _memory: memory })
    }
}

/// A VM. Its files are closed, and with that it ends, before its memory goes.
#[derive(Debug)]
pub(crate) struct Vm {
    run: Mapping,
    vcpu: OwnedFd,
    vm: OwnedFd,
    /// What is at [`RAM`] lives as long.
    _memory: Rc<Mapping>,
}

impl Vm {
    /// Sets a register.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn set(&self, register: Register, value: u64) -> Result<()> {
        arch::set_register(self.vcpu.as_fd(), register.id(), value)
            .with_context(|| format!("KVM_SET_ONE_REG of {register:?}"))
    }

    /// Reads a register.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn get(&self, register: Register) -> Result<u64> {
        arch::register(self.vcpu.as_fd(), register.id())
            .with_context(|| format!("KVM_GET_ONE_REG of {register:?}"))
    }

    /// Runs the vCPU until it exits.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn run(&self) -> Result<Exit> {
        match arch::number(self.vcpu.as_fd(), Number::Run, 0) {
            Ok(_) => self.exit(),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Exit::Interrupted),
            Err(error) => Err(error).context("KVM_RUN"),
        }
    }

    /// Loads the vCPU and puts it, without running it.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn load_and_put(&self) -> Result<()> {
        self.run.write(run::IMMEDIATE_EXIT, &[1])?;
        let exit = self.run();
        self.run.write(run::IMMEDIATE_EXIT, &[0])?;
        let exit = exit?;
        ensure!(exit == Exit::Interrupted, "KVM_RUN ended with {exit:?} and not at once");
        Ok(())
    }

    /// Answers the load that was the last exit.
    ///
    /// # Errors
    /// None that a mapped page has.
    pub(crate) fn answer(&self, data: u64) -> Result<()> {
        Ok(self.run.write(run::MMIO_DATA, &data.to_le_bytes())?)
    }

    /// Gives it KVM's own interrupt controller, where the device tree says that it is.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn add_interrupt_controller(&self) -> Result<()> {
        let device = arch::create_device(self.vm.as_fd(), gic::V3).context("KVM_CREATE_DEVICE")?;
        let set = |group, attr, value| {
            arch::set_attribute(device.as_fd(), group, attr, value)
                .with_context(|| format!("KVM_SET_DEVICE_ATTR {group}:{attr}"))
        };
        set(gic::ADDRESS, gic::DISTRIBUTOR, DISTRIBUTOR.start())?;
        set(gic::ADDRESS, gic::REDISTRIBUTORS, REDISTRIBUTORS.start())?;
        set(gic::CONTROL, gic::INIT, 0)
    }

    /// The level of a shared interrupt, by its INTID.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn set_line(&self, interrupt: u32, high: bool) -> Result<()> {
        arch::set_line(self.vm.as_fd(), gic::SHARED | interrupt, high).context("KVM_IRQ_LINE")
    }

    fn word(&self, offset: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.run.read(offset)?))
    }

    fn exit(&self) -> Result<Exit> {
        Ok(match self.word(run::REASON)? {
            run::MMIO => Exit::Mmio {
                address: u64::from_le_bytes(self.run.read(run::MMIO_ADDRESS)?),
                data: self.run.read(run::MMIO_DATA)?,
                length: self.word(run::MMIO_LENGTH)?,
                write: self.run.read::<1>(run::MMIO_IS_WRITE)? != [0],
            },
            run::INTERRUPTED => Exit::Interrupted,
            run::SYSTEM => Exit::System(self.word(run::SYSTEM_TYPE)?),
            other => Exit::Other(other),
        })
    }
}
