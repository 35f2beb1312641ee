//! Walks the real implementation through everything that can happen in a small world.
//!
//! States are told apart by their abstract value. From each state every action is tried once; what
//! comes of it is judged by the [`Judged`] world. It is one walk, not one replay a state: from where
//! an action led, the walk goes on to the nearest state with work left, and starts again from the
//! beginning only where there is no way back.

use crate::judged::Judged;
use crate::scope::Scope;
use abi::Errno;
use hyp::spec::model::range_map::Run;
use hyp::spec::model::{Call, Page, Slot, Vm};
use hyp::spec::model::{Hold, Phase};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// An abstract state, as short as it can be said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Every RAM page.
    pub pages: Vec<Run<Page>>,
    /// Handle, first frame, number and slot of every run.
    pub slots: Vec<(u16, u64, u64, Slot)>,
    /// The VMs.
    pub vms: Vec<Vm>,
}

impl Key {
    fn of(judged: &Judged) -> Self {
        let state = judged.state();
        Self {
            pages: state.pages.runs().to_vec(),
            slots: state.slot_runs().collect(),
            vms: state.vms().to_vec(),
        }
    }

    /// What a page is.
    #[must_use]
    pub fn page(&self, pfn: u64) -> Option<Page> {
        self.pages.iter().find(|run| run.start <= pfn && pfn < run.end).map(|run| run.value)
    }

    fn may_finish(&self, handle: u16) -> bool {
        let dying = self.vms.iter().any(|vm| vm.handle == handle && vm.phase == Phase::Dying);
        let owns = |slot| matches!(slot, Slot::Mapped { hold: Hold::Owned | Hold::Shared, .. });
        dying && !self.slots.iter().any(|&(vm, _, _, slot)| vm == handle && owns(slot))
    }
}

/// A thing to try.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// A call.
    Call(Call),
    /// The host touches a page, which takes tables from the pool.
    Touch(u64),
    /// What is left of a dying VM that owns no page goes back to the host.
    Finish(u16),
}

/// What is known of a state.
#[derive(Debug, Default)]
struct Node {
    tried: usize,
    ways: Vec<Way>,
}

/// An action that led elsewhere.
#[derive(Debug)]
struct Way {
    action: usize,
    to: usize,
    /// How often it did not, since it last did.
    failed: u32,
}

/// The walker.
#[derive(Debug)]
pub struct Explorer<'a> {
    scope: &'a Scope,
    judged: Judged,
    at: usize,
    ids: HashMap<Key, usize>,
    keys: Vec<Key>,
    nodes: Vec<Node>,
    answers: BTreeMap<&'static str, BTreeSet<Option<Errno>>>,
    steps: u64,
    /// What changed the state since the beginning, and what is being done.
    trail: Vec<Action>,
}

impl Drop for Explorer<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: from the beginning,", self.scope.name);
            self.trail.iter().for_each(|action| eprintln!("    {action:x?}"));
        }
    }
}

impl<'a> Explorer<'a> {
    /// At the beginning of `scope`.
    #[must_use]
    pub fn new(scope: &'a Scope) -> Self {
        let mut explorer = Self {
            scope,
            judged: scope.start(),
            at: 0,
            ids: HashMap::new(),
            keys: Vec::new(),
            nodes: Vec::new(),
            answers: BTreeMap::new(),
            steps: 0,
            trail: Vec::new(),
        };
        explorer.at = explorer.here();
        explorer
    }

    /// The number of the state that the machine is in.
    fn here(&mut self) -> usize {
        let key = Key::of(&self.judged);
        let next = self.keys.len();
        let id = *self.ids.entry(key.clone()).or_insert(next);
        if id == next {
            self.judged.audit(0);
            self.keys.push(key);
            self.nodes.push(Node::default());
        }
        id
    }

