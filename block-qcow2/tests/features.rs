//! What the features `zlib`, `zstd` and `io-uring` change: with one it works, without it an error names it.
//!
//! The tests hold in every combination of features; `cargo xtask features` runs them in each.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::Arc;

use block_core::driver::BlockDriver;
use block_core::error::Problem;
use block_core::io::{Engine, exec::block_on};
use block_core::proto::file::FileFactory;
use block_core::registry::{DriverFactory, OpenContext};
use block_core::{Alignment, ByteRange, Error, IoBuf, Node, OpenError, OpenFlags};
use block_core::{Options, Registry, RequestFlags};
use block_qcow2::Qcow2Factory;
use block_qcow2::compress::{Encoding, Window};
use block_qcow2::spec::header;
use block_testkit::disk::mem::{MemConfig, MemDisk};
use block_testkit::given::{Given, NoFiles};
use block_testkit::naive::qcow2::Compression;
use block_testkit::naive::qcow2::make::{Cluster, Shape};

const NO_ZLIB: Error = Error::NotBuilt { feature: "zlib" };
const NO_ZSTD: Error = Error::NotBuilt { feature: "zstd" };
const CLUSTER: u64 = 65536;

fn zlib() -> bool {
    cfg!(feature = "zlib")
}

fn zstd() -> bool {
    cfg!(feature = "zstd")
}

fn io_uring() -> bool {
    cfg!(feature = "io-uring")
}

/// A disk of three clusters: of fives, compressed sixes, and nothing.
fn image(compression: Compression) -> Arc<MemDisk> {
    let mut shape = Shape::new(3 * CLUSTER);
    shape.compression = compression;
    let filled = |byte| vec![byte; 65536];
    let clusters =
        BTreeMap::from([(0, Cluster::Data(filled(5))), (1, Cluster::Compressed(filled(6)))]);
    MemConfig::file().holding(&shape.make(&clusters, None).file)
}

async fn open(
    image: &Arc<MemDisk>,
    flags: OpenFlags,
    option: Option<(&str, &str)>,
) -> Result<Node, OpenError> {
    let driver: Arc<dyn BlockDriver> = image.clone();
    let registry = Registry::new().with(Qcow2Factory).with(NoFiles).with(Given("given", driver));
    let mut options = Options::new().with("driver", "qcow2").with("file.driver", "given");
    if let Some((name, value)) = option {
        options.set(name, value);
    }
    OpenContext::new(Arc::new(registry), flags).open(options).await
}

/// The first byte of a cluster, read with the rest of it.
async fn read(disk: &Node, cluster: u64) -> Result<u8, Error> {
    let buf = IoBuf::zeroed(65536, Alignment::PAGE)?;
    disk.read(ByteRange::new(cluster * CLUSTER, CLUSTER)?, buf.clone().into()).await?;
    Ok(buf.to_vec()[0])
}

async fn write(disk: &Node, cluster: u64, flags: RequestFlags) -> Result<(), Error> {
    let buf = IoBuf::zeroed(65536, Alignment::PAGE)?;
    buf.fill(7);
    disk.write(ByteRange::new(cluster * CLUSTER, CLUSTER)?, buf.into(), flags).await
}

#[test]
fn without_zlib_only_compressed_clusters_of_a_deflate_image_are_refused() {
    block_on(async {
        let image = image(Compression::Zlib);
        let disk = open(&image, OpenFlags::READ_WRITE, None).await.unwrap();
        let expect = |value| if zlib() { Ok(value) } else { Err(NO_ZLIB) };
        assert_eq!(read(&disk, 0).await, Ok(5));
        assert_eq!(read(&disk, 1).await, expect(6));
        let compressed = write(&disk, 2, RequestFlags::COMPRESSED).await;
        assert_eq!(compressed.map(|()| 0), expect(0));
        // Nor does a refusal harm anything: the rest of the image is served, and it is not corrupt.
        write(&disk, 2, RequestFlags::empty()).await.unwrap();
        assert_eq!(read(&disk, 2).await, Ok(7));
        // A part of the compressed cluster cannot be replaced, all of it can.
        let part = IoBuf::zeroed(512, Alignment::PAGE).unwrap();
        let range = ByteRange::new(CLUSTER + 512, 512).unwrap();
        let replaced = disk.write(range, part.into(), RequestFlags::empty()).await;
        assert_eq!(replaced.map(|()| 0), expect(0));
        write(&disk, 1, RequestFlags::empty()).await.unwrap();
        assert_eq!(read(&disk, 1).await, Ok(7));
        block_core::graph::close(&disk).await.unwrap();
    });
}

