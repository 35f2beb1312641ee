//! Every figure of Rampart: what it is of, and the most that it may be.
//!
//! A figure's name is that of the metric by which a scenario of the host, or the hypervisor, says it. What a scenario
//! measures and this list does not have cannot become part of the baseline.

/// So many bytes in a mebibyte.
const MIB: u64 = 1 << 20;

/// Figures that one scenario gives on some machines.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// What it is about, and the name of its part of docs/performance.md.
    pub name: &'static str,
    /// The host's scenario.
    pub scenario: &'static str,
    /// Cargo features of the images.
    pub features: &'static [&'static str],
    /// RAM of the machines, in GiB; each with every CPU model of [`crate::operation::CPUS`].
    pub gibibytes: &'static [u32],
    /// In the order in which they are shown.
    pub figures: &'static [Figure],
}

/// One figure, in instructions of EL2 if its description says nothing else.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Name of its metric.
    pub name: &'static str,
    /// From where to where.
    pub what: &'static str,
    /// Where it may be how large; the smallest that applies counts.
    pub limits: &'static [Limit],
}

/// The most that a figure may be on some machines.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// On this CPU model only.
    pub cpu: Option<&'static str>,
    /// With so much RAM only.
    pub gibibytes: Option<u32>,
    /// The limit itself.
    pub most: u64,
}

impl Figure {
    /// The most that it may be on a machine with this CPU model and so many GiB.
    #[must_use]
    pub fn most(&self, cpu: &str, gibibytes: u32) -> Option<u64> {
        let applies = |limit: &&Limit| {
            limit.cpu.is_none_or(|only| only == cpu) && limit.gibibytes.is_none_or(|only| only == gibibytes)
        };
        self.limits.iter().filter(applies).map(|limit| limit.most).min()
    }

    /// Whether it is a number of bytes.
    #[must_use]
    pub fn is_size(&self) -> bool {
        self.name == CARVE_OUT
    }
}

const CARVE_OUT: &str = "carve_out";

const fn most(most: u64) -> Limit {
    Limit { cpu: None, gibibytes: None, most }
}

const fn on_max(most: u64) -> Limit {
    Limit { cpu: Some("max"), gibibytes: None, most }
}

const fn with_ram(gibibytes: u32, most: u64) -> Limit {
    Limit { cpu: None, gibibytes: Some(gibibytes), most }
}

const fn figure(name: &'static str, limits: &'static [Limit], what: &'static str) -> Figure {
    Figure { name, what, limits }
}

