//! What keeps a process from talking to the others, looked for before anything is loaded: what its
//! machine gives it, and whether the coordinator can be reached and would let it in.
//!
//! Each check is a function of what was seen, and has no other way to know; beside it stands the
//! function that looks. Nothing here waits without a limit.

pub mod machine;
pub mod reach;
