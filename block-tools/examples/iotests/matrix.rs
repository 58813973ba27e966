//! What a scenario can run on: formats with the options of their creation, protocols, caches, and which
//! of them go together.

use block_testkit::scenario::Tags;

/// A format in one of its shapes.
#[derive(Debug)]
pub(crate) struct Format {
    /// Its name here: `qcow2-v2`.
    pub(crate) name: &'static str,
    /// Name of its driver.
    pub(crate) driver: &'static str,
    /// Options that its images are made with.
    pub(crate) options: &'static str,
    /// What it can do, for scenarios to ask for.
    pub(crate) tags: &'static str,
}

/// Where the files are.
#[derive(Debug)]
pub(crate) struct Protocol {
    /// Its name here: `iscsi-thin`.
    pub(crate) name: &'static str,
    /// What the name is one of, if it is.
    pub(crate) family: &'static str,
    /// How its images can be opened.
    pub(crate) caches: &'static [Cache],
    /// The formats, by name or driver, that it is used with; empty: all.
    pub(crate) formats: &'static [&'static str],
}

/// How an image is opened.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Its name here.
    pub(crate) name: &'static str,
    /// The cache mode, as `-t` names it.
    pub(crate) mode: &'static str,
    /// The way of doing I/O, as `-i` names it.
    pub(crate) aio: Option<&'static str>,
}

/// One of each.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Config {
    pub(crate) format: &'static Format,
    pub(crate) protocol: &'static Protocol,
    pub(crate) cache: &'static Cache,
}

impl Config {
    /// All that go together.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let pairs = FORMATS.iter().flat_map(|format| PROTOCOLS.iter().map(move |p| (format, p)));
        let pairs = pairs.filter(|(format, protocol)| {
            let of = [format.name, format.driver];
            protocol.formats.is_empty() || protocol.formats.iter().any(|name| of.contains(name))
        });
        pairs.flat_map(|(format, protocol)| {
            protocol.caches.iter().map(move |cache| Self { format, protocol, cache })
        })
    }

    /// What is known of it.
    pub(crate) fn tags(&self) -> Tags {
        let Self { format, protocol, cache } = self;
        let own = [format.name, format.driver, protocol.name, protocol.family, cache.name];
        own.into_iter().chain(format.tags.split_whitespace()).map(str::to_owned).collect()
    }

    /// Whether it is one of the few that `--quick` runs: the first shape of each driver and protocol, or
    /// a shape of a format in memory.
    pub(crate) fn is_quick(&self) -> bool {
        let first = FORMATS.iter().find(|format| format.driver == self.format.driver);
        let is_first = first.is_some_and(|format| format.name == self.format.name);
        let cache = self.protocol.caches.first().is_some_and(|cache| cache.name == self.cache.name);
        cache && (is_first || self.protocol.name == "memory")
    }
}

impl std::fmt::Display for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.format.name, self.protocol.name, self.cache.name)
    }
}

const BUFFERED: Cache = Cache { name: "buffered", mode: "writeback", aio: None };
const DIRECT: Cache = Cache { name: "direct", mode: "none", aio: None };

/// In the order of the table at the end.
pub(crate) const PROTOCOLS: &[Protocol] = &[
    Protocol { name: "memory", family: "memory", caches: &[BUFFERED], formats: &[] },
    Protocol { name: "crash", family: "crash", caches: &[BUFFERED], formats: &[] },
    Protocol {
        name: "file",
        family: "file",
        caches: &[
            BUFFERED,
            DIRECT,
            Cache { name: "io_uring", mode: "writeback", aio: Some("io_uring") },
            Cache { name: "pool", mode: "writeback", aio: Some("threads") },
        ],
        formats: &[],
    },
    iscsi("iscsi-thin", &["raw", "qcow2-v3"]),
    iscsi("iscsi-thick", &["raw", "qcow2-v3"]),
    iscsi("iscsi-junk", &["raw"]),
    iscsi("iscsi-4k", &["raw"]),
];

const fn iscsi(name: &'static str, formats: &'static [&'static str]) -> Protocol {
    Protocol { name, family: "iscsi", caches: &[BUFFERED, DIRECT], formats }
}

/// The first one of each driver is the one that `--quick` runs everywhere.
pub(crate) const FORMATS: &[Format] = &[
    format("raw", "raw", "", "flat"),
    qcow2("qcow2-v3", "", "backing v3 zeroes bitmaps snapshots compressed 64k 16-bit zlib"),
    qcow2("qcow2-v2", "compat=0.10", "backing snapshots compressed 64k 16-bit zlib"),
    qcow2(
        "qcow2-extl2",
        "extended_l2=on",
        "backing v3 zeroes bitmaps snapshots compressed subclusters 64k 16-bit zlib",
    ),
    qcow2(
        "qcow2-512",
        "cluster_size=512",
        "backing v3 zeroes bitmaps snapshots compressed 16-bit zlib",
    ),
    qcow2(
        "qcow2-4k",
        "cluster_size=4096",
        "backing v3 zeroes bitmaps snapshots compressed 16-bit zlib",
    ),
    qcow2(
        "qcow2-2m",
        "cluster_size=2M",
        "backing v3 zeroes bitmaps snapshots compressed 16-bit zlib",
    ),
    qcow2("qcow2-rc1", "refcount_bits=1", "backing v3 zeroes 64k zlib"),
    qcow2(
        "qcow2-rc8",
        "refcount_bits=8",
        "backing v3 zeroes bitmaps snapshots compressed 64k zlib",
    ),
    qcow2(
        "qcow2-rc64",
        "refcount_bits=64",
        "backing v3 zeroes bitmaps snapshots compressed 64k zlib",
    ),
    qcow2(
        "qcow2-zstd",
        "compression_type=zstd",
        "backing v3 zeroes bitmaps snapshots compressed 64k 16-bit zstd",
    ),
    qcow2(
        "qcow2-lazy",
        "lazy_refcounts=on",
        "backing v3 zeroes snapshots compressed 64k 16-bit zlib lazy",
    ),
    qcow2("qcow2-data", "data_file=$NAME.data", "backing v3 zeroes 64k 16-bit data-file"),
    vmdk("vmdk-sparse", "subformat=monolithicSparse", "backing sparse 64k one-file"),
    vmdk(
        "vmdk-zeroed",
        "subformat=monolithicSparse,zeroed_grain=on",
        "backing sparse zeroes 64k one-file",
    ),
    vmdk("vmdk-split", "subformat=twoGbMaxExtentSparse", "backing sparse 64k"),
    vmdk("vmdk-flat", "subformat=monolithicFlat", "flat"),
    vmdk("vmdk-split-flat", "subformat=twoGbMaxExtentFlat", "flat"),
    vmdk("vmdk-stream", "subformat=streamOptimized", "stream one-file"),
    vmdk("vmdk-vmfs", "subformat=vmfs", "flat"),
    vmdk("vmdk-cowd", "subformat=vmfsSparse", "backing sparse cowd"),
];

const fn format(
    name: &'static str,
    driver: &'static str,
    options: &'static str,
    tags: &'static str,
) -> Format {
    Format { name, driver, options, tags }
}

const fn qcow2(name: &'static str, options: &'static str, tags: &'static str) -> Format {
    format(name, "qcow2", options, tags)
}

const fn vmdk(name: &'static str, options: &'static str, tags: &'static str) -> Format {
    format(name, "vmdk", options, tags)
}

impl Format {
    /// Whether its images can be checked.
    pub(crate) fn checks(&self) -> bool {
        self.driver != "raw"
    }
}
