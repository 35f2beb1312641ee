//! A copy of a table, for somebody to look at.

use crate::rig::{GIB, KIB4, RWX, Rig, pfn};
use hyp::hw::Stage2Ctx;
use hyp::pgtable::{Access, AccessFlags, Error, Note, PendingState, Prot};
use std::collections::BTreeSet;
use testkit::features::MATRIX;

const AF: u64 = 1 << 10;
const ADDRESS: u64 = 0xffff_ffff_f000;

/// NO_TAG is in a leaf's memory attribute and bit 57, or makes a note of it, by what the CPU has.
#[test]
fn s_17_no_tag_stands_in_a_copy_as_it_does_in_the_table() {
    let mut forms = BTreeSet::new();
    for (name, features) in MATRIX {
        let mut rig = Rig::guest(features, 40);
        let (plain, bare) = (GIB, GIB + KIB4);
        rig.map(plain, plain + KIB4, 0x8000_0000, RWX);
        let is_leaf = rig.format().maps_no_tag();
        if is_leaf {
            rig.map(bare, bare + KIB4, 0x8000_1000, RWX.with_prot(Prot::RWX | Prot::NO_TAG));
        } else {
            let (page, access) = (pfn(0x8000_1000), Access::R | Access::W);
            rig.annotate(bare, bare + KIB4, Note::NoTagPending { page, access, state: PendingState::Owned });
        }
        let root = rig.sim.ram(1216);
        let mut free = (1300..1308).map(|nth| rig.sim.ram(nth));
        let table = rig.table.lock(&rig.hw);
        let copied = table.copy_to(&rig.hw, root, AccessFlags::Hidden, || Ok::<_, Error>(free.next()));
        drop(table);
        assert_eq!(copied, Ok(u32::try_from(rig.tables()).unwrap()), "{name}");
        let copy = Stage2Ctx { vttbr: rig.ctx.vttbr & !ADDRESS | root.base().raw(), ..rig.ctx };
        let words = [rig.ctx, copy].map(|ctx| [plain, bare].map(|ipa| rig.sim.walk(ctx, ipa).unwrap().word));
        let [table, copy] = words;
        assert_eq!(copy, table, "{name}");
        assert_eq!(table.map(|word| word & AF), [AF, if is_leaf { AF } else { 0 }], "{name}");
        assert_eq!(table[1] >> 57 & 1 == 1, is_leaf, "{name}");
        assert_ne!(table[0] & !ADDRESS, table[1] & !ADDRESS & !(1 << 57), "{name}: more than the bit");
        forms.insert(is_leaf);
    }
    assert_eq!(forms.len(), 2, "the CPUs write it in both ways");
}
