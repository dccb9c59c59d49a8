use super::*;
use crate::report::compare::{Diff, Earlier, LiveGroup, LiveMemory, Side};
use crate::report::fixture::{chain, clean, leaky, many, wide, with_stacks, written};
use crate::report::group::groups;
use crate::report::{ComparedWith, Report, json};
use crate::scan::LeakKind;

fn text(report: &Report, options: &TextOptions) -> String {
    written(|out| write(report, options, out))
}

fn quiet(layout: Layout) -> TextOptions {
    TextOptions {
        layout,
        quiet: true,
        ..TextOptions::default()
    }
}

#[test]
fn a_clean_process_has_two_lines_below_its_header() {
    insta::assert_snapshot!("clean", text(&clean(), &TextOptions::default()));
}

#[test]
fn leaks_without_stacks_are_grouped_by_what_they_look_like() {
    insta::assert_snapshot!("leaky", text(&leaky(), &TextOptions::default()));
}

#[test]
fn leaks_with_stacks_are_grouped_by_stack() {
    insta::assert_snapshot!("with_stacks", text(&with_stacks(), &quiet(Layout::Trees)));
}

#[test]
fn a_list_has_one_entry_for_each_leak() {
    insta::assert_snapshot!("list", text(&leaky(), &quiet(Layout::List)));
    insta::assert_snapshot!(
        "list_with_stacks",
        text(&with_stacks(), &quiet(Layout::List))
    );
}

#[test]
fn samples_say_how_many_leaks_they_stand_for() {
    let mut report = with_stacks();
    report.stack_log.sample_bytes = Some(512 << 10);
    report.groups = groups(&report.leaks, report.stack_log.sample_bytes);
    let text = text(&report, &TextOptions::default());
    assert!(
        text.contains("\nStack Log:       lite, one sample in 512K\n"),
        "{text}"
    );
    let estimate = "\n====\n    7 samples stand for about 174766 blocks (4.00M)\n";
    assert!(text.contains(estimate), "{text}");
}

#[test]
fn leaks_that_are_left_out_are_counted() {
    let mut report = clean();
    report.summary.suppressed_blocks = 2;
    report.summary.suppressed_bytes = 128;
    let text = text(&report, &quiet(Layout::Trees));
    assert!(
        text.ends_with("2 leaks for 128 bytes excluded (not shown)\n"),
        "{text}"
    );
}

#[test]
fn a_table_has_one_line_for_each_type() {
    insta::assert_snapshot!("types", text(&leaky(), &quiet(Layout::Types)));
    insta::assert_snapshot!(
        "types_with_stacks",
        text(&with_stacks(), &quiet(Layout::Types))
    );
}

#[test]
fn what_the_limit_leaves_out_is_counted() {
    for (layout, note) in [
        (Layout::Trees, "2 more groups with 10 leaks (272 bytes)"),
        (Layout::List, "12 more leaks (416 bytes)"),
        (Layout::Types, "3 more types with 5 leaks (288 bytes)"),
    ] {
        let limit = Some(1);
        let text = text(
            &leaky(),
            &TextOptions {
                limit,
                ..quiet(layout)
            },
        );
        let note = format!("... {note} not shown; raise --limit to see more\n");
        assert!(text.contains(&note), "{text}");
    }
}

/// The numbers in what comes before `word` in `text`, each time that it does.
fn numbers_before(text: &str, word: &str) -> Vec<u64> {
    let numbers = text.match_indices(word).map(|(end, _)| {
        let digits = text[..end].trim_end();
        let start = digits
            .rfind(|c: char| !c.is_ascii_digit())
            .map_or(0, |at| at + 1);
        digits[start..].parse().expect("a number")
    });
    numbers.collect()
}

