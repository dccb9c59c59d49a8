use std::collections::BTreeMap;

use proptest::prelude::*;

use super::compared::Compared;
use super::kinds::Kinds;
use super::terms::{Terms, is_same_process};
use super::{Change, Diff, Earlier, LiveGroup, LiveMemory, Side};
use crate::addr::Addr;
use crate::report::fixture::{clean, leaky, with_stacks};
use crate::report::{
    ComparedBy, ComparedWith, Frame, Leak, LeakRef, Module, Offset, Report, Stack,
};
use crate::scan::LeakKind;

const OTHER_PID: u32 = 77;

/// A block that leaked: its stack, its type and its size.
type Seed = (Option<u32>, Option<u8>, u64);

fn leak((address, (stack, type_name, size)): (u64, Seed)) -> Leak<'static> {
    Leak {
        address: Addr(address * 0x100),
        size,
        requested: None,
        zone: 0,
        kind: LeakKind::RootLeak,
        parent: None,
        tree_parent: None,
        held_blocks: 0,
        held_bytes: 0,
        type_name: type_name.map(|name| format!("T{name}").into()),
        content: None,
        content_length: None,
        stack,
        thread: None,
        allocated_milliseconds: None,
    }
}

fn stack(id: u32, functions: &[&str]) -> Stack {
    let frames = functions.iter().map(|name| Frame {
        address: Addr(0x1000 + u64::from(id)),
        module: Some("/usr/bin/mono-sgen".to_owned()),
        function: Some((*name).to_owned()),
        file: Some("a.c".to_owned()),
        ..Frame::default()
    });
    Stack {
        id,
        frames: frames.collect(),
        cut: false,
    }
}

/// A report of process `pid` with these leaks.
fn report(pid: u32, seeds: &[Seed]) -> Report {
    let mut report = with_stacks();
    report.target.pid = Some(pid);
    report.stacks = (0..4)
        .map(|id| stack(id, &["malloc", ["a", "b", "c", "d"][id as usize]]))
        .collect();
    report.leaks = (1..).zip(seeds.iter().copied()).map(leak).collect();
    report.summary = crate::report::build::summary(&report.leaks);
    report
}

fn side(report: Report) -> Side {
    Side {
        source: "r.json".to_owned(),
        report,
        live: None,
    }
}

fn diff(old: &Report, new: &Report) -> Diff {
    Diff::new(&side(old.clone()), &side(new.clone()))
}

fn compared_with(with: ComparedWith, old: &[Report], new: &Report) -> Report {
    let earlier = Earlier {
        file: "old.json".to_owned(),
        with,
        reports: old.to_vec(),
    };
    let mut new = new.clone();
    earlier
        .leave_only_new(&mut new)
        .expect("it is clear which report is meant");
    new
}

fn with_baseline(old: &[Report], new: &Report) -> Report {
    compared_with(ComparedWith::Baseline, old, new)
}

fn new_addresses(report: &Report) -> Vec<u64> {
    report
        .leaks
        .iter()
        .map(|leak| leak.address().0 / 0x100)
        .collect()
}

fn codes(report: &Report) -> Vec<&str> {
    let old = ["region_unreadable", "unknown_allocator"];
    let warnings = report.warnings.iter().map(|warning| warning.code.as_str());
    warnings.filter(|code| !old.contains(code)).collect()
}

fn seeds() -> impl Strategy<Value = Vec<Seed>> {
    let stack = prop::option::weighted(0.7, 0_u32..3);
    let type_name = prop::option::weighted(0.5, 0_u8..2);
    let size = prop::sample::select(vec![16, 24, 4096]);
    prop::collection::vec((stack, type_name, size), 0..40)
}

/// How many leaks there are of each stack and size: types may be missing.
fn counts<'a>(leaks: impl Iterator<Item = LeakRef<'a>>) -> BTreeMap<(Option<u32>, u64), u64> {
    let mut counts = BTreeMap::new();
    for leak in leaks {
        *counts.entry((leak.stack(), leak.size())).or_default() += 1;
    }
    counts
}

