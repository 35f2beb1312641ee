//! What a guest takes for an abort that stays its own.
//!
//! Pure: the entry is computed here, `arch` takes it. Which aborts these are says
//! [`crate::mmio_guard::route`].
#![forbid(unsafe_code)]

use super::exit::Abort;
use crate::exception::{El1Entry, El1State, external_abort};

const IL: u64 = 1 << 25;
const EA: u64 = 1 << 9;
const EC: u64 = 0x3f << 26;

/// The external abort that a guest takes for `abort`: class and level of the access, IL, EA and
/// DFSC 0x10, nothing else of the syndrome.
#[must_use]
pub fn sea(abort: &Abort, spsr: u64, state: El1State) -> El1Entry {
    let entry = external_abort(abort.syndrome, spsr, state);
    El1Entry { esr: entry.esr & EC | IL | EA | 0x10, ..entry }
}

/// The address size fault, level 0, that a guest takes for an IPA it does not have.
#[must_use]
pub fn address_size_fault(abort: &Abort, spsr: u64, state: El1State) -> El1Entry {
    const WNR: u64 = 1 << 6;
    let entry = external_abort(abort.syndrome, spsr, state);
    El1Entry { esr: entry.esr & (EC | WNR) | IL, ..entry }
}

#[cfg(test)]
mod tests {
    use super::{Abort, IL, address_size_fault, sea};
    use crate::exception::El1State;
    use crate::exception::Syndrome;

    const DATA: u64 = 0x24 << 26 | IL;
    const FETCH: u64 = 0x20 << 26 | IL;
    const ISV_WORD: u64 = 1 << 24 | 2 << 22;
    const WNR: u64 = 1 << 6;
    const S1PTW: u64 = 1 << 7;
    const TRANSLATION: u64 = 0x07;

    fn abort(esr: u64) -> Abort {
        Abort { syndrome: Syndrome::new(esr), far: 0x10 }
    }

    #[test]
    fn injected_aborts_carry_class_level_and_nothing_of_the_access() {
        let state = El1State { sctlr: 1 << 23, mte: false, nmi: false };
        let noisy = abort(DATA | ISV_WORD | WNR | 0x1f << 16 | TRANSLATION);
        assert_eq!(sea(&noisy, 0x3c5, state).esr, 0x9600_0210);
        assert_eq!(sea(&noisy, 0x000, state).esr, 0x9200_0210);
        assert_eq!(sea(&abort(FETCH | TRANSLATION), 0x3c5, state).esr, 0x8600_0210);
        assert_eq!(sea(&abort(FETCH | TRANSLATION), 0x000, state).vector, 0x400);
        assert_eq!(sea(&abort(DATA | S1PTW | TRANSLATION), 0x3c4, state).esr, 0x9600_0210);
        assert_eq!(address_size_fault(&noisy, 0x3c5, state).esr, 0x9600_0040);
        assert_eq!(address_size_fault(&abort(FETCH | 4), 0x0, state).esr, 0x8200_0000);
    }
}
