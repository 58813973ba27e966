//! Options as users write them: `json:`, `--image-opts`, and what drivers make of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_core::filter::blkdebug::BlkdebugFactory;
use block_core::filter::blkverify::BlkverifyFactory;
use block_core::filter::compress::CompressFactory;
use block_core::filter::copy_on_read::CopyOnReadFactory;
use block_core::format::raw::RawFactory;
use block_core::options::parse_size;
use block_core::proto::mem::MemFactory;
use block_core::proto::null::{NullAioFactory, NullFactory};
use block_core::registry::OpenContext;
use block_core::{OpenFlags, Options, Registry, graph};
use block_qcow2::Qcow2Factory;
use block_testkit::fuzz::{Bytes, Target, look_at};
use block_testkit::given::NoFiles;
use block_tools::open::block_on;
use block_tools::spec::{MAX_NAME_BYTES, image_opts, json, shown};
use block_vmdk::VmdkFactory;

pub const OPTIONS: Target =
    Target { name: "tools-options", body: options, seeds: texts, max_len: 2048 };

fn texts() -> Vec<Vec<u8>> {
    let texts = [
        "0{'driver': 'raw', 'file': {'driver': 'mem', 'size': 65536}, 'offset': 512, 'size': 4096}",
        "0{\"driver\":\"qcow2\",\"file\":{\"driver\":\"null-co\",\"size\":\"1M\"},\"backing\":null}",
        "0{'driver':'blkdebug','image':{'driver':'mem','size':4096},'inject-error':[{'event':\
         'read_aio','errno':5}],'x':[1,true,-2.5e3,'\\u00e9\\ud83d\\ude00']}",
        "1driver=raw,file.driver=mem,file.size=64k,file.x=a,,b",
        "1driver=copy-on-read,file.driver=blkverify,file.test.driver=mem,file.test.size=1k,\
         file.raw.driver=mem,file.raw.size=1k",
        "1driver=compress,file.driver=qcow2,file.file.driver=mem",
        "2cluster_size=64k,size=1G,,x,preallocation=off",
        "3iscsi://user%secret@host/iqn.x/0",
        "4 1.5G",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Any text is options or an error. Options that are written again are the same; nodes that they open answer reads.
/// The first byte says which spelling it is.
fn options(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let how = bytes.byte();
    let text = String::from_utf8_lossy(bytes.rest());
    let parsed = match how % 8 {
        0 => json::parse(&text),
        1 => image_opts::parse(&text),
        2 => image_opts::parse_with_implied(&text, Some("name")),
        3 => {
            let shown_once = shown(&text);
            assert_eq!(shown(&shown_once), shown_once, "nothing is left to be hidden");
            return;
        }
        _ => {
            let _ = parse_size(&text);
            return;
        }
    };
    let Ok(options) = parsed else { return };
    let all: BTreeMap<_, _> = options.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    assert!(all.keys().all(|name| !name.is_empty() && name.len() <= MAX_NAME_BYTES));
    // A name that begins with a comma cannot stand behind another option.
    let can_be_written = !all.keys().any(|name| name.starts_with(','));
    if how % 8 == 1 && !all.is_empty() && can_be_written {
        let again = image_opts::parse(&written(&all)).expect("what was written again is read");
        let again: BTreeMap<_, _> =
            again.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        assert_eq!(again, all);
    }
    open(options);
}

/// The options as `--image-opts` has them.
fn written(all: &BTreeMap<String, String>) -> String {
    let pair = |(name, value): (&String, &String)| {
        format!("{}={}", name.replace(',', ",,"), value.replace(',', ",,"))
    };
    all.iter().map(pair).collect::<Vec<_>>().join(",")
}

/// Opens a node by them, of drivers that touch nothing of this machine.
fn open(options: Options) {
    let touches = ["filename", "config", "latency-ns"];
    if options.iter().any(|(name, _)| touches.iter().any(|word| name.ends_with(word))) {
        return;
    }
    let registry = Registry::new()
        .with(BlkdebugFactory)
        .with(BlkverifyFactory)
        .with(CompressFactory)
        .with(CopyOnReadFactory)
        .with(MemFactory)
        .with(NullAioFactory)
        .with(NullFactory)
        .with(NoFiles)
        .with(Qcow2Factory)
        .with(VmdkFactory)
        .with(RawFactory);
    let context = OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE);
    block_on(async {
        let Ok(node) = context.open(options).await else { return };
        look_at(&node).await;
        let _ = graph::close(&node).await;
    });
}
