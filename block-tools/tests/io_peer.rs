//! `block-io` against the installed `qemu-io`: the same commands on copies of the same image give the
//! same standard output, but for timings and the wording of the help, and the same exit status.
//!
//! Set `QEMU_IO` and `QEMU_IMG` to use others than those in the path.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod io_support;

use std::path::Path;
use std::process::Command;

use io_support::{chain, check, check_written, feed, ran, raw, tool};
use tempfile::TempDir;

fn check_raw(script: &str) {
    check(raw, &["-f", "raw", "a.raw"], script);
}

#[test]
fn reads_and_writes_report_alike() {
    check_raw(
        "write 0 64k\nwrite -P 0x12 1000 500\nwrite -q 0 512\nwrite -C 0 4k\nread 0 64k\n\
         read -C 0 64k\nwrite -P 7 1k 1k\nread -v 1020 40\nread -v -C 998 17\nread -vq 0 20\n\
         read -P 7 1k 1k\nread -P 8 1k 1k\nread -qP8 1k 1k\nread -P 7 -s 24 1000 1048\n\
         read -P 7 -s 24 -l 2000 1000 1048\nread -P 7 -l 10 1000 10\nread -P 7 -s 2k 0 1k\n\
         read -s 1 0 512\nread 0 0\nwrite 0 0\nread 1M 0\nread 2M 0\nread 0 -q 1\nread -p 0 1k\n\
         write -f 0 4k\nwrite -r 0 4k\nread -r 0 4k\n\nread -- 0 1\nread  0 \t1k\n",
    );
}

#[test]
fn zeroes_discards_and_sources_report_alike() {
    check_raw(
        "write 0 1M\nwrite -z 0 64k\nwrite -z -u 64k 64k\nwrite -z -n 128k 4k\nwrite -znf 0 4k\n\
         write -z -f -u 0 4k\nwrite -z 5 7\nwrite -z 0 0\nread -P 0 0 128k\nread -v 0 16\n\
         discard 0 64k\ndiscard -q 0 64k\ndiscard -C 64k 64k\ndiscard 2M 1k\ndiscard 5 7\n\
         write -s bytes 512 1k\nread -v 512 700\nwrite -s bytes 0 16\nread -v 0 20\n\
         write -s nothing 0 1k\nwrite -s /dev/null 0 1k\nflush\nlength\n",
    );
}

#[test]
fn vectors_and_aio_report_alike() {
    check_raw(
        "writev 0 1k 2k 512\nwritev -P 5 512 1k 2k\nwritev 0 0\nreadv -v 500 16 17\n\
         readv -P 5 512 1k 2k\nreadv -P 6 512 1k\nreadv -C 0 1k 2k\nwritev -C 0 1k\n\
         writev -q 0 1k\nreadv 1M 512\nwritev 1M 512\nreadv 0 3G\nreadv 0 1G 1G 1G\n\
         aio_write -P 9 4k 4k 512\naio_flush\naio_read -P 9 4k 4k 512\naio_flush\n\
         aio_read -i 0 4k\naio_write -i -P 8 4k 4k\naio_write -i -z 0 4k\nread -P 9 4k 4k\n\
         aio_read -v 4090 20\naio_flush\naio_read -P 8 4k 1k\naio_flush\naio_read -C 0 1k\n\
         aio_flush\naio_write -z -u 4k 4k\naio_flush\nread -P 0 4k 4k\naio_read 2M 512\naio_flush\n\
         aio_write 2M 512\naio_flush\naio_write -z 2M 512\naio_flush\naio_write -q 0 512\n\
         aio_read -q 0 512\naio_flush\n",
    );
}

#[test]
fn zeroes_without_a_buffer_have_any_length() {
    check_raw(
        "truncate 3G\nwrite -P 3 2500M 1M\naio_write -z -u 0 2600M\naio_flush\nread -P 0 2500M 1M\n\
         aio_write -z 0 4G\naio_flush\naio_write -i -z 0 4G\naio_write -z 0 9E\naio_write -z 0 7E\n\
         aio_flush\naio_write 0 4G\naio_write -z abc 1\naio_write -z 0 abc\nwrite -z 0 2600M\n",
    );
}

#[test]
fn requests_that_are_left_running_are_reported_at_the_end() {
    let commands = ["-c", "aio_write 0 64k", "-c", "length"];
    check(raw, &[["-f", "raw"].as_slice(), &commands, &["a.raw"]].concat(), "");
    check_raw("aio_write 0 64k\nclose\nopen -r -o driver=raw a.raw\naio_read 0 4k\n");
}