proptest! {
    #[test]
    fn nothing_is_new_in_a_report_beside_itself(seeds in seeds(), other in any::<bool>()) {
        let old = report(4242, &seeds);
        let new = report(if other { OTHER_PID } else { 4242 }, &seeds);
        let diff = diff(&old, &new);
        prop_assert_eq!(diff.summary.appeared_blocks + diff.summary.gone_blocks, 0);
        prop_assert_eq!(diff.summary.kept_blocks, seeds.len() as u64);
        prop_assert_eq!(diff.leaks, []);
        for with in [ComparedWith::Earlier, ComparedWith::Baseline] {
            let new = compared_with(with, std::slice::from_ref(&old), &new);
            prop_assert!(!new.has_leaks());
            prop_assert_eq!(new.summary.suppressed_blocks, seeds.len() as u64);
        }
    }

    #[test]
    fn what_appears_one_way_goes_away_the_other_way(old in seeds(), new in seeds(), other in any::<bool>()) {
        let old = report(4242, &old);
        let new = report(if other { OTHER_PID } else { 4242 }, &new);
        let (there, back) = (diff(&old, &new).summary, diff(&new, &old).summary);
        prop_assert_eq!(there.appeared_blocks, back.gone_blocks);
        prop_assert_eq!(there.appeared_bytes, back.gone_bytes);
        prop_assert_eq!(there.kept_blocks, back.kept_blocks);
    }

    #[test]
    fn counts_add_up(old in seeds(), new in seeds(), other in any::<bool>()) {
        let old = report(4242, &old);
        let new = report(if other { OTHER_PID } else { 4242 }, &new);
        let diff = diff(&old, &new);
        let summary = &diff.summary;
        prop_assert_eq!(summary.appeared_blocks + summary.kept_blocks, new.summary.leaked_blocks);
        prop_assert_eq!(summary.gone_blocks + summary.kept_blocks, old.summary.leaked_blocks);
        prop_assert_eq!(summary.appeared_bytes + summary.kept_bytes, new.summary.leaked_bytes);
        prop_assert_eq!(summary.gone_bytes + summary.kept_bytes, old.summary.leaked_bytes);
        for group in &diff.leaks {
            let (appeared, gone) = (group.appeared_blocks.expect("it is there"), group.gone_blocks.expect("it is there"));
            prop_assert_eq!(group.new_blocks - appeared, group.old_blocks - gone);
        }
        let sum = |of: fn(&super::GroupChange) -> u64| diff.leaks.iter().map(of).sum::<u64>();
        prop_assert_eq!(sum(|g| g.appeared_blocks.expect("it is there")), summary.appeared_blocks);
        prop_assert_eq!(sum(|g| g.gone_blocks.expect("it is there")), summary.gone_blocks);
    }

    #[test]
    fn of_each_kind_as_many_are_new_as_the_baseline_lacks(old in seeds(), new in seeds()) {
        // Without types, so that what is new can be counted in a simple way.
        let untyped = |seeds: Vec<Seed>| seeds.into_iter().map(|(stack, _, size)| (stack, None, size)).collect::<Vec<_>>();
        let (old, new) = (report(4242, &untyped(old)), report(OTHER_PID, &untyped(new)));
        let expected: BTreeMap<_, _> = counts(new.leaks.iter())
            .into_iter()
            .map(|(kind, n)| (kind, n - n.min(counts(old.leaks.iter()).get(&kind).copied().unwrap_or(0))))
            .filter(|(_, n)| *n > 0)
            .collect();
        let shown = with_baseline(&[old], &new);
        prop_assert_eq!(counts(shown.leaks.iter()), expected);
        let comparison = shown.comparison.clone().expect("it is there");
        prop_assert_eq!(comparison.new_blocks + comparison.old_blocks, new.leaks.len() as u64);
        prop_assert_eq!(shown.summary.leaked_blocks, comparison.new_blocks);
    }

    #[test]
    fn several_baselines_know_what_the_best_of_them_knows(old in prop::collection::vec(seeds(), 1..4), new in seeds()) {
        let old: Vec<Report> = old.iter().map(|seeds| report(4242, seeds)).collect();
        let new = report(OTHER_PID, &new);
        let all = with_baseline(&old, &new).leaks.len();
        let best = old.iter().map(|one| with_baseline(std::slice::from_ref(one), &new).leaks.len()).min();
        prop_assert!(all <= best.expect("it is there"));
        prop_assert!(!with_baseline(&old, &old[0]).has_leaks());
    }
}

