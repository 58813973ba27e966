//! What a device or a tool holds (to be written).