#[test]
fn length_and_allocation_report_alike() {
    check_raw(
        "length\nmap\nalloc 0\nalloc 0 64k\nalloc 0 2M\nalloc 0 100\nalloc 2M\nalloc 2M 1k\n\
         alloc 5 512\nalloc abc\nalloc 0 abc\nalloc -1\ntruncate 2M\nlength\nmap\nread -P 0 1M 1M\n\
         truncate 1536k\nlength\ntruncate -m falloc 3M\ntruncate -m full 3585k\ntruncate -m off 1M\n\
         length\ntruncate -m bogus 3M\ntruncate -m full 512k\nlength\ntruncate abc\ntruncate -1\ninfo\nsleep 1\nsleep abc\nsleep\n\
         truncate 0\nmap\nalloc 0\nlength\n",
    );
}

#[test]
fn bad_arguments_are_refused_alike() {
    check_raw(
        "read\nread 0\nread 0 1 2\nread abc 5\nread 0 abc\nread -z 0 1\nread -1 5\nread -- -1 5\n\
         read -- -abc 5\nread 1.5 1\nread 1.5k 0.5k\nread .5k 1\nread 1.k 1\nread 0x10 010\n\
         read 0x1k 1\nread 0x 1\nread 1kk 1\nread 1e3 1\nread 9223372036854775808 1\nread 8E 1\n\
         read 9223372036854775807 1\nread 0 3G\nread 0 2147483136\nread 0 2147483137\nread 1000k 64k\n\
         write 1000k 64k\nwrite 0 3G\nwrite -z 0 3G\ndiscard 0 3G\nwrite -P 256 0 1\nwrite -P 1k 0 1\n\
         write -P 0x 0 1\nwrite -P 08 0 1\nwrite -P -1 0 1\nwrite -z -P 3 0 1\nwrite -u 0 1\n\
         write -n 0 1\nwrite -s bytes -P 3 0 1\nwrite -z -r 0 1\nwrite -c -f 0 512\nwrite -c 0 512\n\
         write -c 1 512\nwrite -c 0 100\nwrite -b -z 0 1\nwrite -b 0 512\nread -b 0 512\n\
         aio_write 0\naio_write -u 0 1\naio_write -z 0 1 1\naio_write -P 300 0 1\naio_read abc 1\n\
         aio_write 0 3G\nreadv 0 abc\nwritev 0\nflush 1\nlength 1\nmap 1\ndiscard 0\ndiscard abc 1\n\
         nosuch\nhelp nosuch\nhelp a b\n# a comment\n",
    );
}

#[test]
fn opening_and_reopening_report_alike() {
    check_raw(
        "open a.raw\nclose\nclose\nread 0 1k\nlength\nopen\nopen nothing\nopen -z a.raw\nopen a b\n\
         open -t bogus a.raw\nopen -d bogus a.raw\nopen -r -o driver=raw a.raw\nwrite 0 1k\n\
         discard 0 1k\ntruncate 1k\nread 0 1k\nreopen -w\nwrite 0 1k\nreopen -r\nwrite -z 0 1k\n\
         reopen -r -w\nreopen -c bogus\nreopen a\nreopen -w -c writethrough\nwrite 0 1k\n\
         reopen -o cache.no-flush=on\nflush\nreopen -o cache.no-flush=on -c unsafe\n\
         reopen -o bogus=1\nreopen -o driver=qcow2\nclose\nopen -o driver=null-co,size=3M\nlength\n\
         close\nopen -o driver=raw,offset=512,size=1k,file.filename=a.raw\nlength\nread 1k 1\nq\nread\n",
    );
}

#[test]
fn exit_statuses_agree() {
    let cases = [
        "length",
        "read 0 1k",
        "read -P 1 0 1k",
        "read 2M 1k",
        "nosuch",
        "read",
        "truncate -1",
        "quit",
        "alloc 2M",
        "aio_read 2M 1k",
        "aio_read -P 3 0 1k",
        "help",
        "",
        "sleep x",
    ];
    for case in cases {
        check(raw, &["-f", "raw", "-c", case, "-c", "length", "a.raw"], "");
    }
    check(raw, &["-f", "raw", "nothing"], "length\n");
    check(raw, &["-f", "bogus", "a.raw"], "length\n");
    check(raw, &["-t", "bogus", "a.raw"], "length\n");
    check(raw, &["--image-opts", "-f", "raw", "a.raw"], "length\n");
    check(raw, &["-f", "raw", "a.raw"], "length\nread 0 1k");
    check(raw, &[], "length\n");
}