#[test]
fn an_address_that_was_allocated_again_is_a_new_leak() {
    let old = report(4242, &[(Some(1), Some(1), 24), (Some(1), None, 24)]);
    let is_new = |change: &dyn Fn(&mut Leak<'_>)| {
        let mut new = old.clone();
        new.leaks.edit(|leaks| change(&mut leaks[0]));
        compared_with(ComparedWith::Earlier, std::slice::from_ref(&old), &new).has_leaks()
    };
    assert!(!is_new(&|_| {}));
    assert!(is_new(&|leak| leak.size = 40));
    assert!(is_new(&|leak| leak.stack = Some(2)));
    assert!(is_new(&|leak| leak.type_name = Some("T2".into())));
    assert!(is_new(&|leak| leak.address = Addr(0x9999)));
    // What is not known on one side says nothing.
    assert!(!is_new(&|leak| leak.type_name = None));
    assert!(!is_new(&|leak| leak.thread = Some(1)));
    let mut timed = old.clone();
    timed
        .leaks
        .edit(|leaks| leaks[0].allocated_milliseconds = Some(17));
    let mut later = timed.clone();
    later
        .leaks
        .edit(|leaks| leaks[0].allocated_milliseconds = Some(34));
    let shown = compared_with(ComparedWith::Earlier, &[timed], &later);
    assert_eq!(new_addresses(&shown), [1]);
    assert_eq!(shown.comparison.expect("it is there").gone_blocks, 1);
}

#[test]
fn a_process_is_the_same_if_pid_program_and_start_are() {
    let target = clean().target;
    let changed = |change: &dyn Fn(&mut crate::report::Target)| {
        let mut other = target.clone();
        change(&mut other);
        is_same_process(&target, &other)
    };
    assert!(changed(&|_| {}));
    // A core file does not know the start, and an older report nothing.
    assert!(changed(&|other| other.started_milliseconds = None));
    assert!(changed(&|other| other.address_space = None));
    assert!(!changed(&|other| (
        other.started_milliseconds,
        other.address_space
    ) = (None, None)));
    assert!(!changed(&|other| other.pid = Some(1)));
    assert!(!changed(&|other| other.pid = None));
    assert!(!changed(&|other| other.started_milliseconds = Some(1)));
    assert!(!changed(&|other| other.address_space = Some(Offset(1))));
    assert!(!changed(&|other| other.executable = "/bin/other".to_owned()));
}

#[test]
fn a_baseline_compares_kinds_even_of_the_same_process() {
    let old = report(4242, &[(Some(1), None, 24)]);
    let mut new = old.clone();
    new.leaks.edit(|leaks| leaks[0].address = Addr(0x77_0000));
    assert!(!with_baseline(&[old], &new).has_leaks());
}

/// A leak that holds two others.
fn tree(address: u64) -> Vec<Leak<'static>> {
    let child = |offset, size| Leak {
        kind: LeakKind::Indirect,
        parent: Some(Addr(address * 0x100)),
        tree_parent: Some(Addr(address * 0x100)),
        ..leak((address + offset, (Some(2), None, size)))
    };
    vec![
        leak((address, (Some(1), None, 64))),
        child(1, 24),
        child(2, 24),
    ]
}

#[test]
fn of_trees_that_are_alike_whole_ones_are_new() {
    let mut old = report(4242, &[]);
    old.leaks = tree(8).into_iter().collect();
    let mut new = report(OTHER_PID, &[]);
    let mut leaks = [tree(0x10), tree(0x20)].concat();
    // The report's order is by size, not by tree.
    leaks.sort_by_key(|leak| {
        (
            std::cmp::Reverse(leak.size),
            std::cmp::Reverse(leak.address),
        )
    });
    new.leaks = leaks.into_iter().collect();
    let shown = with_baseline(&[old], &new);
    let mut shown = new_addresses(&shown);
    shown.sort_unstable();
    assert_eq!(shown, [0x10, 0x11, 0x12]);
}