#[test]
fn without_zlib_a_level_for_it_is_refused() {
    block_on(async {
        let image = image(Compression::Zlib);
        let level = Some(("compression-level", "9"));
        let opened = open(&image, OpenFlags::READ_WRITE, level).await;
        match opened.map(drop) {
            Ok(()) => assert!(zlib()),
            Err(error) => {
                assert!(!zlib());
                assert!(error.to_string().contains("`zlib`"), "{error}");
            }
        }
    });
    let encoding = Encoding::new(header::Compression::Deflate, None, Window::Small);
    assert_eq!(encoding.err(), (!zlib()).then_some(Problem::NotBuilt("zlib")));
}

#[test]
fn without_zstd_a_zstd_image_is_refused_when_it_is_opened() {
    block_on(async {
        let image = image(Compression::Zstd);
        match open(&image, OpenFlags::READ_ONLY, None).await {
            Ok(disk) => {
                assert!(zstd());
                assert_eq!((read(&disk, 0).await, read(&disk, 1).await), (Ok(5), Ok(6)));
            }
            Err(error) => {
                assert!(!zstd());
                let problem = Problem::NotBuilt("zstd");
                let (format, field, value) = ("qcow2", "compression type", 1);
                assert_eq!(error, OpenError::Field { format, field, value, problem });
                assert!(error.to_string().contains("`zstd`"), "{error}");
            }
        }
        // What it says of itself needs no decoder.
        let flags = OpenFlags { no_io: true, ..OpenFlags::READ_ONLY };
        let disk = open(&image, flags, None).await.unwrap();
        assert_eq!(disk.len(), 3 * CLUSTER);
    });
}

#[test]
fn without_zstd_no_zstd_image_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let options = Options::filename(path.to_str().unwrap()).with("size", "1M");
    let context = OpenContext::new(
        Arc::new(Registry::new().with(Qcow2Factory).with(FileFactory)),
        OpenFlags::READ_WRITE,
    );
    let make = |options| block_on(Qcow2Factory.create(options, context.clone()));
    let made = make(options.clone().with("compression_type", "zstd"));
    assert_eq!(made.is_ok(), zstd(), "{made:?}");
    if let Err(error) = made {
        assert!(error.to_string().contains("`zstd`"), "{error}");
        assert!(!path.exists(), "it was begun");
    }
    let encoding = Encoding::new(header::Compression::Zstd, None, Window::Small);
    assert_eq!(encoding.err(), (!zstd()).then_some(Problem::NotBuilt("zstd")));
    make(options).unwrap();
}

#[test]
fn the_methods_that_are_not_built_name_their_features() {
    use header::Compression::{Deflate, Zstd};
    assert_eq!(Deflate.missing_feature(), (!zlib()).then_some("zlib"));
    assert_eq!(Zstd.missing_feature(), (!zstd()).then_some("zstd"));
    let mut codec = block_qcow2::compress::codec::Codec::new();
    for (method, built, missing) in [(Deflate, zlib(), NO_ZLIB), (Zstd, zstd(), NO_ZSTD)] {
        let error = codec.inflate(method, &[], &mut [0; 512]).unwrap_err();
        assert_eq!(error == missing, !built, "{method:?}: {error}");
    }
}

#[test]
fn without_io_uring_an_image_file_works_and_asking_for_it_is_refused() {
    assert_eq!(Engine::IoUring.is_built(), io_uring());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let path = path.to_str().unwrap();
    let registry = Arc::new(Registry::new().with(Qcow2Factory).with(FileFactory));
    let context = OpenContext::new(registry, OpenFlags::READ_WRITE);
    block_on(async {
        Qcow2Factory
            .create(Options::filename(path).with("size", "1M"), context.clone())
            .await
            .unwrap();
        let options = Options::filename(path).with("driver", "qcow2");
        let disk = context.open(options.clone()).await.unwrap();
        write(&disk, 2, RequestFlags::FUA).await.unwrap();
        assert_eq!(read(&disk, 2).await, Ok(7));
        block_core::graph::close(&disk).await.unwrap();
        let opened = context.open(options.with("file.aio", "io_uring")).await;
        if Engine::IoUring.is_available() {
            assert!(io_uring());
            block_core::graph::close(&opened.unwrap()).await.unwrap();
        } else {
            let text = opened.map(drop).unwrap_err().to_string();
            assert_eq!(text.contains("`io-uring`"), !io_uring(), "{text}");
        }
    });
}