#[test]
fn later_options_override_earlier_ones() {
    let args =
        ["--cache", "writeback", "--aio", "threads", "-f", "qcow2", "-f", "raw", "-t", "unsafe"];
    check(raw, &[args.as_slice(), &["-n", "-t", "writeback", "a.raw"]].concat(), "write 0 1k\n");
}

#[test]
fn names_with_options_open_alike() {
    let json = "json:{'driver':'raw','file':{'driver':'file','filename':'a.raw'}}";
    check(raw, &[json], "length\nwrite 0 512\n");
    check(raw, &["-f", "raw", "json:{'driver':'qcow2','file.filename':'a.raw'}"], "length\n");
    check(raw, &["json:{'driver':'raw',}"], "length\n");
    let options = "driver=raw,offset=1k,file.driver=file,file.filename=a.raw";
    check(raw, &["--image-opts", options], "length\nread 1047551 1\nread 1047552 1\n");
    check(raw, &["--image-opts", "-r", "driver=raw,file.filename=a,,b"], "length\n");
}

#[test]
fn misaligned_buffers_work_without_the_page_cache() {
    check(
        raw,
        &["-f", "raw", "-n", "-m", "a.raw"],
        "write -P 3 5 7000\nread -P 3 5 7000\nread 0 512\nwrite -z -n 5 0\nwrite -z -n 5 7\n",
    );
}

#[test]
fn a_qcow2_chain_reads_alike() {
    let script = "map\nalloc 0 4M\nalloc 0 1\nalloc 128k 1M\nalloc 3M 100000\ninfo\nlength\n\
        read 0 64k\nread -P 1 0 64k\nread -P 3 64k 64k\nread -P 2 1M 64k\nread -P 0 1M 64k\n\
        read -P 0xcd 3M 64k\nread -P 0xcd 3M 65k\nread -P 0 2M 1M\nread -v 65530 12\n\
        read -v 3145720 16\nreadv -P 3 64k 1k 2k 512\naio_read -P 1 0 1k\naio_flush\nread 4M 1\n\
        write 0 1k\naio_write 0 1k\ndiscard 0 1k\ntruncate 1M\nflush\nclose\nopen -r base.qcow2\n\
        map\nread -P 2 1M 64k\nclose\nopen -r -o driver=raw base.qcow2\nread -v 0 8\nclose\n\
        open -r -U -o driver=qcow2 base.qcow2\nread -P 1 5 513\ninfo\n";
    check(chain, &["-r", "top.qcow2"], script);
    check(chain, &["-r", "-f", "qcow2", "-c", "read -P 1 0 64k", "top.qcow2"], "");
    let json = "json:{'driver':'qcow2','file':{'driver':'file','filename':'top.qcow2'},\
        'backing':{'driver':'raw','file':{'driver':'file','filename':'base.qcow2'}}}";
    check(chain, &["-r", json], "read -v 0 8\nread -P 3 64k 64k\n");
    let options = "driver=qcow2,file.filename=top.qcow2,backing.driver=raw,backing.file.driver=file,\
        backing.file.filename=base.qcow2,backing.offset=64k";
    check(chain, &["--image-opts", "-r", options], "read -P 3 64k 64k\nread -v 0 16\n");
}

