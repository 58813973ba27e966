//! Options for new images (`-o`): an image is refused before a byte changes, or it opens and is clean.

use std::sync::Arc;

use block_core::ability::Repair;
use block_core::format::raw::RawFactory;
use block_core::proto::mem::MemDriver;
use block_core::registry::{DriverFactory, OpenContext};
use block_core::{BlockDriver, OpenFlags, Options, Registry, graph};
use block_qcow2::Qcow2Factory;
use block_testkit::fuzz::{Bytes, Target};
use block_testkit::given::{Given, NoFiles};
use block_tools::open::block_on;
use block_tools::spec::image_opts;
use block_vmdk::VmdkFactory;

pub const CREATE: Target =
    Target { name: "tools-create", body: create, seeds: texts, max_len: 512 };

fn texts() -> Vec<Vec<u8>> {
    let texts = [
        "0size=1M,cluster_size=4096,refcount_bits=64,lazy_refcounts=on,compat=1.1",
        "0size=2M,cluster_size=65536,extended_l2=on,compression_type=zstd,preallocation=metadata",
        "0size=10000,compat=0.10,cluster_size=512",
        "1size=1048576,subformat=monolithicSparse,adapter_type=lsilogic,zeroed_grain=on",
        "1size=5000000,hwversion=10,compat6=on",
        "1size=1048576,subformat=streamOptimized",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn create(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let (name, factory): (&str, Arc<dyn DriverFactory>) = match bytes.byte() % 2 {
        0 => ("qcow2", Arc::new(Qcow2Factory)),
        _ => ("vmdk", Arc::new(VmdkFactory)),
    };
    let text = String::from_utf8_lossy(bytes.rest());
    let Ok(mut options) = image_opts::parse(&text) else { return };
    // Neither other files, nor disks that are too long for a test.
    let others = ["backing", "data_file", "file", "preallocation"];
    if options
        .iter()
        .any(|(name, value)| others.iter().any(|o| name.starts_with(o)) && value != "metadata")
    {
        return;
    }
    let size = options.peek("size").and_then(block_core::options::parse_size);
    if size.is_none_or(|size| size > 64 << 20) {
        return;
    }
    options.set("size", size.unwrap_or_default().to_string());
    let disk = Arc::new(MemDriver::from_bytes(&[]).expect("memory"));
    let below: Arc<dyn BlockDriver> = disk.clone();
    let registry = Registry::new()
        .with(Qcow2Factory)
        .with(VmdkFactory)
        .with(RawFactory)
        .with(NoFiles)
        .with(Given("given", below));
    let registry = Arc::new(registry);
    let context = OpenContext::new(Arc::clone(&registry), OpenFlags::READ_WRITE);
    // Not every subformat is written to again.
    let reading = OpenContext::new(registry, OpenFlags::READ_ONLY);
    options.set("file.driver", "given");
    block_on(async {
        if factory.create(options, context).await.is_err() {
            return;
        }
        let opening = Options::new().with("driver", name).with("file.driver", "given");
        let node = reading.open(opening).await.expect("what was made opens");
        assert!(node.len() >= size.unwrap_or_default(), "it is shorter than was asked for");
        if let Some(check) = node.driver().as_check() {
            let report =
                check.check(Repair::Nothing, Arc::new(|_| ())).await.expect("it can be checked");
            assert_eq!((report.corruptions, report.check_errors), (0, 0));
        }
        graph::close(&node).await.expect("it can be closed");
    });
}
