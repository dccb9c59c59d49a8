//! Linux: /proc.

pub(super) mod processes;
