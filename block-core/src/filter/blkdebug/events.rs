//! The names of the points at which drivers tell what they are about to do
//! ([`BlockDriver::event`](crate::BlockDriver::event)).
//!
//! The spellings are those that testers know; each is accepted, whether or not a driver here comes by.

/// The event that has come once the filter is open.
pub(super) const NONE: &str = "none";

/// Every name, in groups.
pub(super) const EVENTS: &[&str] = &[
    // L1 table.
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    // L2 tables.
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    // Guest data.
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "cor_write",
    // Refcounts and clusters.
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_alloc_space",
    "cluster_free",
    // The request layer.
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    NONE,
    // Points that are this library's own.
    "header_update",
    "refcount_width_switch",
    "snapshot_apply_refcounts",
    "snapshot_apply_switch",
    "snapshot_create_refcounts",
    "snapshot_delete_refcounts",
    "snapshot_l1_write",
    "snapshot_table_switch",
    "snapshot_table_write",
];

/// The event of this name; dots stand for underscores, as they did in older configurations.
pub(super) fn named(name: &str) -> Option<&'static str> {
    let name = name.replace('.', "_");
    EVENTS.iter().copied().find(|event| *event == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_found() {
        assert_eq!(EVENTS.iter().collect::<BTreeSet<_>>().len(), EVENTS.len());
        assert_eq!(named("l1_grow.write_table"), Some("l1_grow_write_table"));
        assert_eq!(named("bogus"), None);
    }
}