#[test]
fn a_qcow2_chain_is_written_alike() {
    let top = |script: &str| check_written(chain, &["top.qcow2"], script, &["top.qcow2"]);
    top("write -P 9 0 64k\nwrite -P 8 100k 300k\nwrite -P 7 1000k 100k\nread -P 9 0 64k\n\
         read -P 7 1000k 100k\nread -P 0 1100k 64k\nwrite -P 6 3M 1k\nread -P 0xcd 3073k 63k\n\
         writev -P 5 2M 1k 2k 512\naio_write -P 4 2100k 64k\naio_flush\nmap\nalloc 0 4M\nflush\n\
         write -f -P 3 3500k 64k\nwrite -P 2 4095k 1k\nwrite 4M 1\nlength\n");
    top("write -z 0 64k\nwrite -z -u 1M 64k\nwrite -z -u -n 2M 1M\nwrite -z -n 192k 64k\n\
         write -z 1000 5000\nwrite -z -n 70k 1k\nread -P 0 1000 5000\nread -P 0 2M 1M\n\
         aio_write -z -u 3M 64k\naio_flush\nread -P 0 3M 64k\nmap\nalloc 0 4M\n");
    top("discard 0 128k\ndiscard -C 1M 64k\ndiscard -q 3M 64k\ndiscard 5 7\ndiscard 4M 1k\n\
         read -P 0 64k 64k\nread -P 0 3M 64k\nwrite -P 5 64k 64k\nread -P 5 64k 64k\nmap\n");
    top("truncate 5M\nlength\nread -P 0 4M 1M\nwrite -P 5 4M 1M\ntruncate 4500k\nlength\n\
         truncate 1M\nlength\nmap\ntruncate 3M\nread -P 0 1M 2M\ntruncate -m bogus 4M\n\
         truncate -m metadata 4M\nlength\nread -P 0 1M 3M\ninfo\n");
    top("write -P 5 0 64k\nreopen -r\nwrite 0 1k\nread -P 5 0 64k\nreopen -w\nwrite -P 6 0 1k\n\
         reopen -c unsafe\nwrite -P 7 1k 1k\nreopen -c writethrough\nwrite -P 8 2k 1k\nflush\n\
         read -P 6 0 1k\nread -P 7 1k 1k\nread -P 8 2k 1k\n");
    let script = "reopen -w\nwrite -P 5 0 64k\nreopen -r\nwrite 0 1k\nread -P 5 0 64k\n\
        reopen -w -c unsafe\nwrite -P 6 0 1k\nread -P 6 0 1k\n";
    check_written(chain, &["-r", "top.qcow2"], script, &["top.qcow2"]);
    for mode in ["none", "directsync", "writethrough", "unsafe"] {
        let script = "write -P 5 3 70000\nwrite -z 128k 100\nread -P 5 3 70000\nflush\n";
        check_written(chain, &["-t", mode, "-m", "top.qcow2"], script, &["top.qcow2"]);
    }
    let script = "write -P 5 0 64k\ndiscard 0 64k\nread -P 5 0 64k\nread -P 0 0 64k\nmap\n";
    for mode in ["ignore", "unmap"] {
        check_written(chain, &["-d", mode, "top.qcow2"], script, &["top.qcow2"]);
    }
}

/// An empty image of 15 clusters and a part of one.
fn ragged(dir: &Path) {
    let args = ["create", "-q", "-f", "qcow2", "a.qcow2", "1000448"];
    let made = feed(tool("QEMU_IMG", "qemu-img"), dir, &args, "", "qemu-img");
    assert!(made.status.success(), "{made:?}");
    let args = ["create", "-q", "-f", "qcow2", "whole.qcow2", "1M"];
    let made = feed(tool("QEMU_IMG", "qemu-img"), dir, &args, "", "qemu-img");
    assert!(made.status.success(), "{made:?}");
    std::fs::write(dir.join("a.raw"), vec![0; 1 << 20]).unwrap();
}

#[test]
fn compressed_writes_are_whole_clusters() {
    // A cluster that is compressed already is written once more here, and refused by qemu-io.
    let script = "write -c -P 3 0 64k\nwrite -c -P 4 64k 128k\nwrite -c 256k 32k\n\
        write -c 66048 64k\nwrite -c 256k 512\nwrite -c 256k 65024\nwrite -c -P 5 960k 17408\n\
        write -c 960k 16896\nwrite -c 960k 64k\nwrite -c 1M 64k\nwrite -c 0 100\n\
        write -c 100 512\nwrite -c 0 0\nwrite -c 512 0\nwrite -c -z 320k 64k\nwrite -c -z 320k 512\n\
        write -c -z 0 100\nwrite -c -z -u 384k 64k\nwrite -c -z -n 448k 64k\nwrite -c -n 0 64k\n\
        write -c -f 0 64k\nwrite -c -C 512k 64k\nwrite -c -q 576k 64k\nwrite -c -q 0 100\n\
        write -c -r -P 6 640k 64k\naio_flush\nread -P 3 0 64k\nread -P 4 64k 128k\n\
        read -P 5 960k 17408\nread -P 6 640k 64k\nread -P 0 320k 64k\nmap\nlength\nflush\n\
        write -P 7 1000 70000\nread -P 7 1000 70000\nread -P 4 71000 100\n";
    for args in [&["a.qcow2"][..], &["-t", "writethrough", "a.qcow2"], &["-n", "a.qcow2"]] {
        check_written(ragged, args, script, &["a.qcow2"]);
    }
    let script = "write -c 0 64k\nwrite -c 0 512\nwrite -c 0 0\nwrite -c -z 0 64k\nwrite -c 1M 64k\n\
        write -c 0 100\nwrite -c\nwrite -c 0\nwrite -c abc 1\n";
    check(ragged, &["-f", "raw", "a.raw"], script);
    check(ragged, &["-r", "a.qcow2"], script);
    for line in ["write -c 0 64k", "write -c 0 32k", "write -c 0 100", "write -c -z 0 64k"] {
        check(ragged, &["-c", line, "a.qcow2"], "");
    }
}

