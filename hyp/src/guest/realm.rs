//! A turn of a guest with split IPA: the calls of the Realm Services Interface, and what the host's answers come to.
//! [`super::rsi`] decodes them.
//!
//! Invariant: what a guest names is looked at under its table's lock, each time anew; nothing of it is kept but where it
//! is.
#![forbid(unsafe_code)]

use super::calls::Regs;
use super::record::{ExitInfo, put_register, register};
use super::rsi::RsiCall;
use super::run::Turn;
use super::vcpu::{Pending, RealmCall};
use crate::addr::IpaRange;
use crate::hw::GuestMachine;
use crate::ipa_state::{Measurements, Request};
use crate::mem_protect::{OwnPage, OwnWords};
use abi::exit::{ExitFlags, Resp};
use abi::rsi::{self, MAX_ENTRIES};

impl<M: GuestMachine> Turn<'_, M> {
    /// Serves `call`; the exit if the host has a part in it.
    pub(super) fn realm_service(&mut self, call: RsiCall) -> Option<ExitInfo> {
        match call {
            RsiCall::Set(request) => {
                self.wait_for_host(RealmCall::Ripas(request));
                let (base, top) = (request.range().start().raw(), request.range().end());
                Some(ExitInfo::RipasChange { base, top, want: request.want() })
            }
            RsiCall::Config(page) => self.realm_config(page),
            RsiCall::Host(words) => self.host_call(words),
            RsiCall::Measurement(index) => match self.measured(|values| values.read(index)) {
                Some(value) => {
                    let x = self.vcpu.ctx.x.iter_mut().skip(1);
                    for (x, bytes) in x.zip(value.as_chunks().0) {
                        *x = u64::from_le_bytes(*bytes);
                    }
                    self.vcpu.ctx.set_x(0, rsi::SUCCESS);
                    None
                }
                None => Some(self.die()),
            },
            RsiCall::Extend(index, by) => match self.measured(|values| values.extend(index, &by)) {
                Some(()) => {
                    self.vcpu.ctx.set_x(0, rsi::SUCCESS);
                    None
                }
                None => Some(self.die()),
            },
            RsiCall::Get(range) => match self.vm(|vm| vm.ipa_states(self.hw, range, MAX_ENTRIES)) {
                Some(Ok(run)) => {
                    Regs::Three([rsi::SUCCESS, run.end, run.state.number()]).put(&mut self.vcpu.ctx.x);
                    None
                }
                Some(Err(_)) | None => Some(self.die()),
            },
        }
    }

    /// What a call returns, now that the host has answered.
    #[inline(never)]
    pub(super) fn answer_realm(&mut self, resp: Resp) {
        match (self.vcpu.realm_call.take(), resp) {
            (Some(RealmCall::Ripas(request)), resp) => self.answer_ripas(&request, resp == Resp::Reject),
            (Some(RealmCall::Host(words)), Resp::Done) => self.answer_host_call(words),
            // PC is on the SMC: the call is made again.
            (Some(RealmCall::Host(_)) | None, _) => {}
        }
    }

    fn wait_for_host(&mut self, call: RealmCall) {
        self.vcpu.realm_call = Some(call);
        self.vcpu.pending = Pending::Realm;
    }

    /// What IPA_STATE_SET returns.
    fn answer_ripas(&mut self, request: &Request, refused: bool) {
        let first = || self.vm(|vm| vm.ipa_states(self.hw, request.range(), 1)).and_then(Result::ok);
        let rejected = request.is_rejected(refused, || first().map(|run| run.state));
        let response = if rejected { rsi::REJECT } else { rsi::ACCEPT };
        Regs::Three([rsi::SUCCESS, request.done(), response]).put(&mut self.vcpu.ctx.x);
    }

    /// Writes where the guest wants it what its VM is. Where its page is yet to come, the call replays.
    fn realm_config(&mut self, page: IpaRange) -> Option<ExitInfo> {
        let mut guard = self.slot.lock(self.hw);
        let written = guard.as_mut().map(|boxed| boxed.vm.write_config(self.hw, self.window, page));
        drop(guard);
        let status = match written {
            Some(Ok(OwnPage::Done)) => rsi::SUCCESS,
            Some(Ok(OwnPage::NoMemory)) => rsi::ERROR_INPUT,
            Some(Ok(OwnPage::Missing)) => return Some(self.replay_with(page)),
            Some(Err(_)) | None => return Some(self.die()),
        };
        self.vcpu.ctx.set_x(0, status);
        None
    }

    /// Shows the host what the guest has for it in `words`; its answer completes the call.
    fn host_call(&mut self, words: OwnWords) -> Option<ExitInfo> {
        let (hw, record) = (self.hw, self.vcpu.record.page());
        let mut imm = 0;
        let each = |n: usize, word: u64| match n.checked_sub(1) {
            Some(n) => put_register(hw, record, n, word),
            None => imm = immediate(word),
        };
        let read = self.slot.with_vm(hw, |vm| vm.guest.lock(hw).read_own_words(hw, self.window, words, each));
        match read {
            Some(Ok(OwnPage::Done)) => {
                self.wait_for_host(RealmCall::Host(words));
                self.vcpu.ctx.pc = self.vcpu.ctx.pc.wrapping_sub(4);
                Some(ExitInfo::HostCall { imm })
            }
            Some(Ok(OwnPage::NoMemory)) => {
                self.vcpu.ctx.set_x(0, rsi::ERROR_INPUT);
                None
            }
            Some(Ok(OwnPage::Missing)) => Some(self.replay_with(words.page())),
            Some(Err(_)) | None => Some(self.die()),
        }
    }

    /// What HOST_CALL returns. The guest may have lost the page meanwhile.
    fn answer_host_call(&mut self, words: OwnWords) {
        let (hw, record) = (self.hw, self.vcpu.record.page());
        let value = |n: usize| Some(register(hw, record, n.checked_sub(1)?));
        let written =
            self.slot.with_vm(hw, |vm| vm.guest.lock(hw).write_own_words(hw, self.window, words, value));
        let done = matches!(written, Some(Ok(OwnPage::Done)));
        self.vcpu.ctx.set_x(0, if done { rsi::SUCCESS } else { rsi::ERROR_INPUT });
        self.vcpu.ctx.skip_instruction();
    }

    /// Does `f` to what is measured of the VM.
    fn measured<T>(&self, f: impl FnOnce(&mut Measurements) -> T) -> Option<T> {
        self.vm(|vm| vm.measured.as_mut().map(|measured| f(&mut measured.values))).flatten()
    }

    /// The exit for the page of a call's argument, which is yet to come: PC goes back onto the SMC.
    fn replay_with(&mut self, page: IpaRange) -> ExitInfo {
        self.vcpu.ctx.pc = self.vcpu.ctx.pc.wrapping_sub(4);
        self.vcpu.mem_fault(page.start(), ExitFlags::PRIVATE, None)
    }
}

/// Bits 15:0 of the word that has the immediate.
const fn immediate(word: u64) -> u16 {
    let [low, high, ..] = word.to_le_bytes();
    u16::from_le_bytes([low, high])
}