    fn act(&mut self, action: usize) {
        self.trail.push(self.scope.actions[action]);
        match self.scope.actions[action] {
            Action::Touch(pfn) => self.judged.touch(0, pfn),
            Action::Finish(handle) if self.keys[self.at].may_finish(handle) => self.judged.finish(0, handle),
            Action::Finish(_) => {}
            Action::Call(call) if self.scope.is_beyond(&self.keys[self.at], call) => {}
            Action::Call(call) => {
                let answer = self.judged.call(0, call);
                self.answers.entry(call.name()).or_default().insert(answer.err());
                self.judged.settle();
            }
        }
        self.steps += 1;
        let to = self.here();
        let ways = &mut self.nodes[self.at].ways;
        if to != self.at && !ways.iter().any(|way| way.action == action && way.to == to) {
            ways.push(Way { action, to, failed: 0 });
        }
        if to == self.at {
            self.trail.pop();
        }
        self.at = to;
    }

    /// The actions from `from` to the nearest state where one was not tried, by ways that failed
    /// fewer than `limit` times.
    fn way_to_work(&self, from: usize, limit: u32) -> Option<Vec<usize>> {
        let mut came: HashMap<usize, (usize, usize)> = HashMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            if self.nodes[node].tried < self.scope.actions.len() {
                let mut way = Vec::new();
                let mut at = node;
                while at != from {
                    let (before, action) = came[&at];
                    way.push(action);
                    at = before;
                }
                way.reverse();
                return Some(way);
            }
            for &Way { action, to, .. } in self.nodes[node].ways.iter().filter(|way| way.failed < limit) {
                if to != from && !came.contains_key(&to) {
                    came.insert(to, (node, action));
                    queue.push_back(to);
                }
            }
        }
        None
    }

    /// Goes on until there is nothing left to try.
    ///
    /// # Panics
    /// If the judge does, or if a state with work left cannot be reached again.
    pub fn run(&mut self) {
        loop {
            if self.nodes[self.at].tried < self.scope.actions.len() {
                let action = self.nodes[self.at].tried;
                self.nodes[self.at].tried += 1;
                self.act(action);
            } else if self.nodes.iter().all(|node| node.tried == self.scope.actions.len()) {
                return;
            } else {
                self.go_to_work();
            }
        }
    }

    /// Follows a way to a state with work left; from the start if there is none from here.
    fn go_to_work(&mut self) {
        let ways = (0..8).map(|n| 1 << n).find_map(|limit| {
            let here = self.way_to_work(self.at, limit).map(|way| (false, way));
            here.or_else(|| self.way_to_work(0, limit).map(|way| (true, way)))
        });
        let (afresh, way) = ways.expect("a state was seen and cannot be reached again");
        if afresh {
            self.judged = self.scope.start();
            self.trail.clear();
            self.at = self.here();
        }
        for action in way {
            let from = self.at;
            self.act(action);
            // What the abstract state leaves out may have decided otherwise this time.
            let mut failed = false;
            for way in self.nodes[from].ways.iter_mut().filter(|way| way.action == action) {
                if way.to == self.at {
                    way.failed = 0;
                } else {
                    way.failed += 1;
                    failed = true;
                }
            }
            if failed {
                return;
            }
        }
    }

    /// Number of states found and of actions done.
    #[must_use]
    pub fn counts(&self) -> (usize, u64) {
        (self.keys.len(), self.steps)
    }

    /// Sees that each call was answered with 0 and with every errno that the scope promises, and
    /// with nothing else.
    ///
    /// # Panics
    /// If one was not.
    pub fn expect_answers(&self) {
        let promised = self.scope.answers.iter().map(|&(name, errnos)| {
            (name, errnos.iter().copied().map(Some).chain([None]).collect::<BTreeSet<_>>())
        });
        let promised: BTreeMap<_, _> = promised.collect();
        for (name, got) in &self.answers {
            assert_eq!(promised.get(name), Some(got), "promised and answered by {name}: {:?}", self.answers);
        }
        assert_eq!(self.answers.len(), promised.len(), "calls that were made");
    }
}
