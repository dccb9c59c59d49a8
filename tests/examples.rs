//! The examples in `tests/cmd/` and the README's commands whose output is always the same.

#[test]
fn examples_print_what_they_are_said_to_print() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd");
}
