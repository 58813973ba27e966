//! The formats and their options that the suite runs with.

/// A format with options, as the scripts are told it.
#[derive(Debug)]
pub(super) struct Configuration {
    /// As the list and the table call it.
    pub(super) name: &'static str,
    /// `IMGFMT`.
    pub(super) format: &'static str,
    /// `IMGOPTS`.
    pub(super) options: &'static str,
}

const fn configuration(
    name: &'static str,
    format: &'static str,
    options: &'static str,
) -> Configuration {
    Configuration { name, format, options }
}

/// All of them.
pub(super) const CONFIGURATIONS: &[Configuration] = &[
    configuration("raw", "raw", ""),
    configuration("qcow2", "qcow2", ""),
    configuration("qcow2-v2", "qcow2", "compat=0.10"),
    configuration("qcow2-zstd", "qcow2", "compression_type=zstd"),
    configuration("qcow2-refcount1", "qcow2", "refcount_bits=1"),
    configuration("qcow2-data-file", "qcow2", "data_file=$TEST_IMG.ext_data_file"),
    configuration("qcow2-extended-l2", "qcow2", "extended_l2=on"),
    configuration("vmdk-sparse", "vmdk", "subformat=monolithicSparse,zeroed_grain=on"),
    configuration("vmdk-flat", "vmdk", "subformat=monolithicFlat,zeroed_grain=off"),
    configuration("vmdk-2gb-sparse", "vmdk", "subformat=twoGbMaxExtentSparse,zeroed_grain=on"),
    configuration("vmdk-2gb-flat", "vmdk", "subformat=twoGbMaxExtentFlat,zeroed_grain=off"),
    configuration("vmdk-stream", "vmdk", "subformat=streamOptimized,zeroed_grain=on"),
];
