//! Structures of the format as they stand in files: bytes here, checked types outside.

pub mod cowd;
pub mod marker;
pub mod sesparse;
pub mod sparse;