#[test]
fn what_a_known_leak_holds_is_new_where_the_baseline_has_less_of_it() {
    let mut old = report(4242, &[]);
    old.leaks = tree(8).into_iter().take(2).collect();
    let mut new = report(OTHER_PID, &[]);
    new.leaks = tree(0x10).into_iter().collect();
    let shown = with_baseline(std::slice::from_ref(&old), &new);
    assert_eq!(new_addresses(&shown), [0x12]);
    let kinds: Vec<_> = shown.leaks.iter().map(LeakRef::kind).collect();
    assert_eq!(kinds, [LeakKind::Indirect]);
    assert_eq!(shown.summary.indirect, 1);
    // What was held is known, whether it is held this time or not.
    new.leaks.edit(|leaks| {
        leaks.remove(0);
        leaks[0].kind = LeakKind::RootLeak;
    });
    assert_eq!(with_baseline(&[old], &new).leaks.len(), 1);
}

#[test]
fn parents_in_a_circle_are_taken_as_they_are() {
    let mut old = report(4242, &[(None, None, 8), (None, None, 16), (None, None, 24)]);
    let addresses: Vec<Addr> = old.leaks.iter().map(LeakRef::address).collect();
    old.leaks.edit(|leaks| {
        for (leak, parent) in leaks.iter_mut().zip([1, 0, 2]) {
            leak.tree_parent = Some(addresses[parent]);
        }
    });
    let new = report(OTHER_PID, &[(None, None, 8), (None, None, 16)]);
    assert_eq!(diff(&old, &new).summary.gone_blocks, 1);
    assert_eq!(diff(&new, &old).summary.appeared_blocks, 1);
}

#[test]
fn a_type_that_is_known_on_one_side_only_is_no_difference_where_the_stack_is_the_same() {
    let old = report(
        4242,
        &[
            (Some(1), None, 24),
            (Some(1), Some(1), 24),
            (None, None, 24),
        ],
    );
    let new = report(
        OTHER_PID,
        &[
            (Some(1), Some(2), 24),
            (Some(1), Some(3), 24),
            (None, Some(1), 24),
        ],
    );
    // One takes the place of the one without a type; the others have another type, or no stack.
    assert_eq!(diff(&old, &new).summary.kept_blocks, 1);
    assert_eq!(diff(&new, &old).summary.kept_blocks, 1);
}

/// Whether a leak of `old` with this stack is that of `new` with that one.
fn is_known(old: (&Report, Stack), new: (&Report, Stack)) -> bool {
    let with = |(report, stack): (&Report, Stack)| {
        let mut report = report.clone();
        report.leaks = [leak((1, (Some(stack.id), None, 24)))]
            .into_iter()
            .collect();
        report.stacks = vec![stack];
        report
    };
    !with_baseline(&[with(old)], &with(new)).has_leaks()
}

