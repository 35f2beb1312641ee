//! Every request that the driver must refuse, and the errno of each (docs/linux-driver.md). None changes anything.
#![forbid(unsafe_code)]

use crate::arch::ioctl_nowhere;
use crate::device::{
    Census, Device, Donation, Info, Lend, MOST_PAGES, Request, Share, Snapshot, TakeBack, Unshare,
    VM_DESTROY, Vm, errno, number,
};
use libc::{E2BIG, EEXIST, EFAULT, EINVAL, ENOENT, ENOSPC, ENOTTY, EOPNOTSUPP, ERANGE};
use std::io;

/// Tries all; gives a line for each that was not refused as it must be, and how many were tried.
pub(crate) fn check(device: &Device) -> (usize, Vec<String>) {
    let mut tries = Tries { wrong: Vec::new(), count: 0 };
    numbers(&mut tries, device);
    pages(&mut tries, device);
    snapshots(&mut tries, device);
    vm(&mut tries, device);
    (tries.count, tries.wrong)
}

struct Tries {
    wrong: Vec<String>,
    count: usize,
}

impl Tries {
    fn refused<T>(&mut self, what: &str, want: i32, result: io::Result<T>) {
        self.count = self.count.saturating_add(1);
        let got = errno(&result);
        if got != want {
            self.wrong.push(format!("{what}: errno {got}, not {want}"));
        }
    }
}

/// Numbers that are no request, and arguments that are no memory.
fn numbers(tries: &mut Tries, device: &Device) {
    let file = device.file();
    let info = number::<Info>();
    let no_requests =
        [0, 0xff, info ^ 0x1_0000, info ^ 0x100, info | 0x40, info ^ 0xc000_0000, VM_DESTROY | 0x4_0000];
    for no_request in no_requests {
        tries.refused(&format!("request {no_request:#x}"), ENOTTY, ioctl_nowhere(file, no_request, 0));
    }
    let all = [
        info,
        number::<Lend>(),
        number::<TakeBack>(),
        number::<Share>(),
        number::<Unshare>(),
        number::<Vm>(),
        number::<Donation>(),
        crate::device::SNAPSHOT,
    ];
    for request in all {
        tries.refused(&format!("request {request:#x} nowhere"), EFAULT, ioctl_nowhere(file, request, 8));
    }
    // A hypervisor without the audit has nothing to copy.
    let census = ioctl_nowhere(file, number::<Census>(), 8);
    if errno(&census) != EOPNOTSUPP {
        tries.refused("RAMPART_CENSUS nowhere", EFAULT, census);
    }
}

fn pages(tries: &mut Tries, device: &Device) {
    count::<Lend>(tries, device, "RAMPART_LEND", |nr, reserved| Lend { nr, reserved });
    count::<TakeBack>(tries, device, "RAMPART_TAKE_BACK", |nr, reserved| TakeBack { nr, reserved });
    count::<Share>(tries, device, "RAMPART_SHARE", |nr, reserved| Share { nr, reserved });
    count::<Unshare>(tries, device, "RAMPART_UNSHARE", |nr, reserved| Unshare { nr, reserved });
    tries.refused("RAMPART_TAKE_BACK of nothing", ENOENT, device.ask(TakeBack::of(1)));
    tries.refused("RAMPART_UNSHARE of nothing", ENOENT, device.ask(Unshare::of(1)));
}

fn count<T: Request>(tries: &mut Tries, device: &Device, name: &str, request: impl Fn(u32, u32) -> T) {
    tries.refused(&format!("{name} of no page"), EINVAL, device.ask(request(0, 0)));
    for nr in [MOST_PAGES.saturating_add(1), u32::MAX] {
        tries.refused(&format!("{name} of {nr} pages"), E2BIG, device.ask(request(nr, 0)));
    }
    tries.refused(&format!("{name}, reserved"), EINVAL, device.ask(request(1, 1)));
}

fn snapshots(tries: &mut Tries, device: &Device) {
    let good = Snapshot::default();
    let bad = [
        Snapshot { roots: 1, ..good },
        Snapshot { tables: 1, ..good },
        Snapshot { reserved: 1, ..good },
        Snapshot { geometry: 1, ..good },
        Snapshot { start: 1, ..good },
        Snapshot { end: 1, ..good },
    ];
    for mut request in bad {
        let result = device.snapshot(&mut request, &mut []);
        tries.refused(&format!("RAMPART_SNAPSHOT {request:?}"), EINVAL, result);
    }
    let mut request = good;
    let result = device.snapshot(&mut request, &mut []);
    // Release builds of the hypervisor take none.
    if errno(&result) != EOPNOTSUPP {
        tries.refused("RAMPART_SNAPSHOT without room", ENOSPC, result);
        let mut request = Snapshot { target: u32::MAX, ..good };
        tries.refused("RAMPART_SNAPSHOT of no VM", ENOENT, device.snapshot(&mut request, &mut []));
    }
}

fn vm(tries: &mut Tries, device: &Device) {
    let good = Vm { ipa_bits: 32, ..Vm::default() };
    let page = Donation { gfn: 0, nr: 1, reserved: 0 };
    tries.refused("RAMPART_VM_DONATE without a VM", ENOENT, device.ask(page));
    tries.refused("RAMPART_VM_DESTROY without a VM", ENOENT, device.destroy_vm());
    tries.refused("RAMPART_VM_DESTROY, argument", EINVAL, ioctl_nowhere(device.file(), VM_DESTROY, 1));
    let bad = [
        Vm { flags: 2, ..good },
        Vm { flags: 1 << 31, ..good },
        Vm { ipa_bits: 31, ..good },
        Vm { ipa_bits: 40, ..good },
        Vm { ipa_bits: u32::MAX, ..good },
        Vm { handle: 1, ..good },
        Vm { reserved: 1, ..good },
    ];
    for vm in bad {
        tries.refused(&format!("{vm:?}"), EINVAL, device.ask(vm));
    }
    if let Err(error) = device.ask(good) {
        tries.wrong.push(format!("a VM cannot be made: {error}"));
        return;
    }
    tries.refused("a second VM", EEXIST, device.ask(good));
    count::<Donation>(tries, device, "RAMPART_VM_DONATE", |nr, reserved| Donation { gfn: 0, nr, reserved });
    tries.refused("frames that wrap", EINVAL, device.ask(Donation { gfn: u64::MAX, ..page }));
    tries.refused("a frame beyond 48 bits", ERANGE, device.ask(Donation { gfn: 1 << 40, ..page }));
    tries.refused("a frame beyond the VM", ERANGE, device.ask(Donation { gfn: 1 << 20, ..page }));
    let first = device.ask(page);
    if let Err(error) = first {
        tries.wrong.push(format!("a page cannot be donated: {error}"));
    }
    tries.refused("a frame that has a page", EEXIST, device.ask(page));
    if let Err(error) = device.destroy_vm() {
        tries.wrong.push(format!("the VM does not end: {error}"));
    }
}
