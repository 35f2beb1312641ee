//! Walks the real implementation through everything that can happen in a small world.
//!
//! States are told apart by their abstract value. From each state every action is tried once; what
//! comes of it is judged by the [`Judged`] world. It is one walk, not one replay a state: from where
//! an action led, the walk goes on to the nearest state with work left, and starts again from the
//! beginning only where there is no way back.

use crate::judged::Judged;
use abi::Errno;
use hyp::spec::model::range_map::Run;
use hyp::spec::model::{Call, Page, Slot, Vm};
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
}

/// A thing to try.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// A call.
    Call(Call),
    /// The host touches a page, which takes tables from the pool.
    Touch(u64),
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
#[allow(missing_debug_implementations, reason = "holds functions of the test")]
pub struct Explorer<'a> {
    start: &'a dyn Fn() -> Judged,
    actions: &'a [Action],
    /// Calls beyond the scope: it would never close with them.
    beyond: &'a dyn Fn(&Key, Call) -> bool,
    judged: Judged,
    at: usize,
    ids: HashMap<Key, usize>,
    keys: Vec<Key>,
    nodes: Vec<Node>,
    answers: BTreeMap<&'static str, BTreeSet<Option<Errno>>>,
    steps: u64,
}

impl<'a> Explorer<'a> {
    /// In the world that `start` makes, tries `actions`, but for calls that `beyond` says lead out of
    /// the scope.
    pub fn new(
        start: &'a dyn Fn() -> Judged,
        actions: &'a [Action],
        beyond: &'a dyn Fn(&Key, Call) -> bool,
    ) -> Self {
        let mut explorer = Self {
            start,
            actions,
            beyond,
            judged: start(),
            at: 0,
            ids: HashMap::new(),
            keys: Vec::new(),
            nodes: Vec::new(),
            answers: BTreeMap::new(),
            steps: 0,
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
            self.keys.push(key);
            self.nodes.push(Node::default());
        }
        id
    }

    fn act(&mut self, action: usize) {
        match self.actions[action] {
            Action::Touch(pfn) => self.judged.touch(0, pfn),
            Action::Call(call) if (self.beyond)(&self.keys[self.at], call) => {}
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
        self.at = to;
    }

    /// The actions from `from` to the nearest state where one was not tried, by ways that failed
    /// fewer than `limit` times.
    fn way_to_work(&self, from: usize, limit: u32) -> Option<Vec<usize>> {
        let mut came: HashMap<usize, (usize, usize)> = HashMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            if self.nodes[node].tried < self.actions.len() {
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
            if self.nodes[self.at].tried < self.actions.len() {
                let action = self.nodes[self.at].tried;
                self.nodes[self.at].tried += 1;
                self.act(action);
            } else if self.nodes.iter().all(|node| node.tried == self.actions.len()) {
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
            self.judged = (self.start)();
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

    /// Sees that each call was answered with 0 and with every errno that it documents, and nothing
    /// else.
    ///
    /// # Panics
    /// If one was not.
    pub fn expect_answers(&self, documented: &[(&str, &[Errno])]) {
        for &(name, errnos) in documented {
            let expected: BTreeSet<_> = errnos.iter().copied().map(Some).chain([None]).collect();
            assert_eq!(self.answers[name], expected, "the answers of {name}");
        }
    }
}