/// What calls, faults, exits and virtual machines cost.
pub const CALLS: Section = Section {
    name: "calls",
    scenario: "cost",
    features: &[],
    gibibytes: &[1, 16],
    figures: &[
        figure(
            CARVE_OUT,
            &[with_ram(1, 4 * MIB), with_ram(16, 40 * MIB)],
            "RAM that the host never gets: image, stacks, a record for each page, pool",
        ),
        figure("boot", &[], "first instruction of the image to the first of the host"),
        figure("empty_call", &[most(150)], "HYP_CAPS, from the vector to ERET"),
        figure("first_touch_4k", &[], "the host's first access to a page that EL2 has not mapped for it"),
        figure("first_touch_2m", &[], "the same of a 2 MiB block"),
        figure("first_touch_1g", &[], "the same of a 1 GiB block"),
        figure("share", &[most(700)], "HOST_SHARE_HYP"),
        figure("unshare", &[most(700)], "HOST_UNSHARE_HYP"),
        figure("lend_one", &[most(800)], "HOST_DONATE_HYP of a page of a block that is split already"),
        figure("take_back_one", &[most(1_400)], "HYP_DONATE_HOST of it, scrubbed"),
        figure(
            "lend_one_of_block",
            &[most(8_500)],
            "HOST_DONATE_HYP of the first page of a 2 MiB block that the host has mapped: a table of 512 entries in its place, and one for EL2's map",
        ),
        figure("lend_512_per_page", &[most(250)], "512 pages in a call, each"),
        figure("take_back_512_per_page", &[most(600)], "the same back"),
        figure("guest_exit", &[most(700)], "a guest's WFI to the host, and the host's VCPU_RUN back into it"),
        figure("guest_exit_protected", &[most(700)], "the same of a protected guest"),
        figure(
            "guest_exit_keys",
            &[most(700)],
            "the same of a vCPU that has used pointer authentication: where the CPU has it its keys and the host's move at each exit",
        ),
        figure("guest_mmio", &[most(900)], "a guest's access that the VMM emulates, and back"),
        figure(
            "guarded_read",
            &[most(900)],
            "a protected guest's load of a page that it marked: exit, the host's next VCPU_RUN with DONE, and back",
        ),
        figure("guarded_write", &[most(900)], "the same of a store"),
        figure(
            "guest_fault_shared",
            &[most(1_800)],
            "a guest's first access to a page, and VCPU_RUN with the answer MAP and a page, the host's block split already",
        ),
        figure("guest_fault_shared_by_call", &[], "the same by GUEST_SHARE, then VCPU_RUN"),
        figure("guest_fault_shared_split", &[], "the same by call, of the first page of a block"),
        figure(
            "guest_fault_donated",
            &[most(2_000), on_max(1_600)],
            "as guest fault shared, of a protected guest: the page is zeroed",
        ),
        figure("guest_fault_donated_by_call", &[], "the same by GUEST_DONATE, then VCPU_RUN"),
        figure("guest_fault_donated_split", &[], "the same by call, of the first page of a block"),
        figure("guest_call", &[most(98)], "HYP_MEMINFO, which EL2 answers"),
        figure("guest_mem_share", &[most(900)], "MEM_SHARE of one page"),
        figure("guest_mem_unshare", &[most(1_000)], "MEM_UNSHARE of it"),
        figure("guard_map", &[most(450)], "the guest's HVC, of a page whose table is there and stays"),
        figure("guard_unmap", &[], "the same back"),
        figure("guard_map_512_per_page", &[most(120)], "512 pages in a call, each"),
        figure("guard_unmap_512_per_page", &[], "the same back, after which their table is free"),
        figure("guest_fault_shared_2m", &[], "as guest fault shared by call, of a block"),
        figure(
            "guest_fault_donated_2m",
            &[],
            "as guest fault donated by call, of a block: 512 pages are zeroed, and the host's block becomes a table of notes",
        ),
        figure(
            "vm_create",
            &[],
            "VM_CREATE, HOST_SHARE_HYP of a page for the record, VCPU_CREATE; of pages of a block that is split already",
        ),
        figure(
            "vm_pages",
            &[most(2)],
            "pages of the host's that a VM holds until its end: itself, and the root of a table of 39 bits. Those of its other tables come and go with what is mapped",
        ),
        figure("vm_pages_protected", &[most(3)], "the same of a protected VM: one more as a reserve"),
        figure(
            "vcpu_pages",
            &[most(1)],
            "pages that a vCPU adds; one more is shared with the host, for its record",
        ),
        figure("vm_create_protected", &[], "the same of a protected VM, which has one page more"),
        figure(
            "vm_destroy",
            &[],
            "VM_TEARDOWN_START, VM_TEARDOWN_FINISH, HOST_UNSHARE_HYP: three pages come back scrubbed",
        ),
        figure("vm_destroy_protected", &[], "the same of a protected VM: four pages"),
        figure("vm_destroy_per_page", &[], "what each of 256 pages adds to the end of a VM"),
        figure(
            "vm_destroy_protected_per_page",
            &[most(1_600)],
            "the same of a protected VM: RECLAIM_DYING, each page scrubbed",
        ),
        figure("vcpu_load_put", &[], "VCPU_LOAD and VCPU_PUT"),
        figure(
            "ipa_state_set_ram_2m",
            &[most(4_000)],
            "a realm asks for 2 MiB in which it has no page: its SMC, the exit, the host's RIPAS_APPLY and VCPU_RUN, and back; eight instructions of the guest",
        ),
        figure("ipa_state_set_empty_2m", &[most(4_400)], "the same to EMPTY"),
        figure(
            "host_call",
            &[most(3_000)],
            "a realm's RSI_HOST_CALL, whose page stays: its SMC, 32 words read, the exit, the host's VCPU_RUN with DONE, 31 words written, and back; six instructions of the guest",
        ),
        figure(
            "populate",
            &[most(13_500)],
            "VM_POPULATE of one page of a realm without MEASURE, the host's block split already. Its record is five blocks of SHA-256; a vCPU's record costs in VCPU_CREATE what a page's does here",
        ),
        figure("populate_measured", &[most(235_000)], "the same with MEASURE: 65 blocks more"),
        figure(
            "finalise_256_per_range",
            &[most(13_000)],
            "VM_FINALISE of a realm with 256 pages of RAM and a hole behind each, in three calls: for each a record, and two entries read",
        ),
        figure(
            "reclaim_one_of_block",
            &[most(9_500)],
            "GUEST_RECLAIM of the first page of a block: a table in its place by break-before-make, the page's scrub, and a page of the VM's store as the next reserve",
        ),
        figure("reclaim_one", &[most(3_200)], "the same of the next page"),
        figure(
            "reclaim_510_per_page",
            &[most(1_000)],
            "the same of the rest of the block in one call, each page",
        ),
        figure("init_ripas_1g", &[most(2_000)], "VM_INIT_RIPAS of 1 GiB at a multiple of that: one entry"),
        figure(
            "destroy_1g_without_a_page",
            &[most(2_200)],
            "RECLAIM_DYING of a realm with 1 GiB of nothing but that entry",
        ),
        figure(
            "tag_access",
            &[most(1_000)],
            "a guest with MTE reaches for the tags of a page that has none: exit, and VCPU_RUN by a host that does nothing about it",
        ),
        figure(
            "mte_upgrade",
            &[most(4_000)],
            "MTE_UPGRADE of one page after the other; of that `table copy 4k`, `table zero tags 4k` and `table scrub 4k` below",
        ),
        figure(
            "guest_fault_donated_mte",
            &[most(3_500)],
            "as guest fault donated by call, of a guest with MTE. What a guest without pays for tags is in guest fault donated: nothing",
        ),
        figure(
            "destroy_1g_of_blocks",
            &[],
            "RECLAIM_DYING of a realm with 512 blocks of 2 MiB, each page of them scrubbed",
        ),
        figure("destroy_1g_of_blocks_per_page", &[most(600)], ""),
        figure(
            "destroy_1g_mixed",
            &[],
            "the same of 128 such blocks, 128 that lost a page and are tables of 511, 128 tables with eight pages each, and 128 times 2 MiB without a page, as `realm_end` has them: 131 968 pages",
        ),
        figure("destroy_1g_mixed_per_page", &[most(1_200)], ""),
    ],
};