#[test]
fn stacks_are_compared_by_offset_in_one_build_and_by_function_in_two() {
    let module = |build_id: Option<&str>| Module {
        path: "/usr/lib/libx.so.1".to_owned(),
        build_id: build_id.map(str::to_owned),
    };
    let frame = |address, function: Option<&str>| Frame {
        address: Addr(0x7f00_0000 + address),
        module: Some("/usr/lib/libx.so.1".to_owned()),
        offset: Some(Offset(address)),
        function: function.map(str::to_owned),
        file: Some("x.c".to_owned()),
        ..Frame::default()
    };
    let stack = |frames: &[Frame]| Stack {
        id: 1,
        frames: frames.to_vec(),
        cut: false,
    };
    let report_of = |pid, build_id| Report {
        modules: vec![module(build_id)],
        ..report(pid, &[])
    };
    let old = report_of(4242, Some("aa"));
    let (same, other) = (
        report_of(OTHER_PID, Some("aa")),
        report_of(OTHER_PID, Some("bb")),
    );
    let unknown = report_of(OTHER_PID, None);
    let here = || stack(&[frame(0x10, Some("f"))]);
    let stripped = || stack(&[frame(0x10, None)]);
    let there = || stack(&[frame(0x20, Some("f"))]);
    assert!(is_known((&old, here()), (&same, here())));
    assert!(is_known((&old, here()), (&same, stripped())));
    assert!(!is_known((&old, here()), (&same, there())));
    for other in [&other, &unknown] {
        assert!(is_known((&old, here()), (other, there())));
        assert!(is_known((&old, stripped()), (other, stripped())));
        assert!(!is_known((&old, here()), (other, stripped())));
        assert!(!is_known(
            (&old, here()),
            (other, stack(&[frame(0x10, Some("g"))]))
        ));
    }
    // An inlined call is a part of the place in one build, and a call in two.
    let inlined = Frame {
        inlined: true,
        ..frame(0x10, Some("h"))
    };
    let inlining = || stack(&[inlined.clone(), frame(0x10, Some("f"))]);
    assert!(is_known((&old, here()), (&same, inlining())));
    assert!(!is_known((&old, here()), (&other, inlining())));
    // Code that a compiler made while the program ran has no place that would be the same again.
    let jit = |address| {
        stack(&[Frame {
            address: Addr(address),
            ..Frame::default()
        }])
    };
    assert!(is_known((&old, jit(1)), (&same, jit(2))));
}

#[test]
fn the_executable_may_have_another_name_and_libraries_another_folder() {
    let frame = |path: &str, function: &str| Frame {
        module: Some(path.to_owned()),
        function: Some(function.to_owned()),
        file: Some("x.c".to_owned()),
        ..Frame::default()
    };
    let stack = |program: &str, library: &str| Stack {
        id: 1,
        frames: vec![frame(library, "f"), frame(program, "main")],
        cut: false,
    };
    let of = |pid, program: &str| {
        let mut report = report(pid, &[]);
        report.target.executable = program.to_owned();
        report
    };
    let old = of(1, "/a/test-1f2e");
    let new = of(2, "/b/test-77aa");
    let old = (&old, stack("/a/test-1f2e", "/lib/libx.so.1.2"));
    assert!(is_known(
        old.clone(),
        (&new, stack("/b/test-77aa", "/usr/lib/libx.so.1.3"))
    ));
    assert!(!is_known(
        old,
        (&new, stack("/b/test-77aa", "/usr/lib/liby.so.1"))
    ));
}

#[test]
fn without_stacks_on_both_sides_leaks_go_by_type_and_size_and_that_is_said() {
    let old = report(4242, &[(Some(1), Some(1), 24), (Some(2), None, 24)]);
    let mut new = report(
        OTHER_PID,
        &[(None, Some(1), 24), (None, None, 24), (None, None, 32)],
    );
    new.stacks = Vec::new();
    new.stack_log = crate::report::StackLog::default();
    for with in [ComparedWith::Earlier, ComparedWith::Baseline] {
        let shown = compared_with(with, std::slice::from_ref(&old), &new);
        assert_eq!(new_addresses(&shown), [3]);
        assert_eq!(
            shown.comparison.as_ref().expect("it is there").by,
            ComparedBy::Type
        );
        assert_eq!(codes(&shown), ["comparison_without_stacks"]);
    }
    // Which of the blocks are samples is chance.
    let mut sampled = report(OTHER_PID, &[(None, Some(1), 24), (Some(3), None, 24)]);
    sampled.stack_log.sample_bytes = Some(4096);
    let shown = with_baseline(&[old], &sampled);
    assert_eq!(
        (shown.leaks.len(), codes(&shown)),
        (0, vec!["comparison_without_stacks"])
    );
}

#[test]
fn what_the_program_asked_for_counts_where_it_is_known() {
    let mut old = report(4242, &[(Some(1), None, 24), (Some(1), None, 24)]);
    let mut new = report(OTHER_PID, &[(Some(1), None, 40), (Some(1), None, 24)]);
    for (report, asked_for) in [(&mut old, [20, 24]), (&mut new, [20, 23])] {
        report.leaks.edit(|leaks| {
            for (leak, requested) in leaks.iter_mut().zip(asked_for) {
                leak.requested = Some(requested);
            }
        });
    }
    assert_eq!(new_addresses(&with_baseline(&[old], &new)), [2]);
}

