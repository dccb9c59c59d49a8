//! The leaks as a graph of their own, and its strongly connected components.

use super::graph::Graph;
use super::mark::Marks;

/// The references among leaks. Leaks are numbered in ascending order of their blocks.
pub(super) struct LeakGraph {
    /// The block of each leak.
    pub(super) blocks: Vec<u32>,
    offsets: Vec<usize>,
    edges: Vec<u32>,
}

impl LeakGraph {
    /// The part of `graph` that is not marked.
    pub(super) fn new(graph: &Graph, marks: &Marks) -> Self {
        let numbers = Numbers::new(marks);
        let mut leaks = Self {
            blocks: numbers.blocks(),
            offsets: vec![0],
            edges: Vec::new(),
        };
        for block in &leaks.blocks {
            let targets = graph.references(*block).iter();
            let targets = targets.filter_map(|target| numbers.of(*target));
            leaks.edges.extend(targets);
            leaks.offsets.push(leaks.edges.len());
        }
        leaks
    }

    /// The number of leaks.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The leaks that `leak` references.
    pub(super) fn references(&self, leak: u32) -> &[u32] {
        let leak = leak as usize;
        &self.edges[self.offsets[leak]..self.offsets[leak + 1]]
    }

    /// The leaks' numbers, in ascending order.
    pub(super) fn leaks(&self) -> impl Iterator<Item = u32> + use<> {
        // Blocks are numbered with 32 bits, and there are no more leaks than blocks.
        (0..u32::MAX).take(self.len())
    }
}

/// The numbers of unmarked blocks among each other.
struct Numbers {
    /// Unmarked blocks, and how many there are before these 64.
    words: Vec<(u64, u32)>,
}

impl Numbers {
    fn new(marks: &Marks) -> Self {
        let mut before = 0;
        let words = marks.unreached().map(|bits| {
            let word = (bits, before);
            before += bits.count_ones();
            word
        });
        Self {
            words: words.collect(),
        }
    }

    fn of(&self, block: u32) -> Option<u32> {
        let (bits, before) = self.words[block as usize / 64];
        let bit = 1_u64 << (block % 64);
        (bits & bit != 0).then(|| before + (bits & (bit - 1)).count_ones())
    }

    fn blocks(&self) -> Vec<u32> {
        let mut blocks = Vec::new();
        for (first, (bits, _)) in (0_u32..).step_by(64).zip(&self.words) {
            let mut bits = *bits;
            while bits != 0 {
                blocks.push(first + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
        blocks
    }
}

/// The strongly connected component of each leak: two leaks have the same number if each can be
/// reached from the other.
///
/// This is Tarjan's algorithm with a stack of its own instead of recursion: leaks may form chains
/// of millions.
pub(super) fn components(leaks: &LeakGraph) -> Vec<u32> {
    let mut tarjan = Tarjan {
        leaks,
        order: vec![0; leaks.len()],
        lowest: vec![0; leaks.len()],
        visited: 0,
        component: vec![NONE; leaks.len()],
        components: 0,
        open: Vec::new(),
        path: Vec::new(),
    };
    for leak in leaks.leaks() {
        if tarjan.order[leak as usize] == 0 {
            tarjan.visit(leak);
        }
    }
    tarjan.component
}

/// The component of a leak that is in none yet.
const NONE: u32 = u32::MAX;

struct Tarjan<'a> {
    leaks: &'a LeakGraph,
    /// When each leak was first seen, from 1 on; 0 for never.
    order: Vec<u32>,
    /// The earliest leak that is known to be in the component of each leak, by its order.
    lowest: Vec<u32>,
    visited: u32,
    component: Vec<u32>,
    components: u32,
    /// Leaks that were seen and have no component yet.
    open: Vec<u32>,
    /// The leaks from the first to the current one, and how many references of each were followed.
    path: Vec<(u32, usize)>,
}

impl Tarjan<'_> {
    /// Finds the components of all leaks that `first` reaches.
    fn visit(&mut self, first: u32) {
        self.enter(first);
        while let Some((leak, followed)) = self.path.last_mut() {
            let leak = *leak;
            if let Some(target) = self.leaks.references(leak).get(*followed) {
                *followed += 1;
                self.follow(leak, *target);
            } else {
                self.leave(leak);
            }
        }
    }

    fn enter(&mut self, leak: u32) {
        self.visited += 1;
        self.order[leak as usize] = self.visited;
        self.lowest[leak as usize] = self.visited;
        self.open.push(leak);
        self.path.push((leak, 0));
    }

    fn follow(&mut self, leak: u32, target: u32) {
        let order = self.order[target as usize];
        if order == 0 {
            self.enter(target);
        } else if self.component[target as usize] == NONE {
            self.lower(leak, order);
        }
    }

    /// Goes back from `leak`, whose references have all been followed.
    fn leave(&mut self, leak: u32) {
        self.path.pop();
        let lowest = self.lowest[leak as usize];
        if let Some((before, _)) = self.path.last() {
            self.lower(*before, lowest);
        }
        if lowest == self.order[leak as usize] {
            self.close(leak);
        }
    }

    fn lower(&mut self, leak: u32, lowest: u32) {
        let lowest_yet = &mut self.lowest[leak as usize];
        *lowest_yet = lowest.min(*lowest_yet);
    }

    /// Makes a component of the open leaks from `first` on.
    fn close(&mut self, first: u32) {
        while let Some(leak) = self.open.pop() {
            self.component[leak as usize] = self.components;
            if leak == first {
                break;
            }
        }
        self.components += 1;
    }
}