/// What the table engine costs alone: an image with the feature `bench` measures it before it starts the host.
pub const TABLES: Section = Section {
    name: "tables",
    scenario: "poweroff",
    features: &["hyp/bench"],
    gibibytes: &[1],
    figures: &[
        figure(
            "table_map_4k",
            &[most(750)],
            "`map` of one page where the level-3 table exists: one walk, one store, one DSB",
        ),
        figure("table_map_2m", &[most(750)], "`map` of one block where the level-2 table exists"),
        figure(
            "table_annotate_4k",
            &[most(700)],
            "`annotate` over a mapped page: store, the whole invalidation",
        ),
        figure(
            "table_unmap_4k",
            &[most(1_200)],
            "`unmap` of a mapped page: the same, and a look whether its table is empty",
        ),
        figure("table_split_2m", &[most(6_000)], "`split` of a block: fill a table, break-before-make"),
        figure(
            "table_walk_512_entries",
            &[most(80_000)],
            "`visit` of a full level-3 table, every entry decoded",
        ),
        figure(
            "table_scrub_4k",
            &[most(300)],
            "a page is zeroed and cleaned: what every page costs that leaves a VM",
        ),
        figure("table_copy_4k", &[], "a page is copied and cleaned"),
        figure("table_zero_tags_4k", &[], "the 256 tags of a page become 0"),
    ],
};

/// What snapshots cost, with the image for development.
pub const SNAPSHOTS: Section = Section {
    name: "snapshots",
    scenario: "snapshot_cost",
    features: xtask::images::DEVELOPMENT.features,
    gibibytes: &[1],
    figures: &[
        figure(
            "snapshot_root_alone",
            &[most(7_500)],
            "a whole call for a table that is its root: the descriptor and the root change hands twice",
        ),
        figure(
            "snapshot_host_10_copy",
            &[most(900)],
            "for each table: what the call takes longer than one that takes, zeroes and gives back the same pages but finds nothing to copy",
        ),
        figure(
            "snapshot_host_10_call",
            &[most(2_000)],
            "for each table: the whole call less that for a root alone; donate, zero, copy, give back",
        ),
        figure("snapshot_host_100_copy", &[most(900)], ""),
        figure("snapshot_host_100_call", &[most(2_000)], ""),
        figure("snapshot_guest_10_copy", &[most(900)], "the same of a VM"),
        figure("snapshot_guest_10_call", &[most(2_000)], ""),
        figure("snapshot_guest_100_copy", &[most(900)], ""),
        figure("snapshot_guest_100_call", &[most(2_000)], ""),
        figure("snapshot_guest_10000_copy", &[most(900)], ""),
        figure("snapshot_guest_10000_call", &[most(2_000)], ""),
    ],
};

/// All figures.
pub const SECTIONS: [&Section; 3] = [&CALLS, &TABLES, &SNAPSHOTS];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_that_applies_counts() {
        const ALL: Figure = figure("x", &[most(9), on_max(7), with_ram(16, 8)], "");
        const MAX: Figure = figure("x", &[on_max(7)], "");
        assert_eq!((ALL.most("cortex-a72", 1), ALL.most("cortex-a72", 16)), (Some(9), Some(8)));
        assert_eq!((ALL.most("max", 16), MAX.most("cortex-a72", 1)), (Some(7), None));
    }

    #[test]
    fn every_figure_has_a_name_of_its_own() {
        let mut names: Vec<&str> =
            SECTIONS.iter().flat_map(|section| section.figures).map(|f| f.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
