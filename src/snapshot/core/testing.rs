//! Core files made of nothing, for tests.
