//! What becomes of a host that faults.

use hyp::addr::{Ipa, Pfn, PfnRange};
use hyp::mem_protect::{HostAbort, HostFault};
use hyp::pgtable::{Access, Entry, Level};
use testkit::features::{CORTEX_A53, CORTEX_A72, MATRIX, MAX};
use testkit::{Setup, World};

const ANY: [Access; 3] = [Access::R, Access::W, Access::X];

fn level_at(world: &World, pfn: Pfn) -> Option<Level> {
    let cpu = &world.cpus[0];
    let host = world.hyp.host(cpu);
    let (level, entry) = host.table().lookup(cpu, Ipa::new(pfn.base().raw()).unwrap()).unwrap();
    matches!(entry, Entry::Leaf(_)).then_some(level)
}

#[test]
fn a_first_touch_maps_the_largest_block_that_covers_nothing_else() {
    for (name, features) in MATRIX {
        // RAM ends 3 pages into its last 2 MiB block.
        let world = Setup { pages: 8192 + 3, ..Setup::new(features) }.start();
        assert!(world.touch(0, world.page(world.first_free()), Access::W), "{name}");
        assert_eq!(level_at(&world, world.page(world.first_free())), Some(Level::L3), "{name}: beside EL2's");
        assert!(world.touch(1, world.page(1024 + 77), Access::X), "{name}");
        assert_eq!(level_at(&world, world.page(1024)), Some(Level::L2), "{name}: RAM");
        assert!(world.touch(1, world.page(8194), Access::R), "{name}");
        assert_eq!(level_at(&world, world.page(8194)), Some(Level::L3), "{name}: edge of RAM");
        let device = Pfn::new(0x9_0000).unwrap();
        assert!(world.touch(0, device, Access::W), "{name}");
        assert_eq!(level_at(&world, device), Some(Level::L1), "{name}: MMIO below RAM is one GiB");
    }
}

#[test]
fn the_carve_out_is_never_reached() {
    for (name, features) in MATRIX {
        let world = Setup::new(features).start();
        for pfn in world.carve_out.iter() {
            for access in ANY {
                assert!(!world.touch(0, pfn, access), "{name}: {pfn:?}");
            }
        }
        assert!(world.touch(0, world.page(world.first_free()), Access::R), "{name}");
        for pfn in world.carve_out.iter() {
            let reached = world.sim.reach(world.hyp.host_context(), pfn.base().raw());
            assert!(reached.is_empty(), "{name}: {pfn:?}");
        }
    }
}

#[test]
fn withheld_devices_are_refused_and_their_neighbours_mapped() {
    let window = PfnRange::new(0x9_0200, 3).unwrap();
    let world = Setup { withheld: vec![window], ..Setup::new(CORTEX_A72) }.start();
    for pfn in window.iter() {
        assert!(!world.touch(0, pfn, Access::R));
    }
    for near in [0x9_01ff, 0x9_0203, 0x9_0000] {
        assert!(world.touch(0, Pfn::new(near).unwrap(), Access::W), "{near:#x}");
    }
    for pfn in window.iter() {
        assert!(world.sim.reach(world.hyp.host_context(), pfn.base().raw()).is_empty());
    }
}

#[test]
fn a_fetch_from_mmio_is_an_external_abort_and_maps_nothing() {
    let world = Setup::new(MAX).start();
    let device = Pfn::new(0x9_0000).unwrap();
    assert!(!world.touch(0, device, Access::X));
    assert_eq!(level_at(&world, device), None);
    assert!(world.touch(0, device, Access::R));
    assert!(!world.touch(0, device, Access::X));
}

#[test]
fn an_address_beyond_the_table_is_an_external_abort() {
    let world = Setup::new(CORTEX_A53).start();
    for ipa in [1 << 40, (1 << 48) - 4096] {
        let fault = HostFault { ipa: Ipa::new(ipa).unwrap(), access: Access::R };
        assert_eq!(world.hyp.host_abort(&world.cpus[0], fault), HostAbort::InjectExternalAbort);
    }
    assert!(world.touch(0, Pfn::new((1 << 28) - 1).unwrap(), Access::R), "the last page of the space");
}

#[test]
fn a_fault_that_another_cpu_has_answered_is_spurious() {
    let world = Setup::new(CORTEX_A72).start();
    let fault = HostFault { ipa: Ipa::new(world.page(5000).base().raw()).unwrap(), access: Access::W };
    for cpu in [0, 1, 0] {
        assert_eq!(world.hyp.host_abort(&world.cpus[cpu], fault), HostAbort::Resume);
    }
}
