//! `block-io` on units.

use block_testkit::iscsi::LunConfig;

use super::{BLOCK_IO, MIB, Place, UNMAP, WRITE, WRITE_SAME, count, thin};

#[test]
fn requests_of_every_kind_reach_the_unit_as_their_command() {
    let place = Place::new(&[thin(8)]);
    let url = place.url(0);
    let io = |commands: &[&str]| {
        place.counted();
        place.io(&["-f", "raw", "-d", "unmap", &url], commands);
        place.counted()
    };
    let counters = io(&["write -P 3 1M 64k", "read -P 3 1M 64k", "flush"]);
    assert_eq!((count(&counters, &WRITE), counters.data_out), (1, 65536), "{counters:?}");
    assert!(place.server.with(|target| target.device().is_mapped(0, 2048)));
    // A part of a block is read, changed and written as a whole.
    io(&["write -P 4 1048676 100", "read -P 3 1M 100", "read -P 4 1048676 100"]);
    let counters = io(&["write -z 2M 1M", "read -P 0 2M 1M"]);
    assert_eq!(count(&counters, &WRITE), 0, "{counters:?}");
    assert!(count(&counters, &WRITE_SAME) > 0, "{counters:?}");
    let counters = io(&["discard 0 8M"]);
    assert_eq!((count(&counters, &UNMAP), counters.data_out), (1, 24), "{counters:?}");
    assert_eq!(place.mapped(0, 8), [] as [u64; 0]);
    io(&["write -z -u 3M 1M", "writev -P 1 5M 4k 8k", "aio_write -P 2 6M 1M", "aio_flush"]);
    io(&["read -P 0 3M 1M", "readv -P 1 5M 4k 8k", "aio_read -P 2 6M 1M", "aio_flush"]);
}

#[test]
fn a_unit_is_opened_reopened_and_told_of() {
    let place = Place::new(&[LunConfig::thin(4096, 8 * MIB / 4096)]);
    let url = place.url(0);
    assert_eq!(place.io(&["-f", "raw", &url], &["length"]), "8 MiB\n");
    let commands = ["write -P 1 0 4k", "reopen -r", "read -P 1 0 4k", "reopen -w", "write 0 4k"];
    place.io(&["-f", "raw", &url], &commands);
    let open = format!("open -o driver=raw,file.driver=iscsi,file.filename={url}");
    place.io(&[], &[&open, "read -P 0xcd 0 4k", "close"]);
    let ended = place.run_with(BLOCK_IO, &[], &["-r", "-f", "raw", &url, "-c", "write 0 4k"]);
    assert_eq!(ended.status, 1, "{ended:?}");
    let map = place.io(&["-f", "raw", &url], &["write -P 1 4M 64k", "map"]);
    assert!(map.contains("8 MiB"), "{map}");
}
