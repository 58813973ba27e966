//! Configurations of `blkdebug`: any text is taken or refused, and a node that opens answers requests.

use std::io::Write;
use std::sync::Arc;

use block_core::filter::blkdebug::BlkdebugFactory;
use block_core::io::exec::block_on;
use block_core::options::OpenFlags;
use block_core::proto::mem::MemFactory;
use block_core::registry::OpenContext;
use block_core::{ByteRange, Options, Registry};
use block_testkit::fuzz::{Bytes, Target, noise, send};
use block_testkit::op::OpSpace;

pub const BLKDEBUG: Target =
    Target { name: "core-blkdebug", body: blkdebug, seeds: texts, max_len: 1024 };

fn texts() -> Vec<Vec<u8>> {
    let texts = [
        "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"2\"\nonce = \"on\"\n",
        "[set-state \"x\"]\nstate = \"1\"\nevent = \"write_aio\"\nnew_state = \"2\"\n\
         [inject-error]\nstate = \"2\"\nevent = \"flush_to_disk\"\niotype = \"write\"\n\
         immediately = \"off\"\n# a comment\n",
        "\0inject-error.0.event\0none\0inject-error.0.iotype\0write-zeroes\0align\x00512\0max-transfer\0\
         4096\0opt-write-zero\x008192\0max-discard\x001M\0",
        "\0set-state.3.event\0pwritev\0set-state.3.new_state\x007\0take-child-perms.0\0write\0",
    ];
    texts.iter().map(|text| [&[1, 2, 3, 4], text.as_bytes()].concat()).collect()
}

/// A configuration file; or, behind a zero byte, options and their values with zero bytes between.
fn blkdebug(input: &[u8]) {
    let bytes = &mut Bytes::new(input);
    let seed = bytes.u32();
    let mut options = Options::new().with("driver", "blkdebug");
    options.set("image.driver", "mem");
    options.set("image.size", "64k");
    let mut file = None;
    match bytes.rest().split_first() {
        Some((0, rest)) => {
            let text = String::from_utf8_lossy(rest).into_owned();
            let mut words = text.split('\0');
            while let (Some(name), Some(value)) = (words.next(), words.next()) {
                // Neither the node below nor files of this machine.
                if !["driver", "image", "config"].iter().any(|own| name.starts_with(own)) {
                    options.set(name, value);
                }
            }
        }
        _ => {
            let mut config = tempfile::NamedTempFile::new().expect("a file");
            config.write_all(bytes.rest()).expect("a file");
            options.set("config", config.path().to_str().expect("a path"));
            file = Some(config);
        }
    }
    let registry = Registry::new().with(BlkdebugFactory).with(MemFactory);
    let context = OpenContext::new(Arc::new(registry), OpenFlags::READ_WRITE);
    let opened = block_on(context.open(options));
    drop(file);
    let Ok(node) = opened else { return };
    let ops = OpSpace::new(ByteRange::up_to(node.len()).len(), &[512, 4096]);
    let ops = ops.decode(&mut Bytes::new(&noise(1, 80, seed.into())[0]), 10);
    block_on(send(&node, &ops));
}