#[test]
fn of_many_leaks_the_largest_are_shown_and_all_are_counted() {
    const LEAKS: u64 = 100_000;
    let report = many(100_000);
    let limited = |layout, limit| {
        let options = TextOptions {
            limit: Some(limit),
            ..quiet(layout)
        };
        text(&report, &options)
    };
    let list = limited(Layout::List, 10);
    assert_eq!(list.matches("\nLeak: ").count(), 10);
    assert_eq!(numbers_before(&list, "more leaks ("), [LEAKS - 10]);

    let types = limited(Layout::Types, 2);
    // A type of a fifth of all, and the largest size.
    let shown: u64 = types
        .lines()
        .skip_while(|line| !line.contains("COUNT"))
        .skip(1)
        .take(2)
        .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(numbers_before(&types, "leaks ("), [LEAKS - shown]);

    // All but the leaks below other ones are in groups that are shown, or that are counted.
    let trees = limited(Layout::Trees, 3);
    let totals: u64 = trees
        .lines()
        .filter(|line| line.ends_with("<< TOTAL >>"))
        .filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(trees.matches("INSTANCES OF").count(), 3);
    assert_eq!(
        numbers_before(&trees, "leaks (").last(),
        Some(&(LEAKS - totals))
    );
    let sizes: Vec<u64> = report
        .groups
        .iter()
        .map(|group| group.bytes + group.held_bytes)
        .collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b));
}

#[test]
fn of_many_leaks_json_has_each() {
    let report = many(100_000);
    let document = written(|out| json::write_pretty(&report, out));
    let read: serde_json::Value = serde_json::from_str(&document).expect("JSON");
    let length = |field: &str| read[field].as_array().expect("an array").len();
    assert_eq!(length("leaks"), 100_000);
    let groups = read["groups"].as_array().expect("groups").iter();
    let grouped = groups.map(|group| group["leaks"].as_array().expect("leaks").len());
    assert_eq!(grouped.sum::<usize>(), 100_000);
    assert_eq!(read["summary"]["leaked_blocks"], 100_000);
    assert_eq!(read["summary"]["indirect"], 3_000);
    let read: Report = serde_json::from_str(&document).expect("a report");
    assert_eq!(read, report);
    for layout in [Layout::Trees, Layout::List, Layout::Types] {
        assert_eq!(text(&read, &quiet(layout)), text(&report, &quiet(layout)));
    }
}

#[test]
fn colours_change_nothing_but_colours() {
    let palette = Palette::colored();
    for report in [leaky(), with_stacks()] {
        for layout in [Layout::Trees, Layout::List, Layout::Types] {
            let plain = text(&report, &quiet(layout));
            let colored = text(
                &report,
                &TextOptions {
                    palette,
                    ..quiet(layout)
                },
            );
            assert_ne!(colored, plain);
            assert_eq!(anstream::adapter::strip_str(&colored).to_string(), plain);
        }
    }
}

#[test]
fn no_string_of_the_target_sends_control_characters() {
    let evil = "\u{1b}[2J\u{9b}1m\u{7f}\n\u{202e}";
    let mut report = with_stacks();
    report.target.name = evil.to_owned();
    report.target.executable = evil.to_owned();
    report.zones[0].name = evil.to_owned();
    report.warnings[0].message = evil.to_owned();
    report.leaks.edit(|leaks| {
        for leak in leaks {
            leak.type_name = Some(evil.into());
            leak.content = Some(evil.into());
        }
    });
    for frame in report.stacks.iter_mut().flat_map(|s| &mut s.frames) {
        frame.module = Some(evil.to_owned());
        frame.function = Some(evil.to_owned());
        frame.file = Some(evil.to_owned());
    }
    for layout in [Layout::Trees, Layout::List, Layout::Types] {
        let options = TextOptions {
            quiet: false,
            ..quiet(layout)
        };
        let text = text(&report, &options);
        let allowed = |c: &char| matches!(c, '\n' | '\t');
        let sent = text.chars().find(|c| c.is_control() && !allowed(c));
        assert_eq!(sent, None, "{text:?}");
        assert!(text.contains("\\u{1b}[2J") && !text.contains('\u{202e}'));
    }
}

#[test]
fn a_report_from_json_prints_the_same_text() {
    let report = with_stacks();
    let document = written(|out| json::write_line(&report, out));
    let read: Report = serde_json::from_str(&document).expect("a report");
    let options = TextOptions::default();
    assert_eq!(text(&read, &options), text(&report, &options));
}

#[test]
fn what_is_held_by_a_leak_outside_the_report_begins_a_tree() {
    let mut report = leaky();
    report.leaks.retain(|leak| leak.size() != 80);
    let text = text(&report, &quiet(Layout::Trees));
    assert!(
        text.contains("1 INSTANCE OF 'INDIRECT LEAK: <malloc<64>>':"),
        "{text}"
    );
}

