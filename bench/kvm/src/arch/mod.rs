//! Memory and the system calls that the standard library does not have.
//!
//! Invariant: no reference to mapped memory is ever made, it is copied in and out; and the kernel reads and writes no more
//! than the values and mappings that are passed.

mod memory;

pub(crate) use memory::{Mapping, Pages};

use crate::kvm::{Attribute, Init, Region};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Requests whose argument is a number (Linux, include/uapi/linux/kvm.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Number {
    /// KVM_CHECK_EXTENSION, of a capability.
    CheckExtension = 0xae03,
    /// KVM_GET_VCPU_MMAP_SIZE.
    RunSize = 0xae04,
    /// KVM_RUN.
    Run = 0xae80,
}

/// Requests whose argument is a number, and that make a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Make {
    /// KVM_CREATE_VM, of a type.
    Vm = 0xae01,
    /// KVM_CREATE_VCPU, with a number.
    Vcpu = 0xae41,
}

const SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const PREFERRED_TARGET: u32 = 0x8020_aeaf;
const VCPU_INIT: u32 = 0x4020_aeae;
const GET_ONE_REG: u32 = 0x4010_aeab;
const SET_ONE_REG: u32 = 0x4010_aeac;
const IRQ_LINE: u32 = 0x4008_ae61;
const CREATE_DEVICE: u32 = 0xc00c_aee0;
const SET_DEVICE_ATTR: u32 = 0x4018_aee1;

/// A request with a number.
///
/// # Errors
/// The kernel's.
pub(crate) fn number(file: BorrowedFd<'_>, request: Number, argument: usize) -> Result<u32> {
    let answer = raw(file, request as u32, std::ptr::without_provenance_mut::<()>(argument))?;
    u32::try_from(answer).map_err(Error::other)
}

/// A request with a number, and the file that it makes.
///
/// # Errors
/// The kernel's.
pub(crate) fn make(file: BorrowedFd<'_>, request: Make, argument: usize) -> Result<OwnedFd> {
    raw(file, request as u32, std::ptr::without_provenance_mut::<()>(argument)).map(owned)
}

/// KVM_ARM_PREFERRED_TARGET.
///
/// # Errors
/// The kernel's.
pub(crate) fn preferred_target(vm: BorrowedFd<'_>) -> Result<Init> {
    let mut init = Init::default();
    raw(vm, PREFERRED_TARGET, std::ptr::from_mut(&mut init)).map(|_| init)
}

/// KVM_ARM_VCPU_INIT.
///
/// # Errors
/// The kernel's.
pub(crate) fn init(vcpu: BorrowedFd<'_>, mut init: Init) -> Result<()> {
    raw(vcpu, VCPU_INIT, std::ptr::from_mut(&mut init)).map(drop)
}

/// KVM_SET_USER_MEMORY_REGION: `memory` at the region's address. It has to be there as long as the VM.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_memory(vm: BorrowedFd<'_>, address: u64, memory: &Mapping) -> Result<()> {
    let mut region =
        Region { slot: 0, flags: 0, address, length: wide(memory.length())?, at: wide(memory.address())? };
    raw(vm, SET_USER_MEMORY_REGION, std::ptr::from_mut(&mut region)).map(drop)
}

/// A register's id and where its value is.
#[repr(C)]
struct OneReg {
    id: u64,
    at: u64,
}

/// KVM_SET_ONE_REG of 64 bits.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_register(vcpu: BorrowedFd<'_>, id: u64, value: u64) -> Result<()> {
    let mut request = OneReg { id, at: wide(std::ptr::from_ref(&value).expose_provenance())? };
    raw(vcpu, SET_ONE_REG, std::ptr::from_mut(&mut request)).map(drop)
}

/// KVM_GET_ONE_REG of 64 bits.
///
/// # Errors
/// The kernel's.
pub(crate) fn register(vcpu: BorrowedFd<'_>, id: u64) -> Result<u64> {
    let mut value = 0_u64;
    let mut request = OneReg { id, at: wide(std::ptr::from_mut(&mut value).expose_provenance())? };
    raw(vcpu, GET_ONE_REG, std::ptr::from_mut(&mut request)).map(|_| value)
}

/// KVM_IRQ_LINE.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_line(vm: BorrowedFd<'_>, irq: u32, high: bool) -> Result<()> {
    let mut line = [irq, u32::from(high)];
    raw(vm, IRQ_LINE, std::ptr::from_mut(&mut line)).map(drop)
}

/// KVM_CREATE_DEVICE.
///
/// # Errors
/// The kernel's.
pub(crate) fn create_device(vm: BorrowedFd<'_>, kind: u32) -> Result<OwnedFd> {
    let mut device = [kind, 0, 0];
    raw(vm, CREATE_DEVICE, std::ptr::from_mut(&mut device))?;
    RawFd::try_from(device[1]).map(owned).map_err(Error::other)
}

/// KVM_SET_DEVICE_ATTR: `value` as attribute `attr` of `group`.
///
/// # Errors
/// The kernel's.
pub(crate) fn set_attribute(device: BorrowedFd<'_>, group: u32, attr: u64, value: u64) -> Result<()> {
    let at = wide(std::ptr::from_ref(&value).expose_provenance())?;
    let mut attribute = Attribute { flags: 0, group, attr, at };
    raw(device, SET_DEVICE_ATTR, std::ptr::from_mut(&mut attribute)).map(drop)
}

/// `perf_event_open` on CPU 0, for all that it runs. `attr` is a `perf_event_attr` of its first published size.
///
/// # Errors
/// The kernel's.
pub(crate) fn perf_event_open(attr: &[u64; 8]) -> Result<File> {
    let (everybody, cpu, alone, flags) = (-1, 0, -1, 0_usize);
    // SAFETY: the attributes say their own size, 64 bytes, and the kernel has copied them when the call returns.
    let file =
        unsafe { libc::syscall(libc::SYS_perf_event_open, attr.as_ptr(), everybody, cpu, alone, flags) };
    if file < 0 {
        return Err(Error::last_os_error());
    }
    RawFd::try_from(file).map(|file| File::from(owned(file))).map_err(Error::other)
}

fn wide(size: usize) -> Result<u64> {
    u64::try_from(size).map_err(|_| Error::from(ErrorKind::InvalidInput))
}

fn owned(file: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this file for the caller, and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(file) }
}

fn raw<T>(file: BorrowedFd<'_>, number: u32, argument: *mut T) -> Result<i32> {
    #[allow(
        clippy::cast_possible_wrap,
        reason = "a signed number in some C libraries; the kernel reads its 32 bits"
    )]
    let number = number as libc::Ioctl;
    // SAFETY: a request of a structure has the structure's size in its number and gets one; its addresses are of values that live until the call returns, or of memory that the VM keeps.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), number, argument) };
    if status < 0 { Err(Error::last_os_error()) } else { Ok(status) }
}