#[test]
fn a_baseline_that_cannot_say_all_is_warned_of() {
    let new = report(OTHER_PID, &[(Some(1), None, 24)]);
    let codes_with = |change: &dyn Fn(&mut Report)| {
        let mut old = report(4242, &[(Some(1), None, 24)]);
        change(&mut old);
        let shown = with_baseline(&[old], &new);
        codes(&shown).join(" ")
    };
    assert_eq!(codes_with(&|_| {}), "");
    assert_eq!(
        codes_with(&|old| old.rleaks_version = "0.0.9".to_owned()),
        "comparison_version"
    );
    assert_eq!(
        codes_with(&|old| old.target.executable = "/bin/x".to_owned()),
        "comparison_program"
    );
    assert_eq!(
        codes_with(&|old| old.target.arch = "i386".to_owned()),
        "comparison_program"
    );
    assert_eq!(
        codes_with(&|old| old.stacks = Vec::new()),
        "comparison_without_stacks"
    );
    let nameless = |old: &mut Report| old.stacks[1].frames[1].function = None;
    assert_eq!(codes_with(&nameless), "comparison_build");
    assert_eq!(
        codes_with(&|old| old.summary.suppressed_blocks = 1),
        "comparison_partial"
    );
}

#[test]
fn of_several_reports_in_a_baseline_those_of_the_program_count() {
    let of = |pid, executable: &str, seeds: &[Seed]| {
        let mut report = report(pid, seeds);
        report.target.executable = executable.to_owned();
        report
    };
    let one = (Some(1), None, 24);
    let baseline = [
        of(1, "/bin/a", &[one]),
        of(2, "/bin/b", &[one, one, one]),
        of(3, "/x/a", &[one, one]),
    ];
    let shown = with_baseline(&baseline, &of(4, "/bin/a", &[one, one, one]));
    assert_eq!(shown.leaks.len(), 1);
    assert_eq!(shown.comparison.expect("it is there").taken_at, None);
    let other = with_baseline(&baseline, &of(4, "/bin/c", &[one]));
    assert_eq!(
        (other.leaks.len(), codes(&other)),
        (1, vec!["comparison_without_program"])
    );
}

#[test]
fn of_several_earlier_reports_that_of_the_process_is_meant() {
    let one = (Some(1), None, 24);
    let old = [report(1, &[one]), report(4242, &[]), report(2, &[one])];
    let shown = compared_with(ComparedWith::Earlier, &old, &report(4242, &[one]));
    assert_eq!(shown.leaks.len(), 1);
    let earlier = Earlier {
        file: "old.json".to_owned(),
        with: ComparedWith::Earlier,
        reports: old.to_vec(),
    };
    let refused = earlier.leave_only_new(&mut report(OTHER_PID, &[one]));
    let said = refused.expect_err("three are of the program").to_string();
    assert!(
        said.starts_with("old.json has 3 reports, and not exactly one of them is of mono-sgen"),
        "{said}"
    );
}

#[test]
fn a_report_of_what_is_new_has_groups_and_stacks_of_that_only() {
    let old = report(4242, &[(Some(1), None, 24), (Some(2), None, 16)]);
    let new = report(
        OTHER_PID,
        &[(Some(1), None, 24), (Some(3), None, 8), (Some(1), None, 24)],
    );
    let mut excluded = new.clone();
    (
        excluded.summary.suppressed_blocks,
        excluded.summary.suppressed_bytes,
    ) = (2, 100);
    let shown = with_baseline(&[old], &excluded);
    assert_eq!(shown.groups.len(), 2);
    assert_eq!(
        shown
            .stacks
            .iter()
            .map(|stack| stack.id)
            .collect::<Vec<_>>(),
        [1, 3]
    );
    let summary = &shown.summary;
    assert_eq!((summary.leaked_blocks, summary.leaked_bytes), (2, 32));
    assert_eq!(
        (summary.suppressed_blocks, summary.suppressed_bytes),
        (3, 124)
    );
    let comparison = shown.comparison.expect("it is there");
    assert_eq!(
        (
            comparison.old_blocks,
            comparison.gone_blocks,
            comparison.gone_bytes
        ),
        (1, 1, 16)
    );
}