#[test]
fn a_leaked_list_of_a_million_blocks_is_cut_and_needs_little_stack() {
    let report = chain(1_000_000);
    let text = std::thread::scope(|scope| {
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let writer = small.spawn_scoped(scope, || text(&report, &quiet(Layout::Trees)));
        writer.expect("a thread").join().expect("a text")
    });
    insta::assert_snapshot!("chain", text);
}

#[test]
fn a_leak_that_holds_many_shows_the_largest() {
    insta::assert_snapshot!("wide", text(&wide(30), &quiet(Layout::Trees)));
}

/// A report of leaks of which an earlier one had some: a part of a tree, two of seven that are
/// alike, and one that is gone.
fn compared(with: ComparedWith) -> Report {
    let mut old = with_stacks();
    old.leaks.edit(|leaks| {
        leaks.retain(|leak| leak.kind != LeakKind::Indirect && leak.size != 40);
        leaks.truncate(3);
        (leaks[2].size, leaks[2].requested) = (4000, Some(4000));
    });
    old.target.pid = Some(77);
    old.capture.taken_at = "2026-11-21T08:00:00Z".to_owned();
    let mut new = with_stacks();
    new.warnings.clear();
    new.summary.suppressed_blocks = 1;
    new.summary.suppressed_bytes = 8;
    let earlier = Earlier {
        file: "old\u{1b}.json".to_owned(),
        with,
        reports: vec![old],
    };
    earlier.leave_only_new(&mut new).expect("one report");
    new
}

#[test]
fn what_is_new_is_shown_and_the_rest_counted() {
    let report = compared(ComparedWith::Earlier);
    insta::assert_snapshot!("compared", text(&report, &TextOptions::default()));
    let quiet = text(&compared(ComparedWith::Baseline), &quiet(Layout::Types));
    let line = "11 new, 2 known (88 bytes, not shown), 1 not found (4000 bytes).\n";
    assert!(quiet.contains(line), "{quiet}");
    let excluded = "\n1 leak for 8 bytes excluded (not shown)\n";
    assert!(quiet.contains(excluded), "{quiet}");
}

/// A diff of two processes with everything in it.
fn two_processes() -> Diff {
    let side = |mut report: Report, pid, sizes: [(u64, u64); 3]| {
        report.target.pid = Some(pid);
        let stacks = report.stacks.clone();
        let live = sizes.map(|(size, blocks)| LiveGroup {
            stack: (size > 8).then_some(7),
            type_name: None,
            size,
            blocks,
        });
        Side {
            source: format!("{pid}.core"),
            live: Some(LiveMemory {
                groups: live.to_vec(),
                stacks,
                modules: Vec::new(),
            }),
            report,
        }
    };
    let mut old = with_stacks();
    old.leaks.edit(|leaks| leaks.truncate(6));
    let mut new = with_stacks();
    new.leaks.edit(|leaks| {
        leaks.remove(0);
    });
    let old = side(old, 77, [(8, 3), (64, 10), (4096, 1)]);
    let new = side(new, 4242, [(8, 3), (64, 1000), (128, 1)]);
    let mut diff = Diff::new(&old, &new);
    diff.rleaks_version = "0.1.0".to_owned();
    diff
}

#[test]
fn a_diff_shows_totals_and_groups() {
    let shown = |options: &TextOptions| written(|out| write_diff(&two_processes(), options, out));
    insta::assert_snapshot!("diff", shown(&TextOptions::default()));
    let limited = TextOptions {
        limit: Some(1),
        ..quiet(Layout::Trees)
    };
    let limited = shown(&limited);
    assert!(limited.starts_with("In use:  "), "{limited}");
    assert!(limited.contains("\n... 1 more group ("), "{limited}");
}

#[test]
fn the_format_of_a_diff_changes_only_on_purpose() {
    let diff = two_processes();
    let document = written(|out| json::write_value(&diff, out));
    let read: Diff = serde_json::from_str(&document).expect("a diff");
    assert_eq!(read, diff);
    insta::assert_snapshot!("diff_document", document);
}