#[test]
fn the_compress_filter_makes_whole_clusters_of_any_write() {
    let driver = "driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename=";
    let whole = format!("{driver}whole.qcow2");
    let script = "write -P 5 5 7\nread -P 5 5 7\nread -P 0 12 65524\n\
        write -P 6 960k 64k\nwrite -z 320k 64k\nwrite -z 448k 512\nmap\nlength\n\
        write 1M 1\nflush\n";
    check_written(ragged, &["--image-opts", &whole], script, &["whole.qcow2"]);
    let json = "json:{'driver':'compress','file':{'driver':'qcow2','file':\
        {'driver':'file','filename':'whole.qcow2'}}}";
    check_written(ragged, &[json], "write -P 5 5 7\nread -P 5 5 7\nmap\n", &["whole.qcow2"]);
    let raw = "driver=compress,file.driver=raw,file.file.driver=file,file.file.filename=a.raw";
    check(ragged, &["--image-opts", raw], "length\n");
    check(ragged, &["-r", "--image-opts", &whole], "length\nread -P 0 5 7\nwrite 0 1\n");

    // A disk that ends inside of a cluster, which qemu-io does not open so, written over and over.
    let dir = TempDir::new().unwrap();
    ragged(dir.path());
    let args = ["-i", "threads", "--image-opts", &format!("{driver}a.qcow2")];
    let script = "write -P 1 900k 78848\nwrite -P 2 999000 1448\nwrite -P 3 0 1000448\nwrite -P 4 5 7\n\
        write -z 999999 449\nread -P 4 5 7\nread -P 3 12 999987\nread -P 0 999999 449\nwrite 999999 450\n";
    let command = Command::new(env!("CARGO_BIN_EXE_block-io"));
    let output = feed(command, dir.path(), &args, script, "block-io");
    let ran = ran(&output);
    let bad = ran.lines.iter().filter(|line| line.contains("failed")).count();
    assert_eq!(bad, 1, "{:?} {}", ran.lines, ran.stderr);
    let img = |args: &[&str]| feed(tool("QEMU_IMG", "qemu-img"), dir.path(), args, "", "qemu-img");
    assert!(img(&["check", "-q", "a.qcow2"]).status.success());
    let map = String::from_utf8(img(&["map", "--output=json", "a.qcow2"]).stdout).unwrap();
    assert!(map.contains("\"length\": 1000448") && map.contains("\"compressed\": true"), "{map}");
}

#[test]
fn a_temporary_overlay_takes_the_writes() {
    let script = "write -P 9 0 64k\nwrite -z 1M 64k\nread -P 9 0 64k\nread -P 3 64k 64k\n\
        read -P 0 1M 64k\nlength\nflush\nclose\nopen -s top.qcow2\nread -P 1 0 64k\nwrite 0 1k\n\
        close\nopen top.qcow2\nread -P 1 0 64k\n";
    check_written(chain, &["-s", "top.qcow2"], script, &["top.qcow2", "base.qcow2"]);
    check_written(chain, &["-s", "-f", "qcow2", "-n", "top.qcow2"], "write 0 1k\n", &["top.qcow2"]);
    check_written(chain, &["-s", "-r", "top.qcow2"], "write 0 1k\n", &["top.qcow2"]);
    let images = ["base.qcow2"];
    check_written(chain, &["-s", "-f", "raw", "top.qcow2"], "write 0 1k\nread 0 1k\n", &images);
    check_written(chain, &["-s", "missing"], "length\n", &images);
}

#[test]
fn the_overlay_leaves_no_file() {
    let dir = TempDir::new().unwrap();
    chain(dir.path());
    let overlays = TempDir::new().unwrap();
    let before = std::fs::read(dir.path().join("top.qcow2")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_block-io"));
    command.env("TMPDIR", overlays.path());
    let args = ["-s", "-c", "write -P 9 0 3M", "-c", "read -P 9 0 3M", "top.qcow2"];
    let output = feed(command, dir.path(), &args, "", "block-io");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read_dir(overlays.path()).unwrap().count(), 0);
    assert!(std::fs::read(dir.path().join("top.qcow2")).unwrap() == before);
}