#[test]
fn groups_say_what_happened_and_what_has_grown_most_comes_first() {
    let old = report(
        4242,
        &[
            (Some(0), None, 16),
            (Some(1), None, 24),
            (None, Some(1), 8),
            (Some(2), None, 8),
        ],
    );
    let new = report(
        OTHER_PID,
        &[
            (Some(3), None, 4096),
            (Some(1), None, 24),
            (Some(1), None, 32),
            (None, Some(1), 8),
            (Some(2), None, 8),
        ],
    );
    let mut new = new;
    new.leaks
        .edit(|leaks| leaks[4].type_name = Some("other".into()));
    let mut old = old;
    old.leaks
        .edit(|leaks| leaks[3].type_name = Some("one".into()));
    let diff = diff(&old, &new);
    let changes: Vec<_> = diff
        .leaks
        .iter()
        .map(|group| (group.change, group.stack.is_some()))
        .collect();
    assert_eq!(
        changes,
        [
            (Change::Appeared, true),
            (Change::Grew, true),
            (Change::Replaced, true),
            (Change::WentAway, true)
        ]
    );
    assert_eq!(diff.summary.unchanged_groups, 1);
    assert_eq!(diff.leaks[1].size, None);
    assert_eq!(diff.stacks.len(), 4);
    let ids: Vec<_> = diff.leaks.iter().map(|group| group.stack).collect();
    let shown = diff
        .stacks
        .iter()
        .find(|stack| Some(stack.id) == ids[0])
        .expect("a stack");
    assert_eq!(shown.frames[1].function.as_deref(), Some("d"));
}

#[test]
fn live_memory_is_compared_where_both_sides_have_it() {
    let group = |stack, size, blocks| LiveGroup {
        stack,
        type_name: None,
        size,
        blocks,
    };
    let live = |first_id: u32, groups: Vec<LiveGroup>| LiveMemory {
        groups,
        stacks: vec![
            stack(first_id, &["malloc", "a"]),
            stack(first_id + 1, &["malloc", "b"]),
        ],
        modules: Vec::new(),
    };
    let with = |pid, live| Side {
        source: "snapshot".to_owned(),
        report: report(pid, &[(Some(3), None, 8)]),
        live: Some(live),
    };
    let old = with(
        4242,
        live(
            7,
            vec![
                group(Some(7), 16, 2),
                group(Some(7), 32, 1),
                group(None, 8, 5),
            ],
        ),
    );
    let new = with(
        OTHER_PID,
        live(
            8,
            vec![
                group(Some(8), 16, 9),
                group(None, 8, 5),
                group(Some(9), 64, 1),
            ],
        ),
    );
    let diff = Diff::new(&old, &new);
    let changed = diff.live.expect("both have it");
    let sums: Vec<_> = changed
        .iter()
        .map(|group| {
            (
                group.change,
                group.old_bytes,
                group.new_bytes,
                group.appeared_blocks,
            )
        })
        .collect();
    assert_eq!(
        sums,
        [
            (Change::Grew, 64, 144, None),
            (Change::Appeared, 0, 64, None)
        ]
    );
    let side = Side {
        live: None,
        ..old.clone()
    };
    let half = Diff::new(&side, &new);
    assert_eq!(half.live, None);
    assert_eq!(
        half.warnings.last().expect("a warning").code,
        "comparison_without_live_blocks"
    );
}

#[test]
fn leaks_of_a_real_report_are_told_apart_as_those_of_a_made_one() {
    for sample in [clean(), leaky(), with_stacks()] {
        let terms = Terms::of_kinds(&[&sample], &sample);
        let compared = Compared::new(&mut Kinds::new(&terms), false, &[&sample], &sample);
        assert_eq!(compared.gone().count(), 0);
    }
}
